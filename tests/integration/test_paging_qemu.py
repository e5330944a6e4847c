"""The page-table walker against QEMU's own, on tables that a processor really runs with."""

from __future__ import annotations

import random
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapvm.memory.paging import Mapping, mappings, translate
from snapvm.memory.pagingmode import (
    FIVE_LEVEL,
    FOUR_LEVEL,
    PAE,
    PTE_ACCESSED,
    TWO_LEVEL,
    PagingMode,
)
from tests.integration.qemu import START_SECONDS, Machine, running

SOURCE = Path(__file__).with_name("paging_guest.c")
RAM_MIB = 64
SEED = 20261123
PROBES = 300
"""Addresses that are most likely not mapped, beside one in each page that is."""
# QEMU's emulation marks the four root entries of PAE as accessed, as no processor does: there the
# bit is reserved (SDM vol. 3, table 4-8).
ROOT = replace(PAE.levels[0], table_reserved=PAE.levels[0].table_reserved & ~PTE_ACCESSED)
EMULATED_PAE = replace(PAE, levels=(ROOT, *PAE.levels[1:]))
MODES = {2: TWO_LEVEL, 3: EMULATED_PAE, 4: FOUR_LEVEL, 5: FIVE_LEVEL}


@pytest.fixture
def short_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose path leaves room for the name of a socket."""
    return tmp_path_factory.mktemp("p")


@pytest.mark.parametrize("number", MODES, ids=[mode.name for mode in MODES.values()])
def test_agrees_with_qemu(number: int, short_folder: Path) -> None:
    """The same pages, each at the same physical address, and nothing where QEMU has nothing."""
    mode, draw = MODES[number], random.Random(SEED)
    kernel = compiled(number, short_folder)
    options = ("-cpu", "max", "-m", str(RAM_MIB), "-kernel", str(kernel))
    with running(short_folder, *options) as machine:
        cr3 = int(match(r"CR3=([0-9a-f]+)", registers_when_halted(machine)), 16)
        memory = dumped(machine, short_folder / "memory")

        def read_frame(frame: int) -> bytes | None:
            page = memory[frame << 12 : frame + 1 << 12]
            return page if len(page) == 4096 else None

        pages = list(expanded(mappings(mode, cr3, read_frame)))
        listed = re.findall(r"^([0-9a-f]{16}): [0-9a-f]{16}", machine.ask("info tlb"), re.MULTILINE)
        assert [f"{va:016x}" for va, _ in pages] == listed
        assert len(pages) > 256 + 100
        addresses = [va + draw.randrange(size_bytes) for va, size_bytes in pages]
        addresses += [mode.canonical(draw.randrange(1 << mode.va_bits)) for _ in range(PROBES)]
        for va in addresses:
            assert ours(mode, cr3, va, read_frame) == theirs(machine, va), f"{va:#x}"


def registers_when_halted(machine: Machine) -> str:
    """Wait until the guest has turned paging on and halts; return its registers."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        registers = machine.ask("info registers")
        cr0 = re.search(r"CR0=([0-9a-f]+)", registers)
        if "HLT=1" in registers and cr0 and int(cr0[1], 16) >> 31:
            return registers
        assert time.monotonic() < deadline, registers
        time.sleep(0.05)


def compiled(number: int, folder: Path) -> Path:
    """Build the guest for a mode."""
    kernel = folder / "guest"
    argv = ["gcc", "-m32", "-Os", "-Wall", "-Wextra", "-ffreestanding", "-fno-pic", "-no-pie"]
    argv += ["-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-mno-sse", "-nostdlib"]
    argv += ["-static", "-Wl,-N,-Ttext=0x100000,--build-id=none,--no-warn-rwx-segments"]
    argv += ["-fno-toplevel-reorder"]
    argv += [f"-DMODE={number}", f"-DSEED={SEED}ull", "-o", str(kernel), str(SOURCE)]
    subprocess.run(argv, check=True)
    return kernel


def dumped(machine: Machine, path: Path) -> bytes:
    """Return the guest's memory."""
    machine.execute("pmemsave", val=0, size=RAM_MIB << 20, filename=str(path))
    return path.read_bytes()


def match(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found, text
    return found[1]


def expanded(found: Iterator[Mapping]) -> Iterator[tuple[int, int]]:
    """Give address and size of each single page."""
    for run in found:
        for va in range(run.va, run.va + run.span_bytes, run.page_bytes):
            yield va, run.page_bytes


def ours(mode: PagingMode, cr3: int, va: int, read_frame: Any) -> int | None:
    found = translate(mode, cr3, va, read_frame)
    return (found.frame << 12) + va - found.va if isinstance(found, Mapping) else None


def theirs(machine: Machine, va: int) -> int | None:
    said = machine.ask(f"gva2gpa {va:#x}")
    return None if "Unmapped" in said else int(match(r"gpa: (0x[0-9a-f]+)", said), 16)
