"""Xen's own saver in a thread: when it waits, when it ends, and what it has written by then."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapvm.failures import SnapshotFailed
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.hypervisor.xensaver import LiveSaver
from snapvm.interrupt import watched
from tests.unit.hypervisor.fakesaver import FakeSaver

LITTLE, MUCH = 10, 100_000


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "image", os.O_CREAT | os.O_RDWR)
    yield fd
    os.close(fd)


def nothing() -> None:
    """Have no progress to tell."""


def saver(fake: FakeSaver, fd: int, *, has_room: bool = True) -> LiveSaver:
    return LiveSaver(fake.libraries, 5, fd, lambda: has_room)


def test_what_changes_before_the_pause_is_written_before_it(image: int) -> None:
    """Thick stores are made while it waits, and a busy guest has changed much by then."""
    fake = FakeSaver(pages=MUCH, changes=[MUCH, LITTLE, MUCH // 2, LITTLE, 3])
    live = saver(fake, image)
    with live.copying(nothing):
        assert fake.passes == [MUCH, MUCH]
        live.come_to_suspend()
        assert fake.passes == [MUCH, MUCH, LITTLE, MUCH // 2, LITTLE]
        live.finish()
    assert fake.passes[-1] == 3
    assert os.fstat(image).st_size > 8 * sum(fake.passes)


def test_one_that_changes_faster_than_it_is_written_is_suspended_all_the_same(image: int) -> None:
    fake = FakeSaver(changes=[MUCH])
    live = saver(fake, image)
    with live.copying(nothing):
        live.come_to_suspend()
        live.finish()
    assert len(fake.passes) < 12


def test_without_room_for_another_pass_the_last_one_comes(image: int) -> None:
    fake = FakeSaver(changes=[MUCH])
    live = saver(fake, image, has_room=False)
    with live.copying(nothing):
        assert len(fake.passes) == 1
        live.come_to_suspend()
        live.finish()
    assert len(fake.passes) < 5


def test_one_that_is_given_up_ends(image: int) -> None:
    fake = FakeSaver()
    with saver(fake, image).copying(nothing):
        assert not fake.is_ended
    assert fake.is_ended


def test_one_that_is_given_up_in_the_pause_fails(image: int) -> None:
    fake = FakeSaver()
    live = saver(fake, image)
    with pytest.raises(XenFailed), live.copying(nothing):
        live.come_to_suspend()
        live.give_up()
        live.finish()


def test_one_that_is_given_up_amid_a_pass_does_not_write_it_to_its_end(
    image: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pass over a large guest takes minutes, and Xen asks for nothing meanwhile."""
    fake, written = FakeSaver(), []

    def slowly(fd: int, _pages: int) -> None:
        for _ in range(500):
            os.write(fd, b"a page")
            written.append(1)
            time.sleep(0.01)

    def give_up() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(fake, "_write", slowly)
    with pytest.raises(ZeroDivisionError), saver(fake, image).copying(give_up):
        pytest.fail("it goes on")
    assert fake.is_ended and 0 < len(written) < 250


def test_one_whose_window_fails_does_not_keep_the_guest_waiting(image: int) -> None:
    """It waits for the guest's suspend then, and the guest for its end."""
    fake = FakeSaver()
    live = saver(fake, image)
    rescue = threading.Timer(10, live._is_suspended.set)
    rescue.start()
    with pytest.raises(SnapshotFailed), live.copying(nothing):
        live.come_to_suspend()
        raise SnapshotFailed(target="xvda", volume="vg/web", why="the group is full")
    assert fake.is_ended and rescue.is_alive(), "it ended of itself"
    rescue.cancel()


def test_one_that_is_given_up_where_no_descriptor_is_left_ends_after_its_pass(
    image: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure for which it was given up was not told, but that one, as a bug of snapvm's."""

    def refuse(*_: object, **_how: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    fake = FakeSaver()
    with pytest.raises(SnapshotFailed), saver(fake, image).copying(nothing):
        monkeypatch.setattr("builtins.open", refuse)
        raise SnapshotFailed(target="xvda", volume="vg/web", why="the group is full")
    assert fake.is_ended


def test_a_disk_that_is_full_is_said() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        live = saver(FakeSaver(), full.fileno())
        with pytest.raises(XenFailed, match="No space left"), live.copying(nothing):
            pytest.fail("it goes on")


def test_a_guest_that_did_not_suspend_is_not_captured(image: int) -> None:
    fake = FakeSaver()
    fake.is_suspended = lambda: False
    live = saver(fake, image)
    with pytest.raises(XenFailed), live.copying(nothing):
        live.come_to_suspend()
        live.finish()


def test_a_saver_that_cannot_be_begun_is_not_waited_for(
    image: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where nothing may make memory that is written and then executed, which callbacks are."""

    def refuse(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("snapvm.hypervisor.xensaver._Suspend", refuse)
    with pytest.raises(MemoryError), saver(FakeSaver(), image).copying(nothing):
        pytest.fail("it goes on")


def test_what_fails_in_the_thread_is_no_whole_stream(
    image: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeSaver()
    write = fake._write

    def fail(fd: int, pages: int) -> None:
        write(fd, pages)
        if fake.passes[1:]:
            raise MemoryError

    monkeypatch.setattr(fake, "_write", fail)
    live = saver(fake, image)
    with pytest.raises(MemoryError), live.copying(nothing):
        live.come_to_suspend()
        live.finish()


def test_an_interruption_leaves_no_thread_that_writes(
    image: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor is closed next, and may be that of a record then."""
    fake, begun = FakeSaver(changes=[LITTLE]), threading.Event()
    write = fake._write

    def slowly(fd: int, pages: int) -> None:
        if len(fake.passes) == 3:
            begun.set()
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
        write(fd, pages)

    monkeypatch.setattr(fake, "_write", slowly)
    live = saver(fake, image)
    with pytest.raises(SnapshotFailed) as failed, watched(), live.copying(nothing):
        live.come_to_suspend()
        live._is_suspended.set()
        begun.wait()
        raise SnapshotFailed(target="xvda", volume="vg/web", why="the group is full")
    assert fake.is_ended
    assert failed.value.signal_put_off == "SIGTERM"


def test_a_guest_that_somebody_else_has_saved_meanwhile_is_not_captured(image: int) -> None:
    """That one switched off what notes the guest's writes: Xen says that there were none."""
    fake = FakeSaver()
    live = saver(fake, image)
    with pytest.raises(XenFailed, match="somebody else"), live.copying(nothing):
        live.come_to_suspend()
        fake.is_noting = False
        live.finish()


def test_how_far_it_is_is_told(image: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snapvm.hypervisor.xensaver._LOOK_SECONDS", 0.01)
    fake = FakeSaver()
    write, told = fake._write, []

    def slowly(fd: int, pages: int) -> None:
        time.sleep(0.1)
        write(fd, pages)

    monkeypatch.setattr(fake, "_write", slowly)
    with saver(fake, image).copying(lambda: told.append(1)):
        assert told
