"""Somebody else who saves or migrates a domain, and what is done and not done beside him."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm.failures import CaptureFailed, DomainFailed, WindowBroken
from snapvm.hypervisor import xenkeeper, xenothers
from snapvm.hypervisor.xenhvm import XenHvmCapture
from snapvm.memory.streamframe import StreamFrame
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.capturedxen import captured
from tests.unit.hypervisor.fakesaver import FakeSaver
from tests.unit.hypervisor.fakexen import RUNNING, Scene

SUSPENDED = 4 | 2 << 16
HELPER = "/usr/lib/xen-4.20/bin/libxl-save-helper"


@pytest.fixture(autouse=True)
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    monkeypatch.setattr(xenkeeper, "PROCESSES", folder)
    return folder


def save(processes: Path, domid: int, *, uid: int | None = None, mode: str = "save") -> None:
    """Make what /proc has of libxl's helper."""
    process = processes / "77"
    process.mkdir()
    words = [HELPER, f"--{mode}-domain", "9", "-1", str(domid), "1", "136", "0"]
    (process / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    uid = os.getuid() if uid is None else uid
    (process / "status").write_text(f"Name:\tlibxl-save-help\nUid:\t{uid}\t{uid}\n")


@pytest.mark.parametrize(
    ("domid", "owner", "mode", "is_found"),
    [
        (5, 0, "save", True),
        (55, 0, "save", False),
        (5, 1, "save", False),
        (5, 0, "restore", False),
    ],
)
def test_who_saves_a_domain_is_found(
    processes: Path, domid: int, owner: int, mode: str, *, is_found: bool
) -> None:
    assert not xenothers.are_saving(5)
    save(processes, domid, uid=os.getuid() + owner, mode=mode)
    assert xenothers.are_saving(5) is is_found


def test_a_domain_that_is_migrated_is_refused(scene: Scene, processes: Path) -> None:
    """Our saver would end before, and have Xen note no longer what has to be sent again."""
    _, driver = scene
    driver.check_capture(driver.find("web"), with_memory=True)
    save(processes, 5)
    with pytest.raises(DomainRefused, match="saved or migrated"):
        driver.check_capture(driver.find("web"), with_memory=True)


def test_a_domain_that_is_saved_or_migrated_does_not_go_back(scene: Scene, processes: Path) -> None:
    """It was destroyed; where it went to, it ran on disks that had gone back below it."""
    xen, driver = scene
    domain = driver.find("web")
    driver.check_restore(domain, None)
    save(processes, 5)
    with pytest.raises(DomainRefused, match="saved or migrated"):
        driver.check_restore(domain, None)
    for flags in (0, SUSPENDED):
        xen.flag(flags)
        with (
            pytest.raises(DomainFailed, match="web could not be suspended: somebody else saves"),
            driver.frozen(driver.find("web")),
        ):
            pytest.fail("the block ran")
        assert xen.info_of[5].flags == flags


def test_what_ends_an_interrupted_take_leaves_a_guest_to_who_saves_it(
    scene: Scene, processes: Path
) -> None:
    """A host that was shut down interrupted a `take`, and had xl save the guest: it ran on."""
    xen, driver = scene
    domain = driver.find("web")
    xen.flag(SUSPENDED)
    save(processes, 5)
    driver.resume(domain)
    assert xen.info_of[5].is_suspended
    xen.store.values["/libxl/5/snapvm-suspend"] = ""  # it was suspended before xl came
    driver.resume(domain)
    assert xen.info_of[5].flags == 0


def test_a_repair_does_not_disturb_who_migrates_it(scene: Scene, processes: Path) -> None:
    xen, driver = scene
    forgotten: list[int] = []
    vars(xen)["stop_noting_writes"] = forgotten.append
    xen.info_of[5] = replace(RUNNING, flags=2)
    driver.abandon(driver.find("web"))
    assert forgotten == [5]
    save(processes, 5)
    driver.abandon(driver.find("web"))
    assert forgotten == [5]


def test_one_is_not_asked_to_suspend_where_processes_cannot_be_listed(
    tmp_path: Path, processes: Path
) -> None:
    """As without descriptors: it was called a bug."""
    (processes / "self").rmdir()
    processes.rmdir()
    with captured(tmp_path) as (server, job):
        with pytest.raises(CaptureFailed, match="No such file"), job.standstill().suspended():
            pytest.fail("there is no window")
        assert f"/local/domain/{job.info.domid}/control/shutdown" not in server.values


def test_one_that_is_about_to_be_saved_is_not_asked_to_suspend_itself(
    tmp_path: Path, processes: Path
) -> None:
    """It answers once: xl then wrote a guest that we had suspended, and that went on meanwhile."""
    with captured(tmp_path) as (server, job):
        save(processes, job.info.domid)
        with (
            pytest.raises(WindowBroken, match="saves or migrates"),
            job.standstill().suspended(),
        ):
            pytest.fail("there is no window")
        assert f"/local/domain/{job.info.domid}/control/shutdown" not in server.values


def test_what_is_migrated_while_it_is_written_is_no_snapshot(
    tmp_path: Path, processes: Path
) -> None:
    """That saver is told of pages, and then Xen does not tell ours."""
    with captured(tmp_path) as (server, job):
        control: Any = job.control
        control.suspends(server)
        control.libraries.__dict__.update(vars(FakeSaver().libraries))
        images: Any = SimpleNamespace(of_stream=StreamFrame)
        with (
            pytest.raises(WindowBroken, match="migrating"),
            XenHvmCapture.prepared(job, images) as capture,
            capture.window(),
        ):
            save(processes, job.info.domid)
            capture.arm()
        assert not control.now.is_paused and not control.now.is_suspended
