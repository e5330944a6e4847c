"""QEMU's migration stream: every page is found, and what is wrong is said with its place."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snapvm.memory.lookahead import WINDOW_BYTES
from snapvm.memory.qemustream import QemuStream
from snapvm.refusals import BadImage
from tests.unit.memory import qemu_builders as build
from tests.unit.memory.qemu_builders import GOOD, PAGE, Entry, Stream


def read(data: bytes) -> tuple[dict[tuple[str, int], bytes], bytes]:
    """Read a stream to its end: what each page holds at last, and what follows memory."""
    stream = QemuStream(io.BytesIO(data), "img")
    stream.setup()
    pages: dict[tuple[str, int], bytes] = {}
    for some in stream.pages():
        for number, offset in enumerate(some.offsets_bytes.tolist()):
            row = bytes(PAGE) if some.data is None else some.data[number].tobytes()
            pages[some.block.name, offset // PAGE] = row
    return pages, b"".join(bytes(piece) for piece in stream.rest())


def refusal(data: bytes) -> BadImage:
    """Read a stream that must be refused, at a place that it has."""
    with pytest.raises(BadImage) as raised:
        read(data)
    assert 0 <= raised.value.offset_bytes <= len(data)
    return raised.value


def test_every_page_and_the_rest_untouched() -> None:
    pages, rest = read(GOOD.encode())
    assert pages["pc.ram", 6] == build.filled(6)
    assert pages["pc.bios", 3] == build.filled(77)
    assert pages["pc.ram", 9] == pages["pc.ram", 0] == bytes(PAGE)
    assert len(pages) == 4 + 52 + 2 + 1
    assert rest == GOOD.rest


def test_the_setup_says_what_there_is() -> None:
    setup = QemuStream(io.BytesIO(GOOD.encode()), "img").setup()
    assert (setup.machine, setup.section, setup.ram_bytes) == ("pc-10", 2, 68 * PAGE)
    assert [block.name for block in setup.blocks] == ["pc.ram", "pc.bios"]


def test_a_record_may_go_on_in_the_block_of_the_one_before() -> None:
    entries = (Entry("pc.ram", 3, build.filled(3)), Entry("pc.ram", 4, build.filled(4)))
    one = build.encoded(entries)
    cut = 5 + 8 + 7 + PAGE
    middle = struct.pack(">Q", build.EOS) + build.footer(2) + b"\3" + struct.pack(">I", 2)
    data = Stream(rest=one[:cut] + middle + one[cut:] + GOOD.rest).encode()
    assert read(data)[0]["pc.ram", 4] == build.filled(4)


def test_more_pages_than_are_read_ahead() -> None:
    count = WINDOW_BYTES // PAGE * 3
    entries = [Entry("pc.ram", n, build.filled(n) if n % 7 else b"") for n in range(count)]
    pages, _ = read(Stream(blocks=(("pc.ram", count * PAGE),)).having(*entries).encode())
    wanted = {("pc.ram", n): build.filled(n) if n % 7 else bytes(PAGE) for n in range(count)}
    assert pages == wanted


@pytest.mark.parametrize("run", [1, 15, 16, 17, 256, 300])
def test_runs_of_zero_pages_of_any_length(run: int) -> None:
    stream = Stream(blocks=(("pc.ram", 3 * run * PAGE),)).having(
        *(Entry("pc.ram", n, b"" if n // run % 2 else build.filled(n)) for n in range(3 * run))
    )
    pages, rest = read(stream.encode())
    assert len(pages) == 3 * run and rest == stream.rest
    assert {n for (_, n), page in pages.items() if page == bytes(PAGE)} == set(range(run, 2 * run))


def test_zero_pages_among_others_are_not_looked_at_again_and_again() -> None:
    """All that was read ahead was gone through for each: hours for a guest of a few 100 GiB."""
    count = 1500
    entries = [Entry("pc.ram", n, build.filled(n) if n % 2 else b"") for n in range(count)]
    data = Stream(blocks=(("pc.ram", count * PAGE),)).having(*entries).encode()
    begun = time.process_time()
    stream = QemuStream(io.BytesIO(data), "img")
    assert sum(len(some.offsets_bytes) for some in stream.pages()) == count
    assert time.process_time() - begun < 0.5


def test_memory_that_comes_after_a_device_is_not_taken_for_its_state() -> None:
    """QEMU writes the state of some devices early (virtio-mem); it was copied with all pages."""
    pages = build.encoded([Entry("pc.ram", 2, build.filled(2))])
    told = refusal(Stream(rest=build.DEVICES + pages + GOOD.rest).encode())
    assert told.why == "no memory comes before the state of a device"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_page_that_is_filled_with_another_byte_is_not_taken_for_zeros(number: int) -> None:
    """The format has room for one (QEMU, migration/ram.c, RAM_SAVE_FLAG_ZERO)."""
    data = Stream().having(*(Entry("pc.ram", each) for each in (1, 2, 3))).encode()
    at = data.index(struct.pack(">Q", number * PAGE | 2 | (32 if number > 1 else 0))) + 8
    at += 0 if number > 1 else len(build.named("pc.ram"))
    assert "another byte than zero" in refusal(data[:at] + b"\1" + data[at + 1 :]).why


def test_every_truncation_is_seen() -> None:
    data = GOOD.encode()
    for length in range(len(data)):
        if length < 200 or length % 487 == 0 or length > len(data) - 200:
            refusal(data[:length])


@settings(max_examples=300)
@example(bit=697)  # the kind of a record of memory becomes an end mark
@given(st.integers(0, len(GOOD.encode()) * 8 - 1))
def test_a_flipped_bit_changes_a_page_or_is_refused(bit: int) -> None:
    """Nothing else comes of it, whatever it hits."""
    data = bytearray(GOOD.encode())
    data[bit // 8] ^= 1 << bit % 8
    try:
        _, rest = read(bytes(data))
    except BadImage:
        return
    assert len(rest) == len(GOOD.rest)


@settings(max_examples=300)
@given(st.binary(max_size=400), st.integers(0, 300))
def test_rubbish_is_refused(rubbish: bytes, kept_bytes: int) -> None:
    kept = GOOD.encode()[:kept_bytes]
    data = kept + rubbish
    if not GOOD.encode().startswith(data):
        refusal(data)


CAPABILITIES = b"\5\x1aconfiguration/capabilities\0\0\0\1"


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (replace(GOOD, total_bytes=1 << 50), "not a size of memory"),
        (replace(GOOD, total_bytes=60 << 12), "a block of .* bytes where"),
        (replace(GOOD, blocks=(("pc.ram", 1 << 62),), total_bytes=1 << 40), "a block of"),
        (replace(GOOD, blocks=(("pc.ram", 4095),)), "not a size of memory|a block of"),
        (replace(GOOD, blocks=(("pc\n", PAGE),)), "a name cannot be read"),
        (replace(GOOD, blocks=(("a", PAGE),) * 5000), "more than 4096 blocks"),
        (Stream().having(Entry("nobody", 1)), "'nobody', which was not listed"),
        (Stream().having(Entry("pc.ram", 64)), "outside of pc.ram"),
        (Stream().having(Entry("pc.ram", 1), Entry("pc.ram", 1 << 40)), "outside of pc.ram"),
        (Stream().having(Entry("pc.ram", 1, build.filled(1) + b"x")), "kind of page|names|read"),
        (replace(GOOD, rest=b"\1\0\0\0\3\4vfio" + GOOD.rest), "not followed by the state"),
        (replace(GOOD, rest=b"\2\0\0\0\3" + GOOD.rest), "a device that writes its state in parts"),
        (replace(GOOD, rest=b"\x08\0\7\0\1" + GOOD.rest), "the command 7"),
        (replace(GOOD, rest=b"\x08\0\x0b\0\0" * 9 + GOOD.rest), "more than one command"),
        (replace(GOOD, rest=GOOD.rest + b" "), "before the description"),
        (replace(GOOD, rest=b"\0"), "not followed by the state"),
        (replace(GOOD, rest=b"\4\0\0\0\7\0" + GOOD.rest), "not followed by the state"),
        (replace(GOOD, configuration=b"\5\4uuid\0\0\0\1"), "'uuid' of the configuration"),
        (replace(GOOD, configuration=build.PAGE_SIZE_PART[:-1] + b"\x0e"), "page-bits' of the"),
        (replace(GOOD, configuration=CAPABILITIES + b"\xff\0\0\0"), "too much"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(stream: Stream, why: str) -> None:
    with pytest.raises(BadImage, match=why):
        read(stream.encode())


def test_capabilities_are_told() -> None:
    stream = replace(GOOD, configuration=CAPABILITIES + b"\0\0\0\1\x0fx-ignore-shared")
    setup = QemuStream(io.BytesIO(stream.encode()), "img").setup()
    assert setup.capabilities == ("x-ignore-shared",)


@pytest.mark.parametrize(
    "claim",
    [
        replace(GOOD, blocks=(("pc.ram", 1 << 45),)).encode(),
        GOOD.encode()[:9] + b"\xff\xff\xff\xff",
        GOOD.encode()[: -len(build.DESCRIPTION) - 4] + b"\xff\xff\xff\xff",
    ],
)
def test_a_claim_costs_no_memory(claim: bytes) -> None:
    tracemalloc.start()
    try:
        read(claim)
    except BadImage:
        pass
    finally:
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < 4 * WINDOW_BYTES
