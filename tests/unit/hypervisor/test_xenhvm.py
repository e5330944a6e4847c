"""A capture of a PVH domain, whose memory Xen's own saver writes."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm import imageroom
from snapvm.failures import CaptureFailed, ImageNotWritten, WindowBroken
from snapvm.hypervisor import xenhvm
from snapvm.hypervisor.xencapture import XenJob
from snapvm.hypervisor.xenhvm import XenHvmCapture
from snapvm.memory import xenimage
from snapvm.memory.streamframe import StreamFrame
from snapvm.model import Silent
from tests.unit.hypervisor.capturedxen import (
    DISK_NUMBER,
    Scene,
    attach_interface,
    captured,
    connect,
)
from tests.unit.hypervisor.fakesaver import FakeSaver

GUEST = 5
LITTLE = 2


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with captured(tmp_path) as made:
        server, job = made
        control: Any = job.control
        control.suspends(server)
        yield made


@pytest.fixture
def saver(scene: Scene) -> FakeSaver:
    """Give Xen a saver that refuses a guest which does not stand still, as libxenguest does."""
    control: Any = scene[1].control
    fake = FakeSaver(pages=GUEST, changes=[0, LITTLE])
    fake.is_suspended = lambda: bool(control.now.is_suspended and control.now.is_paused)
    libraries = {**vars(control.libraries), **vars(fake.libraries)}
    control.libraries = SimpleNamespace(**libraries)
    return fake


def prepared(job: XenJob) -> AbstractContextManager[XenHvmCapture]:
    images: Any = SimpleNamespace(of_stream=StreamFrame)
    return XenHvmCapture.prepared(job, images)


def test_most_is_written_while_it_runs_and_the_rest_while_it_stands_still(
    scene: Scene, saver: FakeSaver
) -> None:
    _, job = scene
    control: Any = job.control
    with prepared(job) as capture:
        assert sum(saver.passes) == GUEST and not control.now.is_suspended
        with capture.window():
            assert control.now.is_paused and control.now.is_suspended
            capture.arm()
        assert not control.now.is_paused and not control.now.is_suspended
        record = capture.drain()
    image = job.folder / record.file
    assert record.size_bytes == image.stat().st_size
    assert image.read_bytes().startswith(b"Xen saved domain")
    assert saver.passes[-1] == LITTLE and record.foreign == {}


def test_it_runs_on_when_the_saver_fails(scene: Scene, saver: FakeSaver) -> None:
    _, job = scene
    control: Any = job.control
    saver.is_suspended = lambda: False
    with (
        pytest.raises(CaptureFailed, match="own saver"),
        prepared(job) as capture,
        capture.window(),
    ):
        capture.arm()
    assert not control.now.is_paused and saver.is_ended


@pytest.mark.parametrize("changed", ["devices", "drives"])
def test_what_was_attached_while_memory_was_copied_breaks_the_window(
    scene: Scene, saver: FakeSaver, changed: str
) -> None:
    """Memory knows it, and what a restore is told of does not."""
    server, job = scene
    control: Any = job.control
    with (
        pytest.raises(WindowBroken, match=f"{changed} were changed"),
        prepared(job) as capture,
    ):
        if changed == "devices":
            attach_interface(server)
        else:
            connect(server, DISK_NUMBER, "10")
        with capture.window():
            pytest.fail("there is a window")
    assert not control.now.is_paused and not control.now.is_suspended
    assert saver.is_ended


def test_what_is_destroyed_while_it_is_written_is_no_snapshot(
    scene: Scene, saver: FakeSaver
) -> None:
    """Its pages are gone one by one before Xen calls it dying, and the saver leaves them out."""
    _, job = scene
    control: Any = job.control
    finish = saver.is_suspended

    def destroyed() -> bool:
        control.now = replace(control.now, total_pages=control.now.total_pages - 1)
        return finish()

    saver.is_suspended = destroyed
    with pytest.raises(WindowBroken, match="destroyed"), prepared(job) as capture, capture.window():
        capture.arm()


def test_the_saver_ends_with_what_fails_beside_it(scene: Scene, saver: FakeSaver) -> None:
    """And a failure of something else is not called one of the image's."""
    _, job = scene
    with pytest.raises(OSError, match="no store"), prepared(job):
        raise OSError("no store")
    assert saver.is_ended


def test_it_is_given_up_with_the_disks(scene: Scene, saver: FakeSaver) -> None:
    _, job = scene
    with pytest.raises(CaptureFailed), prepared(job) as capture, capture.window():
        capture.give_up()
        capture.arm()
    assert saver.is_ended


def test_changes_are_not_written_where_there_may_be_no_room_for_them(
    scene: Scene, saver: FakeSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, job = scene
    saver.changes = [1 << 20]
    monkeypatch.setattr(imageroom, "free_bytes", lambda _: 100 << 20)
    job = replace(job, domain=replace(job.domain, memory_bytes=32 << 20))
    with prepared(job):
        assert saver.passes == [GUEST]


def test_a_file_system_that_does_not_tell_its_room_is_taken_as_one_without(
    scene: Scene, saver: FakeSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libxenguest asks, and an error would only be printed, as a traceback."""
    _, job = scene
    saver.changes = [1 << 20]

    def stale(_: Path) -> os.statvfs_result:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "statvfs", stale)
    with prepared(job):
        assert saver.passes == [GUEST]


def test_an_image_that_does_not_reach_the_disk_is_said(
    scene: Scene, saver: FakeSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, job = scene

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    with prepared(job) as capture:
        with capture.window():
            capture.arm()
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(ImageNotWritten):
            capture.drain()


def test_one_that_is_given_memory_meanwhile_can_be_restored(scene: Scene, saver: FakeSaver) -> None:
    """xl allows no more than the configuration says, and finds that out with the domain gone."""
    _, job = scene
    saver.pages, saver.first_pfn, saver.changes = 256, 256, [512, LITTLE]
    job = replace(job, config={**job.config, "b_info": {"target_memkb": 1024}})
    with prepared(job) as capture:
        with capture.window():
            capture.arm()
        record = capture.drain()
    with xenimage.open_image(job.folder / record.file) as image:
        allowed_kib = json.loads(image.config)["b_info"]["target_memkb"] + 1024
    assert allowed_kib == (256 + 512) * 4


def test_how_much_is_written_is_told(scene: Scene) -> None:
    _, job = scene
    told: list[tuple[int, int]] = []

    class Heard(Silent):
        def advance(self, done_bytes: int, total_bytes: int) -> None:
            told.append((done_bytes, total_bytes))

    job = replace(job, progress=Heard(), domain=replace(job.domain, memory_bytes=4))
    with (job.folder / "image").open("wb", buffering=0) as image:
        for piece in (b"abc", b"defg"):
            image.write(piece)
            xenhvm._tell(job, image.fileno())
    assert told == [(3, 4), (4, 4)]
