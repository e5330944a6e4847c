"""Ctrl-C at any instant leaves no lock taken and no block without its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, wait
from functools import partial
from typing import Any

from snapvm.failures import CaptureFailed
from snapvm.undo import Undo
from snapvm.workers import workers
from tests.fakes.instants import Instant, instants_of, interrupted_at

MODULES = ("concurrent.futures", "contextlib", "threading", "snapvm", __name__)


def work_in_threads(left: list[str]) -> None:
    """What a window does: everybody has ended when it has."""
    with workers(2) as pool:
        both = [pool.submit(left.append, "") for _ in range(2)]
        wait(both, return_when=FIRST_EXCEPTION)
        for each in both:
            each.result()
    left.clear()


def fail_and_put_back(left: list[str]) -> None:
    """What a take does."""

    def put_back(what: str) -> None:
        if what in left:
            left.remove(what)

    with Undo() as undo:
        for each in "ab":
            undo.add(each, partial(put_back, each))
            left.append(each)
        raise CaptureFailed(domain="demo", why="a test says so")


def interrupt_at_each(work: Callable[[list[str]], None]) -> Iterator[tuple[Instant, str, Any]]:
    """Yield every instant of some work, how it ends when interrupted there, and what is left."""
    left: list[str] = []
    deed = partial(work, left)
    for instant in instants_of(deed, MODULES):
        yield instant, *interrupted_at(deed, MODULES, instant, lambda: left)


def test_threads_end_whatever_the_instant() -> None:
    """One waited for a lock for ever that nobody gave back, and whoever joined it."""
    for instant, how, _ in interrupt_at_each(work_in_threads):
        assert how in ("done", "interrupted"), instant


def test_what_is_done_is_put_back_whatever_the_instant() -> None:
    """It stayed, and was said to be put back."""
    for instant, how, left in interrupt_at_each(fail_and_put_back):
        assert not left, instant
        assert how == "interrupted" or how.startswith("CaptureFailed")
