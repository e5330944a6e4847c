"""What somebody does to a Xen domain while it is about to be captured, or to go back."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.clock import WindowClock
from snapvm.failures import CaptureFailed, DomainFailed
from snapvm.hypervisor import xenkeeper, xenrestorable
from snapvm.model import DomainState, Silent
from tests.unit.hypervisor.fakedrives import DISK
from tests.unit.hypervisor.fakexen import RUNNING, UUID, Scene


def test_one_that_has_ended_is_not_resumed_in_vain(scene: Scene) -> None:
    """For half a minute; then it was said to need attention, with status 8."""
    xen, driver = scene
    domain = driver.find("web")
    xen.info_of.clear()
    with pytest.raises(DomainFailed, match="web could not be suspended: "), driver.frozen(domain):
        pytest.fail("the block ran")


def test_one_that_its_owner_has_paused_meanwhile_stays_paused(scene: Scene) -> None:
    """Xen counts pauses: one was taken back in vain, again and again, which ended in status 8."""
    xen, driver = scene
    domain = driver.find("web")
    xen.flag(8)
    with pytest.raises(ZeroDivisionError), driver.frozen(domain):
        raise ZeroDivisionError
    assert driver.find("web").state is DomainState.PAUSED


@pytest.mark.parametrize("uuid", [UUID, UUID.replace("1", "9")], ids=["its own", "another"])
def test_one_that_was_off_and_is_started_meanwhile_is_left_alone(scene: Scene, uuid: str) -> None:
    """Without a `uuid` in its file it was not known again: its disks were exchanged below it."""
    xen, driver = scene
    off = replace(driver.find("web"), state=DomainState.SHUTOFF)
    xen.info_of[5] = replace(RUNNING, uuid=uuid)
    with pytest.raises(DomainFailed, match="web could not be suspended"), driver.frozen(off):
        pytest.fail("the block ran")
    assert not xen.info_of[5].is_paused
    xen.gone()
    with driver.frozen(off):
        pass


def test_one_that_its_owner_lets_run_meanwhile_stands_still(scene: Scene) -> None:
    """Its disks were exchanged while it wrote to them."""
    xen, driver = scene
    xen.flag(8)
    domain = driver.find("web")
    xen.flag(0)
    with driver.frozen(domain):
        assert xen.info_of[5].is_paused


def test_a_crashed_one_that_is_made_anew_meanwhile_is_left_alone(scene: Scene) -> None:
    """As by its xl, when the core of its guest is written (`on_crash = "coredump-restart"`)."""
    xen, driver = scene
    xen.flag(4 | 3 << 16)
    domain = driver.find("web")
    with driver.frozen(domain):
        pass
    xen.come()
    with pytest.raises(DomainFailed, match="it is running by now"), driver.frozen(domain):
        pytest.fail("the block ran")
    assert not xen.info_of[5].is_paused


def test_one_that_has_rebooted_meanwhile_is_left_alone(scene: Scene, tmp_path: Path) -> None:
    """It is another domain: a repair lets only that run on which the journal names."""
    xen, driver = scene
    domain = driver.find("web")
    xen.info_of = {6: replace(RUNNING, domid=6)}
    xen.store.values = {"/local/domain/6/name": "web"}
    with pytest.raises(DomainFailed, match="it has rebooted"), driver.frozen(domain):
        pytest.fail("the block ran")
    with (
        pytest.raises(CaptureFailed, match="it has rebooted"),
        driver.capture(domain, tmp_path, image=None, clock=WindowClock(), progress=Silent()),
    ):
        pytest.fail("the block ran")
    assert not xen.info_of[6].is_paused


@pytest.mark.parametrize("number", ["51712", "51728"])
def test_one_whose_disks_were_changed_meanwhile_is_left_alone(scene: Scene, number: str) -> None:
    """What was its disk may be another domain's by now, which would run on below a new name."""
    xen, driver = scene
    for name, value in {**DISK, "params": "/dev/vg0/a"}.items():
        xen.store.set(f"/local/domain/0/backend/vbd/5/51712/{name}", value)
    back = "/local/domain/0/backend/vbd/5"
    xen.store.set("/libxl/5/device/vbd/51712/backend", f"{back}/51712")
    domain = driver.find("web")
    driver.drives(domain)
    xen.store.set(f"/libxl/5/device/vbd/{number}/backend", f"{back}/{number}")
    xen.store.set(f"{back}/{number}/params", "/dev/vg0/b")
    with pytest.raises(DomainFailed, match="its disks were changed"), driver.frozen(domain):
        pytest.fail("the block ran")
    assert not xen.info_of[5].is_paused


def test_one_that_is_about_to_reboot_is_left_alone(scene: Scene) -> None:
    """Its xl made it anew, upon disks that were just being exchanged."""
    xen, driver = scene
    domain = driver.find("web")
    xen.flag(4 | 1 << 16)
    with (
        pytest.raises(DomainFailed, match="could not be suspended: it is in transition by now"),
        driver.frozen(domain),
    ):
        pytest.fail("the block ran")
    assert xen.info_of[5].flags == 4 | 1 << 16


@pytest.mark.parametrize("reason", [1, 3], ids=["it reboots", "it crashed, and is kept"])
def test_one_that_shuts_down_just_before_it_is_paused_is_left_alone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    """Its xl made it anew, upon disks that were just being exchanged."""
    xen, driver = scene
    domain, stopped = driver.find("web"), 4 | reason << 16
    vars(xen)["pause"] = lambda _domid: xen.flag(8 | stopped)
    vars(xen)["unpause"] = lambda _domid: xen.flag(stopped)
    monkeypatch.setattr(time, "sleep", lambda _seconds: pytest.fail("it is resumed in vain"))
    with pytest.raises(DomainFailed, match="shut down or crashed"), driver.frozen(domain):
        pytest.fail("the block ran")
    assert xen.info_of[5].flags == stopped


@pytest.mark.parametrize(
    ("log", "state", "why"),
    [
        ("Waiting for domain web (domid 5) to die [pid 77]\nDone. Rebooting now\n", "S", "77"),
        ("Waiting for domain web (domid 6) to die [pid 77]\n", "S", ""),
        ("Waiting for domain web (domid 5) to die [pid 77]\n", "T", ""),
        ("", "S", "77"),
    ],
    ids=["it reboots", "it was renamed", "its xl is stopped", "it is being made"],
)
def test_one_that_its_xl_is_about_to_make_anew_is_left_alone(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str, state: str, why: str
) -> None:
    """For two seconds between two runs nobody knows it: it was booted amid its rollback."""
    xen, driver = scene
    off = replace(driver.find("web"), state=DomainState.SHUTOFF)
    xen.info_of = {6: replace(RUNNING, domid=6, uuid=UUID.replace("1", "9"))}
    xen.store.values = {"/local/domain/6/name": "web-old"}
    make_xl(tmp_path, log, state)
    monkeypatch.setattr(xenkeeper, "PROCESSES", tmp_path)
    monkeypatch.setattr(xenrestorable, "START_SECONDS", 0)
    leaving = pytest.raises(DomainFailed, match=f"process {why}") if why else nullcontext()
    with leaving, driver.frozen(off):
        assert not why


def make_xl(processes: Path, log: str, state: str = "S") -> Path:
    """Make what /proc has of an xl that looks after a domain called web."""
    process = processes / "77"
    (process / "fd").mkdir(parents=True)
    (process / "comm").write_text("xl\n")
    (process / "status").write_text(f"Uid:\t{os.getuid()}\n")
    (process / "stat").write_text(f"77 (xl) {state} 1")
    (process / "cmdline").write_bytes(b"xl\0create\0/none.cfg\0")
    (processes / "xl-web.log").write_text(log)
    (process / "fd/1").symlink_to(processes / "xl-web.log")
    return process


@pytest.mark.parametrize("comes", [False, True])
def test_an_xl_that_is_at_work_yet_is_waited_for(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, comes: bool
) -> None:
    """After `xl shutdown -w` it clears away what the domain has left; or it makes the domain."""
    xen, driver = scene
    off = replace(driver.find("web"), state=DomainState.SHUTOFF)
    xen.info_of.clear()
    process = make_xl(tmp_path, "")
    monkeypatch.setattr(xenkeeper, "PROCESSES", tmp_path)

    def go_on(_seconds: float) -> None:
        if comes:
            xen.come()
        else:
            (process / "comm").unlink()

    monkeypatch.setattr(time, "sleep", go_on)
    leaving = pytest.raises(DomainFailed, match="started meanwhile") if comes else nullcontext()
    with leaving, driver.frozen(off):
        assert not comes
