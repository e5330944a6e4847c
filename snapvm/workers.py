"""Threads beside the main one that have ended when their block has, whatever signal arrives.

What follows such a block removes what the threads make, closes what they write to, or lets a domain
run.  ``ThreadPoolExecutor`` alone does not promise it: an interruption while it starts a thread has
it forget that thread, and one while it waits for its threads ends the wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Thread
from typing import ParamSpec, TypeVar

from snapvm.interrupt import shielded
from snapvm.refusals import HostLacks

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def _no_thread_told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of `threading`
        what = f"room for one more thread ({error})"
        raise HostLacks(what=what, remedy="try again when it has") from error


def start(thread: Thread) -> None:
    """Start a thread for which nobody waits here; raise ``HostLacks`` when there can be none."""
    with _no_thread_told():
        thread.start()


class _Workers(ThreadPoolExecutor):
    """A pool that knows all of its threads."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See ``Executor.submit``; an interruption is raised when the work is under way.

        Raises ``HostLacks`` when there can be no thread for it; another may do it all the same.
        """
        with shielded(), _no_thread_told():
            return super().submit(fn, *args, **kwargs)


@contextmanager
def workers(most: int) -> Iterator[Executor]:
    """Have up to ``most`` threads beside the block; at its end all that they were given is done.

    A signal that arrives meanwhile raises ``Interrupted`` then; when the block failed it is noted
    in the failure (``shielded``).
    """
    pool = _Workers(most)
    try:
        yield pool
    except BaseException:
        with shielded():
            pool.shutdown()
            raise
    with shielded():
        pool.shutdown()
