"""Gives the tests of this folder the lab's fixtures."""

from __future__ import annotations

from tests.lab.fixtures import (
    kvm_lab,
    lab_keeper,
    no_lab,
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_runtest_setup,
    xen_lab,
)

__all__ = [
    "kvm_lab",
    "lab_keeper",
    "no_lab",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_runtest_setup",
    "xen_lab",
]
