"""Space that runs out and LVM that fails or hangs, for real: what is left, and what is said."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.guests import COMMAND_SECONDS, FORGET_ALL, Guest, snapvm, volumes
from tests.lab.vm import Completed, Lab

pytestmark = pytest.mark.lab

DISK = "/dev/frail/off-d0"


@pytest.fixture(scope="module")
def frail(kvm_lab: Lab) -> Iterator[Lab]:
    """A volume group of two physical volumes, the first for disks; and what fills its pool."""
    create = "lab-group create frail 2 512 200 64k"
    kvm_lab.run(create, timeout_seconds=120, check=True)
    yield kvm_lab
    kvm_lab.run("lab-group destroy frail", timeout_seconds=120, check=True)


@pytest.fixture
def off(frail: Lab) -> Iterator[Lab]:
    """A domain that is shut off, with one thick disk."""
    shape = "--vg frail --kind thick --disks 1 --memory 128"
    frail.run(f"lab-domain create off {shape}", timeout_seconds=120, check=True)
    yield frail
    frail.run("lab-domain destroy off", timeout_seconds=120)
    frail.run(FORGET_ALL, timeout_seconds=120, check=True)


def run(lab: Lab, script: str) -> Completed:
    return lab.run(script, timeout_seconds=COMMAND_SECONDS, check=True)


def overwrite(lab: Lab, mib: int) -> str:
    """Write over the beginning of the disk, and return the sum of all of it."""
    write = f"dd if=/dev/urandom of={DISK} bs=1M count={mib} oflag=direct status=none"
    return run(lab, f"{write}; sha256sum {DISK}").stdout


def health(lab: Lab, name: str) -> tuple[str, float]:
    (disk,) = json.loads(snapvm(lab, "show", f"off@{name}", "--json").stdout)["health"]
    return disk["state"], disk["fill_percent"]


def test_a_store_is_told_of_before_it_is_full_and_refused_after(off: Lab) -> None:
    """What fits is warned of at once; what is lost is gone back to by nobody, untouched."""
    snapvm(off, "take", "off", "--name", "bounded", "--cow-size", "8M")
    assert "all is in order" in snapvm(off, "check").stdout
    overwrite(off, 10)
    warned = snapvm(off, "check", status=4).stdout
    assert "will be lost soon" in warned and "off@bounded" in warned and "%" in warned
    state, percent = health(off, "bounded")
    assert state == "nearly full" and percent > 80
    snapvm(off, "take", "off", "--name", "whole")
    now = overwrite(off, 20)
    before = volumes(off)
    done = snapvm(off, "rollback", "off@bounded", "--yes", status=4)
    assert "frail/off-d0.bounded" in done.stderr and "lost" in done.stderr
    assert volumes(off) == before and run(off, f"sha256sum {DISK}").stdout == now
    assert health(off, "bounded")[0] == "lost"
    assert "frail/off-d0.bounded is lost" in snapvm(off, "check", status=4).stdout
    snapvm(off, "rollback", "off@whole", "--yes")
    snapvm(off, "delete", "off@bounded", "--yes")
    assert "all is in order" in snapvm(off, "check").stdout


def test_a_group_without_an_extent_left(off: Lab) -> None:
    """Status 4 before anything is made, naming the group and both figures."""
    run(off, "lvcreate -qq -y -Wn -Zn -an -l 100%FREE -n filler frail")
    try:
        done = snapvm(off, "take", "off", status=4)
        assert "volume group frail" in done.stderr
        assert "68 MiB" in done.stderr and "0 MiB free" in done.stderr
        assert volumes(off) == set()
    finally:
        run(off, "lvremove -qq -y frail/filler")
    snapvm(off, "take", "off", "--name", "fits")


def test_a_catalog_that_is_lost_is_made_anew(off: Lab) -> None:
    """From the tags alone: nothing is an orphan to be removed that could be brought back."""
    then = overwrite(off, 4)
    snapvm(off, "take", "off", "--name", "kept")
    overwrite(off, 4)
    run(off, "rm -rf /var/lib/snapvm")
    assert "catalog rebuild" in snapvm(off, "check", status=4).stdout
    assert "would make off@kept" in snapvm(off, "catalog", "rebuild", "--dry-run").stdout
    assert "made off@kept" in snapvm(off, "catalog", "rebuild").stdout
    assert "all is in order" in snapvm(off, "check").stdout
    snapvm(off, "rollback", "off@kept", "--yes")
    assert run(off, f"sha256sum {DISK}").stdout == then


# --- below a running guest ---------------------------------------------------------------------

TROUBLE = """#!/bin/sh
# An lvm on PATH that lets something happen to the real one's storage, at the chosen moment.
real=$(PATH=/usr/sbin:/sbin command -v lvm)
if [ $# -gt 0 ]; then
    [ "$1" != lvs ] || [ ! -e /tmp/trouble/asked ] || . /tmp/trouble/afterwards
    exec "$real" "$@"
fi
while read -r order; do
    case "$order" in
    lvcreate*--snapshot*|lvconvert*) . /tmp/trouble/before_a_snapshot; touch /tmp/trouble/asked ;;
    esac
    printf '%s\\n' "$order"
done | "$real"
"""


@pytest.fixture(scope="module")
def guest(frail: Lab) -> Iterator[Guest]:
    """A running domain with a thick disk and a thin one in the frail group."""
    options = ("--disks", "2", "--vg", "frail", "--kind", "thin,thick", "--memory", "128")
    with Guest(frail, "hard", *options) as guest:
        yield guest


def take_in_trouble(
    guest: Guest, *, before: str = ":", afterwards: str = ":", options: str = ""
) -> Completed:
    """Take, while shell commands run before the first snapshot and before it is looked at."""
    lab = guest.lab
    run(lab, "rm -rf /tmp/trouble; mkdir /tmp/trouble")
    for name, text in (("lvm", TROUBLE), ("before_a_snapshot", before), ("afterwards", afterwards)):
        lab.run(
            f"cat > /tmp/trouble/{name}; chmod 755 /tmp/trouble/{name}",
            input=text,
            timeout_seconds=30,
            check=True,
        )
    script = f"{options} PATH=/tmp/trouble:$PATH snapvm take hard"
    return lab.run(script, timeout_seconds=COMMAND_SECONDS)


def assert_runs_on(guest: Guest) -> None:
    """The domain counts, and no snapshot is to be seen."""
    assert guest.ids() == []
    assert guest.state() == "running"
    now = guest.look()
    assert now.state == "ok", now
    assert guest.wait_until(now.n + 5).state == "ok"


def assert_nothing_left(guest: Guest) -> None:
    """After a repair nothing of the take that failed is there, and the next one passes."""
    snapvm(guest.lab, "repair")
    assert volumes(guest.lab) == set()
    assert "all is in order" in snapvm(guest.lab, "check").stdout
    snapvm(guest.lab, "take", "hard", "--name", "after")
    snapvm(guest.lab, "delete", "hard@after", "--yes")
    assert_runs_on(guest)


@pytest.mark.long
def test_a_record_that_is_damaged_is_made_anew(guest: Guest) -> None:
    """With its memory: the domain goes on from where it was."""
    n = guest.look().n
    taken = guest.take("--name", "hurt")
    guest.wait_until(n + 30)
    run(guest.lab, "truncate -s 100 /var/lib/snapvm/domains/*/hurt/snapshot.json")
    said = snapvm(guest.lab, "catalog", "rebuild").stdout
    assert "made hard@hurt" in said and "checksum" in said
    (record,) = json.loads(snapvm(guest.lab, "list", "--json").stdout)
    same = ("id", "set", "kind", "disks", "domain")
    assert {key: record[key] for key in same} == {key: taken[key] for key in same}
    guest.roll_back("hurt")
    back = guest.look()
    assert back.state == "ok"
    assert guest.wait_until(back.n + 5).state == "ok"
    snapvm(guest.lab, "delete", "--yes", "hard@hurt", *undo_of(guest))


def undo_of(guest: Guest) -> list[str]:
    return [f"{guest.name}@{id_}" for id_ in guest.ids() if id_.startswith("undo-")]


HOLD_LOCK = """
if [ ! -e /tmp/trouble/held ]; then
    touch /tmp/trouble/held
    setsid flock /run/lock/lvm/V_frail sleep 45 </dev/null >/dev/null 2>&1 &
    sleep 1
fi
"""


def test_an_lvm_that_hangs(guest: Guest) -> None:
    """Its group is locked by somebody: the deadline ends the pause, what lands late is removed."""
    options = "SNAPVM_WINDOW_LIMIT_SECONDS=4"
    done = take_in_trouble(guest, before=HOLD_LOCK, options=options)
    assert done.status == 6, done.stdout + done.stderr
    assert "did not end within 4 s" in done.stderr and "frail/hard-d0" in done.stderr
    run(guest.lab, "while pgrep -x lvm; do sleep 1; done; lvs")
    assert_runs_on(guest)
    assert_nothing_left(guest)


@pytest.mark.long
def test_a_physical_volume_that_fails_in_the_window(guest: Guest) -> None:
    """LVM cannot write its metadata: what is left waits for `repair`, and the domain does not."""
    before = "[ -e /tmp/trouble/asked ] || lab-group break frail 1"
    try:
        done = take_in_trouble(guest, before=before)
        assert done.status in (6, 7), done.stdout + done.stderr
        assert "frail/hard-d0" in done.stderr and "hint:" in done.stderr
        assert_runs_on(guest)
    finally:
        run(guest.lab, "lab-group mend frail 1; pvscan --cache >/dev/null; lvs >/dev/null")
    assert_nothing_left(guest)


FILL_POOL = """
if [ ! -e /tmp/trouble/filled ]; then
    touch /tmp/trouble/filled
    setsid dd if=/dev/zero of=/dev/frail/greedy bs=1M oflag=direct </dev/null >/dev/null 2>&1 &
    for i in $(seq 60); do
        "$real" lvs --noheadings -o data_percent frail/pool | grep -q 100 && break
        sleep 0.3
    done
fi
"""


@pytest.mark.long
def test_a_pool_that_is_filled_while_memory_is_written(guest: Guest) -> None:
    """The set is thrown away, which gives the domain its blocks back, and the pool is named."""
    run(guest.lab, "lvcreate -qq -y -V 400m -T frail/pool -n greedy")
    try:
        done = take_in_trouble(guest, afterwards=FILL_POOL)
        assert done.status == 6, done.stdout + done.stderr
        assert "frail/pool" in done.stderr and "100.0 % full" in done.stderr, done.stderr
        assert volumes(guest.lab) == set()
        assert_runs_on(guest)
    finally:
        run(guest.lab, "pkill -x dd; sleep 1; lvremove -qq -y frail/greedy")
    assert_nothing_left(guest)
