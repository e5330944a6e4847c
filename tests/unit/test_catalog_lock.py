"""The lock of a domain: one at a time, with patience, and never longer than a process."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from snapvm.catalog import Catalog
from snapvm.errors import Locked
from snapvm.model import DomainUuid
from tests.fakes.records import UUID
from tests.fakes.storage import no_room

OTHER = DomainUuid("5c1d2f0e-8a3b-4d6f-9e21-0c7a4b5d6e70")


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "state", tmp_path / "run")


def test_the_lock_is_held_where_nothing_can_be_written(catalog: Catalog) -> None:
    """`snapvm repair` has to get a domain running on a host whose /run is full, too."""
    with catalog.locked(UUID, "demo"), catalog.locked(OTHER, "other"):
        pass
    with (
        no_room(),
        catalog.locked(UUID, "demo"),
        pytest.raises(Locked),
        catalog.locked(UUID, "demo"),
    ):
        pytest.fail("locked twice")


def test_one_at_a_time_works_on_a_domain(catalog: Catalog) -> None:
    with catalog.locked(UUID, "demo"):
        with pytest.raises(Locked, match=f"process {os.getpid()}"), catalog.locked(UUID, "demo"):
            pytest.fail("locked twice")
        with catalog.locked(OTHER, "other"):
            pass
    with catalog.locked(UUID, "demo"):
        pass


def test_one_waits_for_another_to_end(tmp_path: Path) -> None:
    patient = Catalog(tmp_path / "state", tmp_path / "run", wait_seconds=30)
    child = os.fork()
    if child == 0:
        try:
            patient.locked(UUID, "demo").__enter__()
            (tmp_path / "held").touch()
            time.sleep(0.3)
        finally:
            os._exit(0)
    deadline = time.monotonic() + 30
    while not (tmp_path / "held").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with patient.locked(UUID, "demo"):
        assert os.waitpid(child, 0)[0] == child


@pytest.mark.parametrize(
    ("wait_seconds", "hint"),
    [
        (0.0, "wait for it to end, or give --wait SECONDS"),
        (0.2, "it had not ended when the waiting time was over: try again when it has"),
    ],
)
def test_patience_ends_and_who_has_none_is_told_of_it(
    tmp_path: Path, wait_seconds: float, hint: str
) -> None:
    """Who had waited for ten minutes was told so too."""
    catalog = Catalog(tmp_path / "state", tmp_path / "run", wait_seconds=wait_seconds)
    with (
        catalog.locked(UUID, "demo"),
        pytest.raises(Locked) as busy,
        catalog.locked(UUID, "demo"),
    ):
        pytest.fail("locked twice")
    assert busy.value.hint() == hint


def test_the_lock_goes_with_the_process(catalog: Catalog) -> None:
    child = os.fork()
    if child == 0:
        try:
            catalog.locked(UUID, "demo").__enter__()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    with catalog.locked(UUID, "demo"):
        pass
