"""Walk x86 page tables of any mode in any store of frames.

The walker fetches a frame's 4096 bytes by a function ``read_frame``, so it works on a Xen image
(frames are PFNs), on a KVM image (guest-physical frames) and on tables made by a test alike.
Tables are read whole and decoded in numpy; the loops here run over *runs* of equal entries.

An address that is not mapped is no failure: the answer is a `Hole`, with its span and one of four
reasons:

* ``ABSENT``: the present bit of an entry is clear;
* ``RESERVED``: a present entry sets a bit that the processor demands to be zero (#PF with RSVD);
* ``UNREAD``: ``read_frame`` has no data for a table;
* ``NON_CANONICAL``: the address is in the gap between the halves of the address space.

In a damaged or hostile image a table may have itself below each of its 512 entries, on every level.
Iterators here are lazy, so the caller decides how much of that is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

import numpy as np

from snapvm.memory.pagingmode import (
    FRAME_BYTES,
    FRAME_SHIFT,
    PTE_NX,
    PTE_USER,
    PTE_WRITABLE,
    Kind,
    PagingMode,
    Table,
    Words,
    decode,
)

FrameReader = Callable[[int], bytes | bytearray | memoryview | None]
"""Takes the number of a frame; returns its 4096 bytes, or None when there are none."""

_ALL_RIGHTS: Final = PTE_WRITABLE | PTE_USER
_RIGHTS: Final = _ALL_RIGHTS | PTE_NX
_NO_WORDS: Final = np.empty(0, np.uint64)


class Why(Enum):
    """Why an address is not mapped."""

    ABSENT = "not present"
    RESERVED = "reserved bits set"
    UNREAD = "no data for the table"
    NON_CANONICAL = "not canonical"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """A run of addresses mapped to a run of frames by leaves of one size with the same rights.

    `translate` and `who_maps` return single pages, `walk` the longest possible runs.
    """

    va: int
    span_bytes: int
    page_bytes: int
    frame: int
    """The frame at ``va``."""
    writable: bool
    user: bool
    executable: bool
    table_frame: int
    """The frame of the table that has the first leaf entry."""
    index: int
    """The number of that entry in the table."""
    entry: int
    """The value of that entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """A run of addresses that is not mapped."""

    va: int
    span_bytes: int
    why: Why
    level: str = ""
    """The level of the (first) entry, or of the table without data, that makes the hole."""
    entry: int = 0
    """The value of that entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spot:
    """A table on the way down: its address, the first address it translates, the rights so far."""

    depth: int
    address: int
    va: int
    rights: int


def read_table(mode: PagingMode, depth: int, address: int, read_frame: FrameReader) -> Table | None:
    """Fetch and decode the table at a physical address; None when its frame has no data."""
    frame = read_frame(address >> FRAME_SHIFT)
    if frame is None:
        return None
    entries = np.frombuffer(
        frame,
        dtype=np.dtype(f"<u{mode.entry_bytes}"),
        count=mode.levels[depth].entries,
        offset=address % FRAME_BYTES,
    )
    return decode(mode, depth, entries.astype(np.uint64))


def translate(mode: PagingMode, cr3: int, va: int, read_frame: FrameReader) -> Mapping | Hole:
    """Translate one address; return the page or the hole that it is in."""
    if mode.canonical(va & (1 << mode.va_bits) - 1) != va:
        return _gap(mode)
    spot = _root(mode, cr3)
    while True:
        level = mode.levels[spot.depth]
        table = read_table(mode, spot.depth, spot.address, read_frame)
        if table is None:
            return _unread(mode, spot)[-1 if va >> 63 else 0]
        index = va >> level.shift & level.entries - 1
        if table.kinds[index] != Kind.TABLE:
            return _run(mode, spot, table, index, index + 1)
        spot = _below(mode, spot, table, index)


def walk(mode: PagingMode, cr3: int, read_frame: FrameReader) -> Iterator[Mapping | Hole]:
    """Yield every mapping and every hole, in ascending order, with neighbours joined."""
    last: Mapping | Hole | None = None
    for part in _walk(mode, _root(mode, cr3), read_frame):
        joined = None if last is None else _joined(last, part)
        if last is not None and joined is None:
            yield last
        last = joined or part
    if last is not None:
        yield last


def mappings(mode: PagingMode, cr3: int, read_frame: FrameReader) -> Iterator[Mapping]:
    """Yield every mapping, in ascending order."""
    return (part for part in walk(mode, cr3, read_frame) if isinstance(part, Mapping))


def who_maps(mode: PagingMode, cr3: int, frame: int, read_frame: FrameReader) -> Iterator[Mapping]:
    """Yield every page through which a frame can be reached, in ascending order.

    Every table is decoded twice, however many paths lead to it.  After that only tables that lead
    to the frame are walked, lazily, because a table that is shared makes many addresses.
    """
    leading = [_NO_WORDS for _ in range(len(mode.levels) + 1)]  # for each level, and below the last
    for depth, reachable in reversed(list(enumerate(_reachable(mode, cr3, read_frame)))):
        found = []
        for address in reachable.tolist():
            table = read_table(mode, depth, address, read_frame)
            if table is not None and _leading(mode, depth, table, frame, leading[depth + 1]):
                found.append(address)
        leading[depth] = np.array(found, np.uint64)
    if len(leading[0]):
        yield from _descend(mode, _root(mode, cr3), frame, leading, read_frame)


def _root(mode: PagingMode, cr3: int) -> _Spot:
    return _Spot(depth=0, address=cr3 & mode.root_mask, va=0, rights=_ALL_RIGHTS)


def _below(mode: PagingMode, spot: _Spot, table: Table, index: int) -> _Spot:
    return _Spot(
        depth=spot.depth + 1,
        address=int(table.addresses[index]),
        va=spot.va + (index << mode.levels[spot.depth].shift),
        rights=_restricted(mode, spot, int(table.entries[index])),
    )


def _restricted(mode: PagingMode, spot: _Spot, entry: int) -> int:
    """Combine the rights so far with an entry's: writing and user by AND, no-execute by OR."""
    if not mode.levels[spot.depth].has_rights:
        return spot.rights
    return spot.rights & (entry | ~_ALL_RIGHTS) | entry & PTE_NX


def _run(mode: PagingMode, spot: _Spot, table: Table, start: int, stop: int) -> Mapping | Hole:
    """Return what a run of entries, from ``start`` to before ``stop`` and not tables, means."""
    if table.kinds[start] == Kind.LEAF:
        return _page(mode, spot, table, start, stop)
    level = mode.levels[spot.depth]
    return Hole(
        va=mode.canonical(spot.va + (start << level.shift)),
        span_bytes=stop - start << level.shift,
        why=Why.ABSENT if table.kinds[start] == Kind.ABSENT else Why.RESERVED,
        level=level.name,
        entry=int(table.entries[start]),
    )


def _page(mode: PagingMode, spot: _Spot, table: Table, start: int, stop: int) -> Mapping:
    """Return the mapping that a run of leaves makes."""
    level = mode.levels[spot.depth]
    entry = int(table.entries[start])
    rights = _restricted(mode, spot, entry)
    return Mapping(
        va=mode.canonical(spot.va + (start << level.shift)),
        span_bytes=stop - start << level.shift,
        page_bytes=level.page_bytes,
        frame=int(table.addresses[start]) >> FRAME_SHIFT,
        writable=bool(rights & PTE_WRITABLE),
        user=bool(rights & PTE_USER),
        executable=not rights & PTE_NX,
        table_frame=spot.address >> FRAME_SHIFT,
        index=start,
        entry=entry,
    )


def _unread(mode: PagingMode, spot: _Spot) -> list[Hole]:
    """Return the hole that a table without data leaves; for a signed root that is two halves."""
    level = mode.levels[spot.depth]
    halves = 2 if spot.depth == 0 and mode.is_signed else 1
    span_bytes = (level.entries << level.shift) // halves
    return [
        Hole(
            va=mode.canonical(spot.va + half * span_bytes),
            span_bytes=span_bytes,
            why=Why.UNREAD,
            level=level.name,
        )
        for half in range(halves)
    ]


def _gap(mode: PagingMode) -> Hole:
    """Return the hole between the two halves, or above the top when there is only one half."""
    if mode.is_signed:
        start, end = 1 << mode.va_bits - 1, (1 << 64) - (1 << mode.va_bits - 1)
    else:
        start, end = 1 << mode.va_bits, 1 << 64
    return Hole(va=start, span_bytes=end - start, why=Why.NON_CANONICAL)


def _walk(mode: PagingMode, spot: _Spot, read_frame: FrameReader) -> Iterator[Mapping | Hole]:
    """Yield the mappings and holes of a table and of those below it, in ascending order."""
    table = read_table(mode, spot.depth, spot.address, read_frame)
    if table is None:
        yield from _unread(mode, spot)
        return
    starts = _run_starts(mode, spot.depth, table)
    for start, stop in zip(starts, [*starts[1:], len(table.entries)], strict=True):
        if table.kinds[start] == Kind.TABLE:
            yield from _walk(mode, _below(mode, spot, table, start), read_frame)
        else:
            yield _run(mode, spot, table, start, stop)


def _run_starts(mode: PagingMode, depth: int, table: Table) -> list[int]:
    """Return where runs begin: at another kind, at a table, or at a leaf that is not the next."""
    level = mode.levels[depth]
    kinds, entries, addresses = table.kinds, table.entries, table.addresses
    rights = entries & np.uint64(_RIGHTS)
    goes_on = (addresses[1:] == addresses[:-1] + np.uint64(level.page_bytes)) & (
        rights[1:] == rights[:-1]
    )
    breaks = kinds[1:] != kinds[:-1]
    breaks |= kinds[1:] == Kind.TABLE
    breaks |= (kinds[1:] == Kind.LEAF) & ~goes_on
    if depth == 0 and mode.is_signed:
        breaks[level.entries // 2 - 1] = True  # a run must not cross the gap between the halves
    return [0, *(np.flatnonzero(breaks) + 1).tolist()]


def _joined(last: Mapping | Hole, part: Mapping | Hole) -> Mapping | Hole | None:
    """Join two neighbours of the same kind; return None when they cannot be joined."""
    if last.va + last.span_bytes != part.va:
        return None
    if isinstance(last, Hole) and isinstance(part, Hole):
        if last.why is not part.why or part.why is Why.RESERVED:
            return None  # each entry with reserved bits is reported, as evidence of damage
        return replace(last, span_bytes=last.span_bytes + part.span_bytes)
    if isinstance(last, Mapping) and isinstance(part, Mapping):
        same = (
            last.page_bytes == part.page_bytes
            and last.frame + (last.span_bytes >> FRAME_SHIFT) == part.frame
            and (last.writable, last.user, last.executable)
            == (part.writable, part.user, part.executable)
        )
        if same:
            return replace(last, span_bytes=last.span_bytes + part.span_bytes)
    return None


def _reachable(mode: PagingMode, cr3: int, read_frame: FrameReader) -> list[Words]:
    """Return the addresses of the reachable tables of each level, each once."""
    found = [np.array([_root(mode, cr3).address], np.uint64)]
    for depth in range(len(mode.levels) - 1):
        children = [_NO_WORDS]
        for address in found[depth]:
            table = read_table(mode, depth, int(address), read_frame)
            if table is not None:
                children.append(table.addresses[table.kinds == Kind.TABLE])
        found.append(np.unique(np.concatenate(children)))
    return found


def _leading(mode: PagingMode, depth: int, table: Table, frame: int, below: Words) -> list[int]:
    """Return which entries are a leaf over the frame, or lead to one of the tables ``below``."""
    frames = np.uint64(mode.levels[depth].page_bytes >> FRAME_SHIFT)
    first = table.addresses >> np.uint64(FRAME_SHIFT)
    covers = (first <= np.uint64(frame)) & (np.uint64(frame) - first < frames)
    leads = (table.kinds == Kind.LEAF) & covers
    leads |= (table.kinds == Kind.TABLE) & np.isin(table.addresses, below)
    return list(np.flatnonzero(leads).tolist())


def _descend(
    mode: PagingMode, spot: _Spot, frame: int, leading: list[Words], read_frame: FrameReader
) -> Iterator[Mapping]:
    """Yield the pages of the frame below a table; ``leading`` are the tables that lead to one."""
    table = read_table(mode, spot.depth, spot.address, read_frame)
    if table is None:
        return
    for index in _leading(mode, spot.depth, table, frame, leading[spot.depth + 1]):
        if table.kinds[index] == Kind.TABLE:
            below = _below(mode, spot, table, index)
            yield from _descend(mode, below, frame, leading, read_frame)
        else:
            yield _page(mode, spot, table, index, index + 1)
