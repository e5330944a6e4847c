"""What a command prints is whole, however the kernel takes it, or its status says otherwise."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import termios
import time
from array import array
from pathlib import Path
from typing import IO

import pytest

from snapvm.errors import ExitStatus
from tests.fakes.records import put_many
from tests.house.source import ROOT

RECORDS = 100
"""Whose JSON is more than a pipe holds."""
TAKEN_BYTES = 4096
PAGE_BYTES = 4096
FEW_BYTES = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({TAKEN_BYTES},) * 2); "
"""As on a disk that fills up amid a write: what there is room for is taken, the rest is not."""
MAIN = "from snapvm.cli.app import main; main()"

EACH_BUFFERING = pytest.mark.parametrize(
    "buffering", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"]
)
"""With that variable, as in containers, Python drops what the kernel does not take at once."""


def listing(
    folder: Path,
    variables: dict[str, str],
    *options: str,
    stdout: int | IO[bytes],
    stderr: int = subprocess.PIPE,
    first: str = "",
) -> subprocess.Popen[str]:
    """Begin to list many snapshots."""
    put_many(folder, RECORDS)
    return subprocess.Popen(
        [sys.executable, "-c", first + MAIN, "list", *options],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",  # it would be cut short, too
            "SNAPVM_STATE_DIR": str(folder),
            **variables,
        },
        stdout=stdout,
        stderr=stderr,
        text=True,
    )


@EACH_BUFFERING
def test_a_disk_that_takes_a_part_is_told(tmp_path: Path, buffering: dict[str, str]) -> None:
    """The list ended in the middle of a line, with status 0."""
    path = tmp_path / "out"
    with path.open("wb") as file:
        process = listing(tmp_path, buffering, stdout=file, first=FEW_BYTES)
    _, told = process.communicate(timeout=60)
    assert path.stat().st_size == TAKEN_BYTES
    assert process.returncode == ExitStatus.FAILED and "stdout: File too large" in told


def wait_until_full(pipe: int) -> None:
    """Return when a pipe holds nearly all that it can, and its writer has met that."""
    limit, held = time.monotonic() + 60, array("i", [0])
    while held[0] < fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) - PAGE_BYTES:
        assert time.monotonic() < limit, f"only {held[0]} bytes came"
        time.sleep(0.05)
        fcntl.ioctl(pipe, termios.FIONREAD, held)
    time.sleep(0.2)


@EACH_BUFFERING
def test_a_pipe_that_does_not_wait_gets_all(tmp_path: Path, buffering: dict[str, str]) -> None:
    """Its JSON was cut short, with status 6, or whole rows were missing in it, with status 0.

    Who shares a pipe with an event loop, such as Node's, has one like this.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    process = listing(tmp_path, buffering, "--json", stdout=writing)
    os.close(writing)
    wait_until_full(reading)
    with process, os.fdopen(reading) as pipe:
        assert len(json.loads(pipe.read())) == RECORDS
    assert process.returncode == ExitStatus.DONE


@EACH_BUFFERING
def test_a_failure_is_told_where_standard_error_does_not_wait(
    tmp_path: Path, buffering: dict[str, str]
) -> None:
    """A reader that was slow for a moment heard nothing of it but the status."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.write(writing, b"x" * fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ))
    command = listing(tmp_path, buffering, "--colour", stdout=subprocess.DEVNULL, stderr=writing)
    os.close(writing)
    time.sleep(0.5)
    with command as process, os.fdopen(reading) as pipe:
        assert "--colour" in pipe.read().lstrip("x")
    assert process.returncode == ExitStatus.USAGE
