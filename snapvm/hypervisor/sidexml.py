"""Find a libvirt domain's UEFI variables and TPM state from its XML.

These are pure functions of the XML (libvirt, docs/formatdomain, "Operating system booting" and "TPM
device").
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from snapvm.hypervisor import domainxml
from snapvm.model import OmittedDisk, SideKind, SidePlace, SideShape

SWTPM_FOLDER = Path("/var/lib/libvirt/swtpm")
"""Where the system's libvirt keeps emulated TPMs, unless the domain names another folder."""
NVRAM_FOLDER = Path("/var/lib/libvirt/qemu/nvram")
"""Where it keeps UEFI variables, in ``NAME_VARS.fd``, of domains for which it chooses the firmware.

Before 9.2 (Debian 12) it does so at each start, and the definition of one that is off has no path.
"""

_DEVICES = Path("/dev")
_ONLY_MEMORY = "only memory brings it back"
"""The stream of a domain's memory has a copy of its flash, and of the state of a swtpm."""


def places(definition: str, uuid: str) -> tuple[SidePlace, ...]:
    """Return the files and folders with a domain's UEFI variables and emulated TPM."""
    if not definition:
        return ()
    root = domainxml.parse(definition)
    found: list[SidePlace] = []
    found += _nvram_places(root)
    varstore = root.find("./os/varstore[@path]")  # libvirt 12, for QEMU's device uefi-vars
    if varstore is not None:
        path = varstore.get("path", "")
        found.append(SidePlace(kind=SideKind.VARSTORE, path=Path(path)))
    backend = root.find("./devices/tpm/backend[@type='emulator']")
    if backend is not None:
        found.append(_tpm_place(backend, uuid))
    return tuple(found)


def left_out(definition: str) -> Iterator[OmittedDisk]:
    """Yield the variables and vTPMs of a domain that are neither captured nor put back."""
    root = domainxml.parse(definition)
    source = root.find("./os/nvram/source")
    if source is not None and not (source.get("file") or source.get("dev")):
        where = f"the network ({source.get('protocol', '?')})"
        yield OmittedDisk(target=SideKind.NVRAM.value, why=f"it is on {where}, {_ONLY_MEMORY}")
    for path in root.iterfind("./devices/pstore/path"):
        yield OmittedDisk(target="pstore", why=f"it is in {path.text}, {_ONLY_MEMORY}")
    for backend in root.iterfind("./devices/tpm/backend"):
        kind = backend.get("type", "?")
        if kind == "external":
            why = f"its state is kept by a swtpm that libvirt does not start, {_ONLY_MEMORY}"
            yield OmittedDisk(target=SideKind.TPM.value, why=why)
        elif kind != "emulator":
            yield OmittedDisk(target=SideKind.TPM.value, why=f"it is the TPM of this host ({kind})")


def has_mortal_tpm(definition: str) -> bool:
    """Tell whether a domain has an emulated TPM that libvirt removes with a transient domain."""
    backends = domainxml.parse(definition).iterfind("./devices/tpm/backend[@type='emulator']")
    return any(backend.get("persistent_state") != "yes" for backend in backends)


def _nvram_places(root: ET.Element) -> Iterator[SidePlace]:
    """Yield where the UEFI variables are, if anywhere; writable firmware holds them itself."""
    source = root.find("./os/nvram/source")
    if source is None:
        writable = root.findtext("./os/loader[@type='pflash'][@readonly='no']", "")
        device, file = "", root.findtext("./os/nvram", writable).strip()
        if not file and _is_firmware_open(root):
            file = str(NVRAM_FOLDER / f"{root.findtext('name', '')}_VARS.fd")
    else:
        device, file = source.get("dev", ""), source.get("file", "")
    path = device or file
    if path.startswith("/"):
        shape = SideShape.DEVICE if device else SideShape.FILE
        yield SidePlace(kind=SideKind.NVRAM, path=Path(path), shape=shape)


def _is_firmware_open(root: ET.Element) -> bool:
    """Tell whether libvirt has yet to choose UEFI firmware, and a file for its variables."""
    is_stateless = root.find("./os/loader[@stateless='yes']") is not None
    is_chosen = is_stateless or bool(root.findtext("./os/loader", "").strip())
    return root.find("./os[@firmware='efi']") is not None and not is_chosen


def _tpm_place(backend: ET.Element, uuid: str) -> SidePlace:
    version = "tpm1.2" if backend.get("version") == "1.2" else "tpm2"
    path, shape = SWTPM_FOLDER / uuid / version, SideShape.FOLDER
    source = backend.find("source")
    if source is not None and source.get("path", "").startswith("/"):
        path = Path(source.attrib["path"])
        if source.get("type") != "dir":  # in a `file` swtpm takes a block device, too
            shape = SideShape.DEVICE if _DEVICES in path.parents else SideShape.FILE
    return SidePlace(kind=SideKind.TPM, path=path, shape=shape)
