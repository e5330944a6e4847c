"""What holds for the tests of memory: they leave none of it behind."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _memory_is_given_back() -> Iterator[None]:
    """The half gigabyte that one property needs would stay with the process.

    Each fork copies the tables of all that the process has, and other tests fork a thousand times.
    """
    yield
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # of glibc alone
        trim(0)
