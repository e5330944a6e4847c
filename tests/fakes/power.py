"""A disk that forgets, when its power is cut, whatever was not brought to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

Held = bytes | frozenset[tuple[str, int]]
"""What a file holds; or the names in a folder, and which file each is."""


class Disk:
    """What of the files of this process a cut of the power would leave."""

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}

    @classmethod
    @contextmanager
    def watched(cls) -> Iterator[Disk]:
        """Note for the block what is brought to the disk, and bring nothing to it."""
        disk = cls()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", disk._sync)
            patch.setattr(os, "fdatasync", disk._sync)
            yield disk

    def _sync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        self._held[path.stat().st_ino] = _held_now(path)

    def losing(self, folder: Path) -> Iterator[Path]:
        """Yield what is there and would be gone, or be another file, or hold something else."""
        for path in [folder, *folder.rglob("*")]:
            now, held = _held_now(path), self._held.get(path.stat().st_ino)
            if isinstance(now, frozenset):
                yield from (path / name for name, _ in now - _names(held))
            elif now != held:
                yield path

    def regaining(self, folder: Path) -> Iterator[Path]:
        """Yield what is gone and would be there again."""
        for path in [folder, *folder.rglob("*")]:
            now, held = _held_now(path), self._held.get(path.stat().st_ino)
            if isinstance(now, frozenset):
                yield from (path / name for name, _ in _names(held) - now)


def _names(held: Held | None) -> frozenset[tuple[str, int]]:
    return held if isinstance(held, frozenset) else frozenset()


def _held_now(path: Path) -> Held:
    if path.is_dir():
        return frozenset((entry.name, entry.inode()) for entry in os.scandir(path))
    return path.read_bytes()
