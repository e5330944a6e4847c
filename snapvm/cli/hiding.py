"""Keep a library from importing another one that it would use if it were installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast


@contextmanager
def hidden(package: str) -> Iterator[None]:
    """Make imports of ``package`` fail in the block, unless it has been imported before.

    A name that ``sys.modules`` maps to None is imported as if it were not installed (The Python
    Language Reference, 5.3.1, The module cache).
    """
    if package in sys.modules:
        yield
        return
    cache = cast("dict[str, Any]", sys.modules)
    cache[package] = None
    try:
        yield
    finally:
        del cache[package]
