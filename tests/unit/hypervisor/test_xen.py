"""The driver of Xen domains: what it finds, refuses, and lets run again."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.errors import Interrupted, UnknownDomain
from snapvm.interrupt import watched
from snapvm.model import CaptureMethod, DomainState, DomainUuid
from snapvm.refusals import DomainRefused
from snapvm.settings import Settings
from tests.fakes.xenstored import Message
from tests.unit.hypervisor.fakexen import CONFIG, DYING, RUNNING, UUID, Scene


def test_a_domain_is_found_by_its_name(scene: Scene) -> None:
    _, driver = scene
    domain = driver.find("web")
    assert (domain.uuid, domain.state) == (UUID, DomainState.RUNNING)
    assert (domain.memory_bytes, domain.vcpus) == (256 * 4096, 2)
    with pytest.raises(UnknownDomain):
        driver.find("other")


@pytest.mark.parametrize(
    ("flags", "state"),
    [
        (0x10, DomainState.RUNNING),
        (8, DomainState.PAUSED),
        (4 | 2 << 16, DomainState.SUSPENDED),
        (8 | 4 | 2 << 16, DomainState.PAUSED),
        (4 | 3 << 16, DomainState.CRASHED),
        (8 | 4 | 3 << 16, DomainState.CRASHED),
        (4, DomainState.OTHER),
    ],
)
def test_what_a_domain_does_is_told_by_xens_flags(
    scene: Scene, flags: int, state: DomainState
) -> None:
    xen, driver = scene
    xen.flag(flags)
    assert driver.find("web").state is state


def test_it_is_found_among_a_thousand(scene: Scene) -> None:
    """xenstored lists no more than 4096 bytes; every command ended with "xenstore: E2BIG"."""
    xen, driver = scene
    for domid in range(1000, 2000):
        xen.info_of[domid] = replace(RUNNING, domid=domid, uuid=str(domid))
        xen.store.values[f"/local/domain/{domid}/name"] = f"unikernel{domid}"
    assert driver.find("web").run == "5"
    assert driver.find("unikernel1999").run == "1999"


def test_its_name_is_known_by_its_uuid(scene: Scene) -> None:
    _, driver = scene
    assert driver.name_of(DomainUuid(UUID)) == "web"
    assert driver.name_of(DomainUuid(UUID.replace("1", "9"))) == ""


def test_one_that_is_being_destroyed_is_unknown(scene: Scene) -> None:
    xen, driver = scene
    xen.flag(1)
    with pytest.raises(UnknownDomain):
        driver.find("web")


def refusal(scene: Scene, *, with_memory: bool = True) -> str:
    _, driver = scene
    with pytest.raises(DomainRefused) as caught:
        driver.check_capture(driver.find("web"), with_memory=with_memory)
    return f"{caught.value} {caught.value.hint()}"


def test_what_cannot_be_captured_is_refused(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    xen, driver = scene
    driver.check_capture(driver.find("web"), with_memory=True)
    xen.flag(8)
    assert "xl unpause" in refusal(scene)
    xen.flag(4 | 3 << 16)
    assert "crashed" in refusal(scene, with_memory=False)
    xen.flag(0)
    xen.width = 4
    assert "32-bit" in refusal(scene)
    xen.width = 8
    # Linux says this when it boots and not again after a restore, which gives it a new folder.
    xen.store.values["/local/domain/5/control/feature-suspend"] = ""
    driver.check_capture(driver.find("web"), with_memory=True)
    monkeypatch.setitem(CONFIG, "pcidevs", [{"bus": 3}])
    assert "PCI" in refusal(scene)


@pytest.mark.parametrize(
    ("told", "is_refused"),
    [
        ({"poweroff": "1", "reboot": "1", "suspend": "1"}, False),
        ({"poweroff": "1", "reboot": "1", "suspend": ""}, True),
        ({"poweroff": "1", "suspend": "0"}, True),
        ({"poweroff": "", "reboot": "", "suspend": ""}, False),
        ({}, False),
    ],
)
def test_a_kernel_that_cannot_suspend_itself_is_refused(
    scene: Scene, told: dict[str, str], is_refused: bool
) -> None:
    """All of its memory was copied, and it was waited for a minute, before that was said."""
    xen, driver = scene
    control = "/local/domain/5/control/feature"
    xen.store.values.pop(f"{control}-suspend")
    xen.store.values.update({f"{control}-{word}": value for word, value in told.items()})
    domain = driver.find("web")
    driver.check_capture(domain, with_memory=False)
    refusing: AbstractContextManager[object] = (
        pytest.raises(DomainRefused, match="not to suspend") if is_refused else nullcontext()
    )
    with refusing:
        driver.check_capture(domain, with_memory=True)


def test_the_memory_of_one_that_serves_others_is_refused(scene: Scene) -> None:
    """A firewall with the network of others: what it had mapped of them was zeroed, and told."""
    xen, driver = scene
    xen.info_of[9] = replace(RUNNING, domid=9, uuid="9")
    xen.store.values["/local/domain/9/name"] = "mail"
    xen.store.values["/local/domain/5/backend/vif/7/0/state"] = "6"
    driver.check_capture(driver.find("web"), with_memory=True)  # 7 is gone
    xen.store.values["/local/domain/5/backend/vif/9/0/state"] = "4"
    assert "it serves a device of mail" in refusal(scene)
    driver.check_capture(driver.find("web"), with_memory=False)


@pytest.mark.parametrize("with_memory", [True, False])
def test_the_control_domain_is_refused(scene: Scene, with_memory: bool) -> None:
    """It was asked to suspend itself, if it had a disk attached; Xen reboots the machine then."""
    xen, driver = scene
    xen.info_of[0] = replace(RUNNING, domid=0, uuid="0")
    xen.store.values["/local/domain/0/name"] = "Domain-0"
    with pytest.raises(DomainRefused, match="the control domain"):
        driver.check_capture(driver.find("Domain-0"), with_memory=with_memory)


def test_a_guest_that_xen_would_crash_is_not_read(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PVH guest that boots with less memory than `maxmem` has not given the rest back yet."""
    xen, driver = scene
    monkeypatch.setitem(CONFIG, "c_info", {**CONFIG["c_info"], "type": "pvh"})
    xen.flag(2)
    driver.check_capture(driver.find("web"), with_memory=True)
    xen.lacks = 3
    with pytest.raises(DomainRefused, match="lacks 12 KiB") as refused:
        driver.check_capture(driver.find("web"), with_memory=True)
    assert "balloon driver" in refused.value.hint()
    driver.check_capture(driver.find("web"), with_memory=False)


def test_disks_that_no_rollback_could_bring_back_are_told_of(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was accepted in silence, and the rollback refused."""
    _, driver = scene
    driver.check_capture(driver.find("web"), with_memory=False)
    assert caplog.text == ""
    monkeypatch.setitem(CONFIG, "b_info", {"max_vcpus": 1, "numa_nodes": [0]})
    driver.check_capture(driver.find("web"), with_memory=False)
    assert "needs the domain to be off" in caplog.text and "numa_nodes" in caplog.text


def test_a_way_of_libvirts_cannot_be_asked_for(scene: Scene) -> None:
    _, driver = scene
    driver._settings = Settings(capture=CaptureMethod.BACKGROUND)
    with pytest.raises(DomainRefused, match="background is for libvirt domains"):
        driver.check_capture(driver.find("web"), with_memory=True)
    driver.check_capture(driver.find("web"), with_memory=False)


def test_one_left_suspended_and_paused_goes_on(scene: Scene) -> None:
    xen, driver = scene
    domain = driver.find("web")
    xen.flag(8 | 4 | 2 << 16)
    driver.resume(domain)
    assert driver.find("web").state is DomainState.RUNNING
    assert xen.store.resumed == ["5"]


def test_a_guest_that_was_asked_by_a_snapvm_that_died_goes_on(scene: Scene) -> None:
    """It was about to suspend itself when snapvm was killed, and does so only now."""
    xen, driver = scene
    domain = driver.find("web")
    driver.abandon(domain)
    assert xen.store.resumed == []
    xen.store.values["/libxl/5/snapvm-suspend"] = ""
    threading.Timer(0.1, xen.flag, (4 | 2 << 16,)).start()
    driver.abandon(domain)
    assert driver.find("web").state is DomainState.RUNNING
    assert (xen.store.resumed, xen.info_of[5].flags) == (["5"], 0)
    assert "/libxl/5/snapvm-suspend" not in xen.store.values


def test_a_request_that_nobody_took_is_withdrawn(scene: Scene) -> None:
    xen, driver = scene
    xen.store.values |= {
        "/libxl/5/snapvm-suspend": "",
        "/local/domain/5/control/shutdown": "suspend",
    }
    driver.abandon(driver.find("web"))
    assert xen.store.values["/local/domain/5/control/shutdown"] == ""
    assert "/libxl/5/snapvm-suspend" not in xen.store.values


def test_one_that_is_destroyed_instead_is_let_alone(scene: Scene) -> None:
    xen, driver = scene
    domain = driver.find("web")
    xen.store.values["/libxl/5/snapvm-suspend"] = ""
    threading.Timer(0.1, xen.flag, (DYING,)).start()
    driver.abandon(domain)
    assert xen.store.resumed == []


def test_one_that_crashed_instead_does_not_stand_in_the_way_of_a_repair(scene: Scene) -> None:
    """Where it is kept (`on_crash="preserve"`), each was to be mended by the next one."""
    xen, driver = scene
    xen.store.values["/libxl/5/snapvm-suspend"] = ""
    xen.flag(4 | 3 << 16)
    driver.abandon(driver.find("web"))
    assert "/libxl/5/snapvm-suspend" not in xen.store.values
    assert driver.find("web").state is DomainState.CRASHED


def test_of_two_with_one_uuid_the_other_is_left_alone(scene: Scene) -> None:
    xen, driver = scene
    domain = driver.find("web")
    xen.info_of = {3: replace(RUNNING, domid=3), **xen.info_of}
    xen.store.values["/local/domain/3/name"] = "copy"
    assert "copy, web" in refusal(scene, with_memory=False)
    with pytest.raises(DomainRefused, match="several domains"):
        driver.check_restore(domain, Path("/image"))
    with driver.frozen(domain):
        assert (xen.info_of[3].is_paused, xen.info_of[5].is_paused) == (False, True)


def test_the_configuration_is_asked_for_by_number(scene: Scene) -> None:
    """A domain may be called 12, or -l, which xl would take for something else."""
    xen, driver = scene
    driver.find("web")
    assert xen.ran == [["xl", "list", "-l", "5"]]


def test_frozen_runs_again_only_when_the_block_fails(scene: Scene) -> None:
    _, driver = scene
    domain = driver.find("web")
    with pytest.raises(ZeroDivisionError), driver.frozen(domain):
        raise ZeroDivisionError
    assert driver.find("web").state is DomainState.RUNNING
    with driver.frozen(domain):
        pass
    assert driver.find("web").state is DomainState.PAUSED


def test_frozen_runs_again_without_xenstored(scene: Scene) -> None:
    """Its name was asked for, and the domain left paused."""
    xen, driver = scene
    with pytest.raises(ZeroDivisionError), driver.frozen(driver.find("web")):
        xen.store.refused.update(Message)
        raise ZeroDivisionError
    assert xen.info_of[5].flags == 0


def test_ctrl_c_as_it_is_let_run_again_does_not_leave_it_standing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    xen, driver = scene
    domain, unpause = driver.find("web"), xen.unpause

    def interrupted(domid: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        unpause(domid)

    monkeypatch.setattr(xen, "unpause", interrupted)
    with pytest.raises((Interrupted, ZeroDivisionError)), watched(), driver.frozen(domain):
        raise ZeroDivisionError
    assert driver.find("web").state is DomainState.RUNNING
