"""Points at which a test lets snapvm die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from snapvm.crashpoint import LIST, PREFIX, VARIABLE

SCRIPT = """
import pathlib, sys
from snapvm import durable
for text in (b"one", b"two"):
    durable.write(pathlib.Path(sys.argv[1]), text)
"""


def write_twice(path: Path, crash: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", SCRIPT, str(path)]
    env = {**os.environ, VARIABLE: crash}
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    ("point", "left"),
    [
        ("before write file 1", None),
        ("after write file 1", b"one"),
        ("before write file 2", b"one"),
        ("after write file 2", b"two"),
    ],
)
def test_it_dies_just_there(tmp_path: Path, point: str, left: bytes | None) -> None:
    path = tmp_path / "file"
    assert write_twice(path, point).returncode == -signal.SIGKILL
    assert (path.read_bytes() if path.exists() else None) == left


def test_it_dies_of_the_signal_that_is_asked_for(tmp_path: Path) -> None:
    done = write_twice(tmp_path / "file", "after write file 1:TERM")
    assert done.returncode == -signal.SIGTERM


def test_all_points_are_told(tmp_path: Path) -> None:
    done = write_twice(tmp_path / "file", LIST)
    assert done.returncode == 0
    assert [line.removeprefix(PREFIX) for line in done.stderr.splitlines()] == [
        "before write file 1",
        "after write file 1",
        "before write file 2",
        "after write file 2",
    ]
