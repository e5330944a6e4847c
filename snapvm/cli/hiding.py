"""Libraries that another library would import on the chance that it may need them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast


@contextmanager
def hidden(package: str) -> Iterator[None]:
    """Let imports in the block find no ``package``; one that was imported before stays.

    An import of a name that stands in ``sys.modules`` for None fails as if nothing were installed
    (The Python Language Reference, 5.3.1, The module cache).
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
