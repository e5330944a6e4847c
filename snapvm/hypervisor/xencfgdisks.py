"""Translate drives into xl's language (xl-disk-configuration(5); libs/util/libxlu_disk_l.l)."""

from __future__ import annotations

from collections.abc import Iterable

from snapvm.hypervisor.xencfgwords import listed, require_nothing
from snapvm.hypervisor.xenconfig import Config, is_set

UNTRUSTED = "untrusted"
"""The guest does not trust who serves the device, and copies what that is to have (XSA-403)."""
_PV_DISK = "xen"
"""What a disk is that xl is not told more of, and not a disk of virtio."""
_WORDS = {"backend_domname": "backend", "script": "script"}
_TOLD = {
    *_WORDS,
    "pdev_path",
    "vdev",
    "backend",
    "format",
    "readwrite",
    "is_cdrom",
    "removable",
    "direct_io_safe",
    "discard_enable",
    "trusted",
}


def tell(domain: str, disks: Iterable[Config]) -> str:
    """Return the line for all drives, or raise ``DomainRefused``."""
    return listed(domain, "disk", [_disk(domain, disk) for disk in disks])


def _disk(domain: str, disk: Config) -> str:
    rest = {key: value for key, value in disk.items() if key not in _TOLD and is_set(value)}
    if rest.get("specification") == _PV_DISK:
        del rest["specification"]
    if disk.get("backend_domname"):
        rest.pop("backend_domid", None)  # its number, which may be another by now
    require_nothing(domain, "disk", rest)
    backend, path = disk.get("backend"), disk.get("pdev_path", "")
    words = [
        f"format={disk.get('format', 'raw')}",
        f"vdev={disk.get('vdev', '')}",
        f"access={'rw' if disk.get('readwrite') else 'ro'}",
        # Without a backend libxl chooses one, as it did when the domain was made.
        *([f"backendtype={backend}"] if backend else []),
        *(f"{word}={disk[key]}" for key, word in _WORDS.items() if disk.get(key)),
        *(["devtype=cdrom"] if disk.get("is_cdrom") else []),
        *(["no-discard"] if disk.get("discard_enable") == "False" else []),
        *(["direct-io-safe"] if is_set(disk.get("direct_io_safe")) else []),
        *([UNTRUSTED] if disk.get("trusted") == "False" else []),
    ]
    require_nothing(domain, "disk", {word: word for word in words if "," in word})
    return ",".join([*words, f"target={path}"])  # takes the rest of the text, so it is the last
