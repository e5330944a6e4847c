"""Each operation on a file fails once, or from then on: looks and reads too, and with every errno.

A command then ends as it should, or says which file failed and why; it never ends as a bug.  What
it says of the domain is true, and a repair that nothing befalls completes what it has left.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from snapvm.errors import SnapvmError
from tests.fakes.faults import ERRORS, Place, failing_at
from tests.fakes.mishaps import attempt
from tests.fakes.picture import picture
from tests.fakes.sweep import (
    CASES,
    EXTENTS,
    begun,
    claimed_wrongly,
    drawn,
    hurry,
    mended_wrongly,
)

LASTING = (errno.ENOSPC, errno.EROFS, errno.EMFILE)


def numbers_of(seen: list[Place]) -> list[int]:
    """Return the first and the last operation of each place in snapvm."""
    by_place: dict[tuple[str, str], list[int]] = {}
    for number, place in enumerate(seen, 1):
        by_place.setdefault((place.name, place.where), []).append(number)
    return sorted({number for its in by_place.values() for number in (its[0], its[-1])})


def ways(folder: Path, case: str, kind: str) -> Iterator[tuple[int, int, bool]]:
    """Yield which operation fails, how, and whether those behind it do too."""
    scene = begun(folder, kind, case)
    with failing_at(0) as faults:
        CASES[case][1](scene)
    shutil.rmtree(folder)
    for number in numbers_of(faults.seen):
        for error in ERRORS[faults.seen[number - 1].name]:
            yield number, error, False
            if error in LASTING:
                yield number, error, True


def wrong_of(folder: Path, case: str, kind: str, way: tuple[int, int, bool]) -> list[str]:
    """Let a command meet a fault; return what is wrong then, and after a repair."""
    number, error, lasts = way
    scene, command = begun(folder, kind, case), CASES[case][1]
    before = picture(scene)
    failed, wrong = None, []
    with failing_at(number, lambda p: error if error in ERRORS[p.name] else 0, lasts=lasts) as seen:
        try:
            failed = attempt(scene, command)
        except Exception as bug:
            wrong.append(f"a bug: {bug!r}")
    if failed is not None:
        wrong += told_wrongly(failed, error)
        wrong += claimed_wrongly(failed, before, picture(scene), command)
    wrong += mended_wrongly(scene, case, failed)
    shutil.rmtree(folder)
    where = seen.struck[0] if seen.struck else ""
    return [f"{case}, {kind}, {where}, {errno.errorcode[error]}: {each}" for each in wrong]


def told_wrongly(failed: SnapvmError, error: int) -> Iterator[str]:
    said = failed.message()
    if os.strerror(error) not in said or "/" not in said or not failed.hint():
        yield f"it says: {said}; hint: {failed.hint()}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@EXTENTS
@pytest.mark.parametrize("case", CASES)
def test_a_file_that_fails(tmp_path: Path, case: str, kinds: int, most: int) -> None:
    wrong: list[str] = []
    for kind, way in drawn(case, kinds, most, partial(ways, tmp_path / "whole", case)):
        wrong += wrong_of(tmp_path / "one", case, kind, way)
    assert not wrong, "\n".join(wrong)
