"""What the kernel merges (KSM) is not written behind a guest that runs on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.failures import CaptureFailed
from snapvm.hypervisor import samepages
from snapvm.hypervisor.capturejob import CaptureJob
from snapvm.hypervisor.libvirtbackground import BackgroundCapture
from snapvm.hypervisor.migrationstream import NotPossible
from snapvm.memory import libvirtimage
from tests.unit.hypervisor.eagerqemu import EagerQemu, owners
from tests.unit.hypervisor.fakedomain import DOMAIN


@pytest.fixture
def ksm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the kernel says whether it merges memory; it does not."""
    path = tmp_path / "ksm"
    path.write_text("0\n")
    monkeypatch.setattr(samepages, "RUN", path)
    return path


def test_what_the_kernel_merges_is_not_left_to_be_written_behind_the_guest(
    qemu: EagerQemu, job: CaptureJob, ksm: Path
) -> None:
    """A merged page is not protected any more: the image had what the guest wrote later."""
    ksm.write_text("1\n")
    with (
        pytest.raises(NotPossible, match="KSM"),
        BackgroundCapture.prepared(job, libvirtimage.Writer(), ""),
    ):
        pass
    assert not qemu.said and not job.image.exists()
    alone = DOMAIN.definition.replace(
        "<devices>", "<memoryBacking><nosharepages/></memoryBacking><devices>"
    )
    job = replace(job, domain=replace(DOMAIN, definition=alone))
    with BackgroundCapture.prepared(job, libvirtimage.Writer(), "") as capture:
        with capture.window():
            capture.arm()
        assert capture.drain().size_bytes


def test_a_guest_that_stands_still_changes_nothing_that_is_merged(
    qemu: EagerQemu, job: CaptureJob, ksm: Path
) -> None:
    ksm.write_text("1\n")
    job = owners(job, qemu)
    with BackgroundCapture.prepared(job, libvirtimage.Writer(), "") as capture:
        with capture.window():
            capture.arm()
        qemu.end("completed")
        capture.drain()


@pytest.mark.parametrize("is_paused", [False, True])
def test_what_is_merged_while_it_is_written_is_thrown_away(
    qemu: EagerQemu, job: CaptureJob, ksm: Path, is_paused: bool
) -> None:
    """A daemon has the kernel begin; the guest runs, or its owner lets it run by then."""
    job = owners(job, qemu) if is_paused else job
    with BackgroundCapture.prepared(job, libvirtimage.Writer(), "") as capture:
        with capture.window():
            capture.arm()
        ksm.write_text("1\n")
        if is_paused:
            qemu.resume()
        with pytest.raises(CaptureFailed, match="KSM"):
            capture.drain()


@pytest.mark.parametrize(("told", "are_merged"), [("0", 0), ("1", 1), ("2", 0), (None, 0)])
def test_the_kernel_says_whether_it_merges(ksm: Path, told: str | None, are_merged: bool) -> None:
    """With 2 it takes apart what it had merged; one that cannot merge has no such file."""
    if told is None:
        ksm.unlink()
    else:
        ksm.write_text(f"{told}\n")
    assert samepages.are_merged(DOMAIN.definition) == are_merged


@pytest.mark.usefixtures("qemu")
def test_a_guest_that_is_not_to_run_on_changes_nothing_either(job: CaptureJob, ksm: Path) -> None:
    ksm.write_text("1\n")
    job = replace(job, domain_ends=True)
    with BackgroundCapture.prepared(job, libvirtimage.Writer(), "") as capture:
        with capture.window(leave_standing=True):
            capture.arm()
        assert job.image.exists()
