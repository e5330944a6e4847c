"""What the crash sweep has tried: kept in a file, so that the sweep can be run in parts."""

from __future__ import annotations

import json
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

    @property
    def key(self) -> str:
        """Return what tells it from every other case."""
        return f"{self.flavour} | {self.kind} | {self.verb} | {self.way} | {self.point}"


@dataclass
class Tally:
    """All cases so far: ``{"cases": N, "passed": N, "failures": [...], "done": [...]}``."""

    path: Path
    done: dict[str, Case | None] = field(default_factory=dict)
    """By key; ``None`` for one that passed."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return what earlier sittings found, which is nothing when there is no file."""
        tally = cls(path)
        if path.exists():
            kept = json.loads(path.read_text())
            failures = [Case(**failure) for failure in kept["failures"]]
            tally.done = dict.fromkeys(kept.get("done", ()))
            tally.done |= {failure.key: failure for failure in failures}
        return tally

    def add(self, case: Case) -> None:
        """Count a case, in place of an earlier try of the same, and write all down."""
        self.done[case.key] = case if case.problem else None
        failures = [asdict(found) for found in self.done.values() if found is not None]
        passed = len(self.done) - len(failures)
        result = {"cases": len(self.done), "passed": passed, "failures": failures}
        self.path.parent.mkdir(exist_ok=True)
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps({**result, "done": list(self.done)}, indent=1) + "\n")
        fresh.rename(self.path)

    def has_passed(self, case: Case) -> bool:
        """Whether it need not be tried again."""
        return case.key in self.done and self.done[case.key] is None

    @property
    def failures(self) -> list[Case]:
        """Return the cases that did not pass."""
        return [case for case in self.done.values() if case is not None]

    def table(self) -> str:
        """Return passed and tried, a line for each flavour, kind of volume, verb and way."""
        rows: dict[str, list[bool]] = {}
        for key, failure in self.done.items():
            rows.setdefault(key.rpartition(" | ")[0], []).append(failure is None)
        return "\n".join(f"{row:44} {sum(all_)} of {len(all_)}" for row, all_ in rows.items())
