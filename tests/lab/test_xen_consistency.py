"""The promise itself, on real LVM and Xen: memory and disks of one instant, any time."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.guests import snapvm, volumes
from tests.lab.vm import Lab
from tests.lab.xenguests import XenGuest, verify_stream

pytestmark = pytest.mark.lab

ROUNDS = 1
"""How often the promise is tried on every change: a round takes minutes where all is emulated.

What else is here is in the long run for the same reason.
"""
LONG_ROUNDS = 10


TWO = pytest.param(2, marks=pytest.mark.long)


@pytest.fixture(scope="module", params=[1, TWO], ids=["1 vCPU", "2 vCPUs"])
def guest(xen_lab: Lab, request: pytest.FixtureRequest) -> Iterator[XenGuest]:
    """A running PV domain with a disk in each of two volume groups, one of them thick.

    It is large enough to be copied before its window; the other ones here are copied in it.  Of two
    vCPUs: the second disk is served by a QEMU and not by the kernel.
    """
    vcpus = str(request.param)
    backend = "phy" if request.param == 1 else "phy,qdisk"
    kind = ("--vg", "vg0,vg1", "--kind", "thick,thin", "--backend", backend)
    options = ("--disks", "2", *kind, "--memory", "288", "--vcpus", vcpus)
    with XenGuest(xen_lab, f"oracle{vcpus}", *options) as guest:
        yield guest


@pytest.mark.parametrize(
    "rounds", [ROUNDS, pytest.param(LONG_ROUNDS, marks=pytest.mark.long)], ids=["one", "ten"]
)
def test_takes_each_rolled_back(guest: XenGuest, rounds: int) -> None:
    """RAM and both disks agree to one step after every rollback, and it goes on counting."""
    for _ in range(rounds):
        before = guest.look()
        record = guest.take()
        assert "precopy" in record["capture"], record["capture"]
        counted = guest.wait_until(before.n + 1)
        assert counted.state == "ok", counted
        assert guest.say("damage") and guest.look().state == "damaged"
        guest.roll_back(record["id"])
        assert guest.state() == "running"
        back = guest.look()
        assert back.state == "ok", back
        assert back.n >= before.n
        assert guest.wait_until(back.n + 5).state == "ok"
        guest.delete_all()
    assert volumes(guest.lab) == set()


@pytest.mark.parametrize("guest", [TWO], ids=["2 vCPUs"], indirect=True)
def test_devices_stay_connected_and_the_image_is_sound(guest: XenGuest) -> None:
    """Same rings, same event channels; Xen's checker and ours find nothing in the image."""
    before, seen = guest.connections(), guest.look()
    record = guest.take("--name", "whole")
    assert guest.connections() == before
    assert guest.wait_until(seen.n + 5).state == "ok"
    checked = verify_stream(guest.lab, guest.image(record))
    assert checked.status == 0, checked.stdout + checked.stderr
    report = json.loads(snapvm(guest.lab, "verify", f"{guest.name}@whole", "--json").stdout)
    assert report["sound"] and not report["findings"], report
    assert report["vcpus"] == record["domain"]["vcpus"]
    snapvm(guest.lab, "delete", "--yes", f"{guest.name}@whole")


@pytest.mark.parametrize("how", ["", "ends"], ids=["precopied", "in one pass"])
@pytest.mark.parametrize("guest", [TWO], ids=["2 vCPUs"], indirect=True)
def test_it_is_the_image_that_xen_would_have_saved(guest: XenGuest, how: str) -> None:
    """Both savers in one window of one guest: the same pages, types, vCPUs."""
    script = f"cd /snapvm && PYTHONPATH=/snapvm python3 -m tests.lab.cross_check {guest.name} {how}"
    done = guest.lab.run(script, timeout_seconds=240, check=True)
    said = json.loads(done.stdout)
    assert said["pages"] >= 256 * 256, said
    assert (said["types"], said["bytes"], said["missing"], said["foreign"]) == (0, 0, 0, 0), said
    assert said["records"] and not said["differing"], said


@pytest.mark.long
def test_the_image_is_restored_by_xl_alone(xen_lab: Lab) -> None:
    """The saved memory starts without snapvm."""
    with XenGuest(xen_lab, "plain", "--disks", "1", "--memory", "128") as guest:
        record = guest.take()
        guest.say("damage")
        disk = record["disks"][0]
        snapshot = f"{disk['snapshot']['vg']}/{disk['snapshot']['lv']}"
        script = f"""
            set -e
            xl destroy plain
            lvremove -qq -y vg0/plain-d0
            lvcreate -qq -s -kn -prw -n plain-d0 {snapshot}
            lvchange -ay -K vg0/plain-d0
            xl restore {guest.image(record)}
        """
        xen_lab.run(script, timeout_seconds=240, check=True)
        assert guest.state() == "running"
        back = guest.look()
        assert back.state == "ok"
        assert guest.wait_until(back.n + 5).state == "ok"


@pytest.mark.long
def test_one_that_ends_with_its_capture_goes_on_from_there(xen_lab: Lab) -> None:
    """`take --stop`: off at the captured instant, back at it by a rollback."""
    with XenGuest(xen_lab, "ended", "--disks", "2", "--memory", "128") as guest:
        seen = guest.look()
        guest.take("--stop", "--name", "end")
        assert guest.state() == "shut off"
        guest.roll_back("end")
        back = guest.look()
        assert back.state == "ok" and back.n >= seen.n
        assert guest.wait_until(back.n + 5).state == "ok"


@pytest.mark.long
def test_disks_alone_and_the_domain_boots_from_its_configuration(xen_lab: Lab) -> None:
    """A record without memory boots the domain anew; a paused one gives its disks too."""
    with XenGuest(xen_lab, "disks", "--disks", "2", "--memory", "128") as guest:
        seen = guest.wait_until(10)
        guest.take("--disk-only", "--name", "cold")
        guest.wait_until(seen.n + 5)
        xen_lab.run(["xl", "pause", "disks"], timeout_seconds=60, check=True)
        refused = snapvm(xen_lab, "take", "disks", status=4)
        assert "xl unpause" in refused.stderr
        guest.take("--disk-only", "--name", "standing")
        assert guest.state() == "paused"
        xen_lab.run(["xl", "unpause", "disks"], timeout_seconds=60, check=True)
        guest.roll_back("cold")
        back = guest.wait_until(1)
        assert guest.wait_until(back.n + 5).state == "ok"


TAKES = 1
LONG_TAKES = 100


@pytest.mark.long
@pytest.mark.parametrize("takes", [TAKES, LONG_TAKES], ids=["one", "hundred"])
def test_takes_in_a_row_leave_everything_in_order(xen_lab: Lab, takes: int) -> None:
    """The guest counts on through all of them; then its end is still announced and acted on."""
    with XenGuest(xen_lab, "often", "--disks", "1", "--memory", "128") as guest:
        before = guest.connections()
        for count in range(takes):
            seen = guest.look()
            record = guest.take()
            assert guest.wait_until(seen.n + 5).state == "ok"
            snapvm(xen_lab, "delete", "--yes", f"often@{record['id']}")
            print(f"take {count + 1} of {takes} is right", flush=True)
        assert guest.connections() == before
        xen_lab.run(["xl", "shutdown", "-w", "often"], timeout_seconds=90, check=True)
        guest.wait_gone()
