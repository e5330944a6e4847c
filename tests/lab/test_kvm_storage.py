"""Space that runs out and LVM that fails or hangs, for real: what is left, and what is said."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.lab.guests import COMMAND_SECONDS, Guest, snapvm, volumes
from tests.lab.vm import Completed, Lab

pytestmark = pytest.mark.lab

DISK = "/dev/frail/hard-d1"
"""The thick one."""

TROUBLE = """#!/bin/sh
# An lvm on PATH that lets something happen to the real one's storage, at the chosen moment.
real=$(PATH=/usr/sbin:/sbin command -v lvm)
if [ $# -gt 0 ]; then
    [ "$1" != lvs ] || [ ! -e /tmp/trouble/asked ] || . /tmp/trouble/afterwards
    exec "$real" "$@"
fi
while read -r order; do
    case "$order" in
    lvcreate*--snapshot*|lvconvert*)
        [ -e /tmp/trouble/asked ] || . /tmp/trouble/first
        touch /tmp/trouble/asked ;;
    esac
    printf '%s\\n' "$order"
done | "$real"
"""


@pytest.fixture(scope="module")
def guest(kvm_lab: Lab) -> Iterator[Guest]:
    """A running domain with a thin and a thick disk in a group of two physical volumes.

    All that has contents is on the first of them; the pool is small.
    """
    kvm_lab.run("lab-group create frail 2 512 200 64k", timeout_seconds=120, check=True)
    options = ("--disks", "2", "--vg", "frail", "--kind", "thin,thick", "--memory", "128")
    with Guest(kvm_lab, "hard", *options) as guest:
        yield guest
    kvm_lab.run("lab-group destroy frail", timeout_seconds=120, check=True)


@pytest.fixture(autouse=True)
def _no_records_of_another_test(guest: Guest) -> Iterator[None]:
    yield
    guest.delete_all()


def run(lab: Lab, script: str) -> Completed:
    return lab.run(script, timeout_seconds=COMMAND_SECONDS, check=True)


def overwrite(lab: Lab, mib: int) -> None:
    """Write over so much of the thick disk, beyond what the guest uses of it."""
    run(lab, f"dd if=/dev/urandom of={DISK} bs=1M seek=2 count={mib} oflag=direct status=none")


def take_in_trouble(
    guest: Guest, *, first: str = ":", afterwards: str = ":", command: str = "snapvm take hard"
) -> Completed:
    """Take, while shell commands run before the first snapshot, or when all are looked at."""
    lab = guest.lab
    run(lab, "rm -rf /tmp/trouble; mkdir /tmp/trouble")
    for name, text in (("lvm", TROUBLE), ("first", first), ("afterwards", afterwards)):
        script = f"cat > /tmp/trouble/{name}; chmod 755 /tmp/trouble/{name}"
        lab.run(script, input=text, timeout_seconds=30, check=True)
    done = lab.run(f"PATH=/tmp/trouble:$PATH {command}", timeout_seconds=COMMAND_SECONDS)
    print(done.status, done.stderr, f"{done.seconds:.0f} s")
    return done


def assert_runs_on(guest: Guest) -> None:
    """The domain counts, and no snapshot is to be seen."""
    assert guest.ids() == []
    assert guest.state() == "running"
    now = guest.look()
    assert now.state == "ok", now
    assert guest.wait_until(now.n + 5).state == "ok"


def assert_but_for_a_mark(before: set[str], now: set[str]) -> None:
    """The volumes are what they were, and one is marked as lost."""
    assert {each.replace(",snapvm.lost=1", "") for each in now} == before != now


def assert_nothing_left(guest: Guest) -> None:
    assert volumes(guest.lab) == set()
    assert "all is in order" in snapvm(guest.lab, "check").stdout


def health(lab: Lab, ref: str) -> tuple[str, float]:
    """Return the state and the fill of the thick disk's snapshot."""
    disks = json.loads(snapvm(lab, "show", ref, "--json").stdout)["health"]
    (thick,) = (disk for disk in disks if disk["target"] == "vdb")
    return thick["state"], thick["fill_percent"]


def test_a_store_is_told_of_before_it_is_full_and_refused_after(guest: Guest) -> None:
    """What fits is warned of at once; what is lost is gone back to by nobody, untouched."""
    lab = guest.lab
    guest.take("--name", "bounded", "--cow-size", "8M", "--disk-only")
    assert health(lab, "hard@bounded")[0] == "ok"
    overwrite(lab, 10)
    warned = snapvm(lab, "check", status=4).stdout
    assert re.search(r"hard@bounded: .*frail/hard-d1\.bounded will be lost soon: \d\d % of", warned)
    state, percent = health(lab, "hard@bounded")
    assert state == "nearly full" and percent > 80
    overwrite(lab, 16)
    assert health(lab, "hard@bounded")[0] == "lost"
    before = volumes(lab)
    done = snapvm(lab, "rollback", "hard@bounded", "--yes", status=4)
    assert "frail/hard-d1.bounded" in done.stderr
    assert "lost: more changed than its 12 MiB can keep" in done.stderr
    assert_but_for_a_mark(before, volumes(lab))
    assert guest.state() == "running"
    found = snapvm(lab, "check", status=4).stdout
    assert "frail/hard-d1.bounded is lost: more changed than its 12 MiB can keep" in found
    snapvm(lab, "delete", "hard@bounded", "--yes")
    assert_runs_on(guest)
    assert_nothing_left(guest)


def test_a_store_that_runs_full_at_once(guest: Guest) -> None:
    """Lost while memory is written, before anybody saw it: there is no such snapshot."""
    write = f"dd if=/dev/urandom of={DISK} bs=1M seek=2 count=16 oflag=direct status=none"
    done = take_in_trouble(
        guest,
        afterwards=f"[ -e /tmp/trouble/full ] || {write}; touch /tmp/trouble/full",
        command="snapvm take hard --cow-size 4M",
    )
    assert done.status == 6, done.stdout + done.stderr
    assert "vdb (frail/hard-d1)" in done.stderr
    assert "lost: more changed than its 8 MiB can keep" in done.stderr
    assert_runs_on(guest)
    assert_nothing_left(guest)


def test_a_group_without_an_extent_left(guest: Guest) -> None:
    """Status 4 before anything is made, naming the group and both figures."""
    run(guest.lab, "lvcreate -qq -y -Wn -Zn -an -l 100%FREE -n filler frail")
    try:
        done = snapvm(guest.lab, "take", "hard", status=4)
        assert "volume group frail" in done.stderr
        assert "68 MiB" in done.stderr and "0 MiB free" in done.stderr
        assert volumes(guest.lab) == set()
    finally:
        run(guest.lab, "lvremove -qq -y frail/filler")
    assert_runs_on(guest)


HANG = {
    "lock": "setsid flock /run/lock/lvm/V_frail sleep 30 </dev/null >/dev/null 2>&1 & sleep 1",
    "asleep": "sleep 45",
}
"""Somebody else holds the lock of the group; and an lvm that does nothing at all for a while."""
NO_LVM = "while pgrep -x lvm; do sleep 1; done"


@pytest.mark.parametrize("why", HANG)
def test_an_lvm_that_hangs(guest: Guest, why: str) -> None:
    """The deadline ends the pause.  What lands late is removed: by `take` or else by `repair`."""
    command = "SNAPVM_WINDOW_LIMIT_SECONDS=4 snapvm take hard"
    done = take_in_trouble(guest, first=HANG[why], command=command)
    assert "did not end within 4 s" in done.stderr and "frail/hard-d0" in done.stderr
    assert_runs_on(guest)
    if why == "lock":
        assert done.status == 6, done.stdout + done.stderr
    else:
        assert done.status == 7, done.stdout + done.stderr
        assert "still at work in frail" in done.stderr
        run(guest.lab, NO_LVM)
        assert volumes(guest.lab), "it did what it was told, late"
        assert guest.ids() == []
        assert "took back" in snapvm(guest.lab, "repair", "hard").stdout
    run(guest.lab, NO_LVM)
    assert_nothing_left(guest)


def test_a_physical_volume_that_fails_in_the_window(guest: Guest) -> None:
    """LVM cannot change the group: the domain does not wait for what it can do about it."""
    try:
        done = take_in_trouble(guest, first="lab-group break frail 1")
        assert done.status in (6, 7), done.stdout + done.stderr
        assert "frail/hard-d0" in done.stderr and "hint:" in done.stderr
        assert_runs_on(guest)
    finally:
        run(guest.lab, "lab-group mend frail 1")
    snapvm(guest.lab, "repair")
    assert_nothing_left(guest)


FILL_POOL = """
if [ ! -e /tmp/trouble/filled ]; then
    touch /tmp/trouble/filled
    blocks=$(dmsetup status frail-pool-tpool | cut -d' ' -f6)
    free=$((${blocks#*/} - ${blocks%/*}))
    setsid dd if=/dev/zero of=/dev/frail/greedy bs=64k count=$free oflag=direct \\
        </dev/null >/dev/null 2>&1 &
    for i in $(seq 60); do
        "$real" lvs --noheadings -o data_percent frail/pool | grep -q 100 && break
        sleep 0.3
    done
fi
"""
"""All there is and no more: one that waited for more would take what the set gives back."""
NOT_GREEDY = """
pkill -x dd
lvextend -qq -L +32m frail/pool
while pgrep -x dd; do sleep 1; done
lvremove -qq -y frail/greedy
"""
"""The pool grows, for a write that waits for room is not ended by a signal."""


def test_a_pool_that_is_filled_while_memory_is_written(guest: Guest) -> None:
    """The set is thrown away, which gives the domain its blocks back, and the pool is named."""
    run(guest.lab, "lvcreate -qq -y -V 400m -T frail/pool -n greedy")
    try:
        done = take_in_trouble(guest, afterwards=FILL_POOL)
        assert done.status == 6, done.stdout + done.stderr
        assert "frail/hard-d0" in done.stderr
        assert "frail/pool" in done.stderr and "100.0 % full" in done.stderr, done.stderr
        assert volumes(guest.lab) == set()
        assert_runs_on(guest)
    finally:
        guest.lab.run(NOT_GREEDY, timeout_seconds=COMMAND_SECONDS)
    assert_nothing_left(guest)


def test_after_all_that_a_take_passes(guest: Guest) -> None:
    """Memory and disks of one instant, in the group that was in trouble."""
    guest.take("--name", "after")
    guest.wait_until(guest.look().n + 10)
    guest.roll_back("after")
    now = guest.look()
    assert now.state == "ok" and guest.wait_until(now.n + 5).state == "ok"


def test_a_store_that_runs_full_when_a_rollback_has_begun(guest: Guest) -> None:
    """It was whole when that was decided; below the standing domain it is looked at once more."""
    guest.take("--name", "tight", "--cow-size", "8M")
    before = volumes(guest.lab)
    command = "snapvm rollback hard@tight --yes"
    write = f"dd if=/dev/urandom of={DISK} bs=1M seek=2 count=16 oflag=direct status=none"
    done = take_in_trouble(guest, first=write, command=command)
    assert done.status == 6, done.stdout + done.stderr
    assert "frail/hard-d1.tight is lost: more has changed meanwhile" in done.stderr
    assert volumes(guest.lab) == before and guest.ids() == ["tight"]
    snapvm(guest.lab, "delete", "hard@tight", "--yes")
    assert_runs_on(guest)
    assert_nothing_left(guest)


SUMS = f"blockdev --flushbufs {DISK}; sha256sum <{DISK}"
LOSE = f"""
if [ ! -e /tmp/trouble/done ] && [ "$(virsh domstate hard)" = "shut off" ]; then
    touch /tmp/trouble/done
    ({SUMS}) >/tmp/trouble/present
    dd if=/dev/urandom of={DISK} bs=1M seek=2 count=16 oflag=direct status=none
fi
"""
"""A report is asked for when the domain has been ended."""


def test_a_store_that_is_lost_past_the_point_of_no_return(guest: Guest) -> None:
    """The domain is off then, and gets back the disks it had, of which nothing else is left."""
    lab = guest.lab
    guest.take("--name", "safe")
    guest.take("--name", "tight", "--cow-size", "8M")
    before = volumes(lab)
    done = take_in_trouble(guest, afterwards=LOSE, command="snapvm rollback hard@tight --yes")
    assert done.status == 8 and "snapvm repair hard" in done.stderr, done.stdout + done.stderr
    assert guest.state() == "shut off"
    told = snapvm(lab, "repair", "hard", status=8).stderr
    assert "can no longer be rolled back to tight" in told
    assert "its disks are again what they were before" in told
    assert run(lab, SUMS).stdout == run(lab, "cat /tmp/trouble/present").stdout
    assert_but_for_a_mark(before, volumes(lab))
    assert guest.state() == "shut off"
    snapvm(lab, "delete", "hard@tight", "--yes")
    assert "all is in order" in snapvm(lab, "check").stdout
    guest.roll_back("safe")
    now = guest.look()
    assert now.state == "ok" and guest.wait_until(now.n + 5).state == "ok"


@pytest.mark.long
def test_a_record_that_is_damaged_is_made_anew(guest: Guest) -> None:
    """With its memory: the domain goes on from where it was."""
    taken = guest.take("--name", "hurt")
    guest.wait_until(guest.look().n + 30)
    run(guest.lab, "truncate -s 100 /var/lib/snapvm/domains/*/hurt/snapshot.json")
    said = snapvm(guest.lab, "catalog", "rebuild").stdout
    assert "rebuilt hard@hurt" in said and "checksum" in said
    record = json.loads(snapvm(guest.lab, "show", "hard@hurt", "--json").stdout)
    same = ("id", "set", "kind", "disks", "domain")
    assert {key: record[key] for key in same} == {key: taken[key] for key in same}
    guest.roll_back("hurt")
    back = guest.look()
    assert back.state == "ok" and guest.wait_until(back.n + 5).state == "ok"


@pytest.mark.long
def test_a_catalog_that_is_lost_is_made_anew(guest: Guest) -> None:
    """From the tags alone: nothing is an orphan to be removed that could be brought back."""
    guest.take("--name", "kept", "--disk-only")
    sums = f"blockdev --flushbufs {DISK}.kept; sha256sum <{DISK}.kept"
    then = run(guest.lab, sums).stdout
    overwrite(guest.lab, 4)
    run(guest.lab, "rm -rf /var/lib/snapvm")
    assert "catalog rebuild" in snapvm(guest.lab, "check", status=4).stdout
    assert "would rebuild hard@kept" in snapvm(guest.lab, "catalog", "rebuild", "--dry-run").stdout
    assert "rebuilt hard@kept" in snapvm(guest.lab, "catalog", "rebuild").stdout
    assert run(guest.lab, sums).stdout == then
    guest.roll_back("kept", "--paused")
    now = run(guest.lab, f"blockdev --flushbufs {DISK}; sha256sum <{DISK}").stdout
    assert now == then
