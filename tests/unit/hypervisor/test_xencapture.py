"""What a capture of a Xen domain looks at, in its window and before it."""

from __future__ import annotations

import errno
import json
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm import durable
from snapvm.failures import CaptureFailed, ImageNotWritten, WindowBroken
from snapvm.hypervisor import xenconfig, xendisks, xenrings
from snapvm.hypervisor.xencapture import XenCapture, XenJob, XenPauseCapture
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.model import ForeignPtes
from snapvm.xenguest import WrittenImage
from tests.unit.hypervisor.capturedxen import (
    CDROM_NUMBER,
    DISK_NUMBER,
    DOMID,
    NEW_NUMBER,
    Scene,
    add_drive,
    attach_interface,
    captured,
    connect,
)
from tests.unit.hypervisor.fakexen import CONFIG, DYING, RUNNING


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with captured(tmp_path) as made:
        yield made


def capture_of(job: XenJob, image: Any) -> XenCapture:
    """Return one of a guest whose memory has been copied as far as it can be while it runs."""
    frames: Any = SimpleNamespace(read=lambda _: b"")
    return XenCapture(job, image, frames, job.rings(), "")


def test_what_a_guest_says_of_a_drive_that_is_left_out_does_not_matter(scene: Scene) -> None:
    server, job = scene
    connect(server, CDROM_NUMBER, "none of yours")
    rings = job.rings()
    connect(server, CDROM_NUMBER, "nor now")
    job.settle(rings)
    connect(server, DISK_NUMBER, "none of yours")
    with pytest.raises(XenFailed, match="holds no grant"):
        job.rings()


@pytest.mark.parametrize("changes", [{}, {"mode": "r"}])
def test_a_drive_that_was_attached_just_before_the_window_breaks_it(
    scene: Scene, changes: dict[str, str]
) -> None:
    """It has no ring yet; and when the guest goes on it writes to what was not captured."""
    server, job = scene
    rings = job.rings()
    add_drive(server, NEW_NUMBER, **changes)
    with pytest.raises(WindowBroken, match="drives were changed"):
        job.settle(rings)


def test_one_that_was_attached_since_the_plan_is_seen_while_the_guest_runs(scene: Scene) -> None:
    """All of the memory would be copied first, and the guest stand still, for nothing."""
    server, job = scene
    add_drive(server, NEW_NUMBER)
    with pytest.raises(WindowBroken, match="drives were changed"):
        job.rings()


def test_a_disk_that_was_connected_anew_breaks_it(scene: Scene) -> None:
    server, job = scene
    rings = job.rings()
    connect(server, DISK_NUMBER, "10")
    with pytest.raises(WindowBroken, match="drives were changed"):
        job.settle(rings)


def test_an_interface_that_was_attached_while_memory_was_copied_breaks_the_window(
    scene: Scene,
) -> None:
    """The configuration in the image lacked it: after a restore the guest had a dead one."""
    server, job = scene
    control: Any = job.control
    control.suspends(server)
    capture = capture_of(job, SimpleNamespace(rehearse=lambda _: None))
    attach_interface(server)
    with pytest.raises(WindowBroken, match="devices were changed"), capture.window():
        pytest.fail("there is a window")
    assert not control.now.is_paused and not control.now.is_suspended


def test_where_disks_alone_are_captured_it_does_not_matter(scene: Scene) -> None:
    server, job = scene
    control: Any = job.control
    attach_interface(server)
    with XenPauseCapture(job).window():
        assert control.now.is_paused


def test_the_memory_of_one_that_is_asked_to_shut_down_is_not_copied_first(scene: Scene) -> None:
    """A guest that does not heed that is asked for ever: it was seen when all had been copied."""
    server, job = scene
    server.set(f"/local/domain/{DOMID}/control/shutdown", "poweroff")
    images: Any = SimpleNamespace(of_pages=lambda *_: pytest.fail("it is copied"))
    with pytest.raises(CaptureFailed, match="poweroff"), XenCapture.prepared(job, images):
        pytest.fail("it is captured")


def test_the_memory_of_a_domain_that_dies_is_not_copied(scene: Scene) -> None:
    _, job = scene
    control: Any = job.control
    control.now = replace(RUNNING, flags=DYING)
    with pytest.raises(WindowBroken, match="destroyed"):
        capture_of(job, None).arm()


@pytest.mark.parametrize("restored", [200, 256, 512, 513, 800])
def test_an_image_says_how_much_memory_a_restore_of_it_needs(scene: Scene, restored: int) -> None:
    """A restore gives a frame to all that was ever written; it failed when the domain was gone.

    Later an image that had outgrown what it said in its first bytes was thrown away.
    """
    _, job = scene
    target_kib = RUNNING.total_pages * 4
    config = {**CONFIG, "b_info": {"type": "pv", "target_memkb": target_kib}}
    told = [xenconfig.for_image(config, RUNNING.total_pages)]
    image = SimpleNamespace(
        catch=lambda _: None,
        write=lambda _: WrittenImage(size_bytes=1, restored_frames=restored),
        redefine=told.append,
    )
    capture = capture_of(replace(job, config=config), image)
    capture.arm()
    assert capture.drain().size_bytes == 1
    has_kib = json.loads(told[-1])["b_info"]["target_memkb"]
    assert has_kib == max(target_kib, restored * 4 - 1024)  # libxl lets it have a MiB more


@pytest.mark.parametrize(
    ("count", "told"), [(1, "a page that is not its own"), (2, "2 pages that are not its own")]
)
def test_pages_of_others_are_counted_in_words_that_fit(scene: Scene, count: int, told: str) -> None:
    _, job = scene
    written = WrittenImage(size_bytes=1, foreign={"grant": count})
    image = SimpleNamespace(catch=lambda _: None, write=lambda _: written)
    capture = capture_of(replace(job, foreign_ptes=ForeignPtes.REFUSE), image)
    capture.arm()
    with pytest.raises(CaptureFailed, match=f"it maps {told}"):
        capture.drain()


@pytest.mark.parametrize("is_read_later", [False, True])
def test_what_is_destroyed_while_it_is_read_is_no_snapshot(
    scene: Scene, is_read_later: bool
) -> None:
    """By a cluster that found it hanging: its page tables were in the image as ordinary pages."""
    _, job = scene
    control: Any = job.control
    destroy = control.destroy
    image = SimpleNamespace(
        catch=lambda _: None if is_read_later else destroy(),
        write=lambda _: destroy() if is_read_later else None,
    )
    capture = capture_of(job, image)
    capture._stays = is_read_later
    with pytest.raises(WindowBroken, match="destroyed"):
        capture.arm()
        capture.drain()


def test_what_is_destroyed_when_it_has_been_read_is_a_snapshot(scene: Scene) -> None:
    _, job = scene
    control: Any = job.control

    def write(_: object) -> WrittenImage:
        control.destroy()
        return WrittenImage(size_bytes=1)

    capture = capture_of(job, SimpleNamespace(catch=lambda _: None, write=write))
    capture.arm()
    assert capture.drain().size_bytes == 1


def test_memory_is_given_up_with_the_disks(scene: Scene) -> None:
    """It was copied to its end, however long that took, before the guest went on."""
    _, job = scene
    given_up = threading.Event()
    capture_of(job, SimpleNamespace(give_up=given_up.set)).give_up()
    assert given_up.is_set()


@pytest.mark.parametrize("with_memory", [True, False])
def test_what_a_server_has_in_its_cache_is_written_before_the_guest_stands_still(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, with_memory: bool
) -> None:
    """All of it, GiB of a guest that had just written much, was written in the window."""
    server, job = scene
    server.set(f"/local/domain/0/backend/vbd/{DOMID}/{DISK_NUMBER}/type", "file")
    control: Any = job.control
    dirty, written_in_window = [1 << 30], [0]

    def sync(_: Path) -> None:
        written_in_window[0] += dirty[0] if control.now.is_paused else 0
        dirty[0] = 0

    monkeypatch.setattr(durable, "sync_device", sync)
    control.suspends(server)
    image = SimpleNamespace(rehearse=lambda _: None)
    job = replace(job, attached=xendisks.attached(job.store, DOMID))
    capture: XenCapture | XenPauseCapture = (
        capture_of(job, image) if with_memory else XenPauseCapture(job)
    )
    with capture.window():
        assert control.now.is_paused
    assert (dirty, written_in_window) == ([0], [0])


class BusyDisk:
    """A disk with a request in flight, whose answer is in its server's cache when it comes."""

    def __init__(self, job: XenJob) -> None:
        self._control: Any = job.control
        self.is_answered = False
        self.is_written = True
        self._note()

    def sleep(self, _seconds: float) -> None:
        """Let the server answer a guest that stands still, and that only waits."""
        assert self._control.now.is_paused
        self.is_answered, self.is_written = True, False
        self._note()

    def sync(self, _device: Path) -> None:
        self.is_written = True

    def _note(self) -> None:
        page = self._control.libraries.grants.page
        page[:12] = struct.pack("<I4xI", 1, int(self.is_answered))


@pytest.mark.parametrize("with_memory", [True, False])
def test_disks_are_captured_when_all_that_the_guest_wrote_is_on_them(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, with_memory: bool
) -> None:
    """What the guest was told is written, or waits to be told, and a snapshot has not."""
    server, job = scene
    server.set(f"/local/domain/0/backend/vbd/{DOMID}/{DISK_NUMBER}/type", "file")
    job = replace(job, attached=xendisks.attached(job.store, DOMID))
    control: Any = job.control
    control.suspends(server)
    disk = BusyDisk(job)
    monkeypatch.setattr(xenrings, "time", disk)
    monkeypatch.setattr(durable, "sync_device", disk.sync)
    capture: XenCapture | XenPauseCapture = (
        capture_of(job, SimpleNamespace(rehearse=lambda _: None))
        if with_memory
        else XenPauseCapture(job)
    )
    with capture.window():
        assert control.now.is_paused and disk.is_answered and disk.is_written
    assert not control.now.is_paused


def test_a_disk_that_does_not_come_to_rest_is_not_captured(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, job = scene
    control: Any = job.control
    control.suspends(server)
    BusyDisk(job)
    monkeypatch.setattr(xenrings, "DRAIN_LIMIT_SECONDS", 0.05)
    capture = capture_of(job, SimpleNamespace(rehearse=lambda _: None))
    with pytest.raises(CaptureFailed, match="does not finish"), capture.window():
        pytest.fail("there is a window")
    assert not control.now.is_paused and not control.now.is_suspended


def test_a_full_disk_is_said_as_one(scene: Scene) -> None:
    _, job = scene

    def write(_progress: object) -> WrittenImage:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ImageNotWritten, match="No space left"):
        capture_of(job, SimpleNamespace(write=write)).drain()
