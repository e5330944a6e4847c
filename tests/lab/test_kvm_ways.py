"""Every way to capture memory, on disks of every kind: of one instant, and what was asked for.

No other domain runs meanwhile: three virtual processors on two emulated ones boot for minutes.
"""

from __future__ import annotations

from itertools import product

import pytest

from tests.lab import recipe
from tests.lab.guests import Guest
from tests.lab.vm import Lab

pytestmark = pytest.mark.lab

FORMS = {"plain": (), "zstd": ("--compress", "zstd"), "sparse": ("--image-format", "sparse")}
METHODS = ("background", "precopy", "libvirt", "stop")
BUSES = ("virtio", "scsi")
CACHES = ("none", "writeback")
WAYS = [
    *product(METHODS, ("plain",), BUSES, CACHES),
    ("background", "zstd", "scsi", "none"),
    ("background", "sparse", "scsi", "none"),
    ("precopy", "zstd", "virtio", "none"),
]
ON_EACH_CHANGE = (
    ("background", "sparse", "scsi", "none"),
    ("precopy", "plain", "scsi", "writeback"),
)


@pytest.mark.parametrize(
    ("method", "form", "bus", "cache"),
    [
        pytest.param(
            *way, id="-".join(way), marks=() if way in ON_EACH_CHANGE else pytest.mark.long
        )
        for way in WAYS
    ],
)
def test_every_way_to_capture_is_of_one_instant(
    kvm_lab: Lab, method: str, form: str, bus: str, cache: str
) -> None:
    """The fallbacks too, under writes, with two virtual CPUs and disks of every kind."""
    if form != "plain" and recipe.CHOSEN.suite == "bookworm":
        pytest.skip("its libvirt restores plain images alone")
    options = ("--disks", "2", "--memory", "128", "--vcpus", "2", "--bus", bus)
    with Guest(kvm_lab, "ways", *options, "--cache", cache) as guest:
        guest.say("dirty 8")
        guest.wait_until(guest.look().n + 20)
        record = guest.take("--capture", method, *FORMS[form])
        assert record["capture"].startswith(f"{method}:")
        assert ("zstd" in record["capture"]) is (form == "zstd")
        assert ("sparse" in record["memory"]["format"]) is (form == "sparse")
        assert "as was asked for" in record["capture"]
        guest.say("damage")
        guest.roll_back(record["id"])
        back = guest.look()
        assert back.state == "ok", back
        assert guest.wait_until(back.n + 20).state == "ok"
