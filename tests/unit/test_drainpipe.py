"""The pipe out of QEMU: everything arrives, a full disk does not stop the guest, nothing hangs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from snapvm import compression
from snapvm.errors import HostLacks
from snapvm.hypervisor.drainpipe import Drainpipe


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


def test_a_stream_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    with Drainpipe(opened(tmp_path / "image")) as pipe, pytest.raises(TimeoutError):
        pipe.finish(0.1)


ZSTD = compression.parse("zstd:3").argv


@pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed")
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


@pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed")
def test_what_stops_a_filter_is_told_and_the_stream_goes_on(tmp_path: Path) -> None:
    with Drainpipe(os.open("/dev/full", os.O_WRONLY), ZSTD) as pipe:
        qemu = os.dup(pipe.writer)
        pipe.close_writer()
        for _ in range(256):
            os.write(qemu, os.urandom(65536))
        os.close(qemu)
        with pytest.raises(OSError, match="No space left"):
            pipe.finish(30)


def test_a_filter_that_is_not_there_is_named(tmp_path: Path) -> None:
    pipe = Drainpipe(opened(tmp_path / "image"), ("no-such-filter",))
    with pytest.raises(HostLacks, match="no-such-filter"):
        pipe.__enter__()
