"""Spoils bytes as disks, cut-off writes and enemies do; the same seed gives the same bytes."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

_NUMBER = re.compile(rb"-?\d+")
_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1)
_WORDS = (
    *(b"", b"-1", b"NaN", b"1e999", b"9" * 400, b"null", b"true", b"[]", b"{}", b'"\\ud800"'),
    *(b"../../etc/passwd", b"/", b"-rf", b"$(id)", b"%s%n", b"\x00", b"\x1b[2J", b"\xff\xfe"),
    *(b"} || lv_name=~.", b"[" * 3000, b'{"a":' * 3000, b"&lol;" * 50, b"<a>" * 2000),
)


def spoiled(seed: bytes, chance: random.Random) -> bytes:
    """Return the seed with one to four things done to it."""
    data = bytearray(seed)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        chance.choice(_WAYS)(data, chance)
    return bytes(data)


def _place(data: bytearray, chance: random.Random) -> int:
    """Near the beginning as often as anywhere: that is where headers are."""
    if chance.random() < 0.5:
        return chance.randrange(min(len(data), 512) + 1)
    return chance.randrange(len(data) + 1)


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[_place(data, chance) :]


def _flip(data: bytearray, chance: random.Random) -> None:
    if data:
        data[min(_place(data, chance), len(data) - 1)] ^= 1 << chance.randrange(8)


def _overwrite(data: bytearray, chance: random.Random) -> None:
    at, length = _place(data, chance), chance.randrange(1, 64)
    data[at : at + length] = chance.randbytes(length)


def _number(data: bytearray, chance: random.Random) -> None:
    """A binary number of any width becomes one at an edge."""
    at, width = _place(data, chance), chance.choice((1, 2, 4, 8))
    value = chance.choice(_INTERESTING) & ((1 << 8 * width) - 1)
    data[at : at + width] = value.to_bytes(width, chance.choice(("little", "big")))


def _decimal(data: bytearray, chance: random.Random) -> None:
    """A number in a text becomes another one, or something that is no number."""
    found = list(_NUMBER.finditer(bytes(data)))
    if found:
        match = chance.choice(found)
        data[match.start() : match.end()] = chance.choice(_WORDS)


def _insert(data: bytearray, chance: random.Random) -> None:
    at = _place(data, chance)
    data[at:at] = chance.choice(_WORDS)


def _remove(data: bytearray, chance: random.Random) -> None:
    at = _place(data, chance)
    del data[at : at + chance.randrange(1, 200)]


def _repeat(data: bytearray, chance: random.Random) -> None:
    at, length = _place(data, chance), chance.randrange(1, 5000)
    data[at:at] = data[at : at + length]


_WAYS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(_cut, _flip, _flip, _overwrite, _number, _number, _decimal, _insert, _remove, _repeat),
)
