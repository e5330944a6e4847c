"""A Xen domain ended, restored and started: what is waited for, and what is refused before."""

from __future__ import annotations

import json
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapvm.errors import UnknownDomain
from snapvm.failures import DomainFailed
from snapvm.hypervisor import xenbridges, xenconfig, xenkeeper, xensaved
from snapvm.model import DomainState
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.fakexen import CONFIG, UUID, Scene


@pytest.mark.parametrize("paused", [False, True])
def test_stop_restore_and_start(scene: Scene, paused: bool) -> None:
    xen, driver = scene
    domain = driver.find("web")
    wanted = DomainState.PAUSED if paused else DomainState.RUNNING
    flag = ["-p"] if paused else []
    with pytest.raises(
        DomainFailed, match=r"^web could not be restored: a domain of this name runs"
    ):
        driver.restore(domain, Path("/image"), paused=paused)
    driver.stop(domain)
    driver.stop(domain)
    driver.restore(domain, Path("/image"), paused=paused)
    assert xen.ran[-1] == ["xl", "restore", *flag, "/image"]
    assert driver.find("web").state is wanted
    driver.stop(domain)
    driver.start(domain, paused=paused)
    assert xen.ran[-1][:-1] == ["xl", "create", "-q", *flag]
    assert f'uuid = "{UUID}"' in xen.texts[0]
    assert driver.find("web").state is wanted


@pytest.mark.parametrize("is_slow", [False, True])
def test_what_a_peer_has_mapped_does_not_keep_a_domain(scene: Scene, is_slow: bool) -> None:
    """Xen lists it as dying for as long; it ended in "is paused and could not be resumed"."""
    xen, driver = scene
    domain = driver.find("web")
    xen.zombie_pages, xen.is_slow = 3, is_slow
    driver.stop(domain)
    driver.restore(domain, Path("/image"), paused=False)
    assert driver.find("web").state is DomainState.RUNNING


def test_a_domain_whose_memory_is_not_free_yet_is_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    xen, driver = scene
    domain = driver.find("web")
    xen.zombie_pages = 1 << 18
    monkeypatch.setattr("snapvm.hypervisor.xendomains._GONE_SECONDS", 0.1)
    with pytest.raises(DomainFailed, match=r"^web could not be ended: .* does not go"):
        driver.stop(domain)


def test_a_large_domain_may_take_minutes_to_go(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """xl took longer than it was waited for, and the rollback went back to a domain half gone.

    Xen does not call it dying before the last of its memory is free.
    """
    xen, driver = scene
    domain = driver.find("web")
    xen.freed_at_once = 8
    monkeypatch.setattr("snapvm.hypervisor.xendomains._GONE_SECONDS", 0.2)
    driver.stop(domain)
    assert not xen.info_of
    with pytest.raises(UnknownDomain):
        driver.find("web")


def test_a_large_domain_may_take_hours_to_come(scene: Scene, tmp_path: Path) -> None:
    """It was given up, and came all the same, without its rollback."""
    xen, driver = scene
    domain = replace(driver.find("web"), memory_bytes=512 << 30)
    image = tmp_path / "memory.xl"
    with image.open("wb") as file:
        file.truncate(domain.memory_bytes)
    driver.stop(domain)
    xen.xl_seconds = 6 * 3600
    driver.restore(domain, image, paused=False)
    driver.stop(domain)
    driver.start(domain, paused=False)
    assert driver.find("web").state is DomainState.RUNNING
    driver.stop(domain)
    xen.xl_seconds = 24 * 3600
    with pytest.raises(DomainFailed, match="did not end"):
        driver.restore(domain, image, paused=False)


def test_a_domain_starts_though_no_file_can_be_made(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found in the lab, whose /tmp was full."""
    _, driver = scene
    domain = driver.find("web")
    driver.stop(domain)
    monkeypatch.setattr("tempfile.tempdir", "/proc")
    driver.start(domain, paused=False)
    assert driver.find("web").state is DomainState.RUNNING


def test_an_image_that_xl_does_not_take(scene: Scene) -> None:
    _, driver = scene
    domain = driver.find("web")
    driver.stop(domain)
    with pytest.raises(DomainFailed, match=r"^web could not be restored: .*no such image"):
        driver.restore(domain, Path("/bad"), paused=False)


def test_one_that_libvirt_started_is_xls_afterwards(
    scene: Scene,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`virsh list` showed it shut off, and nobody had said so when it went back."""
    _, driver = scene
    domain = driver.find("web")
    monkeypatch.setattr(xenkeeper, "USERDATA", tmp_path)
    note = tmp_path / f"userdata-d.5.{UUID}.libvirt-xml"
    for is_libvirts in (False, True):
        if is_libvirts:
            note.touch()
        driver.stop(domain)
        note.unlink(missing_ok=True)  # as libxl does
        assert "libvirt" not in caplog.text
        driver.restore(domain, Path("/image"), paused=False)
        assert ("web is xl's now: libvirt" in caplog.text) is is_libvirts


@pytest.mark.parametrize(
    ("place", "file", "remedy"),
    [("XENDOMAINS", "web", "rm /"), ("LIBVIRT", "web.save", "virsh managedsave-remove web")],
)
def test_one_that_is_saved_for_its_next_start_does_not_go_back(
    scene: Scene,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    file: str,
    remedy: str,
) -> None:
    """The next boot of the host restored that memory upon the disks that had gone back."""
    _, driver = scene
    running = driver.find("web")
    off = replace(running, state=DomainState.SHUTOFF)
    monkeypatch.setattr(xensaved, place, tmp_path)
    driver.check_restore(off, Path("/image"))
    (tmp_path / file).touch()
    driver.check_restore(running, Path("/image"))  # its memory fits its disks no more in any case
    for image in (Path("/image"), None):
        with pytest.raises(DomainRefused, match=f"its memory is kept for .*{tmp_path}") as refused:
            driver.check_restore(off, image)
        assert remedy in refused.value.hint()


def drive(path: str, **others: object) -> dict[str, object]:
    return {"vdev": "xvdz", "format": "raw", "pdev_path": path, **others}


@pytest.mark.parametrize(
    ("what", "place"),
    [
        ("drive xvdz", {"disks": [drive("/gone/a.iso", is_cdrom=1, readwrite=1)]}),
        ("drive xvdz", {"disks": [drive("/gone/a.img")]}),
        ("kernel", {"b_info": {"kernel": "/gone/vmlinuz"}}),
        ("ramdisk", {"b_info": {"type.pv": {"ramdisk": "/gone/initrd"}}}),
        ("bootloader", {"b_info": {"bootloader": "/gone/pygrub"}}),
    ],
)
def test_nothing_is_ended_for_a_boot_that_would_miss_a_file(
    scene: Scene, what: str, place: dict[str, Any]
) -> None:
    _, driver = scene
    definition = json.dumps([{"config": {**CONFIG, **place}}])
    domain = replace(driver.find("web"), definition=definition)
    with pytest.raises(DomainRefused, match=rf"its {what} is not there \(/gone/") as refused:
        driver.check_restore(domain, None)
    assert refused.value.hint() == "put it back"
    driver.check_restore(domain, None, starts=False)
    driver.check_restore(domain, Path("/image"))
    there = re.sub(r"/gone/[\w.]+", "/dev/null", definition)
    driver.check_restore(replace(domain, definition=there), None)


def test_some_drives_are_not_looked_for(scene: Scene) -> None:
    """The disks are looked at elsewhere, and others are not this domain's to open."""
    _, driver = scene
    disks = [
        drive("/gone/d0", readwrite=1),
        drive("", is_cdrom=1, format="empty"),
        drive("pool/image"),
    ]
    definition = json.dumps([{"config": {**CONFIG, "disks": disks}}])
    driver.check_restore(replace(driver.find("web"), definition=definition), None)
    served = {"disks": [drive("/gone/a", backend_domname="storage"), drive("/gone/b", script="x")]}
    assert not list(xenconfig.start_files({**CONFIG, **served}, boots=True))


GONE_BRIDGE = {"mac": "00:16:3e:00:00:01", "bridge": "xenbr-gone", "script": "vif-bridge"}


@pytest.mark.parametrize(
    ("changes", "is_refused"),
    [
        ({}, True),
        ({"script": "/etc/xen/scripts/vif-bridge", "bridge": "longer-than-any-name"}, True),
        ({"bridge": "lo"}, False),
        ({"bridge": "lo", "script": ""}, False),
        ({"script": ""}, True),
        ({"bridge": ""}, True),
        ({"bridge": "xenbr7"}, False),
        ({"bridge": "xenbr8"}, True),
        ({"script": "/etc/xen/scripts/vif-openvswitch"}, False),
        ({"backend_domname": "net"}, False),
    ],
    ids=str,
)
def test_nothing_is_ended_for_a_start_without_its_bridge(
    scene: Scene,
    changes: dict[str, Any],
    is_refused: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bridges were renamed since the snapshot: the domain was ended, and then not restored.

    It was so where its configuration names no script, as few do: then libxl does not tell of one.
    """
    _, driver = scene
    monkeypatch.setattr(xenbridges, "INTERFACES", tmp_path)
    (tmp_path / "eth7" / "bridge").mkdir(parents=True)
    config = {**CONFIG, "nics": [{**GONE_BRIDGE, **changes}]}
    domain = replace(driver.find("web"), definition=json.dumps([{"config": config}]))
    refusing: AbstractContextManager[object] = (
        pytest.raises(DomainRefused, match=r"bridge .* of its network interface 00:16:3e")
        if is_refused
        else nullcontext()
    )
    with refusing:
        driver.check_restore(domain, None)
    driver.check_restore(domain, None, starts=False)
