"""What happens to a KVM domain's window from outside: other people, slow disks, a death."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.lab.guests import COMMAND_SECONDS, Guest, snapvm, volumes
from tests.lab.vm import Completed, Lab

pytestmark = pytest.mark.lab

FOREIGN_LVM = """#!/bin/sh
# An lvm on PATH; just before the first snapshot, in the window, somebody does something.
real=$(PATH=/usr/sbin:/sbin command -v lvm)
[ $# -eq 0 ] || exec "$real" "$@"
while read -r order; do
    case "$order" in
    lvcreate*--snapshot*) sh -x /tmp/foreign/act >/tmp/foreign/said 2>&1 ;;
    esac
    printf '%s\\n' "$order"
done | "$real"
"""
ATTACH = "virsh attach-disk win /dev/vg0/spare vdx --driver qemu --subdriver raw --live"
REBOOTS = "virsh set-lifecycle-action win reboot restart --live"
"""A reset ends the lab's domains otherwise (on_reboot)."""
DETACH = "virsh detach-disk win vdx --live; sleep 3"
BACK_FROM_SAVE = "virsh restore /var/tmp/win.save && virsh resume win"
"""It was saved as it was, standing still."""
GONE = "shut off"
GUARD_ENDS = "for i in $(seq 60); do ls /var/lib/snapvm/domains/*/.*.draft || break; sleep 1; done"
"""Until what was begun is taken back."""


@pytest.fixture(scope="module")
def guest(kvm_lab: Lab) -> Iterator[Guest]:
    """A running domain, and a volume that is nobody's."""
    kvm_lab.run(
        "mkdir -p /tmp/foreign && cat > /tmp/foreign/lvm && chmod 755 /tmp/foreign/lvm"
        " && lvcreate -qq -V 16m -T vg0/pool -n spare",
        input=FOREIGN_LVM,
        timeout_seconds=60,
        check=True,
    )
    with Guest(kvm_lab, "win", "--disks", "1", "--memory", "160") as guest:
        yield guest
    kvm_lab.run("lvremove -qq -y vg0/spare", timeout_seconds=60)


def run(lab: Lab, script: str) -> Completed:
    return lab.run(script, timeout_seconds=COMMAND_SECONDS)


def assert_nothing_left(guest: Guest) -> None:
    """Neither a set nor a setting of QEMU is left of it."""
    assert volumes(guest.lab) == set()
    assert guest.ids() == []
    assert run(guest.lab, "find /run/snapvm -name '*.qemu'").stdout == ""
    assert run(guest.lab, "find /var/lib/snapvm -name memory.save").stdout == ""


def settings(guest: Guest) -> tuple[str, str]:
    """Return QEMU's migration capabilities and parameters."""
    asked = ("query-migrate-capabilities", "query-migrate-parameters")
    said = []
    for name in asked:
        order = json.dumps({"execute": name})
        argv = ["virsh", "qemu-monitor-command", guest.name, order]
        said.append(guest.lab.run(argv, timeout_seconds=60, check=True).stdout)
    return json.dumps(json.loads(said[0])["return"]), json.dumps(json.loads(said[1])["return"])


FOREIGN = {
    "resume": ("virsh resume win", "", "somebody else made it run"),
    "destroy": ("virsh destroy win", "", "somebody stopped it"),
    "anew": ("virsh destroy win; virsh start win", "", "somebody"),
    "reset": (f"{REBOOTS}; virsh reset win", "--disk-only", "somebody reset it"),
    "reset-stream": (f"{REBOOTS}; virsh reset win", "", "somebody reset it"),
    "reset-end": ("virsh reset win", "", "somebody stopped it"),
    "attach": (ATTACH, "--disk-only", "a device was plugged in"),
    "attach-detach": (f"{ATTACH}; {DETACH}", "--disk-only", "a device was plugged in"),
    "save": ("virsh save win /var/tmp/win.save", "--disk-only", "somebody stopped it"),
}


@pytest.mark.parametrize(
    "act",
    [pytest.param(act, marks=() if act == "resume" else pytest.mark.long) for act in FOREIGN],
)
def test_somebody_else_in_the_window(guest: Guest, act: str) -> None:
    """Status 6, and the set is thrown away: it is not known to be of one instant."""
    deed, option, expected = FOREIGN[act]
    guest.lab.run("cat > /tmp/foreign/act", input=deed, timeout_seconds=30, check=True)
    done = run(guest.lab, f"PATH=/tmp/foreign:$PATH snapvm take win {option}")
    said = run(guest.lab, "cat /tmp/foreign/said").stdout
    try:
        assert done.status == 6, (done.stdout, done.stderr, said)
        assert expected in done.stderr, (done.stderr, said)
        assert_nothing_left(guest)
    finally:
        run(guest.lab, DETACH)
        run(guest.lab, f"{BACK_FROM_SAVE}; rm -f /var/tmp/win.save")
        if guest.state() == GONE or act.startswith("reset"):
            run(guest.lab, "virsh destroy win; virsh start win")
    assert guest.state() == "running"
    assert guest.wait_until(guest.look().n + 5).state == "ok"


SLOW = """
set -e
modprobe -a loop dm-delay
truncate -s 600M /var/tmp/slow.img
under=$(losetup -f --show /var/tmp/slow.img)
mkfs.ext4 -q $under
dmsetup create slow --table "0 $(blockdev --getsz $under) delay $under 0 0 $under 0 250"
mkdir -p /mnt/slow
mount -o sync /dev/mapper/slow /mnt/slow
"""
FAST = """
umount /mnt/slow; dmsetup remove slow
losetup -d $(losetup -j /var/tmp/slow.img | cut -d: -f1); rm -f /var/tmp/slow.img
"""
LARGE_MIB = 640
"""More than what is left to the kernel to join."""
HUGE_KIB = """
awk '/^AnonHugePages/ { n += $2 } END { print n }' /proc/$(cat /run/libvirt/qemu/ahead.pid)/smaps
"""
LONGEST_STANDSTILL_SECONDS = 20
"""What the guest may stand still on a disk that takes a megabyte a second, emulation included."""


@pytest.mark.long
def test_a_disk_that_is_too_slow_does_not_stop_the_guest(guest: Guest) -> None:
    """Status 6, everything put back; and all the while the guest counted."""
    guest.say("dirty 64")
    before = settings(guest)
    guest.lab.run(SLOW, timeout_seconds=COMMAND_SECONDS, check=True)
    try:
        taking = guest.lab.start(
            ["env", "SNAPVM_STATE_DIR=/mnt/slow/state", "snapvm", "take", "win"],
            timeout_seconds=COMMAND_SECONDS,
        )
        standstill = _longest_standstill(guest)
        done = guest.lab.finish(taking, timeout_seconds=COMMAND_SECONDS)
        assert done.status == 6, (done.stdout, done.stderr)
        assert "slowly" in done.stderr, done.stderr
        print(f"the guest's counter stood still for {standstill:.1f} s at the most")
        assert standstill < LONGEST_STANDSTILL_SECONDS
        assert settings(guest) == before
        assert run(guest.lab, "find /mnt/slow -name memory.save").stdout == ""
    finally:
        run(guest.lab, FAST)
        guest.say("dirty 0")
    assert_nothing_left(guest)
    assert guest.wait_until(guest.look().n + 5).state == "ok"


def _longest_standstill(guest: Guest) -> float:
    """Watch the guest's counter until no snapvm runs any more."""
    longest, last, since = 0.0, -1, time.monotonic()
    deadline = since + COMMAND_SECONDS
    # The brackets: the shell that looks has these words in its own command line.
    while run(guest.lab, "pgrep -f '[s]napvm take' >/dev/null && echo yes").stdout:
        assert time.monotonic() < deadline, "it has not ended"
        n, now = guest.look().n, time.monotonic()
        if n != last:
            longest, last, since = max(longest, now - since), n, now
    return longest


def believe(guest: Guest, seconds: float) -> None:
    """Have snapvm believe that QEMU has taken so long before it needed the guest to stand still."""
    domain, pid, stat = (
        guest.lab.run(command, timeout_seconds=60, check=True).stdout.strip()
        for command in (
            f"virsh domuuid {guest.name}",
            f"cat /run/libvirt/qemu/{guest.name}.pid",
            f"cat /proc/$(cat /run/libvirt/qemu/{guest.name}.pid)/stat",
        )
    )
    run = f"process {pid} since {stat.rpartition(')')[2].split()[19]}"
    hint = json.dumps({"run": run, "taken": [[seconds, True], [seconds, True]]})
    file = f"/run/snapvm/{domain}.populate"
    guest.lab.run(f"mkdir -p /run/snapvm && cat > {file}", input=hint, timeout_seconds=30)


def test_a_qemu_that_stops_the_guest_itself(guest: Guest) -> None:
    """Begun so far ahead of the pause it is always the first; what counts is the second pause."""
    believe(guest, 4.0)
    guest.say("dirty 24")
    try:
        record = guest.take("--name", "twice")
    finally:
        guest.say("dirty 0")
    assert "stood still twice" in record["capture"], record
    undo = json.loads(guest.roll_back("twice", "--json").stdout)["undo"]
    assert guest.wait_until(guest.look().n + 5).state == "ok"
    snapvm(guest.lab, "delete", "--yes", "win@twice", undo)


def test_a_guest_that_has_never_run_is_refused(guest: Guest) -> None:
    """libvirt calls it paused; QEMU would end itself over it, and did so."""
    run(guest.lab, "virsh destroy win; virsh start --paused win")
    done = snapvm(guest.lab, "take", "win", status=4)
    assert "QEMU says that it is prelaunch" in done.stderr
    assert guest.state() == "paused"
    assert_nothing_left(guest)
    run(guest.lab, "virsh resume win")
    assert guest.wait_until(5).state == "ok"


@pytest.mark.long
def test_a_large_guest_is_captured_ahead_of_its_pause(kvm_lab: Lab) -> None:
    """From the third take on it is known how far ahead; each is of one instant.

    QEMU splits the huge pages that a large guest's memory is in; it gets them back.
    """
    with Guest(kvm_lab, "ahead", "--disks", "1", "--memory", "1536") as large:
        large.say(f"dirty {LARGE_MIB}")
        run(kvm_lab, "sleep 8")
        large.say("dirty 24")
        for number in range(5):
            record = large.take("--name", f"t{number}")
            begun = [part["name"] for part in record["timing"]["parts"]]
            print(number, record["timing"], record["capture"])
            assert ("ahead" in begun) == (number >= 2), record
            huge_kib = int(run(kvm_lab, HUGE_KIB).stdout)
            assert huge_kib >= LARGE_MIB << 10, record
        large.roll_back("t4")
        assert large.wait_until(large.look().n + 5).state == "ok"


@pytest.mark.long
@pytest.mark.parametrize("point", ["before suspend 1", "after suspend 1", "before lvm lvcreate 1"])
def test_killed_when_qemu_has_begun_ahead(guest: Guest, point: str) -> None:
    """The guest runs, and QEMU is set as before, whoever stopped it first."""
    before = settings(guest)
    believe(guest, 0.5)
    assert run(guest.lab, f"SNAPVM_CRASH='{point}' snapvm take win").status == -9
    run(guest.lab, f"{GUARD_ENDS}; sleep 2")
    assert "nothing to repair" in snapvm(guest.lab, "repair").stdout
    assert guest.state() == "running"
    assert settings(guest) == before
    assert_nothing_left(guest)
    assert guest.wait_until(guest.look().n + 5).state == "ok"


@pytest.mark.long
@pytest.mark.parametrize("method", ["background", "precopy", "stop"])
def test_killed_while_qemu_holds_the_guest(guest: Guest, method: str) -> None:
    """Nobody is left to say go on: the guard ends the stream, and QEMU is set as before."""
    before = settings(guest)
    script = f"SNAPVM_CRASH='before lvm lvcreate 1' snapvm take win --capture {method}"
    assert run(guest.lab, script).status == -9
    run(guest.lab, GUARD_ENDS)
    assert "nothing to repair" in snapvm(guest.lab, "repair").stdout
    assert guest.state() == "running"
    assert settings(guest) == before
    assert_nothing_left(guest)
    assert guest.wait_until(guest.look().n + 5).state == "ok"
    guest.take("--name", "after")
    snapvm(guest.lab, "delete", "--yes", "win@after")


@pytest.mark.long
def test_a_guest_that_outruns_its_image_is_stopped(guest: Guest) -> None:
    """Precopy does not go on for ever: what is left is written while the guest stands still."""
    guest.say("dirty 64")
    try:
        done = run(
            guest.lab,
            "SNAPVM_PRECOPY_LIMIT_SECONDS=0.001 snapvm take win --capture precopy --name late",
        )
        assert done.status == 0, done.stderr
        assert "was stopped after" in snapvm(guest.lab, "show", "win@late").stdout
        guest.roll_back("late")
        assert guest.look().state == "ok"
    finally:
        guest.say("dirty 0")
        run(guest.lab, "snapvm list win --json | jq -r '.[].ref' | xargs -r snapvm delete --yes")
