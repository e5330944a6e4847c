"""What befalls the host in a take or a rollback: libvirtd, QEMU, lvm, the disk, the power.

Inside the window, while the domain stands still, it happens, and snapvm goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.lab.crash import KINDS
from tests.lab.guests import COMMAND_SECONDS, Guest, snapvm
from tests.lab.host.verbs import DYING, KEPT, NAME, Verb
from tests.lab.vm import Completed, Lab

pytestmark = [pytest.mark.lab, pytest.mark.long]

IN_WINDOW = "after suspend 1"
NEVER_CAME = 99
SMALL = "/var/tmp/small"
TAKE = Verb.TAKE.argv
TAKE_THERE = ["--state-dir", SMALL, *TAKE]
DEATHS = "cd /snapvm && exec python3 -m tests.lab.host.deaths"
PATIENT = "cd /snapvm && exec python3 -m tests.lab.host.patient"


@pytest.fixture(scope="module")
def guest(kvm_lab: Lab) -> Iterator[Guest]:
    """A running domain with a thick disk and a thin one, and one snapshot."""
    disks = ("--disks", "2", "--vg", "vg0,vg1", "--kind", KINDS["mixed"], "--size", "32")
    with Guest(kvm_lab, NAME, *disks, "--memory", "128") as guest:
        yield guest


@pytest.fixture(autouse=True)
def _prepared(guest: Guest) -> None:
    run(guest, f"{PATIENT} prepare")


def run(guest: Guest, text: str) -> str:
    done = guest.lab.run(text, timeout_seconds=COMMAND_SECONDS)
    assert done.status == 0, done.stdout + done.stderr
    return done.stdout


def befall(guest: Guest, script: str, arguments: list[str], **env: str) -> Completed:
    """Let something happen inside the window of a take, which goes on then."""
    command = ["bash", "-c", f'{DEATHS} "$@"', "deaths", IN_WINDOW, script, *arguments]
    done = guest.lab.run(command, timeout_seconds=COMMAND_SECONDS, env=env)
    assert done.status != NEVER_CAME, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    print(f"status {done.status}: {done.stderr}")
    return done


def look(guest: Guest, *how: str) -> None:
    run(guest, " ".join([PATIENT, "look", *how]))


def test_libvirtd_is_restarted(guest: Guest) -> None:
    """snapvm's connection is lost with the domain paused: it, or the guard, connects anew."""
    restart = "pkill -x libvirtd; while pgrep -x libvirtd; do sleep 0.1; done; libvirtd -d"
    done = befall(guest, restart, TAKE)
    assert done.status in (0, 6), done
    look(guest)


def test_lvm_hangs(guest: Guest) -> None:
    """The domain runs again when the limit is over; what lvm does afterwards is cleaned away."""
    done = befall(guest, "pkill -STOP -x lvm", TAKE, SNAPVM_WINDOW_LIMIT_SECONDS="5")
    assert done.status in (6, 7), done
    assert guest.state() == "running"
    run(guest, "pkill -CONT -x lvm; while pgrep -x lvm; do sleep 0.2; done")
    look(guest)
    assert DYING not in guest.ids()


def test_the_file_system_of_images_gets_full(guest: Guest) -> None:
    run(guest, f"mkdir -p {SMALL} && mount -t tmpfs -o size=400m small {SMALL}")
    try:
        done = befall(guest, f"head -c 600M /dev/zero >{SMALL}/filler", TAKE_THERE)
        assert done.status == 6, done
        assert "No space left" in done.stderr and "hint:" in done.stderr
        run(guest, f"[ -z \"$(find {SMALL} -name '*.json' -o -name 'memory*')\" ]")
    finally:
        guest.lab.run(f"umount -l {SMALL}", timeout_seconds=60)
    look(guest)


def test_the_disk_of_images_fails(guest: Guest) -> None:
    """EIO: refused to the last byte; when the disk is back, repair finds what is left."""
    run(
        guest,
        "lvcreate -qq -y -Wn -L 512m -n images vg0 && mkfs.ext4 -q /dev/vg0/images\n"
        "dmsetup create failing --table '0 1048576 linear /dev/vg0/images 0'\n"
        f"mkdir -p {SMALL} && mount /dev/mapper/failing {SMALL}",
    )
    fail = (
        "dmsetup suspend --noflush --nolockfs failing\n"
        "dmsetup load failing --table '0 1048576 error'; dmsetup resume failing"
    )
    try:
        done = befall(guest, fail, TAKE_THERE)
        assert done.status in (6, 7), done
        assert guest.state() == "running"
        run(
            guest,
            f"umount {SMALL}; dmsetup suspend --noflush --nolockfs failing\n"
            "dmsetup load failing --table '0 1048576 linear /dev/vg0/images 0'\n"
            f"dmsetup resume failing; mount /dev/mapper/failing {SMALL}\n"
            f"snapvm --state-dir {SMALL} repair && snapvm --state-dir {SMALL} list --json >&2",
        )
    finally:
        away = f"umount {SMALL}; dmsetup remove failing; lvremove -qq -y vg0/images"
        guest.lab.run(away, timeout_seconds=60)
    look(guest)


def test_qemu_is_killed(guest: Guest) -> None:
    """Nobody can resume it: the failure says so, nothing of ours is left, and it starts again."""
    done = befall(guest, f"pkill -KILL -f '[g]uest={NAME},'", TAKE)
    assert done.status in (6, 8), done
    snapvm(guest.lab, "repair")
    assert guest.ids() == [KEPT]
    guest.roll_back(KEPT)
    look(guest, "booted")


def test_the_power_fails(guest: Guest) -> None:
    """After the reboot the journal is there: repair takes the set back, and the rest is whole."""
    lose_power(guest, "after lvm lvconvert 1", TAKE)
    said = snapvm(guest.lab, "repair").stdout
    assert "took back the unfinished snapshot" in said, said
    assert guest.ids() == [KEPT]
    guest.roll_back(KEPT)
    look(guest, "booted")


def test_the_power_fails_in_a_rollback(guest: Guest) -> None:
    """It may have run since, for all that is known: it stays off, on disks that are whole."""
    lose_power(guest, "before restore 1", Verb.ROLLBACK.argv)
    said = snapvm(guest.lab, "repair", status=8).stderr
    assert "left off" in said and f"snapvm rollback {NAME}@{KEPT}" in said, said
    assert guest.state() == "shut off"
    snapvm(guest.lab, "repair")
    guest.roll_back(KEPT)
    look(guest, "booted")


def lose_power(guest: Guest, point: str, arguments: list[str]) -> None:
    """Cut the power when a command has come to a point, and boot again."""
    command = ["bash", "-c", f'{DEATHS} "$@"', "deaths", point, "sleep 100", *arguments]
    guest.lab.start(command, timeout_seconds=COMMAND_SECONDS)
    run(guest, "for i in $(seq 300); do pgrep -fx 'sleep 100' && exit; sleep 0.2; done; exit 1")
    time.sleep(1)  # the other disk's worker is done too
    guest.lab.power_cut()
    guest.lab.boot()
