"""List the files and devices of this host that libvirt or QEMU opens to start a domain.

These are pure functions of the domain's XML (libvirt, docs/formatdomain).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from snapvm.hypervisor import domainxml, qemuarguments
from snapvm.hypervisor.startfiles import StartFile

_NAMED = (
    *((name, f"./os/{name}", "") for name in ("loader", "kernel", "initrd", "dtb", "shim")),
    ("ACPI table", "./os/acpi/table", ""),
    ("device with limited I/O", "./blkiotune/device/path", ""),
    ("firmware's entry", "./sysinfo[@type='fwcfg']/entry", "file"),
    *(
        (f"{name} port", f"./devices/{name}[@type='dev']/source", "path")
        for name in ("serial", "parallel", "console", "channel")
    ),
    ("source of random numbers", "./devices/rng/backend[@model='random']", ""),
    *(("input device", "./devices/input/source", name) for name in ("dev", "evdev")),
    ("memory", "./devices/memory/source/path", ""),
    ("device's ROM", "./devices/*/rom", "file"),
    ("screen's graphics card", "./devices/graphics/gl", "rendernode"),
    ("network's device", "./devices/interface[@type='vdpa']/source", "dev"),
    ("TPM", "./devices/tpm/backend[@type='passthrough']/device", "path"),
    ("shared folder", "./devices/filesystem/source", "dir"),
    # Sockets at which somebody else has to be listening.
    ("TPM", "./devices/tpm/backend[@type='external']/source", "path"),
    ("network's socket", "./devices/interface[@type='vhostuser']/source[@mode='client']", "path"),
    ("shared folder's socket", "./devices/filesystem/source", "socket"),
    *(
        (f"{name} port's socket", f"./devices/{name}[@type='unix']/source[@mode='connect']", "path")
        for name in ("serial", "parallel", "console", "channel")
    ),
)
"""What the file is to the domain, the element with its path, and the attribute of that; an empty
attribute means the element's text."""


def opened(definition: str, *, boots: bool) -> Iterator[StartFile]:
    """Yield what libvirt opens besides the disks that are captured.

    A socket that QEMU tries again until somebody serves it is not needed for a start.
    """
    for drive in domainxml.drives_of(definition):
        is_local = drive.type in ("file", "block") and drive.source.startswith("/")
        if is_local and not drive.is_captured and not _is_dispensable(drive, boots=boots):
            what = f"{drive.device} {drive.target}"
            yield StartFile(what=what, path=Path(drive.source))
    root = domainxml.parse(definition)
    for what, where, attribute in _NAMED:
        for element in root.iterfind(where):
            path = element.get(attribute, "") if attribute else (element.text or "").strip()
            if path.startswith("/") and element.find("reconnect[@enabled='yes']") is None:
                yield StartFile(what=what, path=Path(path))
    for path in qemuarguments.files(root):
        yield StartFile(what="file on QEMU's command line", path=Path(path))


def _is_dispensable(drive: domainxml.Drive, *, boots: bool) -> bool:
    """Tell if libvirt starts without the source (qemu_domain.c, qemuDomainCheckDiskStartupPolicy).

    A guest whose memory is restored would miss a disk that libvirt leaves out.
    """
    if drive.startup == "optional":
        return boots or drive.is_removable
    return drive.startup == "requisite" and not boots and drive.is_removable
