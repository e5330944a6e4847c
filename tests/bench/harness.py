"""What every benchmark shares: fair sampling, one form of result, one place for it.

``make bench-NAME`` runs ``tests/bench/NAME.py``, which measures, hands its figures to ``report``
and so leaves ``build/bench/NAME.json``::

    {"environment": {...},
     "figures": [{"name", "value", "unit", "better", "against", "samples"}, ...]}

``value`` is the median of ``samples``.  What is compared is measured in turn (A B A B ...), so
that a machine that gets slower while it is measured is slower for both.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeVar

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "bench"
PACKAGES = ("typer", "rich", "sh", "tenacity", "numpy", "xxhash")

Better = Literal["lower", "higher"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured figure."""

    name: str
    unit: str
    samples: tuple[float, ...]
    better: Better = "lower"
    against: str = ""
    """What it should be, or what it is compared with, in words."""
    limit: float | None = field(default=None, compare=False)
    """Where it starts to be bad; beyond it the table says so."""

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> str:
        """The lowest and the highest sample."""
        return f"{min(self.samples):.4g} .. {max(self.samples):.4g}"

    @property
    def is_within(self) -> bool:
        """Whether the median is on the right side of the limit."""
        if self.limit is None:
            return True
        return self.value <= self.limit if self.better == "lower" else self.value >= self.limit


@dataclass(frozen=True)
class Usage:
    """What one run of a program took."""

    seconds: float
    peak_mb: float
    """Peak resident memory of the whole process, in 10^6 bytes."""


def run(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> Usage:
    """Run a program to its end, its output thrown away; raise when it fails."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    # wait4 tells of this child alone; getrusage(RUSAGE_CHILDREN) of the largest there ever was.
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{argv} ended with status {process.returncode}")
    return Usage(seconds=seconds, peak_mb=used.ru_maxrss * 1024 / 1e6)


def alternate(runs: int, *, warm_up: int = 1, **subjects: Callable[[], T]) -> dict[str, list[T]]:
    """Measure each subject ``runs`` times in turn, after ``warm_up`` rounds that do not count."""
    measured: dict[str, list[T]] = {name: [] for name in subjects}
    for number in range(warm_up + runs):
        for name, measure in subjects.items():
            result = measure()
            if number >= warm_up:
                measured[name].append(result)
    return measured


def ratios(samples: Sequence[float], base: Sequence[float]) -> tuple[float, ...]:
    """Return each sample divided by the one of the base that was taken beside it."""
    return tuple(one / other for one, other in zip(samples, base, strict=True))


def plain(name: str, unit: str, samples: Iterable[float], against: str = "") -> Figure:
    """Return a figure that has no limit."""
    return Figure(name=name, unit=unit, samples=tuple(samples), against=against)


def proportion(
    name: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    against: str,
    limit: float | None = None,
) -> Figure:
    """Return what ours takes as a multiple of what was measured beside it."""
    aim = against if limit is None else f"{against}: at most {limit:g}"
    return Figure(name=name, unit="times", samples=ratios(ours, theirs), against=aim, limit=limit)


def environment() -> dict[str, object]:
    """Return what a reader must know to compare the figures with others."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "commit": commit.stdout.strip(),
        **{name: metadata.version(name) for name in PACKAGES},
    }


def report(name: str, figures: Sequence[Figure]) -> bool:
    """Write ``build/bench/NAME.json``, print a table; tell whether all is within its limits."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    values = [
        {key: value for key, value in asdict(figure).items() if key != "limit"}
        | {"value": figure.value}
        for figure in figures
    ]
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), "figures": values}, indent=1) + "\n")
    wide = max(len(figure.name) for figure in figures)
    print(f"{'':{wide}}  {'median':>9}  {'unit':5} {'lowest .. highest':>21}  against")
    for figure in figures:
        beyond = "" if figure.is_within else "   BEYOND"
        print(
            f"{figure.name:{wide}}  {figure.value:9.4g}  {figure.unit:5} "
            f"{figure.spread:>21}  {figure.against}{beyond}"
        )
    print(f"in {path.relative_to(ROOT)}")
    return all(figure.is_within for figure in figures)


def end(is_good: bool) -> None:
    """End the benchmark's process; status 1 says that something is beyond its limit."""
    sys.exit(0 if is_good else 1)
