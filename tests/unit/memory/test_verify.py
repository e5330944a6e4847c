"""The deep check: sound images pass, and each thing that can be wrong is found and named."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapvm import memoryroom
from snapvm.memory.finding import KEPT_PER_PROBLEM, Finding, Findings, Problem, Report, Severity
from snapvm.memory.normalise import P2M_FOREIGN, P2M_IDENTITY, FrameMap, Normaliser
from snapvm.memory.verify import verify_image
from snapvm.memory.xenimage import device_model_record
from snapvm.memory.xenvcpu import canonicalise_context
from snapvm.refusals import BadImage, HostLacks, UnreadableFile
from tests.unit.memory import xen_builders as build
from tests.unit.memory.xen_builders import RO, RW, XTAB, Guest, page, uncanonicalise


def check(guest: Guest, folder: Path) -> Report:
    """Check the image of a domain."""
    path = folder / "img"
    path.write_bytes(guest.encode())
    return verify_image(path)


def words(guest: Guest, pfn: int) -> dict[int, int]:
    """Take a page of the domain apart."""
    return dict(enumerate(np.frombuffer(guest.pages[pfn], "<u8").tolist()))


def put(guest: Guest, pfn: int, index: int, value: int) -> None:
    """Change an entry."""
    guest.pages[pfn] = page(words(guest, pfn) | {index: value})


def test_a_sound_image_has_no_findings(tmp_path: Path) -> None:
    report = check(Guest(), tmp_path)
    assert report == Report(findings=(), counts={}, pages=build.OWNED, tables=6, vcpus=1)
    assert report.is_sound


def test_tables_the_stock_saver_dropped_are_found(tmp_path: Path) -> None:
    # notes: an L1 with a foreign frame is written as XTAB; verify-stream-v2 is content with that.
    guest = Guest()
    guest.types[build.L1 + 1] = XTAB
    report = check(guest, tmp_path)
    assert not report.is_sound
    assert report.has(Severity.LOST)
    lost = build.L1 + 1
    assert set(report.findings) == {
        Finding(problem=Problem.TABLE_LOST, pfn=build.L2, index=1, target_pfn=lost),
        Finding(problem=Problem.PAGE_LOST, pfn=build.L1, index=lost, target_pfn=lost),
        Finding(problem=Problem.OWNED_LOST, pfn=lost),
    }


def test_a_table_no_entry_leads_to_is_still_missed_by_its_owner(tmp_path: Path) -> None:
    guest = Guest()
    guest.types[build.USER_L4] = XTAB
    put(guest, build.L1, build.USER_L4, 0)
    struct.pack_into("<Q", guest.vcpu, 4992, 0)
    report = check(guest, tmp_path)
    assert report.findings == (Finding(problem=Problem.OWNED_LOST, pfn=build.USER_L4),)


def _set(offset: int, value: int) -> Callable[[Guest], None]:
    return lambda guest: struct.pack_into("<Q", guest.vcpu, offset, value)


def _type(pfn: int, type_: int) -> Callable[[Guest], None]:
    return lambda guest: guest.types.update({pfn: type_})


def _entry(pfn: int, index: int, value: int) -> Callable[[Guest], None]:
    return lambda guest: put(guest, pfn, index, value)


def _start_info(offset: int, value: int) -> Callable[[Guest], None]:
    return lambda guest: put(guest, build.START_INFO, offset // 8, value)


def _p2m_shared(guest: Guest) -> None:
    guest.p2m_pfns = [build.P2M, build.P2M]


def _p2m_beyond(guest: Guest) -> None:
    guest.p2m_pfns = [build.P2M, 1 << 40]


def _short(guest: Guest) -> None:
    guest.vcpu.pop()


def _config(text: bytes) -> Callable[[Guest], None]:
    return lambda guest: setattr(guest, "config", text + b"\0")


L1, L2, L3, L4 = build.L1, build.L2, build.L3, build.L4
WRONG: dict[str, tuple[Callable[[Guest], None], set[Problem]]] = {
    "beyond": (_entry(L1, 100, 600 << 12 | RW), {Problem.BEYOND}),
    "far beyond": (_entry(L1, 100, (1 << 52) - 1 | RW), {Problem.BEYOND}),
    "beyond in L3": (_entry(L3, 7, 600 << 12 | RW), {Problem.BEYOND}),
    "ballooned page mapped": (_entry(L1, 100, 595 << 12 | RW), {Problem.PAGE_LOST}),
    "a level too few": (_entry(L3, 7, L1 << 12 | RW), {Problem.WRONG_LEVEL}),
    "an ordinary page as table": (_entry(L2, 7, 100 << 12 | RW), {Problem.WRONG_LEVEL}),
    "linear but writable": (_entry(L4, 300, L4 << 12 | RW), {Problem.WRONG_LEVEL}),
    "large page": (_entry(L2, 7, 0 << 12 | RW | 0x80), {Problem.LARGE_PAGE}),
    "Xen's slot": (_entry(L4, 260, 1 << 12), {Problem.XEN_SLOT}),
    "table mapped writable": (_entry(L1, L2, L2 << 12 | RW), {Problem.WRITABLE_TABLE}),
    "table left alone": (_entry(L2, 1, 0), {Problem.UNREACHED_TABLE}),
    "p2m frame is a table": (_type(build.P2M, 0xE), {Problem.P2M_FRAME}),
    "p2m frame twice": (_p2m_shared, {Problem.P2M_SHARED}),
    "p2m frame beyond": (_p2m_beyond, {Problem.P2M_FRAME}),
    "root is no root": (_set(5008, L3 << 12), {Problem.VCPU}),
    "root beyond": (_set(5008, 1 << 50), {Problem.VCPU}),
    "root not pinned": (_type(L4, 4), {Problem.UNPINNED_ROOT}),
    "user root is no root": (_set(4992, L3 << 12 | 1), {Problem.VCPU}),
    "GDT too long": (_set(4960, 7169), {Problem.VCPU}),
    "GDT in a table": (_set(4832, L1), {Problem.VCPU}),
    "GDT beyond": (_set(4832, 1 << 60), {Problem.VCPU}),
    "start_info ballooned": (_set(616, 595), {Problem.START_INFO}),
    "start_info beyond": (_set(616, (1 << 64) - 1), {Problem.START_INFO}),
    "store ring beyond": (_start_info(56, 600), {Problem.START_INFO}),
    "console ring lost": (_start_info(72, 596), {Problem.START_INFO}),
    "no JSON": (_config(b"name = 'web1'"), {Problem.CONFIG}),
    "nested JSON": (_config(b"[" * 100_000), {Problem.CONFIG}),
    "domid": (_config(b'{"c_info":{"domid":7}}'), {Problem.CONFIG}),
    "short context": (_short, {Problem.VCPU, Problem.RECORD}),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name: str, tmp_path: Path) -> None:
    change, expected = WRONG[name]
    guest = Guest()
    change(guest)
    report = check(guest, tmp_path)
    assert set(report.counts) == expected
    assert report.is_sound == all(p.severity is Severity.ODD for p in expected)


def test_what_is_legal_is_not_found(tmp_path: Path) -> None:
    guest = Guest()
    put(guest, L4, 300, L4 << 12 | RO)  # a linear self-map, read-only
    put(guest, L1, 100, 0x7FFFFFFFF << 12 | 0x100)  # PROT_NONE: not present, keeps its frame
    put(guest, L1, 101, 101 << 12 | RW | 0x80)  # PAT
    put(guest, build.P2M + 1, 80, P2M_FOREIGN | 0x5000)
    put(guest, build.P2M + 1, 81, P2M_IDENTITY | 0xFEE00)
    put(guest, build.P2M + 1, 300, 0x7000)  # behind the last PFN
    guest.order += [7, 8, 9]  # sent again
    report = check(guest, tmp_path)
    assert not report.counts


def test_the_last_word_on_a_page_counts(tmp_path: Path) -> None:
    guest = Guest()
    path = tmp_path / "img"
    pieces = [*guest.before_pages(), guest.page_records()]
    late = Guest(order=[build.L1])
    put(late, build.L1, 100, 600 << 12 | RW)
    path.write_bytes(b"".join([*pieces, late.page_records(), *guest.after_pages()]))
    assert set(verify_image(path).counts) == {Problem.BEYOND}
    path.write_bytes(
        b"".join([*pieces[:-1], late.page_records(), pieces[-1], *guest.after_pages()])
    )
    assert not verify_image(path).counts


def test_missing_records_and_trailing_bytes_are_found(tmp_path: Path) -> None:
    guest = Guest()
    pieces = [*guest.before_pages(), guest.page_records()]
    path = tmp_path / "img"
    path.write_bytes(b"".join([*pieces, build.record(0), build.record(0), b"more"]))
    report = verify_image(path)
    assert report.counts[Problem.RECORD] == 2
    assert report.counts[Problem.TRAILING] == 1


def test_findings_are_counted_but_not_all_kept(tmp_path: Path) -> None:
    guest = Guest()
    guest.pages[L1] = page(dict.fromkeys(range(512), 600 << 12 | RW))
    guest.pages[L1 + 1] = guest.pages[L1]
    report = check(guest, tmp_path)
    assert report.counts == {Problem.BEYOND: 1024}
    assert len(report.findings) == KEPT_PER_PROBLEM


def test_findings_made_one_by_one_are_not_all_kept_either() -> None:
    """An image of nothing but damage must not fill the memory of whoever looks at it."""
    findings = Findings()
    for pfn in range(3 * KEPT_PER_PROBLEM):
        findings.add(Finding(problem=Problem.PAGE_LOST, pfn=pfn))
        findings.add_pages(Problem.BEYOND, np.array([pfn], np.uint64))
    assert set(findings.counts.values()) == {3 * KEPT_PER_PROBLEM}
    assert len(findings.kept) == 2 * KEPT_PER_PROBLEM


def test_the_vcpus_of_an_hvm_image_are_counted(tmp_path: Path) -> None:
    """It was said to have none."""
    path = tmp_path / "img"
    path.write_bytes(build.hvm_image())
    assert verify_image(path) == Report(findings=(), counts={}, pages=2, tables=0, vcpus=2)


CONTEXT = build.hvm_context(0, 1)


@pytest.mark.parametrize(
    ("records", "problem", "detail"),
    [
        ([build.HVM_PARAMS], Problem.RECORD, "HVM_CONTEXT"),
        ([build.record(9, CONTEXT)], Problem.RECORD, "HVM_PARAMS"),
        ([build.record(9, build.hvm_context(1)), build.HVM_PARAMS], Problem.RECORD, "of vCPU 0"),
        ([build.record(9, CONTEXT[:-8]), build.HVM_PARAMS], Problem.VCPU, "HVM_CONTEXT"),
        ([build.record(9, CONTEXT[:-20]), build.HVM_PARAMS], Problem.VCPU, "HVM_CONTEXT"),
        ([build.record(9, CONTEXT[48:]), build.HVM_PARAMS], Problem.VCPU, "HVM_CONTEXT"),
    ],
)
def test_an_hvm_image_without_the_state_of_its_machine_is_not_sound(
    tmp_path: Path, records: list[bytes], problem: Problem, detail: str
) -> None:
    path = tmp_path / "img"
    path.write_bytes(build.hvm_image(*records))
    report = verify_image(path)
    assert not report.is_sound
    assert any(f.problem is problem and detail in f.detail for f in report.findings)


def test_an_hvm_image_without_the_state_of_its_qemu_is_not_sound(tmp_path: Path) -> None:
    """xl restores it to the end, and then has no state for QEMU to start from."""
    path = tmp_path / "img"
    path.write_bytes(build.hvm_image(kind="hvm"))
    report = verify_image(path)
    assert [(f.problem, f.detail) for f in report.findings] == [
        (Problem.RECORD, "EMULATOR_CONTEXT")
    ]
    model = device_model_record(b"the state of QEMU")
    path.write_bytes(build.hvm_image(kind="hvm", model=model))
    assert verify_image(path).is_sound


def test_an_image_too_large_for_the_memory_of_this_host_ends_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would have ended one of the control domain's daemons."""
    path = tmp_path / "img"
    path.write_bytes(Guest().encode())
    os.truncate(path, 1 << 40)
    monkeypatch.setattr(memoryroom, "available_bytes", lambda: 3 << 30)
    assert verify_image(path).counts[Problem.TRAILING] == 1
    monkeypatch.setattr(memoryroom, "available_bytes", lambda: (3 << 30) - 1)
    with pytest.raises(HostLacks, match="3072 MiB of memory for an index"):
        verify_image(path)
    os.truncate(path, 1 << 30)
    monkeypatch.setattr(memoryroom, "available_bytes", lambda: 0)
    assert verify_image(path).counts[Problem.TRAILING] == 1


def test_only_a_regular_file_can_be_checked(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "none"):
        with pytest.raises(UnreadableFile):
            verify_image(path)


def test_a_domain_in_machine_frames_becomes_a_sound_image(tmp_path: Path) -> None:
    guest = Guest()
    p2m = np.frombuffer(guest.pages[build.P2M] + guest.pages[build.P2M + 1], "<u8")
    m2p = np.full(0x3000, (1 << 64) - 1, np.uint64)
    m2p[p2m[: build.OWNED]] = np.arange(build.OWNED)
    frames = FrameMap.build(p2m.astype(np.uint64), m2p, max_mfn=len(m2p))
    pfns = [pfn for pfn, type_ in guest.types.items() if type_ not in {0, XTAB}]
    levels = np.array([guest.types[pfn] & 7 for pfn in pfns], np.uint8)
    canonical = np.array([list(words(guest, pfn).values()) for pfn in pfns], np.uint64)
    tables = uncanonicalise(canonical, p2m.astype(np.uint64))
    foreign = pfns.index(build.L1), 100
    tables[foreign] = 0x2FFF << 12 | RW  # what gntdev leaves in the kernel's linear map
    log = Normaliser(frames, "web1").canonicalise(tables, levels, np.array(pfns, np.uint64))
    assert log.tolist() == [(build.L1, 0x2FFF, RW, 100, 0)]
    canonical[foreign] = 0
    assert np.array_equal(tables, canonical)
    guest.pages.update(zip(pfns, map(bytes, tables), strict=True))
    context = bytearray(guest.vcpu)
    for offset in (616, 4832):
        pfn = struct.unpack_from("<Q", context, offset)[0]
        struct.pack_into("<Q", context, offset, build.MFN_BASE + pfn)
    for offset in (4992, 5008):
        pfn = struct.unpack_from("<Q", context, offset)[0] >> 12
        struct.pack_into("<Q", context, offset, build.MFN_BASE + pfn << 12)
    assert canonicalise_context(0, bytes(context), frames, origin="web1") == bytes(guest.vcpu)
    assert check(guest, tmp_path).is_sound


@pytest.mark.parametrize("kind", ["one frame", "frames beyond", "far-flung pages"])
def test_a_hostile_image_of_a_terabyte_stays_in_bounds(kind: str, tmp_path: Path) -> None:
    guest = Guest()
    end_pfn = (1 << 28) - 1
    p2m = np.full(end_pfn // 512 + 1, 1 << 40 if kind == "frames beyond" else build.P2M, "<u8")
    head = guest.before_pages()
    head[5] = build.record(3, struct.pack("<II", 0, end_pfn) + p2m.tobytes())
    entries = np.arange(1 << 18, dtype="<u8") << np.uint64(10) | np.uint64(0xE << 60)
    far = build.record(1, struct.pack("<II", len(entries), 0) + entries.tobytes())
    pages = [far if kind == "far-flung pages" else b"", guest.page_records()]
    path = tmp_path / "img"
    path.write_bytes(b"".join([*head, *pages, *guest.after_pages()]))
    tracemalloc.start()
    with suppress(BadImage):
        assert verify_image(path).counts
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 64 << 20


SMALL = Guest(order=[*range(16), 590]).encode()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_damage_ends_in_a_refusal_or_a_report(tmp_path: Path, hits: list[tuple[int, int]]) -> None:
    data = bytearray(SMALL)
    for at, value in hits:
        data[at] = value
    (tmp_path / "img").write_bytes(data)
    try:
        verify_image(tmp_path / "img")
    except BadImage as refused:
        assert 0 <= refused.offset_bytes <= len(data)
