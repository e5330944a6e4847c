"""pytest plugin: the fixtures that boot labs, the marker ``lab``, and the order of such tests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import pytest

from tests.lab import pace
from tests.lab.keeper import Keeper
from tests.lab.vm import Flavour, Lab

FIXTURES = {"kvm_lab": 1, "no_lab": 2, "xen_lab": 3}
"""Fixtures that boot a lab, in the order in which their tests run."""
SAMPLES: Final = {"test_crash", "test_kvm_chain"}
"""Modules that try the same with many inputs, for a quarter of an hour where all is slow: the last
of their flavour, so that there is time for the others."""

STARTED: Final = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let what the tests of the labs may take be bounded."""
    parser.addoption(
        "--lab-minutes",
        type=float,
        default=float("inf"),
        help="leave out the tests of a lab that would begin later than this; those of the first"
        " flavour sooner, so that on a slow machine there is time for both",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, and the beginning of what is bounded."""
    config.stash[STARTED] = time.monotonic()
    config.addinivalue_line("markers", "lab: needs a booted lab (minutes, not seconds)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that boot a lab and put them last, flavour by flavour: each boots once."""
    for item in items:
        if _rank(item):
            item.add_marker(pytest.mark.lab)
    items.sort(key=lambda item: (_rank(item), _rank(item) and item.path.stem in SAMPLES))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out a test that there is no time for, and say so."""
    rank = _rank(item)
    minutes: float = item.config.getoption("--lab-minutes")
    elapsed_seconds = time.monotonic() - item.config.stash[STARTED]
    early = rank == FIXTURES["kvm_lab"]
    if rank and pace.too_late(elapsed_seconds, minutes * 60, early=early):
        pytest.skip(f"this machine is too slow to try all in {minutes:.0f} minutes")


def _rank(item: pytest.Item) -> int:
    names = getattr(item, "fixturenames", ())
    return max((FIXTURES.get(name, 0) for name in names), default=0)


@pytest.fixture(scope="session")
def lab_keeper() -> Iterator[Keeper]:
    """Whoever holds the one lab that may run."""
    keeper = Keeper()
    yield keeper
    keeper.close()


@pytest.fixture(scope="session")
def kvm_lab(lab_keeper: Keeper) -> Lab:
    """A booted libvirt and KVM host."""
    return lab_keeper.get(Flavour.KVM)


@pytest.fixture(scope="session")
def xen_lab(lab_keeper: Keeper) -> Lab:
    """A booted Xen dom0."""
    return lab_keeper.get(Flavour.XEN)


@pytest.fixture
def no_lab(lab_keeper: Keeper) -> None:
    """No lab runs: for tests that start one of their own. They come after those of KVM."""
    lab_keeper.close()
