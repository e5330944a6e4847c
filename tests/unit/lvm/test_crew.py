"""Work shared by several lvms: all of it is done, once, and none after a failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import cast

import pytest

from snapvm.lvm import crew
from snapvm.lvm.warm import WarmLvm

PATIENCE_SECONDS = 10.0


def lvms(*groups: str) -> dict[str, list[WarmLvm]]:
    """Stand-ins that are told apart by name and are never asked anything."""
    made: dict[str, list[WarmLvm]] = {}
    for number, vg in enumerate(groups):
        made.setdefault(vg, []).append(cast("WarmLvm", f"{vg} {number}"))
    return made


def at_once(jobs: Iterable[Callable[[], None]]) -> list[BaseException | None]:
    """Do every job in a thread of its own; return how each ended."""
    with ThreadPoolExecutor() as pool:
        return [begun.exception(PATIENCE_SECONDS) for begun in [*map(pool.submit, jobs)]]


@pytest.mark.parametrize(
    ("disks", "expected"),
    [((), ()), (("a",), ("a",)), (("a", "a", "a"), ("a", "a")), (("a", "b", "a"), ("a", "a", "b"))],
)
def test_as_many_wait_as_have_something_to_do(
    disks: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert crew.needed(disks) == expected


def test_every_piece_is_done_once_by_an_lvm_of_its_group() -> None:
    work = [(vg, number) for number in range(50) for vg in ("a", "b")]
    done: list[tuple[str, int]] = []

    def do(lvm: WarmLvm, number: int) -> None:
        done.append((str(lvm)[0], number))

    assert at_once(crew.shared(lvms("a", "a", "b"), work, do)) == [None, None, None]
    assert Counter(done) == Counter(work)


def test_two_lvms_of_a_group_work_side_by_side() -> None:
    both = Barrier(2)

    def meet(_lvm: WarmLvm, _piece: int) -> None:
        both.wait(PATIENCE_SECONDS)

    assert at_once(crew.shared(lvms("a", "a"), [("a", 1), ("a", 2)], meet)) == [None, None]


def test_nothing_is_begun_after_a_failure() -> None:
    begun: list[int] = []

    def fail(_lvm: WarmLvm, piece: int) -> None:
        begun.append(piece)
        raise ValueError(piece)

    jobs = crew.shared(lvms("a", "a", "b"), [("a", 1), ("a", 2), ("b", 3)], fail)
    (ended,) = at_once(jobs[:1])
    assert isinstance(ended, ValueError)
    assert at_once(jobs[1:]) == [None, None] and begun == [1]
