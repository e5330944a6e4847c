"""The crash sweep's own bookkeeping: what was tried, and when a domain stood still."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest

from tests.lab.crash import Sweep
from tests.lab.host.verbs import SPOILED
from tests.lab.host.watcher import OFF, RUNS, STANDS, Story
from tests.lab.tally import Case, Tally
from tests.lab.vm import Completed, Flavour

CASE = Case(flavour="kvm", kind="thin", verb="take", way="snapvm", point="before commit 1")


def test_parts_add_up(tmp_path: Path) -> None:
    path = tmp_path / "crash.json"
    Tally.load(path).add(CASE)
    second = Tally.load(path)
    second.add(replace(CASE, flavour="xen", problem="left paused"))
    second.add(replace(CASE, kind="thick", reaction_ms=300.0))
    kept = json.loads(path.read_text())
    assert (kept["cases"], kept["passed"]) == (3, 2)
    assert [failure["flavour"] for failure in kept["failures"]] == ["xen"]
    assert kept["guard"][0]["median_ms"] == 300


def test_a_case_tried_again_counts_once(tmp_path: Path) -> None:
    tally = Tally(tmp_path / "crash.json")
    tally.add(replace(CASE, problem="left paused"))
    tally.add(CASE)
    assert len(tally.cases) == 1 and not tally.failures
    assert "kvm thin take snapvm" in tally.table()


@pytest.mark.parametrize(
    ("events", "stood", "ran_after_ms"),
    [
        ([(1.0, RUNS), (2.0, STANDS), (3.5, RUNS)], True, 500),
        ([(1.0, RUNS), (3.1, STANDS), (3.5, RUNS)], True, 500),
        ([(1.0, RUNS), (2.0, STANDS), (2.9, RUNS)], False, None),
        ([(1.0, RUNS), (2.0, STANDS), (3.1, OFF), (5.0, RUNS)], False, None),
        ([(1.0, RUNS), (2.0, STANDS)], True, None),
        ([(1.0, RUNS)], False, None),
    ],
    ids=["guard", "told late", "ran already", "off", "nobody", "no window"],
)
def test_when_it_stood_still_and_ran_again_is_told(
    events: list[tuple[float, str]], stood: bool, ran_after_ms: float | None
) -> None:
    story = Story(events)
    assert story.stood_at(3.0) is stood
    assert story.ran_after_ms(3.0) == (ran_after_ms and pytest.approx(ran_after_ms))


class FakeLab:
    """A lab in which the part inside goes through prepared answers; one list for each domain."""

    flavour = Flavour.KVM

    def __init__(self, *sittings: tuple[int, list[dict[str, object]]]) -> None:
        self._sittings = list(sittings)
        self.orders: list[dict[str, Any]] = []
        self._sink: Callable[[bytes], None]

    def run(self, *_command: object, **_options: object) -> Completed:
        said = b"PULSE n=9 disks=9,9 state=ok\n"
        return Completed(status=0, stdout_bytes=said, stderr_bytes=b"", seconds=0)

    def start(self, *_command: object, sink: Callable[[bytes], None], **_options: object) -> Self:
        self._sink = sink
        return self

    def write(self, data: bytes) -> None:
        self.orders.append(json.loads(data))

    def close_input(self) -> None:
        """Nothing waits for it."""

    def finish(self, *_remote: object, **_options: object) -> Completed:
        status, answers = self._sittings.pop(0)
        said = b"".join(json.dumps(answer).encode() + b"\n" for answer in answers)
        for at in range(0, len(said), 50):
            self._sink(said[at : at + 50])
        return Completed(status=status, stdout_bytes=b"", stderr_bytes=b"", seconds=0)


def test_a_failure_costs_a_domain_and_not_the_sweep(tmp_path: Path) -> None:
    one: dict[str, object] = {
        "verb": "take",
        "way": "snapvm",
        "point": "before commit 1",
        "seconds": 9.0,
    }
    other = {**one, "point": "after commit 1"}
    points: dict[str, object] = {"verb": "take", "points": ["before commit 1", "after commit 1"]}
    bad = {**one, "problem": "left paused"}
    lab: Any = FakeLab((SPOILED, [points, bad]), (0, [other]))
    tally = Tally(tmp_path / "crash.json")
    Sweep(tally, verbs=["take"]).of_kind(lab, "thin")
    assert [case.problem for case in tally.cases.values()] == ["left paused", ""]
    assert lab.orders[0]["done"] == []
    assert lab.orders[1]["done"] == [["take", "snapvm", "before commit 1"]]
    assert lab.orders[1]["points"] == {"take": points["points"]}


def test_the_sweep_may_fail_itself(tmp_path: Path) -> None:
    lab: Any = FakeLab((1, []))
    with pytest.raises(RuntimeError, match="status 1"):
        Sweep(Tally(tmp_path / "crash.json")).of_kind(lab, "thin")
