"""What the crash sweep has tried: kept in a file, so that the sweep can be run in parts."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self


@dataclass(frozen=True, kw_only=True)
class Case:
    """One death: of which command, where, how, and what was wrong afterwards, if anything."""

    flavour: str
    kind: str
    verb: str
    way: str
    point: str
    problem: str = ""
    seconds: float = 0.0
    reaction_ms: float | None = None
    """How long after the death the domain ran again that stood still; None when it did not."""

    @property
    def key(self) -> tuple[str, ...]:
        """Return what tells it from every other case."""
        return (self.flavour, self.kind, self.verb, self.way, self.point)


@dataclass
class Tally:
    """All cases so far: ``{"cases": N, "passed": N, "failures": [...], ...}``."""

    path: Path
    cases: dict[tuple[str, ...], Case] = field(default_factory=dict)
    points: dict[str, int] = field(default_factory=dict)
    """How many points a command passes, by flavour, kind and verb."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return what earlier sittings found, which is nothing when there is no file."""
        tally = cls(path)
        if path.exists():
            kept = json.loads(path.read_text())
            for case in (Case(**values) for values in kept.get("done", ())):
                tally.cases[case.key] = case
            tally.points = kept.get("points", {})
        return tally

    def add(self, case: Case) -> None:
        """Count a case, in place of an earlier try of the same."""
        self.cases[case.key] = case
        self.save()

    def save(self) -> None:
        """Write all down."""
        failures = [asdict(case) for case in self.failures]
        done = [asdict(case) for case in self.cases.values()]
        passed = len(done) - len(failures)
        result = {"cases": len(done), "passed": passed, "failures": failures}
        more = {"guard": self.guard(), "points": self.points, "done": done}
        self.path.parent.mkdir(exist_ok=True)
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps({**result, **more}, indent=1) + "\n")
        fresh.rename(self.path)

    @property
    def failures(self) -> list[Case]:
        """Return the cases that did not pass."""
        return [case for case in self.cases.values() if case.problem]

    def guard(self) -> list[dict[str, object]]:
        """Return, by flavour, kind and verb, how long the guard took to make the domain run."""
        found = []
        for row, cases in _grouped(self.cases.values(), 3):
            times = [case.reaction_ms for case in cases if case.reaction_ms is not None]
            if times:
                figures = {
                    "deaths": len(times),
                    "median_ms": round(statistics.median(times)),
                    "longest_ms": round(max(times)),
                    "longest_at": max(cases, key=lambda c: c.reaction_ms or 0).point,
                }
                found.append({"of": " ".join(row), **figures})
        return found

    def table(self) -> str:
        """Return passed and tried of each flavour, kind of volume, verb and way; and the guard."""
        lines = [f"{'':44} {'passed':>6} {'tried':>6} {'points':>6} {'s/case':>6}"]
        for row, cases in _grouped(self.cases.values(), 4):
            points = self.points.get(" ".join(row[:3]), "?")
            passed = sum(not case.problem for case in cases)
            mean = statistics.mean(case.seconds for case in cases)
            name = " ".join(row)
            lines.append(f"{name:44} {passed:6} {len(cases):6} {points:>6} {mean:6.1f}")
        lines += ["", f"{'SIGKILL in the window to a running domain':44} deaths median longest, ms"]
        lines += [
            f"{of['of']:44} {of['deaths']:6} {of['median_ms']:6} {of['longest_ms']:7}"
            f"  {of['longest_at']}"
            for of in self.guard()
        ]
        return "\n".join(lines)


def _grouped(cases: Iterable[Case], length: int) -> Iterator[tuple[tuple[str, ...], list[Case]]]:
    """Yield the cases whose keys begin alike, in order."""
    rows: dict[tuple[str, ...], list[Case]] = {}
    for case in cases:
        rows.setdefault(case.key[:length], []).append(case)
    yield from sorted(rows.items())
