"""The part of the crash sweep that runs in the lab: the cases of one domain, one after another.

What to do comes as JSON on standard input; each case is answered by a line of JSON.  The first one
that does not pass ends it with status 3: its domain may not be what the next one needs.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

from tests.lab.host import deaths
from tests.lab.host.patient import Patient
from tests.lab.host.verbs import SPOILED, Verb, Way

LIVING: Final = "(it was not killed)"


def main() -> None:
    """Go through the cases that are asked for."""
    asked = json.loads(sys.stdin.read())
    deaths.adopt_orphans()
    until = time.monotonic() + asked["seconds"]
    patient = Patient()
    try:
        for verb, way, point in _cases(patient, asked):
            if time.monotonic() > until:
                break
            begun = time.monotonic()
            problem, reaction_ms = patient.die(verb, point, way)
            seconds = round(time.monotonic() - begun, 2)
            outcome = {"problem": problem, "reaction_ms": reaction_ms, "seconds": seconds}
            _tell(verb=verb, way=way, point=point, **outcome)
            if problem:
                sys.exit(SPOILED)
    finally:
        patient.close()


def _cases(patient: Patient, asked: dict[str, Any]) -> Iterator[tuple[Verb, Way, str]]:
    """Yield what is still to be tried: verb by verb, in the order of the seed."""
    done = {tuple(case) for case in asked["done"]}
    known: dict[str, list[str]] = asked["points"]
    for verb in map(Verb, asked["verbs"]):
        if verb not in known:
            try:
                known[verb] = patient.points(verb)
            except AssertionError as problem:
                _tell(verb=verb, way=Way.SNAPVM, point=LIVING, problem=str(problem))
                raise
            _tell(verb=verb, points=known[verb])
        points = list(known[verb])
        random.Random(asked["seed"]).shuffle(points)
        # What is before one effect is after another: so every state is tried in the first half.
        points.sort(key=lambda point: not point.startswith("before "))
        cases = [(verb, Way(way), point) for way in asked["ways"] for point in points]
        yield from [case for case in cases if case not in done][: asked["each"]]


def _tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
