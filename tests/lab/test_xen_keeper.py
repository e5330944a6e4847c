"""The xl that looks after a guest still does so after a snapshot, whatever the version of Xen."""

from __future__ import annotations

import pytest

from tests.lab.vm import Lab
from tests.lab.xenguests import XenGuest

pytestmark = pytest.mark.lab


def test_a_guest_that_reboots_is_started_again(xen_lab: Lab) -> None:
    """After a take, and after a rollback and the take that follows it."""
    with XenGuest(xen_lab, "rebooting") as guest:
        record = guest.take()
        reboot(guest)
        guest.roll_back(record["id"])
        guest.take()
        reboot(guest)


def reboot(guest: XenGuest) -> None:
    """Have the guest's own kernel reboot at once, and wait for what is started in its place."""
    former = guest.domid
    guest.lab.run(["xl", "sysrq", guest.name, "b"], timeout_seconds=60, check=True)
    is_there = f'domid=$(xl domid {guest.name} 2>/dev/null) && [ "$domid" -gt {former} ]'
    script = f"timeout 60 sh -c 'until {is_there}; do sleep 0.5; done' || {{ xl list; exit 1; }}"
    guest.lab.run(script, timeout_seconds=90, check=True)
    assert guest.wait_until(1).state == "ok"
