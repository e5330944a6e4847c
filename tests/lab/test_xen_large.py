"""A guest larger than the memory that its host can spare, on real Xen: copied while it runs too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.guests import snapvm
from tests.lab.vm import Lab
from tests.lab.xenguests import XenGuest, verify_stream

pytestmark = pytest.mark.lab

FILLER = "/run/filler"
"""A file system in memory, which may have all of it."""


@contextmanager
def little_memory(lab: Lab, spare_mib: int) -> Iterator[None]:
    """Leave so much of the control domain's memory, and the 128 MiB that snapvm does not touch.

    Some 50 MiB of it are snapvm's own.
    """
    fill = f"""
        set -e
        mkdir -p {FILLER}
        mount -t tmpfs -o size=100% filler {FILLER}
        available=$(awk '/^MemAvailable/ {{print int($2 / 1024)}}' /proc/meminfo)
        count=$((available - 128 - {spare_mib}))
        dd if=/dev/zero of={FILLER}/filler bs=1M count=$count status=none
    """
    try:
        lab.run(fill, timeout_seconds=120, check=True)
        yield
    finally:
        lab.run(f"umount {FILLER}", timeout_seconds=60, check=True)


@pytest.mark.parametrize(
    ("spare_mib", "dirty_mib", "is_too_busy"),
    [
        pytest.param(160, 0, False, id="quiet"),
        pytest.param(120, 120, True, id="busy", marks=pytest.mark.long),
    ],
)
def test_it_is_copied_while_it_runs_and_comes_back(
    xen_lab: Lab, spare_mib: int, dirty_mib: int, is_too_busy: bool
) -> None:
    """Digests stand for its pages; what does not fit is written while it stands still, and said."""
    with XenGuest(xen_lab, "large", "--disks", "1", "--memory", "320") as guest:
        guest.say(f"dirty {dirty_mib}")
        with little_memory(xen_lab, spare_mib):
            taken = snapvm(xen_lab, "take", "large", "--name", "whole", "--json")
        record = json.loads(taken.stdout)
        assert "told apart by digests" in record["capture"], record["capture"]
        assert ("more had changed than this host could spare" in taken.stderr) is is_too_busy
        checked = verify_stream(xen_lab, guest.image(record))
        assert checked.status == 0, checked.stdout + checked.stderr
        report = json.loads(snapvm(xen_lab, "verify", "large@whole", "--json").stdout)
        assert report["sound"] and not report["findings"], report
        guest.say("damage")
        guest.roll_back("whole")
        back = guest.look()
        assert back.state == "ok", back
        assert guest.wait_until(back.n + 5).state == "ok"
