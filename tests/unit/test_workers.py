"""What is done beside the main thread is over when the block is, whenever Ctrl-C is typed."""

from __future__ import annotations

import threading
import time

import pytest

from snapvm.errors import Interrupted
from snapvm.failures import WindowBroken
from snapvm.interrupt import watched
from snapvm.workers import workers
from tests.unit.cli.signals import ctrl_c

MOMENT_SECONDS = 0.2


class Work:
    """Something that takes two moments, in the midst of which Ctrl-C may be typed."""

    def __init__(self, *, interrupts: bool) -> None:
        self.is_done = False
        self._interrupts = interrupts

    def __call__(self) -> None:
        """Do it."""
        time.sleep(MOMENT_SECONDS)  # the block has ended by then
        if self._interrupts:
            ctrl_c()
        time.sleep(MOMENT_SECONDS)
        self.is_done = True


def test_a_thread_that_has_just_begun_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        ctrl_c()

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    work = Work(interrupts=False)
    with pytest.raises(Interrupted), watched(), workers(1) as pool:
        pool.submit(work)
    assert work.is_done


def test_the_wait_at_the_end_is_not_cut_short() -> None:
    work = Work(interrupts=True)
    with pytest.raises(Interrupted), watched(), workers(1) as pool:
        pool.submit(work)
    assert work.is_done


def test_the_wait_at_the_end_is_not_cut_short_when_the_block_has_failed() -> None:
    work = Work(interrupts=True)
    with pytest.raises(WindowBroken) as failed, watched(), workers(1) as pool:
        pool.submit(work)
        raise WindowBroken(domain="demo", what="a test says so")
    assert work.is_done
    assert failed.value.signal_put_off == "SIGINT"


def test_work_of_another_thread_raises_no_interruption_there() -> None:
    """Only the main thread is interrupted."""
    work = Work(interrupts=True)

    def beside() -> bool:
        with workers(1) as pool:
            pool.submit(work)
        return work.is_done

    with pytest.raises(Interrupted), watched(), workers(1) as pool:
        answer = pool.submit(beside)
    assert answer.result()
