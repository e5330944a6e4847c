"""The labs of one host run in the order in which they were asked for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from tests.lab.errors import LabError
from tests.lab.turn import wait_for_turn

# Not forked: a child would hold its parent's lock too.
_PROCESSES = multiprocessing.get_context("spawn")


def _run(folder: Path, name: str) -> None:
    with wait_for_turn(60, folder), (folder / "ran").open("a") as ran:
        ran.write(f"{name}\n")


def _run_after(folder: Path, name: str) -> multiprocessing.process.BaseProcess:
    """Start a process that waits for its turn; return when it has its ticket."""
    waiting = len(list((folder / "queue").glob("*[0-9]")))
    process = _PROCESSES.Process(target=_run, args=(folder, name))
    process.start()
    while len(list((folder / "queue").glob("*[0-9]"))) == waiting:
        time.sleep(0.01)
    return process


def test_first_come_first_served_and_the_dead_hold_nobody_up(tmp_path: Path) -> None:
    with wait_for_turn(1, tmp_path):
        processes = [_run_after(tmp_path, name) for name in ("first", "killed", "second")]
        killed = processes.pop(1)
        assert killed.pid is not None
        os.kill(killed.pid, signal.SIGKILL)
        killed.join()
        with pytest.raises(LabError, match="other labs have been running"):
            wait_for_turn(0.1, tmp_path)
    for process in processes:
        process.join(30)
    assert (tmp_path / "ran").read_text().splitlines() == ["first", "second"]
    assert not list((tmp_path / "queue").iterdir())
