"""Read QEMU's migration stream strictly: every page of guest memory, and the rest as it is.

Grammar (QEMU, docs/devel/migration/main.rst, migration/savevm.h and ram.c; integers big endian):
magic and version; a configuration section with the machine's name and perhaps the size of a page
and a list of capabilities; the section ``ram`` in one START record, which lists the blocks of
memory, and PART or END records, which hold pages; then sections of devices, an end mark, and a
description of the devices in JSON, which is the last thing in the stream.

Without knowing every device the sections of devices cannot be told apart.  They are passed on
unread, except for their beginning and the description at their end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from snapvm.memory.lookahead import Lookahead
from snapvm.memory.qemuformat import (
    BLOCKS_LIMIT,
    CAPABILITIES,
    DEVICE_NAME_AT,
    FLAG_BITS,
    MAGIC,
    NAME_LIMIT_BYTES,
    PAGE_BITS,
    PAGE_BYTES,
    PAGE_RECORD_BYTES,
    PAGE_SIZE,
    RAM,
    RAM_LIMIT_BYTES,
    RAM_VERSION,
    SWITCHOVER_START,
    TAIL_BYTES,
    WORD_BYTES,
    ZERO_RECORD_BYTES,
    Flag,
    Pages,
    RamBlock,
    Section,
    Setup,
    ends_with_description,
)
from snapvm.refusals import BadImage

Words = npt.NDArray[np.uint64]
_LOOKED_AT: Final = 16
"""How many records are looked at first, and how many times more each time after that."""
CUT_SHORT: Final = "it ends before the description of its devices does"
_FILLED: Final = "a page is filled with another byte than zero"


class QemuStream:
    """Reads a stream from the position of ``source``, which is byte ``offset_bytes`` of ``path``.

    Call `setup`, then read all of `pages`, then all of `rest`.  It uses a few megabytes of memory
    whatever the stream claims.  Each method raises ``BadImage``, with the offset, when the stream
    ends too early or is not understood, and ``StorageFailed`` when it cannot be read.
    """

    def __init__(self, source: BinaryIO, path: str, *, offset_bytes: int = 0) -> None:
        self._source = Lookahead(source, path, offset_bytes=offset_bytes)
        self._setup: Setup | None = None
        self._block: RamBlock | None = None
        self._commands = b""

    @property
    def offset_bytes(self) -> int:
        """The offset of the next byte to read."""
        return self._source.offset_bytes

    def bad(self, why: str) -> BadImage:
        """Return the error for this position."""
        return self._source.bad(why)

    def setup(self) -> Setup:
        """Read everything before the first page."""
        source = self._source
        if source.read(len(MAGIC), "the head of the stream") != MAGIC:
            raise source.bad("it is not a migration stream of QEMU", back_bytes=len(MAGIC))
        if self._byte("a section") != Section.CONFIGURATION:
            raise source.bad("the configuration of the machine is missing", back_bytes=1)
        machine = self._text(self._limited(NAME_LIMIT_BYTES, "the machine's name"))
        names_page_size, capabilities = self._configuration()
        section = self._ram_section()
        blocks = tuple(self._blocks())
        if self._word("the end of the blocks") != Flag.EOS:
            raise source.bad("the list of blocks has no end", back_bytes=WORD_BYTES)
        self._footer(section)
        self._setup = Setup(
            machine=machine,
            names_page_size=names_page_size,
            capabilities=capabilities,
            section=section,
            blocks=blocks,
        )
        return self._setup

    def pages(self) -> Iterator[Pages]:
        """Yield the pages of all memory records."""
        setup = self._setup or self.setup()
        has_pages = False
        while kind := self._next_before_devices():
            self._source.skip(1)
            if kind == Section.COMMAND:
                self._command()
                continue
            if self._number("the number of a section") != setup.section:
                why = "a device that writes its state in parts beside memory is not understood"
                raise self._source.bad(why, back_bytes=4)
            yield from self._record(setup.blocks)
            self._footer(setup.section)
            has_pages = True
        if not has_pages:  # memory behind a device would be taken for the state of that
            raise self._source.bad("no memory comes before the state of a device")

    def rest(self) -> Iterator[memoryview]:
        """Yield what follows the last memory record; each piece is good until the next one is read.

        A command that stood between the memory records comes first.
        """
        source = self._source
        if self._commands:
            yield memoryview(self._commands)
        self._require_device()
        tail = b""
        while piece := source.peek():
            tail = (tail + piece)[-TAIL_BYTES:]
            yield piece
            source.skip(len(piece))
        if not ends_with_description(tail):
            raise source.bad(CUT_SHORT)

    def _require_device(self) -> None:
        """Raise ``BadImage`` unless the state of a device follows.

        Every machine has devices, so that anything else means a damaged memory record.
        """
        ahead = bytes(self._source.peek()[: DEVICE_NAME_AT + NAME_LIMIT_BYTES])
        name = b""
        if len(ahead) > DEVICE_NAME_AT and ahead[0] == Section.FULL:
            length_bytes = ahead[DEVICE_NAME_AT - 1]
            name = ahead[DEVICE_NAME_AT : DEVICE_NAME_AT + length_bytes]
        if not _is_name(name):
            raise self._source.bad("the memory is not followed by the state of a device")

    # --- before the pages ---

    def _configuration(self) -> tuple[bool, tuple[str, ...]]:
        """Tell whether the configuration names the size of a page, and its capabilities."""
        names_page_size, capabilities = False, tuple[str, ...]()
        while self._source.peek(1)[:1] == bytes([Section.SUBSECTION]):
            self._byte("a subsection")
            name = self._source.read(self._byte("a name"), "the name of a subsection")
            part = name if self._number("a version") == 1 else b""
            if part == PAGE_SIZE and self._number("the size of a page") == PAGE_BITS:
                names_page_size = True
            elif part == CAPABILITIES:
                count = self._limited(NAME_LIMIT_BYTES, "the number of capabilities")
                capabilities = tuple(self._text(self._byte("a capability")) for _ in range(count))
            else:
                shown = name.decode("ascii", "replace")
                raise self._source.bad(f"the part {shown!r} of the configuration is not understood")
        return names_page_size, capabilities

    def _ram_section(self) -> int:
        kind = self._byte("a section")
        section = self._number("the number of a section")
        name = self._source.read(self._byte("a name"), "the name of a section")
        if kind != Section.START or name != RAM:
            shown = name.decode("ascii", "replace")
            raise self._source.bad(f"the section {shown!r} stands where memory should begin")
        self._number("an instance")
        if self._number("a version") != RAM_VERSION:
            raise self._source.bad("memory of this version is not known", back_bytes=4)
        return section

    def _blocks(self) -> Iterator[RamBlock]:
        word = self._word("the size of memory")
        left_bytes = word & ~FLAG_BITS
        if word & FLAG_BITS != Flag.MEM_SIZE or left_bytes > RAM_LIMIT_BYTES:
            raise self._source.bad(f"{word:#x} is not a size of memory", back_bytes=WORD_BYTES)
        for number in range(BLOCKS_LIMIT):
            if not left_bytes:
                return
            name = self._text(self._byte("a block"))
            length_bytes = self._word(f"the length of {name}")
            if not 0 < length_bytes <= left_bytes or length_bytes % PAGE_BYTES:
                why = f"a block of {length_bytes} bytes where {left_bytes} bytes are left"
                raise self._source.bad(why, back_bytes=WORD_BYTES)
            left_bytes -= length_bytes
            yield RamBlock(number=number, name=name, length_bytes=length_bytes)
        raise self._source.bad(f"it has more than {BLOCKS_LIMIT} blocks of memory")

    # --- the pages ---

    def _next_before_devices(self) -> Section | None:
        """Return the kind of the next record; None when it is the first of a device."""
        ahead = self._source.peek(1)[:1]
        if ahead and ahead[0] in (Section.PART, Section.END, Section.COMMAND):
            return Section(ahead[0])
        return None

    def _command(self) -> None:
        """Read a command; the only one that is known says that the guest stands still from here."""
        text = self._source.read(4, "a command")
        number = int.from_bytes(text[:2], "big")
        if text != SWITCHOVER_START:
            raise self._source.bad(f"the command {number} is not understood", back_bytes=4)
        if self._commands:
            raise self._source.bad("there is more than one command", back_bytes=4)
        self._commands = bytes([Section.COMMAND]) + text

    def _record(self, blocks: tuple[RamBlock, ...]) -> Iterator[Pages]:
        """Read one record up to its end mark; a page names its block when that changes."""
        names = {block.name: block for block in blocks}
        while True:
            word = self._word_ahead()
            flags = word & FLAG_BITS
            if word == Flag.EOS:
                self._source.skip(WORD_BYTES)
                return
            kind = flags & ~Flag.CONTINUE
            if kind not in (Flag.PAGE, Flag.ZERO):
                raise self._source.bad(f"{flags:#x} is not a kind of page")
            if not flags & Flag.CONTINUE:
                self._block = self._named_block(names)
                yield self._single(self._block, word & ~FLAG_BITS, kind)
            elif self._block is None:
                raise self._source.bad("a page belongs to no block")
            else:
                yield from self._continued(self._block, flags, kind)

    def _named_block(self, names: dict[str, RamBlock]) -> RamBlock:
        """Read the word and the block's name before a page."""
        self._source.skip(WORD_BYTES)
        name = self._text(self._byte("a block"))
        if name not in names:
            raise self._source.bad(f"a page of the block {name!r}, which was not listed")
        return names[name]

    def _continued(self, block: RamBlock, flags: int, kind: int) -> Iterator[Pages]:
        """Read the next pages of one kind, as far as the stream has been read ahead."""
        record_bytes = PAGE_RECORD_BYTES if kind == Flag.PAGE else ZERO_RECORD_BYTES
        ahead = np.frombuffer(self._source.peek(record_bytes), np.uint8)
        count = len(ahead) // record_bytes
        if not count:
            self._source.read(record_bytes, f"a page of {block.name}")
        rows = ahead[: count * record_bytes].reshape(count, record_bytes)
        words = _leading(rows, flags)
        rows = rows[: len(words)]
        offsets = words & np.uint64(~FLAG_BITS & (1 << 64) - 1)
        outside = np.flatnonzero(offsets >= block.length_bytes)
        if len(outside):
            self._source.skip(int(outside[0]) * record_bytes)
            raise self._outside(block, int(offsets[outside[0]]))
        body = rows[:, WORD_BYTES:]
        if kind == Flag.ZERO and body.any():
            raise self._source.bad(_FILLED)
        yield Pages(
            block=block,
            offsets_bytes=offsets.astype(np.int64),
            data=body if kind == Flag.PAGE else None,
        )
        self._source.skip(len(rows) * record_bytes)

    def _single(self, block: RamBlock, offset_bytes: int, kind: int) -> Pages:
        """Read the page behind a block's name."""
        if offset_bytes >= block.length_bytes:
            raise self._outside(block, offset_bytes)
        offsets = np.array([offset_bytes], np.int64)
        if kind == Flag.ZERO:
            if self._byte("a page"):
                raise self._source.bad(_FILLED, back_bytes=1)
            return Pages(block=block, offsets_bytes=offsets, data=None)
        page = self._source.read(PAGE_BYTES, f"a page of {block.name}")
        data = np.frombuffer(page, np.uint8).reshape(1, PAGE_BYTES)
        return Pages(block=block, offsets_bytes=offsets, data=data)

    def _outside(self, block: RamBlock, offset_bytes: int) -> BadImage:
        return self._source.bad(f"a page at {offset_bytes:#x} lies outside of {block.name}")

    # --- the pieces ---

    def _footer(self, section: int) -> None:
        if self._byte("a footer") != Section.FOOTER or self._number("a footer") != section:
            raise self._source.bad("a record does not end where it should")

    def _byte(self, what: str) -> int:
        return self._source.read(1, what)[0]

    def _number(self, what: str) -> int:
        return int.from_bytes(self._source.read(4, what), "big")

    def _word(self, what: str) -> int:
        return int.from_bytes(self._source.read(WORD_BYTES, what), "big")

    def _word_ahead(self) -> int:
        ahead = self._source.peek(WORD_BYTES)[:WORD_BYTES]
        if len(ahead) < WORD_BYTES:
            self._source.read(WORD_BYTES, "a record of memory")
        return int.from_bytes(ahead, "big")

    def _limited(self, limit: int, what: str) -> int:
        number = self._number(what)
        if number > limit:
            raise self._source.bad(f"{number} is too much for {what}", back_bytes=4)
        return number

    def _text(self, count_bytes: int) -> str:
        text = self._source.read(count_bytes, "a name")
        if not _is_name(text):
            raise self._source.bad("a name cannot be read", back_bytes=count_bytes)
        return text.decode("ascii")


def _is_name(text: bytes) -> bool:
    return bool(text) and text.isascii() and text.decode("ascii").isprintable()


def _leading(rows: npt.NDArray[np.uint8], flags: int) -> Words:
    """Return the words of those records at the front that have these flags.

    Few are looked at first: 100,000 zero pages fit what is read ahead, and mostly few come at once.
    """
    count = _LOOKED_AT
    while True:
        words = rows[:count, :WORD_BYTES].copy().view(">u8").reshape(-1)
        others = np.flatnonzero(words & FLAG_BITS != flags)
        if len(others):
            return words[: others[0]]
        if count >= len(rows):
            return words
        count *= _LOOKED_AT
