"""``make fuzz``: spoiled inputs for every parser; a table, and build/fuzz.json.

``python -m tests.fuzz --inputs 1000000 --seconds 3600 --seed NAME``: as many inputs as are asked
for in all, each parser's share by turns, or as many as fit into the time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from tests.fuzz import harness
from tests.fuzz.harness import Tally
from tests.fuzz.targets import all_targets

RESULT = Path(__file__).parents[2] / "build" / "fuzz.json"


def _added(tallies: list[Tally], names: list[str]) -> list[Tally]:
    total = [Tally(target=name) for name in names]
    for tally in tallies:
        into = total[names.index(tally.target)]
        into.inputs += tally.inputs
        into.read += tally.read
        into.refused += tally.refused
        into.seconds += tally.seconds
        into.failures += tally.failures
    return total


def main() -> int:
    """Fuzz, tell, end with 1 when anything was wrong."""
    parser = argparse.ArgumentParser(prog="make fuzz")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=7200.0)
    parser.add_argument("--seed", default="snapvm")
    parser.add_argument("--only", nargs="+", metavar="TARGET", help="as the table names it")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        names = [target.name for target in all_targets(Path(name) / "examples")]
    chosen = [names.index(name) for name in wanted.only or names]
    rounds = -(-wanted.inputs // (harness.AT_ONCE * len(chosen)))
    until = time.monotonic() + wanted.seconds
    work = [
        (which, wanted.seed, turn * harness.AT_ONCE, until)
        for turn in range(rounds)
        for which in chosen
    ]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), maxtasksperchild=1) as pool:
        tallies = _added(list(pool.imap_unordered(harness.share, work)), names)
    return _tell(wanted.seed, [tally for tally in tallies if tally.inputs])


def _tell(seed: str, tallies: list[Tally]) -> int:
    for tally in tallies:
        print(
            f"{tally.target:30} {tally.inputs:8} inputs {tally.read:8} read "
            f"{tally.refused:8} refused {len(tally.failures):4} failed {tally.seconds:8.1f} s"
        )
        for failure in tally.failures[: harness.FAILURES_KEPT]:
            print(f"    {failure}")
    inputs = sum(tally.inputs for tally in tallies)
    failed = sum(len(tally.failures) for tally in tallies)
    RESULT.parent.mkdir(exist_ok=True)
    result = {"seed": seed, "inputs": inputs, "failed": failed}
    RESULT.write_text(json.dumps({**result, "targets": [asdict(t) for t in tallies]}, indent=1))
    print(f"{inputs} inputs, {failed} failed; {RESULT.name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
