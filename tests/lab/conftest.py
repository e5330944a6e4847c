"""Gives the tests of this folder the lab's fixtures."""

from __future__ import annotations

from tests.lab.fixtures import (
    kvm_lab,
    lab_keeper,
    no_lab,
    pytest_collection_modifyitems,
    pytest_configure,
    xen_lab,
)

__all__ = [
    "kvm_lab",
    "lab_keeper",
    "no_lab",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "xen_lab",
]
