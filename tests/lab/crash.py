"""``make crash-sweep``: snapvm dies at every point of every command, on the real thing.

For each command the points are asked of snapvm itself (``SNAPVM_CRASH=list``); then it dies at
each in turn, in each way, and the damage is looked for (``tests/lab/patient.py``).  What has
passed is kept in ``build/crash.json`` and not tried again: the sweep can be run in parts.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tests.lab.deaths import Way
from tests.lab.patient import KINDS, Patient, Verb, patient
from tests.lab.tally import Case, Tally
from tests.lab.vm import REPOSITORY, Flavour, Lab

RESULT = REPOSITORY / "build" / "crash.json"


class Sweep:
    """What one sitting is to try, and until when."""

    def __init__(self, options: argparse.Namespace, tally: Tally) -> None:
        self._options = options
        self._tally = tally
        self._until = time.monotonic() + float(options.seconds)

    @property
    def is_over(self) -> bool:
        """Whether the time of this sitting has run out."""
        return time.monotonic() > self._until

    def of_flavour(self, lab: Lab) -> None:
        """Try all kinds of volumes in a lab."""
        for kind in self._options.kind:
            if not self.is_over:
                self._of_kind(lab, kind)

    def _of_kind(self, lab: Lab, kind: str) -> None:
        """Go through the cases, with a new domain after each that did not pass."""
        cases: Iterator[Case] | None = None
        went_wrong = True
        while went_wrong and not self.is_over:
            went_wrong = False
            with patient(lab, kind) as subject:
                cases = cases or self._cases(subject, lab.flavour, kind)
                for case in cases:
                    problem = subject.die(Verb(case.verb), case.point, Way(case.way))
                    self._count(replace(case, problem=problem))
                    went_wrong = bool(problem)
                    if went_wrong or self.is_over:
                        break

    def _cases(self, subject: Patient, flavour: Flavour, kind: str) -> Iterator[Case]:
        """Yield what has not passed yet: verb by verb, within it in the order of the seed."""
        for verb in self._options.verb:
            points = subject.points(Verb(verb))
            cases = [
                Case(flavour=flavour.value, kind=kind, verb=verb, way=way, point=point)
                for way in self._options.way
                for point in points
            ]
            if self._options.seed:
                random.Random(self._options.seed).shuffle(cases)
            cases = [case for case in cases if not self._tally.has_passed(case)]
            yield from cases[: self._options.each]

    def _count(self, case: Case) -> None:
        self._tally.add(case)
        outcome = case.problem.splitlines()[0] if case.problem else "ok"
        print(f"{case.key:76} {outcome}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Sweep; the result is JSON in a file and a table."""
    options = _parser().parse_args(arguments)
    if options.fresh:
        RESULT.unlink(missing_ok=True)
    tally = Tally.load(RESULT)
    sweep = Sweep(options, tally)
    for flavour in options.flavour:
        if not sweep.is_over:
            with Lab(flavour) as lab:
                sweep.of_flavour(lab)
    print(tally.table())
    tried, failed = len(tally.done), len(tally.failures)
    print(f"{tried - failed} of {tried} passed; {RESULT.relative_to(REPOSITORY)}")
    return 1 if tally.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.crash", description=__doc__)
    choices = {
        "flavour": [flavour.value for flavour in Flavour],
        "kind": list(KINDS),
        "verb": [verb.value for verb in Verb],
        "way": [way.value for way in Way],
    }
    for name, all_ in choices.items():
        parser.add_argument(f"--{name}", nargs="+", choices=all_, default=all_)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so many")
    parser.add_argument("--seed", default="", help="shuffle the cases of a command by this")
    parser.add_argument("--each", type=int, default=None, help="so many cases of each command")
    parser.add_argument("--fresh", action="store_true", help="forget what has passed")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
