"""Imports point down, libraries have one door, and what is imported late says why."""

from __future__ import annotations

import re
import sys

import pytest

from tests.house.source import ROOT, Import, Module, modules

ROWS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("consistency",),
    ("deleting", "askedfor", "remaking"),
    ("repair", "checking", "rebuilding", "goingback"),
    ("rollbackrepair", "stopping"),
    ("howfar",),
    (
        "rollbackplan",
        "swapping",
        "newdisks",
        "takingback",
        "taking",
        "snapshotting",
        "readback",
        "orphans",
        "diagnosis",
        "guestsystem",
    ),
    ("writingback", "recordeddomain", "standing", "swapplan"),
    ("rollbackjournal", "takejournal"),
    ("host", "planning", "imagefacts", "occupancy", "identity", "ordering", "deletable"),
    ("images", "sidefiles"),
    ("catalog", "hypervisor", "lvm", "memory", "guard"),
    ("recordfolder", "turns"),
    ("locking", "streamfilter", "journalfile", "imageroom", "memoryroom", "checksum"),
    (
        "recordfile",
        "domainrun",
        "durable",
        "retry",
        "undo",
        "clock",
        "settings",
        "process",
        "workers",
        "xxh64",
    ),
    ("jsonvalues",),
    (
        "naming",
        "severalfailures",
        "capturewords",
        "hostid",
        "imageformats",
        "compression",
        "cowsize",
        "crashpoint",
        "interrupt",
        "xenguest",
        "imagereading",
        "pruning",
    ),
    ("model", "release"),
    ("refusals", "failures", "attention"),
    ("errors", "version", "storagehints"),
)
"""The layers, the highest first.  Within a package modules may import each other."""

DOORS = {
    "sh": "snapvm.process",
    "tenacity": "snapvm.retry",
    "rich": "snapvm.cli.render",
    "typer": "snapvm.cli.",
    "libvirt": "snapvm.hypervisor.",
    "libvirt_qemu": "snapvm.hypervisor.",
    "numpy": "snapvm.memory.",
    "xxhash": "snapvm.xxh64",
}
"""Who may import a library: one module, or with a dot at the end one package."""

FORBIDDEN = ("subprocess", "click", "pexpect", "logging.config")

CATCH_ALL = {
    "snapvm.cli.app",
    "snapvm.cli.completion",
    "snapvm.cli.failures",
    "snapvm.guard",
    "snapvm.guestsystem",
    "snapvm.hypervisor.libvirt",
    "snapvm.hypervisor.libvirtlink",
    "snapvm.hypervisor.xen",
    "snapvm.interrupt",
    "snapvm.lvm.crew",
    "snapvm.process",
    "snapvm.undo",
    "snapvm.workers",
}
"""Who may catch everything: to put back and raise again, or at the very top."""
_CATCHES = re.compile(r"^ *except\b.*\b(Base)?Exception\b", re.MULTILINE)


def row_of(module: str) -> int:
    """Return the row of a module of snapvm."""
    part = module.split(".")[1]
    for number, row in enumerate(ROWS):
        if part in row:
            return number
    pytest.fail(f"{module} stands in no row of tests/house/test_layers.py")


def part_of(module: str) -> str:
    return module.split(".")[1]


def test_the_architecture_shows_these_rows() -> None:
    """There a row that is too long for a line goes on after the bar at its end."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    begin = text.index(f"    {ROWS[0][0]}\n")
    shown = text[begin : text.index("\n\n", begin)].replace("|\n", "|").splitlines()
    assert tuple(tuple(map(str.strip, row.split("|"))) for row in shown) == ROWS


def named(module: Module) -> str:
    return module.name


@pytest.mark.parametrize("module", [m for m in modules() if m.name.count(".") > 0], ids=named)
def test_imports_point_down(module: Module) -> None:
    if module.name == "snapvm.__init__":
        return
    for found in module.imports():
        if not found.module.startswith("snapvm."):
            continue
        own, other = row_of(module.name), row_of(found.module)
        if part_of(found.module) != part_of(module.name):
            assert own < other, f"{module.name}:{found.line} imports {found.module}: upwards"


@pytest.mark.parametrize("module", modules(), ids=named)
def test_libraries_have_one_door(module: Module) -> None:
    standard = sys.stdlib_module_names
    for found in module.imports():
        library = found.module.split(".")[0]
        assert found.module not in FORBIDDEN, f"{module.name}:{found.line}"
        if library == "snapvm" or library in standard:
            continue
        assert library in DOORS, f"{module.name}:{found.line}: {library} is no dependency"
        door = DOORS[library]
        allowed = module.name.startswith(door) if door.endswith(".") else module.name == door
        assert allowed, f"{module.name}:{found.line} imports {library}; its door is {door}"


@pytest.mark.parametrize("module", modules(), ids=named)
def test_late_imports_say_why(module: Module) -> None:
    lines = module.text.splitlines()
    for found in module.imports():
        if found.is_late and not found.is_for_types:
            assert has_reason(lines, found), f"{module.name}:{found.line}: no `# heavy: why`"


def has_reason(lines: list[str], found: Import) -> bool:
    """Tell whether the reason stands in the import's line or above its block of imports."""
    at = found.line - 1
    while at and lines[at].strip().startswith(("import ", "from ")):
        if "# heavy: " in lines[at]:
            return True
        at -= 1
    while at and lines[at].strip().startswith("#"):
        if lines[at].strip().startswith("# heavy: "):
            return True
        at -= 1
    return False


@pytest.mark.parametrize("module", modules(), ids=named)
def test_only_few_catch_everything(module: Module) -> None:
    assert not _CATCHES.search(module.text) or module.name in CATCH_ALL, module.name


def test_the_list_of_who_catches_everything_is_not_stale() -> None:
    assert {m.name for m in modules() if _CATCHES.search(m.text)} == CATCH_ALL


def test_the_oracle_sees_a_late_import_without_a_reason() -> None:
    text = "def f():\n    import json\n\n    # heavy: slow\n    import csv\n"
    first, second = Module(modules()[0].path, text).imports()
    assert first.is_late
    assert not has_reason(text.splitlines(), first)
    assert second.is_late
    assert has_reason(text.splitlines(), second)
