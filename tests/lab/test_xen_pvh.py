"""A PVH domain: Xen's own saver writes its memory in our window, and the promise is the same.

Where all is emulated such a guest dies at times by itself, also when no snapvm was ever run on it:
`xl dmesg` shows a triple fault then.  It is no fault of snapvm if that is before the `take`.
"""

from __future__ import annotations

import pytest

from tests.lab.guests import snapvm, volumes
from tests.lab.vm import Lab
from tests.lab.xenguests import XenGuest, verify_stream

pytestmark = [pytest.mark.lab, pytest.mark.long]


def test_memory_and_disks_are_of_one_instant(xen_lab: Lab) -> None:
    """Taken while it writes, damaged, rolled back: RAM and both disks agree and it counts on."""
    options = ("--disks", "2", "--kind", "thick,thin", "--vg", "vg0,vg1", "--memory", "128")
    with XenGuest(xen_lab, "pvh", "--type", "pvh", *options) as guest:
        connected, before = guest.connections(), guest.look()
        record = guest.take()
        assert "own saver" in record["capture"]
        assert guest.connections() == connected
        assert guest.wait_until(before.n + 5).state == "ok"
        checked = verify_stream(xen_lab, guest.image(record))
        assert checked.status == 0, checked.stdout + checked.stderr
        snapvm(xen_lab, "verify", f"pvh@{record['id']}")
        assert guest.say("damage") and guest.look().state == "damaged"
        guest.roll_back(record["id"])
        back = guest.look()
        assert back.state == "ok" and back.n >= before.n, back
        assert guest.wait_until(back.n + 5).state == "ok"
        guest.delete_all()
    assert volumes(xen_lab) == set()
