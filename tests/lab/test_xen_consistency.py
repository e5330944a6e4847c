"""The promise itself, on real LVM and Xen: memory and disks of one instant, any time."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.guests import snapvm, volumes
from tests.lab.vm import Lab
from tests.lab.xenguests import XenGuest, verify_stream

# Written before a Xen could be had to run it on: the long run only, until it has passed there.
pytestmark = [pytest.mark.lab, pytest.mark.long]

ROUNDS = 3


@pytest.fixture(scope="module", params=[1, 2], ids=["1 vCPU", "2 vCPUs"])
def guest(xen_lab: Lab, request: pytest.FixtureRequest) -> Iterator[XenGuest]:
    """A running PV domain with a disk in each of two volume groups."""
    vcpus = str(request.param)
    options = ("--disks", "2", "--vg", "vg0,vg1", "--memory", "128", "--vcpus", vcpus)
    with XenGuest(xen_lab, f"oracle{vcpus}", *options) as guest:
        yield guest


def test_takes_each_rolled_back(guest: XenGuest) -> None:
    """RAM and both disks agree to one step after every rollback, and it goes on counting."""
    for _ in range(ROUNDS):
        before = guest.look()
        record = guest.take()
        counted = guest.wait_until(before.n + 1)
        assert counted.state == "ok", counted
        assert guest.say("damage") and guest.look().state == "damaged"
        guest.roll_back(record["id"])
        assert guest.state() == "running"
        back = guest.look()
        assert back.state == "ok", back
        assert back.n >= before.n
        assert guest.wait_until(back.n + 20).state == "ok"
        snapvm(guest.lab, "delete", "--yes", *(f"{guest.name}@{id_}" for id_ in guest.ids()))
    assert volumes(guest.lab) == set()


def test_devices_stay_connected_and_the_image_is_sound(guest: XenGuest) -> None:
    """Same rings, same event channels; Xen's checker and ours find nothing in the image."""
    before, seen = guest.connections(), guest.look()
    record = guest.take("--name", "whole")
    assert guest.connections() == before
    assert guest.wait_until(seen.n + 50).state == "ok"
    checked = verify_stream(guest.lab, guest.image(record))
    assert checked.status == 0, checked.stdout + checked.stderr
    report = json.loads(snapvm(guest.lab, "verify", f"{guest.name}@whole", "--json").stdout)
    assert report["sound"] and not report["findings"], report
    assert report["vcpus"] == record["domain"]["vcpus"]
    snapvm(guest.lab, "delete", "--yes", f"{guest.name}@whole")


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
        assert guest.wait_until(back.n + 20).state == "ok"


def test_disks_alone_and_the_domain_boots_from_its_configuration(xen_lab: Lab) -> None:
    """A record without memory boots the domain anew; a paused one gives its disks too."""
    with XenGuest(xen_lab, "disks", "--disks", "2", "--memory", "128") as guest:
        seen = guest.wait_until(30)
        guest.take("--disk-only", "--name", "cold")
        guest.wait_until(seen.n + 30)
        xen_lab.run(["xl", "pause", "disks"], timeout_seconds=60, check=True)
        refused = snapvm(xen_lab, "take", "disks", status=4)
        assert "xl unpause" in refused.stderr
        guest.take("--disk-only", "--name", "standing")
        assert guest.state() == "paused"
        xen_lab.run(["xl", "unpause", "disks"], timeout_seconds=60, check=True)
        guest.roll_back("cold")
        back = guest.wait_until(1)
        assert guest.wait_until(back.n + 20).state == "ok"


def test_takes_in_a_row_leave_everything_in_order(xen_lab: Lab) -> None:
    """Ten takes, the guest counting on; then its own end is still announced and acted on."""
    with XenGuest(xen_lab, "often", "--disks", "1", "--memory", "128") as guest:
        before = guest.connections()
        for number in range(10):
            seen = guest.look()
            guest.take("--name", f"n{number}")
            assert guest.wait_until(seen.n + 5).state == "ok"
        assert guest.connections() == before
        snapvm(xen_lab, "delete", "--yes", *(f"often@n{number}" for number in range(10)))
        xen_lab.run("pulse often off || true; sleep 5", timeout_seconds=90)
        assert guest.state() == "shut off"
