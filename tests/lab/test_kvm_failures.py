"""What goes wrong on a real host: refused untouched, or failed with nothing left behind."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from tests.lab import recipe
from tests.lab.guests import COMMAND_SECONDS, Guest, snapvm, volumes
from tests.lab.vm import Completed, Lab

pytestmark = pytest.mark.lab

FAULTY_LVM = """#!/bin/sh
# An lvm on PATH; a moment before its second snapshot somebody does something in that group.
real=$(PATH=/usr/sbin:/sbin command -v lvm)
[ $# -eq 0 ] || exec "$real" "$@"
while read -r order; do
    case "$order" in
    lvcreate*--snapshot*fail-d1*)
        name=$(echo "$order" | sed 's/.*--name \\([^ ]*\\).*/\\1/')
        MEANWHILE >/dev/null 2>&1 ;;
    esac
    printf '%s\\n' "$order"
done | "$real"
"""
TAKE_NAME = '"$real" lvcreate -qq -an -V 4m -T vg1/pool -n "$name"'
LEAVE_SUSPENDED = (
    "timeout 30 sh -c 'until dmsetup table vg0-fail--d0 | grep -q origin; do sleep 0.2; done'; "
    "sleep 1; dmsetup suspend vg0-fail--d0; dmsetup suspend vg1-fail--d1; exit"
)
"""As an lvm leaves the devices that it has suspended when it is killed; the other one is done."""
FILL_GROUP = '"$real" vgchange -qq -l $("$real" lvs --noheadings vg1 | wc -l) vg1'
CATCHES_TERM = "^SigCgt:[[:space:]]*[0-9a-f]*[4-7c-f][0-9a-f]\\{3\\}$"
"""In proc(5)'s status of a process: how long Python takes to begin depends on the machine."""


@pytest.fixture(scope="module")
def guest(kvm_lab: Lab) -> Iterator[Guest]:
    """A running domain with a thick disk in one volume group and a thin one in another."""
    options = ("--disks", "2", "--vg", "vg0,vg1", "--kind", "thick,thin", "--memory", "128")
    with Guest(kvm_lab, "fail", *options) as guest:
        yield guest


def run(lab: Lab, script: str) -> Completed:
    return lab.run(script, timeout_seconds=COMMAND_SECONDS)


def assert_untouched(guest: Guest) -> None:
    """Nothing of ours is there, and the domain counts."""
    assert volumes(guest.lab) == set()
    assert guest.ids() == []
    left = run(guest.lab, "find /var/lib/snapvm -name '.*.draft' -o -name memory.save").stdout
    assert left == ""
    assert guest.state() == "running"
    now = guest.look()
    assert now.state == "ok"
    assert guest.wait_until(now.n + 5).state == "ok"


def put_faulty_lvm(lab: Lab, meanwhile: str) -> None:
    lab.run(
        "mkdir -p /tmp/faulty && cat > /tmp/faulty/lvm && chmod 755 /tmp/faulty/lvm",
        input=FAULTY_LVM.replace("MEANWHILE", meanwhile),
        timeout_seconds=30,
        check=True,
    )


def test_a_second_snapshot_whose_name_is_taken(guest: Guest) -> None:
    """Status 6: the first snapshot is gone again, and what was in the way is not ours to remove."""
    put_faulty_lvm(guest.lab, TAKE_NAME)
    done = run(guest.lab, "PATH=/tmp/faulty:$PATH snapvm take fail --name taken")
    assert done.status == 6, done.stdout + done.stderr
    assert "already exists" in done.stderr and "vdb" in done.stderr
    in_the_way = run(guest.lab, "lvremove -y vg1/fail-d1.taken")
    assert in_the_way.status == 0, "the volume of that name was somebody else's"
    assert_untouched(guest)


def test_a_second_snapshot_that_lvm_refuses(guest: Guest) -> None:
    """Status 6: lvm itself says no, in the window, for the second group only.

    It is refused beforehand, with status 4, where that can be known.
    """
    put_faulty_lvm(guest.lab, FILL_GROUP)
    try:
        done = run(guest.lab, "PATH=/tmp/faulty:$PATH snapvm take fail")
        assert done.status == 6, done.stdout + done.stderr
        assert "Maximum number of logical volumes" in done.stderr and "vg1" in done.stderr
        known = run(guest.lab, "snapvm take fail")
        assert known.status == 4 and "vg1" in known.stderr, known.stdout + known.stderr
        assert_untouched(guest)
    finally:
        run(guest.lab, "vgchange -qq -l 0 vg1")


@pytest.mark.parametrize("way", ["background", "precopy"])
def test_disks_that_an_lvm_left_suspended_go_on(guest: Guest, way: str) -> None:
    """Status 6: its guest can write to them again, be they thin or thick.

    In the second way QEMU waits for them itself, and heard nothing more.
    """
    put_faulty_lvm(guest.lab, LEAVE_SUSPENDED)
    if way == "background" and recipe.CHOSEN.suite == "bookworm":
        pytest.skip("its QEMU is captured in the other way")
    done = run(guest.lab, f"PATH=/tmp/faulty:$PATH snapvm take fail --capture {way}")
    assert done.status == 6, done.stdout + done.stderr
    assert "left suspended" in done.stderr and "vg0/fail-d0" in done.stderr
    assert "SUSPENDED" not in run(guest.lab, "dmsetup info -c -o attr,suspended,name").stdout
    assert_untouched(guest)
    suspended = run(guest.lab, "dmsetup suspend vg1-fail--d1; snapvm take fail")
    assert suspended.status == 4 and "lvchange --refresh vg1/fail-d1" in suspended.stderr
    refreshed = run(guest.lab, "lvchange --refresh vg1/fail-d1")
    assert refreshed.status == 0, refreshed.stderr
    assert_untouched(guest)


KSM = "/sys/kernel/mm/ksm/run"


def test_a_host_that_merges_memory(guest: Guest) -> None:
    """It is captured in a way in which what is merged does no harm, which `doctor` tells too."""
    if recipe.CHOSEN.suite == "bookworm":
        pytest.skip("its QEMU is captured in that way in any case")
    merging = run(guest.lab, f"echo 1000 > /sys/kernel/mm/ksm/pages_to_scan; echo 1 > {KSM}")
    assert merging.status == 0, merging.stderr
    try:
        assert "(KSM)" in snapvm(guest.lab, "doctor", "fail").stdout
        record = guest.take("--name", "merged")
        assert record["capture"].startswith("precopy:") and "(KSM)" in record["capture"]
        guest.say("damage")
        guest.roll_back("merged")
        back = guest.look()
        assert back.state == "ok", back
    finally:
        run(guest.lab, f"echo 0 > {KSM}")
    guest.delete_all()
    assert_untouched(guest)


ATTACH = "virsh -q attach-disk fail {} vdx --driver qemu --subdriver raw --live --sourcetype "
UNFIT = {
    "/var/tmp/f.img": f"truncate -s 16M /var/tmp/f.img; {ATTACH.format('/var/tmp/f.img')} file",
    "itself a snapshot": "lvcreate -qq -s -L 16m -n unfit vg0/fail-d0; "
    f"{ATTACH.format('/dev/vg0/unfit')} block",
    "--cow-size": "lvcreate -qq -y -Wn -L 4g -n unfit vg0; "
    f"{ATTACH.format('/dev/vg0/unfit')} block",
    "shareable": "lvcreate -qq -V 16m -T vg0/pool -n shared; "
    f"{ATTACH.format('/dev/vg0/shared')} block --mode shareable --cache none",
}


@pytest.mark.parametrize(("word", "attach"), UNFIT.items())
def test_a_disk_that_cannot_be_captured(guest: Guest, word: str, attach: str) -> None:
    """Status 4, before the domain is touched: the message names the disk and what to do."""
    attached = run(guest.lab, attach)
    assert attached.status == 0, attached.stderr
    try:
        before = run(guest.lab, "virsh domstate fail --reason; cat /etc/lvm/backup/vg0 | wc -l")
        done = run(guest.lab, "snapvm take fail")
        assert done.status == 4, done.stdout + done.stderr
        assert word in done.stderr and "hint:" in done.stderr
        after = run(guest.lab, "virsh domstate fail --reason; cat /etc/lvm/backup/vg0 | wc -l")
        assert after.stdout == before.stdout
        assert volumes(guest.lab) == set()
    finally:
        script = "virsh -q detach-disk fail vdx --live; sleep 2; rm -f /var/tmp/f.img"
        run(guest.lab, script + "; lvremove -qq -y vg0/unfit vg0/shared 2>/dev/null")


def test_a_medium_that_has_gone_since(guest: Guest) -> None:
    """Status 4, the domain runs on: libvirt would not have started it, and comes back with it."""
    medium = "/var/tmp/medium.img"
    attached = run(
        guest.lab, f"truncate -s 1M {medium}; {ATTACH.format(medium)} file --mode readonly"
    )
    assert attached.status == 0, attached.stderr
    taken = guest.take("--name", "medium")
    assert [drive["target"] for drive in taken["omitted"]] == ["vdx"]
    run(guest.lab, f"rm {medium}")
    refused = snapvm(guest.lab, "rollback", "fail@medium", "--yes", status=4)
    assert f"its disk vdx is not there ({medium})" in refused.stderr
    assert guest.wait_until(guest.look().n + 3).state == "ok"

    image = f"/var/lib/snapvm/domains/{taken['domain']['uuid']}/medium/memory.save"
    by_hand = run(guest.lab, f"virsh -q destroy fail; virsh restore {image}")
    assert by_hand.status != 0 and medium in by_hand.stderr, "libvirt starts it without"
    run(guest.lab, f"truncate -s 1M {medium}")
    guest.roll_back("medium")
    assert guest.wait_until(guest.look().n + 3).state == "ok"

    run(guest.lab, f"virsh -q detach-disk fail vdx --live; sleep 2; rm {medium}")
    guest.delete_all()
    assert_untouched(guest)


def test_a_disk_that_it_has_got_since(guest: Guest) -> None:
    """Status 4 where the domain would be booted with it: the disks would be of two times."""
    guest.take("--name", "before", "--disk-only")
    attach = ATTACH.format("/dev/vg0/since") + "block"
    made = run(guest.lab, f"lvcreate -qq -V 16m -T vg0/pool -n since; {attach} --config")
    assert made.status == 0, made.stderr
    refused = snapvm(guest.lab, "rollback", "fail@before", "--yes", status=4)
    assert "it has disk vdx" in refused.stderr
    assert "virsh detach-disk fail vdx --config" in refused.stderr
    assert guest.wait_until(guest.look().n + 3).state == "ok"

    detached = run(guest.lab, "virsh -q detach-disk fail vdx --config")
    assert detached.status == 0, detached.stderr
    guest.roll_back("before")
    assert guest.state() == "running"
    assert "vdx" not in run(guest.lab, "virsh domblklist fail").stdout
    assert guest.wait_until(guest.look().n + 3).state == "ok"
    assert run(guest.lab, "lvremove -qq -y vg0/since").status == 0
    guest.delete_all()
    assert_untouched(guest)


def test_what_is_not_there(kvm_lab: Lab) -> None:
    """Status 3, without a traceback."""
    assert "nosuch" in snapvm(kvm_lab, "take", "nosuch", status=3).stderr
    snapvm(kvm_lab, "rollback", "nosuch@x", "--yes", status=3)
    snapvm(kvm_lab, "show", "nosuch@x", status=3)
    snapvm(kvm_lab, "delete", "nosuch@x", "--yes", status=3)
    snapvm(kvm_lab, "take", "fail", "--name", "-x", status=2)


def test_scripts_and_terminals(guest: Guest) -> None:
    """JSON for jq, no colour in a pipe, a progress display on a terminal only."""
    piped = run(guest.lab, "snapvm take fail --name scripted 2>&1 | cat")
    assert "\x1b" not in piped.stdout and "fail@scripted" in piped.stdout
    listed = run(guest.lab, "snapvm list --json | jq -r '.[].ref'")
    assert listed.stdout == "fail@scripted\n" and listed.status == 0
    assert "\x1b" not in run(guest.lab, "snapvm list").stdout
    shown = run(guest.lab, "TERM=xterm script -qec 'snapvm take fail --name seen' /dev/null")
    assert "\x1b[" in shown.stdout and "fail@seen" in shown.stdout, shown.stdout
    table = run(guest.lab, "TERM=xterm script -qec 'snapvm list' /dev/null")
    assert "fail@seen" in table.stdout
    record = json.loads(snapvm(guest.lab, "show", "fail@seen", "--json").stdout)
    assert record["timing"]["pause_ms"] > 0 and record["written_bytes"] > 0
    parts = {part["name"] for part in record["timing"]["parts"]}
    assert {"lvm vda", "lvm vdb", "resume"} <= parts
    drawn = snapvm(guest.lab, "show", "fail@seen").stdout
    assert all(part in drawn for part in parts)
    snapvm(guest.lab, "delete", "fail@scripted", "fail@seen", "--yes")
    assert_untouched(guest)


def test_killed_in_the_window(guest: Guest) -> None:
    """The guard makes the domain run again, by itself, and takes the rest back."""
    done = run(guest.lab, "python3 /snapvm/tests/lab/kill_in_window.py fail")
    assert done.status == 0, done.stdout + done.stderr
    print(f"running again {done.stdout.strip()} ms after SIGKILL in the window")
    gone = "for i in $(seq 60); do ls -d /var/lib/snapvm/domains/*/.*.draft || break; sleep 1; done"
    run(guest.lab, gone)
    assert "nothing to repair" in snapvm(guest.lab, "repair").stdout
    assert_untouched(guest)


@pytest.mark.parametrize(
    ("signal", "times"),
    [
        ("TERM", 1),
        pytest.param("INT", 5, marks=pytest.mark.long),
        pytest.param("TERM", 5, marks=pytest.mark.long),
        pytest.param("KILL", 5, marks=pytest.mark.long),
    ],
)
def test_interrupted_anywhere(guest: Guest, signal: str, times: int) -> None:
    """Ctrl-C and SIGTERM put everything back; after SIGKILL the next command does."""
    moments = random.Random(f"snapvm {signal}")
    for _ in range(times):
        delay = round(moments.uniform(0, 7), 1)
        wait = f"until grep -q '{CATCHES_TERM}' /proc/$p/status; do sleep 0.1; done; sleep {delay}"
        script = f"snapvm take fail & p=$!; {wait}; kill -{signal} $p; wait $p; echo $?"
        status = int(run(guest.lab, script).stdout.split()[-1])
        assert status in ((0, 137) if signal == "KILL" else (0, 130)), (delay, status)
        snapvm(guest.lab, "repair")
        ids = guest.ids()
        # Killed, it may have had its record already.
        assert len(ids) in {0: (1,), 130: (0,)}.get(status, (0, 1)), (delay, ids)
        guest.delete_all()
        assert_untouched(guest)
