"""The driver of Xen domains, and one that is HVM: what of its QEMU it depends on."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.hypervisor import xenqmp
from snapvm.refusals import DomainRefused
from tests.fakes.xenqemu import XenQemu
from tests.unit.hypervisor.fakexen import CONFIG, Scene

STANDS = 2 | 4 | 2 << 16 | 8
"""It has suspended itself, and is paused."""


def refusal(scene: Scene) -> str:
    _, driver = scene
    with pytest.raises(DomainRefused) as caught:
        driver.check_capture(driver.find("web"), with_memory=True)
    return f"{caught.value} {caught.value.hint()}"


@pytest.fixture
def hvm(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A scene with an HVM domain."""
    monkeypatch.setitem(CONFIG, "c_info", {**CONFIG["c_info"], "type": "hvm"})
    scene[0].info_of[5] = replace(scene[0].info_of[5], flags=2, emulated=0x3FF)
    return scene


def test_an_hvm_domain_is_captured_with_a_qemu_that_answers(
    hvm: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, driver = hvm
    monkeypatch.setattr(xenqmp, "FOLDER", tmp_path)
    assert "No such file" in refusal(hvm)
    driver.check_capture(driver.find("web"), with_memory=False)
    qemu = XenQemu()
    with qemu.listening(xenqmp.socket_of(5)):
        driver.check_capture(driver.find("web"), with_memory=True)
        assert "own saver" in driver.foresee(driver.find("web"))
        qemu.version = (6, 2)
        assert "version 6.2" in refusal(hvm)


def test_one_with_its_qemu_in_a_stub_domain_is_not(
    hvm: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIG["b_info"], "device_model_stubdomain", "True")
    assert "stub domain" in refusal(hvm)


def test_a_repair_has_qemu_forget_what_a_killed_snapvm_asked_of_it(
    hvm: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked after the guest was killed in the pause: QEMU stands still then, too."""
    xen, driver = hvm
    vars(xen)["stop_noting_writes"] = lambda _domid: None
    monkeypatch.setattr(xenqmp, "FOLDER", tmp_path)
    qemu = XenQemu(tells_writes=True, is_running=False)
    xen.store.values["/libxl/5/snapvm-suspend"] = ""
    xen.flag(STANDS)
    with qemu.listening(xenqmp.socket_of(5)):
        driver.abandon(driver.find("web"))
    assert qemu.is_running and not qemu.tells_writes and not qemu.has_died
    assert not xen.info_of[5].is_paused and not xen.info_of[5].is_suspended


def test_a_repair_does_not_depend_on_a_qemu_that_has_ended(
    hvm: Scene,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its socket stays; each repair failed, and so did each `take` that was to come after it."""
    xen, driver = hvm
    vars(xen)["stop_noting_writes"] = lambda _domid: None
    monkeypatch.setattr(xenqmp, "FOLDER", tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(xenqmp.socket_of(5)))
    driver.abandon(driver.find("web"))
    assert "Connection refused" in caplog.text


def test_a_repair_has_qemu_go_on_where_the_guest_did_without_it(
    hvm: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It did not answer in time when the pause ended, and there is no note of a pause alone."""
    xen, driver = hvm
    vars(xen)["stop_noting_writes"] = lambda _domid: None
    monkeypatch.setattr(xenqmp, "FOLDER", tmp_path)
    qemu = XenQemu(is_running=False)
    with qemu.listening(xenqmp.socket_of(5)):
        driver.abandon(driver.find("web"))
        assert qemu.is_running
        qemu.is_running = False
        xen.flag(2 | 8)
        driver.abandon(driver.find("web"))
        assert not qemu.is_running
