"""pytest plugin: the fixtures that boot labs, the marker ``lab``, and the order of such tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.keeper import Keeper
from tests.lab.vm import Flavour, Lab

FIXTURES = {"kvm_lab": 1, "no_lab": 2, "xen_lab": 3}
"""Fixtures that boot a lab, in the order in which their tests run."""


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "lab: needs a booted lab (minutes, not seconds)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that boot a lab and put them last, flavour by flavour: each boots once."""

    def rank(item: pytest.Item) -> int:
        names = getattr(item, "fixturenames", ())
        return max((FIXTURES.get(name, 0) for name in names), default=0)

    for item in items:
        if rank(item):
            item.add_marker(pytest.mark.lab)
    items.sort(key=rank)


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
