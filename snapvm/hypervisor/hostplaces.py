"""Check that this host has the processors and NUMA nodes to which a libvirt domain is tied.

Simultaneous multithreading may have been switched off since, or a processor taken out.  libvirt
would notice only after the running domain has been ended (qemu_process.c, qemuProcessSetupPid): the
kernel ties no thread to processors of which none is there (sched_setaffinity(2)).
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from snapvm.hypervisor import domainxml
from snapvm.refusals import DomainRefused

CPUS = Path("/sys/devices/system/cpu/online")
NODES = Path("/sys/devices/system/node/online")
_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")
_STRICT = "strict"


def require(domain: str, definition: str, remedy: str) -> None:
    """Raise ``DomainRefused`` when none of the processors, or nodes, of a thread or memory is here.

    ``remedy`` says how to name others in the definition.
    """
    root = domainxml.parse(definition)
    for kind, told, ties in (
        ("processors", CPUS, _processors(root)),
        ("NUMA nodes", NODES, _nodes(root)),
    ):
        here = _numbers(_read(told))
        for what, listed in ties:
            wanted = _numbers(listed)
            if here and wanted and not wanted & here:
                raise DomainRefused(
                    domain=domain,
                    why=f"it would not start: its {what} is tied to {kind} {listed}, and this "
                    f"host has none of them now ({_read(told)})",
                    remedy=f"switch them on again (`lscpu` tells), or {remedy}",
                )


def _processors(root: ET.Element) -> Iterator[tuple[str, str]]:
    """Yield the threads of QEMU that are tied to processors, and to which."""
    present = _present(root)
    for pin in root.iterfind("./cputune/vcpupin"):
        if pin.get("vcpu") in present:
            yield f"vCPU {pin.get('vcpu')}", pin.get("cpuset", "")
    for pin in root.iterfind("./cputune/iothreadpin"):
        yield f"I/O thread {pin.get('iothread')}", pin.get("cpuset", "")
    emulator, vcpu = root.find("./cputune/emulatorpin"), root.find("./vcpu")
    if emulator is not None:
        yield "emulator", emulator.get("cpuset", "")
    elif vcpu is not None and vcpu.get("placement") != "auto":
        yield "emulator", vcpu.get("cpuset", "")


def _present(root: ET.Element) -> set[str | None]:
    """Return the vCPUs that are plugged in: no other is tied to anything."""
    each = root.findall("./vcpus/vcpu")
    if each:
        return {vcpu.get("id") for vcpu in each if vcpu.get("enabled") == "yes"}
    vcpu = root.find("./vcpu")
    count = "" if vcpu is None else vcpu.get("current") or (vcpu.text or "").strip()
    return {str(number) for number in range(int(count) if re.fullmatch(r"\d{1,5}", count) else 0)}


def _nodes(root: ET.Element) -> Iterator[tuple[str, str]]:
    """Yield the memory that has to be on certain nodes, and on which."""
    for memory in root.iterfind("./numatune/memory"):
        if memory.get("mode", _STRICT) == _STRICT:
            yield "memory", memory.get("nodeset", "")
    for cell in root.iterfind("./numatune/memnode"):
        yield f"memory of cell {cell.get('cellid')}", cell.get("nodeset", "")


def _numbers(listed: str) -> frozenset[int]:
    """Read a list such as ``0-3,8``, as the kernel and libvirt print it; nothing of any other."""
    numbers: set[int] = set()
    for part in filter(None, listed.split(",")):
        found = _RANGE.fullmatch(part.strip())
        if found is None:
            return frozenset()
        numbers.update(range(int(found[1]), int(found[2] or found[1]) + 1))
    return frozenset(numbers)


def _read(told: Path) -> str:
    try:
        return told.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
