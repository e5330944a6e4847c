"""Drives as xenstore has them, sorted and refused, and their rings."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm.clock import WindowClock
from snapvm.failures import CaptureFailed, WindowBroken
from snapvm.hypervisor import xendisks
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.hypervisor.xenrings import Rings, ring_references
from snapvm.model import Silent
from snapvm.refusals import DiskRefused, DomainRefused
from tests.fakes.xenstored import FakeXenstored
from tests.unit.hypervisor.capturedxen import DISK_NUMBER, DOMID, NEW_NUMBER, add_drive
from tests.unit.hypervisor.fakedrives import DISK, FakeGrants
from tests.unit.hypervisor.fakexen import Scene

BACK = "/local/domain/0/backend/vbd/7/51712"
QDISK_BACK = "/local/domain/0/backend/qdisk/7/51712"


def drives(back: str = BACK, **changes: str) -> Any:
    return xendisks.classify("demo", seen(back, **changes))


def seen(back: str = BACK, **changes: str) -> tuple[xendisks.Vbd, ...]:
    server = FakeXenstored()
    server.values["/libxl/7/device/vbd/51712/backend"] = back
    for key, value in (
        DISK | {name.replace("_", "-"): text for name, text in changes.items()}
    ).items():
        server.values[f"{back}/{key}"] = value
    with server.connected() as store:
        return xendisks.read_vbds(store, 7)


def test_a_volume_is_captured() -> None:
    (disk,) = drives().disks
    assert (disk.target, disk.device) == ("xvda", Path("/dev/vg0/demo-d0"))
    assert drives(params="vg0/demo-d0").disks[0].device == Path("/dev/vg0/demo-d0")


def test_a_disk_of_virtio_is_not_left_out_in_silence() -> None:
    """It is none of libxl's vbds, and the snapshot of the others was called complete."""
    server = FakeXenstored()
    add_drive(server, DISK_NUMBER)
    back = f"/local/domain/0/backend/virtio_disk/{DOMID}/{NEW_NUMBER}"
    server.values[f"/libxl/{DOMID}/device/virtio_disk/{NEW_NUMBER}/backend"] = back
    virtio = {"dev": "xvdc", "params": "/dev/vg0/demo-d2", "type": "standalone", "mode": "w"}
    server.values |= {f"{back}/{key}": value for key, value in virtio.items()}
    with server.connected() as store:
        found = xendisks.read_vbds(store, DOMID)
    assert [vbd.number for vbd in found] == [DISK_NUMBER, NEW_NUMBER]
    with pytest.raises(DiskRefused, match=r"xvdc.*virtio_disk \(/dev/vg0/demo-d2\)"):
        xendisks.classify("demo", found)


@pytest.mark.parametrize(
    ("has_open", "is_now", "is_refused"),
    [
        ("fd:1f", "fd:1f", False),
        ("FD:1F", "fd:1f", False),
        ("fd:1f", "fd:20", True),
        ("fd:1f", "", False),
        ("", "fd:20", False),
    ],
)
@pytest.mark.parametrize("kind", ["phy", "file"])
def test_a_name_that_is_anothers_by_now_is_not_captured_for_it(
    monkeypatch: pytest.MonkeyPatch, has_open: str, is_now: str, is_refused: bool, kind: str
) -> None:
    """Its volume was renamed while it ran, and its memory was kept with what has the name now."""
    monkeypatch.setattr(xendisks, "number_of", lambda _: is_now)
    if is_refused and kind == "phy":
        with pytest.raises(DiskRefused, match="a different volume from") as refused:
            drives(physical_device=has_open, type=kind)
        assert "lvrename" in refused.value.hint()
    else:  # of a loop device the number is its own
        assert drives(physical_device=has_open, type=kind).disks


def test_the_number_of_a_device_is_as_xenstore_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    status = SimpleNamespace(st_mode=stat.S_IFBLK, st_rdev=os.makedev(253, 31))
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", lambda _: status)
        number = xendisks.number_of(Path("/dev/vg0/web"))
    assert number == "fd:1f"
    assert xendisks.number_of(Path("/dev/null")) == ""
    assert xendisks.number_of(Path("/dev/vg0/gone")) == ""


@pytest.mark.parametrize("said", ["-1 or so", "\N{SUPERSCRIPT TWO}", "4294967304", "9" * 4000])
def test_what_a_guest_says_of_its_rings_may_be_anything(said: str) -> None:
    """Of a number of more than 32 bits the lower ones were a grant: another one, if that."""
    server = FakeXenstored()
    server.values["/local/domain/7/device/vbd/51712/ring-ref"] = "8"
    server.values["/local/domain/7/device/vbd/51728/queue-0/ring-ref0"] = "9"
    server.values["/local/domain/7/device/vbd/51744/state"] = "3"
    with server.connected() as store:
        numbers = ["51712", "51728", "51744"]
        assert ring_references(store, 7, numbers) == {"51712": [8], "51728": [9]}
        server.values["/local/domain/7/device/vbd/51712/ring-ref"] = said
        with pytest.raises(XenFailed, match="holds no grant"):
            ring_references(store, 7, numbers)
        assert ring_references(store, 7, numbers[1:]) == {"51728": [9]}


@pytest.mark.parametrize(
    ("state", "has_ring"),
    [("", True), ("3", True), ("4", True), ("5", True), ("6", False), ("1", False)],
)
def test_a_disk_that_the_guest_has_given_up_has_no_ring(state: str, has_ring: bool) -> None:
    """Its former grant stayed in xenstore: every take failed in its window, some after 10 s."""
    server = FakeXenstored()
    server.values["/local/domain/7/device/vbd/51712/ring-ref"] = "8"
    if state:
        server.values["/local/domain/7/device/vbd/51712/state"] = state
    with server.connected() as store:
        assert ring_references(store, 7, ["51712"]) == ({"51712": [8]} if has_ring else {})


def test_a_ring_that_is_another_domains_is_not_waited_for() -> None:
    """An ISO served by a driver domain: its grants are not ours to map, and every take failed."""
    assert [vbd.is_captured for vbd in (*seen(), *seen(mode="r"))] == [True, False]
    libraries: Any = SimpleNamespace(grants=FakeGrants(9), logger=None)
    Rings(libraries, 7, "demo", {"51712": [8]}).drain()
    assert libraries.grants.held == []
    with pytest.raises(CaptureFailed, match="ring of disk 51728"):
        Rings(libraries, 7, "demo", {"51712": [8], "51728": [9]}).drain()
    assert libraries.grants.held == []


def test_grants_that_cannot_be_opened_end_a_capture() -> None:
    libraries: Any = SimpleNamespace(grants=FakeGrants(handle=0), logger=None)
    with pytest.raises(CaptureFailed, match="opening grants"):
        Rings(libraries, 7, "demo", {"51712": [8]}).drain()


def test_a_guest_has_no_say_in_what_its_disks_are() -> None:
    """Its own folder, which it may write, names the volume of another and hides its second disk."""
    server = FakeXenstored()
    for number in ("51712", "51728"):
        back = f"/local/domain/0/backend/vbd/7/{number}"
        server.values[f"/libxl/7/device/vbd/{number}/backend"] = back
        server.values |= {f"{back}/{key}": value for key, value in DISK.items()}
        server.values[f"{back}/params"] = f"/dev/vg0/mine-{number}"
    other = "/local/domain/0/backend/vbd/9/51712"
    server.values |= {f"{other}/{key}": value for key, value in DISK.items()}
    server.values["/local/domain/7/device/vbd/51712/backend"] = other
    with server.connected() as store:
        found = xendisks.read_vbds(store, 7)
    assert [vbd.params for vbd in found] == ["/dev/vg0/mine-51712", "/dev/vg0/mine-51728"]


def test_a_disk_without_a_backend_is_not_left_out_in_silence() -> None:
    with pytest.raises(DiskRefused, match="names no backend domain"):
        drives(back="")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": "file", "params": "/srv/a.img"}, "the file /srv/a.img"),
        ({"script": "/etc/xen/scripts/block-drbd"}, "block-drbd"),
        ({"params": ""}, "does not say"),
        ({"back": "/local/domain/3/backend/vbd/7/51712"}, "domain 3"),
        ({"back": QDISK_BACK, "params": "qcow2:/srv/a.qcow2"}, "format of its own"),
        ({"back": QDISK_BACK, "params": "aio:/srv/a.img", "type": "qdisk"}, "the file /srv/a.img"),
        ({"back": "/local/domain/0/backend/9pfs/7/51712"}, "9pfs"),
    ],
)
def test_others_are_refused_with_the_reason(changes: dict[str, str], words: str) -> None:
    with pytest.raises(DiskRefused, match=words):
        drives(**changes)


@pytest.mark.parametrize(
    ("changes", "caches"),
    [
        ({}, []),
        (
            {"back": QDISK_BACK, "params": "aio:/dev/vg0/demo-d0", "type": "qdisk", "script": ""},
            [DISK["params"]],
        ),
        ({"type": "file", "node": "/dev/loop3"}, ["/dev/loop3", DISK["params"]]),
    ],
)
def test_what_lies_before_a_volume_is_known(changes: dict[str, str], caches: list[str]) -> None:
    """QEMU and loop devices keep what they were given in the host's page cache."""
    (vbd,) = seen(**changes)
    assert vbd.device == Path("/dev/vg0/demo-d0")
    assert [str(path) for path in vbd.caches] == caches
    assert drives(**changes).disks[0].device == vbd.device


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "r", "back": QDISK_BACK, "params": "qcow2:/srv/base.qcow2", "type": "qdisk"},
        {"device_type": "cdrom", "back": QDISK_BACK, "params": "aio:/srv/deleted.iso"},
        {
            "device_type": "cdrom",
            "type": "file",
            "params": "/srv/deleted.iso",
            "node": "/dev/loop3",
        },
    ],
)
def test_nothing_lies_before_what_cannot_change(changes: dict[str, str]) -> None:
    """Each was flushed in the window, which failed: one has a format, others are gone."""
    (vbd,) = seen(**changes)
    assert vbd.caches == ()


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ("aio:", "a cdrom drive, empty"),
        ("aio:/srv/a.iso", "a cdrom drive with /srv/a.iso"),
        ("qcow2:/srv/a.qcow2", "a cdrom drive with qcow2:/srv/a.qcow2"),
    ],
)
def test_what_is_in_a_drive_is_told(scene: Scene, params: str, why: str) -> None:
    """Of an empty one it was said that `aio:` was in it."""
    xen, driver = scene
    add_drive(xen.store, DISK_NUMBER)
    add_drive(xen.store, NEW_NUMBER, **{"device-type": "cdrom"}, params=params, type="qdisk")
    (drive,) = driver.drives(driver.find("web")).omitted
    assert drive.why == why


@pytest.mark.parametrize("changes", [{"mode": "r"}, {"device_type": "cdrom"}])
def test_what_cannot_change_is_left_out_and_not_all_may_be(changes: dict[str, str]) -> None:
    with pytest.raises(DomainRefused, match="no disk"):
        drives(**changes)


def test_a_disk_that_is_attached_when_the_others_are_planned_breaks_the_capture(
    scene: Scene, tmp_path: Path
) -> None:
    """While LVM was asked for those, say: the snapshot was called whole, and lacked it."""
    xen, driver = scene
    add_drive(xen.store, DISK_NUMBER)
    domain = driver.find("web")
    assert len(driver.drives(domain).disks) == 1
    add_drive(xen.store, NEW_NUMBER)
    with driver.capture(
        domain, tmp_path, image=None, clock=WindowClock(), progress=Silent()
    ) as capture:
        with pytest.raises(WindowBroken, match="drives were changed"), capture.window():
            pytest.fail("the block ran")
        assert not xen.info_of[5].is_paused
