"""``make crash-sweep``: snapvm dies at every point of every command, on the real thing.

For each command the points are asked of snapvm itself; then it dies at each in turn, and the damage
is looked for, inside the lab (``host/sweep.py``).  What has passed is kept in ``build/crash.json``
and not tried again: the sweep can be run in parts, which add up.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.lab.errors import LabDied
from tests.lab.guests import Guest
from tests.lab.host.verbs import NAME, SPOILED, Verb, Way
from tests.lab.tally import Case, Tally
from tests.lab.vm import REPOSITORY, Flavour, Lab
from tests.lab.xenguests import XenGuest

RESULT: Final = REPOSITORY / "build" / "crash.json"
INSIDE: Final = "cd /snapvm && exec python3 -m tests.lab.host.sweep"
KINDS: Final = {"thin": "thin", "thick": "thick", "mixed": "thick,thin"}
"""The kinds of the volumes of the domain's two disks, by the name of the pair."""
ALL: Final = 1_000_000
"""More cases than any command has."""
DEATHS_LIMIT: Final = 3
"""How often a lab may be lost in a sitting, which says nothing of snapvm."""
_GRACE_SECONDS: Final = 600
"""What the last case may take when the time is over."""


@dataclass
class Sweep:
    """What one sitting is to try, and what came of it."""

    tally: Tally
    verbs: Sequence[str] = tuple(Verb)
    ways: Sequence[str] = (Way.SNAPVM,)
    seed: str = "snapvm"
    each: int = ALL
    until: float = float("inf")
    tried: set[tuple[str, ...]] = field(default_factory=set)
    points: dict[tuple[str, str], dict[str, list[str]]] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float:
        """How much of the sitting's time there is."""
        return min(self.until - time.monotonic(), 1e6)

    def of_kind(self, lab: Lab, kind: str) -> None:
        """Try everything on one kind of volumes, with a new domain after each failure."""
        while self.seconds_left > 0 and not self._with_a_domain(lab, kind):
            pass

    def _with_a_domain(self, lab: Lab, kind: str) -> bool:
        """Try cases until all are done; False when the domain was spoiled."""
        of_flavour = XenGuest if lab.flavour is Flavour.XEN else Guest
        disks = ("--disks", "2", "--vg", "vg0,vg1", "--kind", KINDS[kind], "--size", "32")
        with of_flavour(lab, NAME, *disks, "--memory", "128") as guest:
            return self._inside(guest, kind)

    def _inside(self, guest: Guest, kind: str) -> bool:
        lab = guest.lab
        hearing = _Hearing(self, lab.flavour.value, kind)
        limit_seconds = self.seconds_left + _GRACE_SECONDS
        remote = lab.start(INSIDE, timeout_seconds=limit_seconds, sink=hearing.take)
        remote.write(json.dumps(self._order(lab.flavour.value, kind)).encode())
        remote.close_input()
        status = lab.finish(remote, timeout_seconds=limit_seconds).status
        if status not in (0, SPOILED):
            raise RuntimeError(f"the sweep itself failed, status {status}:\n{hearing.strange}")
        return status == 0

    def _order(self, flavour: str, kind: str) -> dict[str, Any]:
        """Return what the part inside is to do."""
        passed = {key for key, case in self.tally.cases.items() if not case.problem}
        return {
            "verbs": list(self.verbs),
            "ways": list(self.ways),
            "seed": self.seed,
            "each": self.each,
            "seconds": self.seconds_left,
            "points": self.points.setdefault((flavour, kind), {}),
            "done": [key[2:] for key in passed | self.tried if key[:2] == (flavour, kind)],
        }

    def take(self, flavour: str, kind: str, told: dict[str, Any]) -> None:
        """Count what was told of inside: the points of a command, or a case."""
        if "points" in told:
            self.points[flavour, kind][told["verb"]] = told["points"]
            self.tally.points[f"{flavour} {kind} {told['verb']}"] = len(told["points"])
            return
        case = Case(flavour=flavour, kind=kind, **told)
        self.tally.add(case)
        self.tried.add(case.key)
        outcome = case.problem.splitlines()[0] if case.problem else "ok"
        reaction = f" {case.reaction_ms:6.0f} ms" if case.reaction_ms is not None else ""
        print(f"{' '.join(case.key):76} {case.seconds:5.1f} s{reaction} {outcome}", flush=True)


class _Hearing:
    """Puts together the lines of the part inside; called by the channel's thread."""

    def __init__(self, sweep: Sweep, flavour: str, kind: str) -> None:
        self._sweep = sweep
        self._of = (flavour, kind)
        self._pending = b""
        self.strange = ""
        """What was said and is no answer, such as a traceback."""

    def take(self, data: bytes) -> None:
        """Take a piece of output."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                self._sweep.take(*self._of, json.loads(line))
            else:
                self.strange += line.decode(errors="replace") + "\n"


def main(arguments: Sequence[str]) -> int:
    """Sweep; the result is JSON in a file and a table."""
    options = _parser().parse_args(arguments)
    if options.fresh:
        RESULT.unlink(missing_ok=True)
    tally = Tally.load(RESULT)
    sweep = Sweep(
        tally,
        verbs=options.verb,
        ways=options.way,
        seed=options.seed,
        each=options.each,
        until=time.monotonic() + options.seconds,
    )
    for flavour in options.flavour:
        _of_flavour(sweep, flavour, options.kind)
    print(tally.table())
    tried, failed = len(tally.cases), len(tally.failures)
    print(f"{tried - failed} of {tried} passed; {RESULT.relative_to(REPOSITORY)}")
    return 1 if failed else 0


def _of_flavour(sweep: Sweep, flavour: str, kinds: Sequence[str]) -> None:
    """Sweep one flavour; a lab that is lost is booted again, what was told before counts."""
    for left in reversed(range(DEATHS_LIMIT)):
        if sweep.seconds_left <= 0:
            return
        try:
            with Lab(flavour) as lab:
                for kind in kinds:
                    sweep.of_kind(lab, kind)
        except LabDied as death:
            print(f"the lab died: {death}", flush=True)
            if not left:
                raise
        else:
            return


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.crash", description=__doc__)
    choices = {
        "flavour": ([flavour.value for flavour in Flavour], None),
        "kind": (list(KINDS), ["thin", "thick"]),
        "verb": ([verb.value for verb in Verb], None),
        "way": ([way.value for way in Way], [Way.SNAPVM.value]),
    }
    for name, (all_, default) in choices.items():
        parser.add_argument(f"--{name}", nargs="+", choices=all_, default=default or all_)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so many")
    parser.add_argument("--seed", default="snapvm", help="shuffle the cases of a command by this")
    parser.add_argument("--each", type=int, default=ALL, help="so many cases of each command")
    parser.add_argument("--fresh", action="store_true", help="forget what has been tried")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
