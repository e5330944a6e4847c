"""What somebody does to a Xen domain while it is about to be captured, or to go back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.clock import WindowClock
from snapvm.failures import CaptureFailed, DomainFailed
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


def test_one_that_reboots_just_before_it_is_paused_is_left_alone(scene: Scene) -> None:
    """Its xl made it anew, upon disks that were just being exchanged."""
    xen, driver = scene
    domain = driver.find("web")
    vars(xen)["pause"] = lambda _domid: xen.flag(8 | 4 | 1 << 16)
    with pytest.raises(DomainFailed, match="shut down or crashed"), driver.frozen(domain):
        pytest.fail("the block ran")
    assert not xen.info_of[5].is_paused
