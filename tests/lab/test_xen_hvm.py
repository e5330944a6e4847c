"""HVM and PVH domains: Xen's own saver writes their memory in our window, with the same promise.

Where all is emulated such guests die at times by themselves, also when no snapvm was ever run on
them (`xl dmesg` shows a triple fault), or Xen hangs.  With one processor it has not been seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.lab.guests import BOOT_SECONDS, snapvm, volumes
from tests.lab.keeper import Keeper
from tests.lab.machine import Shape
from tests.lab.vm import Flavour, Lab
from tests.lab.xenguests import XenGuest, verify_stream

pytestmark = [pytest.mark.lab, pytest.mark.long]

TWO_DISKS = ("--disks", "2", "--kind", "thick,thin", "--vg", "vg0,vg1", "--memory", "160")
SLOWLY = "pace 100"
"""QEMU, xenstored and snapvm share the processor with the guest."""
HARDLY = "pace 10000"
KILLED = """
PYTHONPATH=/snapvm python3 -P -m snapvm take hvm & taker=$!
until xl list | grep -q '^hvm .* --*ps'; do kill -0 $taker || exit 2; done
kill -9 $taker
"""
QEMU_RUNS = """
printf '{"execute": "qmp_capabilities"}\\n{"execute": "query-status"}\\n' |
  socat -t 5 - UNIX-CONNECT:/run/xen/qmp-libxl-$(xl domid hvm) | grep -q '"running": true'
"""
QEMU_COMMAND = """
tr '\\0' ' ' < /proc/$(xenstore-read /local/domain/$(xl domid hvm)/image/device-model-pid)/cmdline
"""


@pytest.fixture(scope="module")
def calm_lab(lab_keeper: Keeper) -> Iterator[Lab]:
    """A Xen host with one processor."""
    lab_keeper.close()
    with Lab(Flavour.XEN, shape=Shape(cpus=1)) as lab:
        yield lab


@pytest.mark.parametrize("kind", ["hvm", "pvh"])
def test_memory_and_disks_are_of_one_instant(calm_lab: Lab, kind: str) -> None:
    """Taken while it writes, damaged, rolled back: RAM and both disks agree and it counts on."""
    with XenGuest(calm_lab, kind, "--type", kind, *TWO_DISKS) as guest:
        guest.say(SLOWLY)
        connected, before = guest.connections(), guest.look()
        record = guest.take()
        assert "own saver" in record["capture"]
        assert guest.connections() == connected
        assert guest.wait_until(before.n + 5).state == "ok"
        checked = verify_stream(calm_lab, guest.image(record))
        assert checked.status == 0, checked.stdout + checked.stderr
        snapvm(calm_lab, "verify", f"{kind}@{record['id']}")
        assert guest.say("damage") and guest.look().state == "damaged"
        guest.roll_back(record["id"])
        back = guest.look()
        assert back.state == "ok" and back.n >= before.n, back
        assert guest.wait_until(back.n + 5).state == "ok"
        guest.delete_all()
    assert volumes(calm_lab) == set()


def test_a_snapvm_that_is_killed_in_the_pause_leaves_qemu_running(calm_lab: Lab) -> None:
    """A guest whose QEMU stands still runs until it does I/O, and hangs then."""
    with XenGuest(calm_lab, "hvm", "--type", "hvm", *TWO_DISKS) as guest:
        guest.say(SLOWLY)
        calm_lab.run(KILLED, timeout_seconds=300, check=True)
        before = guest.look()
        assert guest.wait_until(before.n + 5).state == "ok"
        calm_lab.run(QEMU_RUNS, timeout_seconds=60, check=True)
        snapvm(calm_lab, "repair")
        assert guest.take()["capture"], "it can be captured again"
        guest.delete_all()
    assert volumes(calm_lab) == set()


def qemu_words(lab: Lab) -> str:
    """Return how the guest's QEMU was started, without numbers: some are those of this run."""
    done = lab.run(QEMU_COMMAND, timeout_seconds=60, check=True)
    return re.sub(r"\d+", "N", done.stdout)


def test_undo_boots_it_from_its_former_disks(calm_lab: Lab) -> None:
    """xl is told what libxl knows of it: the same QEMU, upon disks with a number that it only had
    before the rollback."""
    with XenGuest(calm_lab, "hvm", "--type", "hvm", *TWO_DISKS) as guest:
        words = qemu_words(calm_lab)
        assert "-xen-domid" in words
        guest.say(HARDLY)
        record = guest.take()
        guest.say(SLOWLY)
        former = guest.wait_until(guest.look().n + 20)
        guest.roll_back(record["id"])
        back = guest.look()
        assert back.state == "ok" and back.n < former.n, back
        snapvm(calm_lab, "undo", "hvm", "--yes")
        assert guest.state() == "running"
        first = re.search(r" first=(\d+) ", guest.say("who", BOOT_SECONDS))
        assert first and int(first[1]) > former.n
        guest.say(SLOWLY)
        assert qemu_words(calm_lab) == words
        assert guest.wait_until(int(first[1]) + 5).state == "ok"
        assert guest.take()["capture"], "it can be captured again"
        guest.delete_all()
    assert volumes(calm_lab) == set()
