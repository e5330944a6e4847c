"""The xl that looks after a guest still does so after a snapshot, whatever the version of Xen."""

from __future__ import annotations

import pytest

from tests.lab import recipe
from tests.lab.vm import Lab
from tests.lab.xenguests import XenGuest

STAYS = recipe.CHOSEN is recipe.USUAL
"""Since Xen 4.20 it does so by itself (`snapvm.hypervisor.xenkeeper`)."""
pytestmark = [pytest.mark.lab, *([pytest.mark.long] if STAYS else [])]


def test_a_guest_that_reboots_is_seen_to(xen_lab: Lab) -> None:
    """After a take, and after a rollback and the take that follows it.

    What is to be done with a domain of the lab's that reboots is to destroy it.
    """
    with XenGuest(xen_lab, "rebooting") as guest:
        record = guest.take()
        reboot(guest)
        guest.roll_back(record["id"])
        guest.take()
        reboot(guest)


def reboot(guest: XenGuest) -> None:
    """Have the guest's own kernel reboot at once, and wait until its xl has done its part."""
    guest.lab.run(["xl", "sysrq", guest.name, "b"], timeout_seconds=60, check=True)
    guest.wait_gone()
