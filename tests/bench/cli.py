"""How quickly the command line answers, natively: ``make bench-cli``."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from tests.bench import harness
from tests.bench.harness import Figure, Usage, proportion
from tests.fakes.records import put_many

RUNS = 11
RECORDS = 10_000
SNAPVM = (sys.executable, "-m", "snapvm")


def main() -> None:
    """Measure, report, end."""
    with tempfile.TemporaryDirectory(prefix="snapvm-bench-") as folder:
        state_dir = Path(folder)
        put_many(state_dir, RECORDS)
        environment = {**os.environ, "SNAPVM_STATE_DIR": folder, "PYTHONPATH": str(harness.ROOT)}

        def snapvm(*arguments: str) -> Usage:
            return harness.run((*SNAPVM, *arguments), environment)

        measured = harness.alternate(
            RUNS,
            python=lambda: harness.run((sys.executable, "-c", "pass")),
            typer=lambda: harness.run((sys.executable, "-c", "import typer")),
            help=lambda: snapvm("--help"),
            list=lambda: snapvm("list"),
            json=lambda: snapvm("list", "--json"),
            show=lambda: snapvm("show", "machine0@latest"),
        )
    harness.end(harness.report("cli", figures(measured)))


def figures(measured: dict[str, list[Usage]]) -> list[Figure]:
    """Return what is reported, each with its aim or what it stands beside."""

    def seconds(subject: str) -> tuple[float, ...]:
        return tuple(usage.seconds for usage in measured[subject])

    def peak_mb(subject: str) -> tuple[float, ...]:
        return tuple(usage.peak_mb for usage in measured[subject])

    def timed(name: str, subject: str, against: str, limit: float | None = None) -> Figure:
        samples = seconds(subject)
        return Figure(name=name, unit="s", samples=samples, against=against, limit=limit)

    def sized(name: str, subject: str, against: str, limit: float | None = None) -> Figure:
        samples = peak_mb(subject)
        return Figure(name=name, unit="MB", samples=samples, against=against, limit=limit)

    return [
        timed("help_seconds", "help", "at most 0.15", 0.15),
        timed("list_10000_seconds", "list", "at most 1", 1.0),
        sized("list_10000_mb", "list", "at most 100", 100.0),
        timed("list_10000_json_seconds", "json", "the same as JSON"),
        sized("list_10000_json_mb", "json", "the same as JSON"),
        timed("show_latest_of_500_seconds", "show", "one of 500 of its domain"),
        timed("python_pass_seconds", "python", "the interpreter alone"),
        timed("import_typer_seconds", "typer", "the interpreter and Typer"),
        proportion(
            "help_per_python", seconds("help"), seconds("python"), "python -c pass, pairwise"
        ),
        proportion(
            "help_per_typer",
            seconds("help"),
            seconds("typer"),
            "python -c 'import typer', pairwise",
        ),
    ]


if __name__ == "__main__":
    main()
