"""The pipe out of QEMU: everything arrives, a full disk does not stop the guest, nothing hangs."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from snapvm import compression, streamfilter
from snapvm.hypervisor import drainpipe
from snapvm.hypervisor.drainpipe import Drainpipe, Patience, StalledError
from snapvm.refusals import HostLacks
from tests.fakes.slowsink import SlowSink
from tests.fakes.threads import start_fewer_than

ZSTD = compression.parse("zstd:3").argv
needs_zstd = pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed")


def opened(path: Path) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"head")
    return descriptor


def test_the_stream_stands_behind_what_was_there(tmp_path: Path) -> None:
    data = os.urandom(5 << 20)
    with Drainpipe(opened(tmp_path / "image")) as pipe:
        qemu = os.dup(pipe.writer)
        pipe.close_writer()
        for at in range(0, len(data), 65536):
            os.write(qemu, data[at : at + 65536])
        os.close(qemu)
        assert pipe.finish(10) == len(data)
    assert (tmp_path / "image").read_bytes() == b"head" + data


def test_a_writer_that_never_writes_is_not_waited_for(tmp_path: Path) -> None:
    with Drainpipe(opened(tmp_path / "image")) as pipe:
        qemu = os.dup(pipe.writer)
    os.close(qemu)


def test_an_image_that_cannot_be_written_is_told_and_the_stream_goes_on(tmp_path: Path) -> None:
    (tmp_path / "image").touch()
    with Drainpipe(os.open(tmp_path / "image", os.O_RDONLY)) as pipe:
        qemu = os.dup(pipe.writer)
        pipe.close_writer()
        for _ in range(64):
            os.write(qemu, bytes(65536))
        os.close(qemu)
        with pytest.raises(OSError, match="Bad file"):
            pipe.finish(10)
        assert pipe.failure is not None


def test_a_disk_that_is_full_amid_a_piece_of_the_stream_is_told(tmp_path: Path) -> None:
    """The kernel writes as much of it as there is room for, which is no failure."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Drainpipe(opened(tmp_path / "image")) as pipe:
        qemu = os.dup(pipe.writer)
        pipe.close_writer()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            os.write(qemu, bytes(200_000))
            os.close(qemu)
            with pytest.raises(OSError, match="File too large"):
                pipe.finish(10)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_given_up_is_not_written() -> None:
    """Its end waited until a slow disk had taken all that was in the buffer."""
    sink = SlowSink(0.1)
    with Drainpipe(sink.writer) as pipe:
        qemu = os.dup(pipe.writer)
        for _ in range(20):
            os.write(qemu, bytes(1 << 20))
        os.close(qemu)
    sink.join()
    assert sink.taken_bytes < 15 << 20


def test_a_stream_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    with Drainpipe(opened(tmp_path / "image")) as pipe, pytest.raises(TimeoutError):
        pipe.finish(0.1)


def test_a_file_that_is_slow_for_a_moment_holds_nobody_up() -> None:
    """The buffer takes what the file does not yet: whoever writes is done before it begins."""
    sink = SlowSink(0, is_open=False)
    try:
        with Drainpipe(sink.writer, stall_limit_seconds=30) as pipe:
            qemu = os.dup(pipe.writer)
            pipe.close_writer()
            for _ in range(6):
                os.write(qemu, bytes(1 << 20))
            os.close(qemu)
            assert sink.taken_bytes == 0 and pipe.failure is None
            sink.opened.set()
            assert pipe.finish(60) == 6 << 20
    finally:
        sink.opened.set()
    sink.join()
    assert sink.taken_bytes == 6 << 20


def test_a_file_that_stays_slow_is_given_up_and_the_stream_goes_on() -> None:
    """Beyond the buffer nobody waits longer than the limit: what follows is thrown away."""
    sink = SlowSink(0.05)
    with Drainpipe(sink.writer, stall_limit_seconds=0.5) as pipe:
        qemu = os.dup(pipe.writer)
        pipe.close_writer()
        longest_seconds = 0.0
        for _ in range(256):
            begun = time.monotonic()
            os.write(qemu, bytes(1 << 20))
            longest_seconds = max(longest_seconds, time.monotonic() - begun)
        os.close(qemu)
        assert isinstance(pipe.failure, StalledError)
        with pytest.raises(StalledError, match="slowly"):
            pipe.finish(60)
    sink.join()
    assert longest_seconds < 5


def test_while_no_guest_waits_a_slow_file_is_waited_for() -> None:
    """Once one does the same file is given up."""
    sink = SlowSink(0.05)
    with Drainpipe(sink.writer, stall_limit_seconds=60) as pipe:
        qemu = os.dup(pipe.writer)
        pipe.close_writer()
        for _ in range(drainpipe.BUFFER_CHUNKS + 3):
            os.write(qemu, bytes(1 << 20))
        assert pipe.failure is None
        writing = threading.Thread(target=os.write, args=(qemu, bytes(4 << 20)))
        writing.start()
        time.sleep(0.5)
        pipe.wait_at_most(0.1)
        writing.join(10)
        assert not writing.is_alive() and isinstance(pipe.failure, StalledError)
        os.close(qemu)
    sink.join()


def test_a_file_that_hangs_is_given_up_as_soon_as_a_guest_waits() -> None:
    """The piece of the stream at hand had all the time of one for which nobody waits."""
    sink = SlowSink(0, is_open=False)
    with Drainpipe(sink.writer, stall_limit_seconds=60) as pipe:
        qemu = os.dup(pipe.writer)
        pipe.close_writer()
        writing = threading.Thread(
            target=os.write, args=(qemu, bytes((drainpipe.BUFFER_CHUNKS + 4) << 20))
        )
        writing.start()
        time.sleep(0.5)
        assert writing.is_alive() and pipe.failure is None
        pipe.wait_at_most(0.1)
        writing.join(10)
        assert not writing.is_alive() and isinstance(pipe.failure, StalledError)
        os.close(qemu)
        sink.opened.set()
    sink.join()


@pytest.mark.parametrize(
    "argv", [(), pytest.param(ZSTD, marks=needs_zstd)], ids=["plain", "filtered"]
)
def test_a_file_that_hangs_does_not_hold_up_the_end(
    argv: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its storage has gone: QEMU is to hear of it, for its guest waits for the stream."""
    monkeypatch.setattr(drainpipe, "_GOODBYE_SECONDS", 0.5)
    sink, target = os.pipe()
    qemu_was_told = threading.Event()

    def write(qemu: int) -> None:
        with pytest.raises(BrokenPipeError):
            while True:
                os.write(qemu, os.urandom(1 << 20))
        qemu_was_told.set()
        os.close(qemu)

    begun = time.monotonic()
    with Drainpipe(target, argv, stall_limit_seconds=0.5) as pipe:
        threading.Thread(target=write, args=(os.dup(pipe.writer),), daemon=True).start()
        pipe.close_writer()
        while pipe.failure is None and time.monotonic() < begun + 60:
            time.sleep(0.05)
    assert isinstance(pipe.failure, StalledError)
    assert ("a lower level of --compress" in str(pipe.failure)) is bool(argv)
    assert qemu_was_told.wait(10)
    assert time.monotonic() < begun + 60
    if not argv:
        os.fstat(target)  # the write that hangs still has it: no other file may get its number
    os.close(sink)


def test_a_busy_disk_is_waited_for_at_last() -> None:
    """Waiting that stays within the usual uses up no patience."""
    patience = Patience(1.0)
    for _ in range(1000):
        patience.use(0.1)
    assert patience.regain() == pytest.approx(1.0)
    patience.use(0.8)
    assert patience.regain() == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("before", [b"", b"str"], ids=["at once", "when it is used"])
def test_a_pipe_that_is_held_is_emptied_when_it_is_released(tmp_path: Path, before: bytes) -> None:
    """QEMU may have begun before its guest stands still."""
    with Drainpipe(opened(tmp_path / "image")) as pipe:
        os.write(pipe.writer, before)
        while pipe.drained_bytes < len(before):
            time.sleep(0.01)
        pipe.hold()
        os.write(pipe.writer, b"eam")
        time.sleep(0.2)
        assert pipe.waiting_bytes == 3 and pipe.drained_bytes == len(before)
        pipe.release()
        pipe.close_writer()
        assert pipe.finish(10) == 3 + len(before)
    assert (tmp_path / "image").read_bytes() == b"head" + before + b"eam"


def test_a_pipe_is_not_held_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever should release it may wait for an answer that needs the pipe."""
    monkeypatch.setattr(drainpipe, "HELD_LIMIT_SECONDS", 0.1)
    with Drainpipe(opened(tmp_path / "image")) as pipe:
        pipe.hold()
        os.write(pipe.writer, b"stream")
        pipe.close_writer()
        assert pipe.finish(10) == 6


@needs_zstd
def test_a_filter_stands_between(tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 8
    with Drainpipe(opened(tmp_path / "image"), ZSTD) as pipe:
        qemu = os.dup(pipe.writer)
        pipe.close_writer()
        for at in range(0, len(data), 65536):
            os.write(qemu, data[at : at + 65536])
        os.close(qemu)
        assert pipe.finish(30) == len(data)
    written = (tmp_path / "image").read_bytes()
    assert written[:4] == b"head" and len(written) < len(data) // 4
    unpacked = subprocess.run(["zstd", "-dc"], input=written[4:], capture_output=True, check=True)
    assert unpacked.stdout == data


@needs_zstd
def test_what_stops_a_filter_is_told_and_the_stream_goes_on() -> None:
    with Drainpipe(os.open("/dev/full", os.O_WRONLY), ZSTD) as pipe:
        qemu = os.dup(pipe.writer)
        pipe.close_writer()
        for _ in range(256):
            os.write(qemu, os.urandom(65536))
        os.close(qemu)
        with pytest.raises(OSError, match="No space left"):
            pipe.finish(30)


@needs_zstd
def test_a_python_that_was_built_upon_an_old_glibc_compresses_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was a bug with uv's Python, which lacks a function and begins no session."""
    spawn = os.posix_spawn

    def as_built(*what: Any, setsid: bool = False, **how: Any) -> int:
        if setsid:
            raise NotImplementedError("setsid")
        return spawn(*what, **how)

    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(os, "posix_spawn", as_built)
    with Drainpipe(os.open("/dev/full", os.O_WRONLY), ZSTD) as pipe:
        os.write(pipe.writer, b"memory")
        pipe.close_writer()
        with pytest.raises(OSError, match="No space left"):
            pipe.finish(30)


def test_a_filter_that_is_not_there_is_named_and_nothing_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    pipe = Drainpipe(opened(tmp_path / "image"), ("no-such-filter",))
    with pytest.raises(HostLacks, match="no-such-filter"), pipe:
        pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_host_without_room_for_a_filter_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was called a bug, as where the unit of a cron job has all of its tasks."""

    def full(*_: object, **_how: object) -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(streamfilter, "is_installed", lambda _program: True)
    monkeypatch.setattr(os, "posix_spawn", full)
    before = len(os.listdir("/proc/self/fd"))
    pipe = Drainpipe(opened(tmp_path / "image"), ZSTD)
    with pytest.raises(HostLacks, match="room for zstd to run in"), pipe:
        pass
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("nth", [1, 2])
def test_a_host_without_room_for_a_thread_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """It was called a bug, and what had begun to empty the pipe did so for ever."""
    before = threading.active_count()
    opened = len(os.listdir("/proc/self/fd"))
    start_fewer_than(nth, monkeypatch)
    target = os.open(tmp_path / "image", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(HostLacks, match="one more thread"), Drainpipe(target):
        pass
    assert threading.active_count() == before
    assert len(os.listdir("/proc/self/fd")) == opened
