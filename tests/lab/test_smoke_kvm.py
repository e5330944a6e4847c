"""The KVM flavour is what it claims to be, and its command channel tells the truth."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab.errors import CommandFailed, LabDied
from tests.lab.guests import Guest
from tests.lab.vm import Lab


@pytest.fixture(scope="module")
def guest(kvm_lab: Lab) -> Iterator[Guest]:
    """A running domain with two thin disks."""
    with Guest(kvm_lab, "smoke", "--disks", "2") as guest:
        yield guest


@pytest.mark.parametrize("status", [0, 1, 2, 77, 126, 127, 128, 200, 255])
def test_exit_status_is_carried(kvm_lab: Lab, status: int) -> None:
    assert kvm_lab.run(f"exit {status}", timeout_seconds=20).status == status


def test_death_by_signal_is_minus_its_number(kvm_lab: Lab) -> None:
    done = kvm_lab.run("kill -TERM $$", timeout_seconds=20)
    assert (done.status, done.timed_out) == (-signal.SIGTERM, False)


def test_unknown_command_is_127_and_says_so(kvm_lab: Lab) -> None:
    done = kvm_lab.run(["no-such-command"], timeout_seconds=20)
    assert done.status == 127
    assert "no-such-command" in done.stderr


def test_help_has_no_marks_for_rich(kvm_lab: Lab) -> None:
    """Debian's Typer escapes a bracket for rich as soon as rich can be imported."""
    done = kvm_lab.run(["snapvm", "prune", "--help"], timeout_seconds=60, check=True)
    assert "Keep the newest N.  [x>=0]" in done.stdout


def test_large_binary_output_is_exact_and_apart_from_errors(kvm_lab: Lab) -> None:
    data = os.urandom(5 << 20)
    done = kvm_lab.run("cat; printf 'caf\\303\\251 \\377' >&2", timeout_seconds=90, input=data)
    assert done.stdout_bytes == data
    assert done.stderr_bytes == b"caf\xc3\xa9 \xff"


def test_environment_and_input_arrive(kvm_lab: Lab) -> None:
    script = 'read line; echo "$line $WORD"'
    done = kvm_lab.run(script, timeout_seconds=20, input="a\n", env={"WORD": "b"})
    assert done.stdout == "a b\n"


def test_command_that_takes_too_long_is_killed_with_its_children(kvm_lab: Lab) -> None:
    done = kvm_lab.run("sleep 301 & echo $!; wait", timeout_seconds=2)
    assert done.timed_out
    assert done.status == -signal.SIGKILL
    gone = kvm_lab.run(f"! kill -0 {done.stdout.strip()}", timeout_seconds=20)
    assert gone.status == 0


def test_check_raises_with_the_output(kvm_lab: Lab) -> None:
    with pytest.raises(CommandFailed, match="why it failed"):
        kvm_lab.run("echo why it failed >&2; exit 3", timeout_seconds=20, check=True)


def test_background_command_can_be_signalled(kvm_lab: Lab) -> None:
    remote = kvm_lab.start("sleep 302", timeout_seconds=60)
    assert remote.wait_started() > 1
    assert remote.running
    remote.signal(signal.SIGTERM)
    assert remote.wait(20).status == -signal.SIGTERM


def test_commands_run_side_by_side(kvm_lab: Lab) -> None:
    with ThreadPoolExecutor(4) as pool:
        began = time.monotonic()
        runs = [
            pool.submit(kvm_lab.run, f"sleep 3; echo {n}", timeout_seconds=30) for n in range(4)
        ]
        assert [run.result().stdout for run in runs] == [f"{n}\n" for n in range(4)]
        assert time.monotonic() - began < 10


def test_libvirt_runs_domains(kvm_lab: Lab, guest: Guest) -> None:
    kvm_lab.run("test -c /dev/kvm && virsh version", timeout_seconds=60, check=True)
    assert guest.state() == "running"


def test_pulse_counts_and_its_disks_follow(guest: Guest) -> None:
    seen = guest.wait_until(guest.look().n + 10)
    assert seen.state == "ok"
    assert all(seen.n - 1 <= number <= seen.n for number in seen.disks)
    done = guest.lab.run(["pulse-disk", "/dev/vg0/smoke-d1"], timeout_seconds=30, check=True)
    assert int(done.stdout) >= seen.n - 1


def test_pulse_notices_a_disk_of_another_instant(guest: Guest) -> None:
    swap = """
        set -e
        disk=/dev/vg0/smoke-d1
        dd if=$disk of=/tmp/old bs=1M count=1 iflag=direct status=none
        sleep 1
        virsh -q suspend smoke
        dd if=/tmp/old of=$disk bs=1M count=1 oflag=direct status=none
        virsh -q resume smoke
    """
    guest.lab.run(swap, timeout_seconds=60, check=True)
    seen = guest.wait_until(guest.look().n + 3)
    assert seen.state.startswith("torn disk=1"), seen


def test_lab_that_dies_is_no_failed_command_and_boots_again(kvm_lab: Lab) -> None:
    kvm_lab.run("echo kept >/root/mark; sync", timeout_seconds=30, check=True)
    timer = threading.Timer(1, kvm_lab.power_cut)
    timer.start()
    with pytest.raises(LabDied, match="QEMU exited with status -9") as caught:
        kvm_lab.run("sleep 60", timeout_seconds=60)
    timer.join()
    assert "snapvm-lab:" in caught.value.console_tail
    kvm_lab.boot()
    script = "cat /root/mark; lvs --noheadings -o lv_name vg0"
    done = kvm_lab.run(script, timeout_seconds=30, check=True)
    assert done.stdout.split()[0] == "kept"
    assert "pool" in done.stdout
