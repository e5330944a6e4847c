"""What is put back when work fails, what stays, and which failure is told."""

from __future__ import annotations

from functools import partial

import pytest

from snapvm.attention import LeftBehind, NameUnclear, StuckPaused
from snapvm.errors import SnapvmError
from snapvm.failures import CaptureFailed
from snapvm.undo import Removes, Undo

FAILED = CaptureFailed(domain="demo", why="a test says so")
STUCK = StuckPaused(domain="demo", why="a test says so")
UNCLEAR = NameUnclear(path="/x", why="a test says so")


def fail(error: SnapvmError) -> None:
    raise error


def left_of(error: SnapvmError, *, of_disk: SnapvmError | None = None) -> tuple[Exception, str]:
    """Fail with an error; return what is raised, and what is not put back.

    The putting back of the disk fails if there is an error for it.
    """
    left = ["journal", "part", "disk", "mark"]
    kinds = {"journal": Removes.JOURNAL, "part": Removes.PART}
    steps = {what: partial(left.remove, what) for what in left}
    if of_disk is not None:
        steps["disk"] = partial(fail, of_disk)
    with pytest.raises(SnapvmError) as raised, Undo() as undo:
        for what, step in steps.items():
            undo.add(what, step, removes=kinds.get(what, Removes.ANYTHING_ELSE))
        raise error
    return raised.value, " ".join(left)


def test_all_is_put_back() -> None:
    assert left_of(FAILED) == (FAILED, "")


def test_what_is_left_behind_is_named_and_the_journal_stays() -> None:
    told, left = left_of(FAILED, of_disk=CaptureFailed(domain="demo", why="it is stuck"))
    assert isinstance(told, LeftBehind) and told.__cause__ is FAILED
    assert left == "journal disk" and "disk (" in told.message() and "part" not in told.message()


@pytest.mark.parametrize("of_disk", [None, FAILED])
def test_what_the_domain_needs_comes_before_what_is_left_behind(
    of_disk: SnapvmError | None,
) -> None:
    """And the journal stays, though all else was put back: the next command tries again."""
    told, left = left_of(STUCK, of_disk=of_disk)
    assert told is STUCK and left == ("journal" if of_disk is None else "journal disk")


def test_what_the_domain_needs_is_told_when_its_putting_back_says_so() -> None:
    told, left = left_of(FAILED, of_disk=STUCK)
    assert told is STUCK and told.__cause__ is FAILED and left == "journal disk"


def test_what_may_or_may_not_have_its_name_keeps_its_parts() -> None:
    assert left_of(UNCLEAR) == (UNCLEAR, "journal part")
