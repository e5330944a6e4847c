"""Feeds spoiled inputs to parsers and keeps count; seed, target and number make an input."""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from snapvm.errors import SnapvmError
from tests.fuzz.mutate import spoiled
from tests.fuzz.targets import Target, all_targets

INPUT_SECONDS = 10
"""An input that takes longer hangs."""
MEMORY_BYTES = 256 << 20
"""What the inputs may take beyond what the process had when it began."""
FAILURES_KEPT = 5
AT_ONCE = 2000
"""Inputs of one share."""


@dataclass
class Tally:
    """How the inputs of one target went."""

    target: str
    inputs: int = 0
    read: int = 0
    refused: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


class Hung(BaseException):
    """An input took too long; nothing that is fuzzed may catch it."""


def share(arguments: tuple[int, str, int, float]) -> Tally:
    """Try one share of one target's inputs, in a process of its own."""
    which, seed, first, until = arguments
    logging.disable()
    quick = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=quick) as name:
        folder = Path(name)
        target = all_targets(folder / "examples")[which]
        limit_memory()
        return run(target, folder / "input", seed=seed, first=first, count=AT_ONCE, until=until)


def run(target: Target, folder: Path, *, seed: str, first: int, count: int, until: float) -> Tally:
    """Try ``count`` inputs, or as many as are done by ``until`` (``time.monotonic()``)."""
    tally = Tally(target=target.name)
    begun = time.monotonic()
    for number in range(first, first + count):
        if time.monotonic() > until:
            break
        _try(target, folder, f"{seed}/{target.name}/{number}", tally)
    tally.seconds = time.monotonic() - begun
    return tally


def _try(target: Target, folder: Path, name: str, tally: Tally) -> None:
    chance = random.Random(name)
    data = spoiled(chance.choice(target.seeds), chance)
    folder.mkdir(parents=True)
    tally.inputs += 1
    try:
        with _limited_time():
            target.read(data, folder)
        tally.read += 1
    except (Exception, Hung) as failure:
        if isinstance(failure, (SnapvmError, *target.refuses_by)):
            str(failure)
            tally.refused += 1
        elif len(tally.failures) < FAILURES_KEPT:
            trace = traceback.extract_tb(failure.__traceback__)[-1]
            where = f"{Path(trace.filename).name}:{trace.lineno}"
            tally.failures.append(f"{name}: {type(failure).__name__}: {failure!s:.200} at {where}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _limited_time() -> Iterator[None]:
    def hang(_number: int, _frame: FrameType | None) -> None:
        raise Hung(f"more than {INPUT_SECONDS} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(INPUT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def limit_memory() -> None:
    """Let this process have ``MEMORY_BYTES`` more than it has; beyond it Python says so."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    faulthandler.enable()
