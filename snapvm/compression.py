"""How memory images are compressed: what a user asks for, and the program that does it."""

from __future__ import annotations

import re
from dataclasses import dataclass

DEFAULT_LEVEL = 1
"""Beyond it a live guest's memory gets little smaller and takes much longer."""
_HIGHEST_LEVEL = 19
_ZSTD = re.compile(r"zstd(:(?P<level>\d{1,2}))?\Z", re.ASCII)

UNPACK_ARGV = ("zstd", "--quiet", "--decompress", "--stdout")
"""What libvirt too passes such an image through when it starts a domain from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """zstd of a level, or none at all."""

    level: int | None = None

    def __str__(self) -> str:
        return "none" if self.level is None else f"zstd:{self.level}"

    @property
    def argv(self) -> tuple[str, ...]:
        """The program a stream passes through, on all cores but behind everything else."""
        if self.level is None:
            return ()
        return ("nice", "-n", "10", "zstd", "--quiet", "-T0", f"-{self.level}", "--stdout")


NONE = Compression()


def parse(text: str) -> Compression:
    """Read ``none``, ``zstd`` or ``zstd:3``; raise ``ValueError`` for anything else."""
    if text == "none":
        return NONE
    match = _ZSTD.match(text)
    if match:
        level = int(match["level"] or DEFAULT_LEVEL)
        if 1 <= level <= _HIGHEST_LEVEL:
            return Compression(level=level)
    raise ValueError(f"must be none, zstd, or zstd:LEVEL with a level from 1 to {_HIGHEST_LEVEL}")
