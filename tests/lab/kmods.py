"""Picks kernel modules with what they depend on, ready for an initramfs."""

from __future__ import annotations

import lzma
from collections.abc import Iterable
from pathlib import Path


def load_order(folder: Path, wanted: Iterable[str], if_there: Iterable[str] = ()) -> list[Path]:
    """Return the files to load, dependencies first, for the modules named in ``wanted``.

    ``folder`` is a /lib/modules/VERSION. Modules built into the kernel are left out; a name in
    ``wanted`` that is neither a module nor built in raises ``KeyError``, one in ``if_there`` is
    left out too.
    """
    requires: dict[str, list[str]] = {}
    path_of: dict[str, str] = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, after = line.partition(":")
        requires[path] = after.split()
        path_of[_name(path)] = path
    built_in = {_name(line) for line in (folder / "modules.builtin").read_text().splitlines()}

    order: list[str] = []

    def visit(path: str) -> None:
        if path not in order:
            for dependency in requires[path]:
                visit(dependency)
            order.append(path)

    optional = tuple(if_there)
    for name in (*wanted, *optional):
        key = name.replace("-", "_")
        if key in path_of:
            visit(path_of[key])
        elif key not in built_in and name not in optional:
            raise KeyError(f"no kernel module {name} in {folder}")
    return [folder / path for path in order]


def _name(path: str) -> str:
    return Path(path).name.partition(".ko")[0].replace("-", "_")


def content(path: Path) -> bytes:
    """Return a module's ELF, decompressed: the domains' tiny init has no xz."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def plain_name(path: Path) -> str:
    """Return the module's file name without the suffix of its compression."""
    return path.name.removesuffix(".xz")
