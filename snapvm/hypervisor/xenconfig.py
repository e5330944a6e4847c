"""A Xen domain's configuration: the JSON in which libxl keeps it, and xl's own language for it.

``xl list -l`` prints the JSON, and an image holds it for ``xl restore``.  ``xl create`` reads only
its own language (xl.cfg(5)), so to boot a domain from its JSON the JSON is told again in that, and
a configuration of which we would have to leave anything out is refused.  libxl leaves defaults out
of the JSON (tools/libs/light/libxl_types.idl), so what is there was asked for.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snapvm.hypervisor.startfiles import StartFile
from snapvm.refusals import DomainRefused

log = logging.getLogger(__name__)

_DOMID = "domid"
_KIB_PER_PAGE = 4
_SLACK_KIB = 1024
"""So much more than its target libxl lets a domain have (LIBXL_MAXMEM_CONSTANT)."""
_PASSTHROUGH = {
    "pcidevs": "a PCI device",
    "usbdevs": "a USB device",
    "usbctrls": "a USB controller",
    "p9s": "a shared file system",
    "p9": "a shared file system",
    "pvcallsifs": "PV calls",
    "vtpms": "a virtual TPM",
    "rdms": "reserved device memory",
    "dtdevs": "a device tree device",
    "iomem": "a device's memory",
    "ioports": "a device's I/O ports",
    "irqs": "a device's interrupt",
}
"""At the top of the configuration, but for the last three, which are in ``b_info``."""

_SIZES = ("target_memkb", "max_memkb", "max_vcpus")
_ON_EVENTS = ("on_poweroff", "on_reboot", "on_watchdog", "on_crash", "on_soft_reset")

Config = dict[str, Any]


def parse(domain: str, listed: str) -> Config:
    """Take the configuration out of what ``xl list -l`` prints; raise ``DomainRefused``."""
    return _read(domain, listed, lambda told: told[0]["config"], "xl does not tell")


def parse_stored(domain: str, text: str) -> Config:
    """Read the configuration in an image; raise ``DomainRefused``."""
    return _read(domain, text, lambda told: told, "the image does not tell")


def _read(domain: str, text: str, within: Callable[[Any], Config], failing: str) -> Config:
    try:
        config = within(json.loads(text, parse_float=_whole, parse_constant=_whole))
        _require_shape(config)
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise DomainRefused(domain=domain, why=f"{failing} its configuration ({error!r})") from None
    return dict(config)


def _require_shape(config: Config) -> None:
    """Raise ``TypeError`` unless the parts that are read are what libxl writes there."""
    if not isinstance(config, dict):
        raise TypeError("no configuration")
    b_info = config.get("b_info")
    shapes: list[tuple[Any, type]] = [(config.get("c_info"), dict), (b_info, dict)]
    if isinstance(b_info, dict):
        shapes += [(b_info.get(key, {}), dict) for key in ("type.pv", "sched_params")]
        shapes.append((b_info.get("avail_vcpus", []), list))
        shapes += [(b_info.get(key, 0), int) for key in _SIZES]
    shapes += [(config.get(key, ""), str) for key in _ON_EVENTS]
    for key in ("disks", "nics"):
        devices = config.get(key, [])
        shapes.append((devices, list))
        shapes += [(device, dict) for device in devices] if isinstance(devices, list) else []
    for value, shape in shapes:
        if type(value) is not shape:
            raise TypeError(f"{value!r} in the place of a {shape.__name__}")


def _whole(text: str) -> int:
    """Refuse a number that is not whole: libxl writes none, and ``int()`` of infinity fails."""
    raise ValueError(f"{text} is no whole number")


def for_image(config: Config, total_pages: int) -> str:
    """Return the text for an image: no number is demanded, and all its pages have room."""
    c_info = {key: value for key, value in config["c_info"].items() if key != _DOMID}
    b_info = dict(config["b_info"])
    needed_kib = total_pages * _KIB_PER_PAGE - _SLACK_KIB
    for key in ("target_memkb", "max_memkb"):
        # A guest that has not yet given back what it was asked for is larger than its target.
        if key in b_info:
            b_info[key] = max(b_info[key], needed_kib)
    return json.dumps({**config, "c_info": c_info, "b_info": b_info}, separators=(",", ":"))


def passthrough(config: Config) -> str:
    """Name what an image does not hold of the domain, or return an empty text."""
    places = {**config["b_info"], **config}
    found = (what for key, what in _PASSTHROUGH.items() if places.get(key))
    # libxl_create.c: "stream does not preserve node information".
    nodes = "virtual NUMA nodes" if config["b_info"].get("vnuma_nodes") else ""
    return next(found, nodes)


def start_files(config: Config, *, boots: bool) -> Iterator[StartFile]:
    """Tell what libxl opens besides the disks that are captured; a kernel only when it ``boots``.

    It looks at each drive that this domain serves, without a script of the drive's own
    (tools/libs/light/libxl_device.c, libxl__device_disk_set_backend).
    """
    for disk in config.get("disks", []):
        is_captured = _is_set(disk.get("readwrite")) and not _is_set(disk.get("is_cdrom"))
        is_elsewhere = any(map(disk.get, ("backend_domid", "backend_domname", "script")))
        path = str(disk.get("pdev_path", ""))
        if path.startswith("/") and not (is_captured or is_elsewhere):
            yield StartFile(what=f"drive {disk.get('vdev', '?')}", path=Path(path))
    b_info = config["b_info"]
    for place in (b_info, b_info.get("type.pv", {})) if boots else ():
        for key in ("kernel", "ramdisk"):
            path = str(place.get(key, ""))
            if path.startswith("/"):
                yield StartFile(what=key, path=Path(path))


def as_cfg(domain: str, config: Config) -> str:
    """Tell a PV domain's configuration in xl's language, or raise ``DomainRefused``."""
    left = json.loads(json.dumps(config))
    lines: list[str] = []

    def take(place: Config, key: str, word: str) -> None:
        if key in place:
            lines.append(f"{word} = {_quoted(domain, place.pop(key))}")

    c_info, b_info = left.pop("c_info"), left.pop("b_info")
    c_info.pop(_DOMID, None)
    for key in ("type", "name", "uuid"):
        take(c_info, key, key)
    pv = b_info.pop("type.pv", {})
    b_info.pop("type", None)
    lines += [*_vcpus(domain, b_info), *_memory(b_info)]
    for key, word in _WORDS.items():
        take(b_info, key, word)
        take(pv, key, word)
    disks = [_disk(domain, disk) for disk in left.pop("disks", [])]
    nics = [_nic(domain, nic) for nic in left.pop("nics", [])]
    lines += [f"disk = [{', '.join(disks)}]", f"vif = [{', '.join(nics)}]"]
    for key in _ON_EVENTS:
        if key in left:
            lines.append(f"{key} = {_quoted(domain, left.pop(key).replace('_', '-'))}")
    for name, rest in (("c_info", c_info), ("b_info", b_info), ("pv", pv), ("", left)):
        _require_nothing(domain, name, _without_defaults(rest))
    return "\n".join(lines) + "\n"


@contextmanager
def in_memory(text: str) -> Iterator[str]:
    """Yield the path of a file that is on no disk: a domain starts though all of them are full."""
    with open(os.memfd_create("domain.cfg"), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        yield f"/proc/{os.getpid()}/fd/{file.fileno()}"


def warn_of_no_way_back(domain: str, config: Config) -> None:
    """Tell, when disks alone are captured, that snapvm could not boot the domain on them."""
    try:
        as_cfg(domain, config)
    except DomainRefused as refused:
        log.warning("these disks can be gone back to by hand alone: %s", refused)


def _vcpus(domain: str, b_info: Config) -> Iterator[str]:
    """Tell of vCPUs, how many there may be and how many are online, and their share."""
    most = b_info.pop("max_vcpus", 0)
    online = b_info.pop("avail_vcpus", [])
    if most:
        yield f"maxvcpus = {most}"
        yield f"vcpus = {len(online) or most}"
    share = b_info.pop("sched_params", {})
    share.pop("sched", None)  # of the pool, not of the domain
    for key, word in (("weight", "cpu_weight"), ("cap", "cap")):
        if key in share:
            yield f"{word} = {share.pop(key)}"
    _require_nothing(domain, "sched_params", _without_defaults(share))


def _memory(b_info: Config) -> Iterator[str]:
    """Tell of memory; sizes are whole MiB in xl's language."""
    for key, word in (("target_memkb", "memory"), ("max_memkb", "maxmem")):
        if key in b_info:
            yield f"{word} = {b_info.pop(key) >> 10}"


_WORDS = {
    "kernel": "kernel",
    "ramdisk": "ramdisk",
    "cmdline": "cmdline",
    "bootloader": "bootloader",
    "event_channels": "max_event_channels",
    "max_grant_frames": "max_grant_frames",
    "max_maptrack_frames": "max_maptrack_frames",
    "max_grant_version": "max_grant_version",
}
"""What xl calls the fields of ``b_info`` that are simply one value."""
_HARMLESS = {
    "shadow_memkb",
    "video_memkb",
    "claim_mode",
    "arch_arm",
    "arch_x86",
    "iommu_memkb",
    "paging_mempool",
    "nested_hvm",
    "apic",
    "altp2m",
    "vpmu",
    "passthrough",
    "device_model_version",
    "run_hotplug_scripts",
    "slack_memkb",
    "pvh",
    "hap",
    "oos",
    "ssidref",
    "xend_suspend_evtchn_compat",
    "disable_migrate",
    "tee",
    "vmtrace_buf_kb",
    "rtc_timeoffset",
    "numa_placement",
}
"""Computed by libxl, or a default it writes down all the same: made again when the domain boots."""


def _without_defaults(place: Config) -> Config:
    return {key: value for key, value in place.items() if _is_set(value) and key not in _HARMLESS}


def _is_set(value: Any) -> bool:
    """Whether a value says anything; libxl writes its three-valued booleans as texts."""
    return bool(value) and value != "False"


def _require_nothing(domain: str, name: str, rest: Config) -> None:
    if rest:
        what = ", ".join(sorted(rest))
        raise DomainRefused(
            domain=domain,
            why=f"its configuration has what cannot be told to `xl create`: {name} {what}".rstrip(),
            remedy="go back by hand: shut it off, give writable snapshots of the snapshots "
            "(lvcreate -s, lvrename) its disks' names, and start it from its own file",
        )


_DISK_WORDS = {"pdev_path", "vdev", "backend", "format", "readwrite", "is_cdrom", "removable"}


def _disk(domain: str, disk: Config) -> str:
    rest = {key: value for key, value in disk.items() if key not in _DISK_WORDS and _is_set(value)}
    rest.pop("discard_enable", None)
    if disk.get("trusted", "True") != "False":
        rest.pop("trusted", None)
    _require_nothing(domain, "disk", rest)
    backend, path = disk.get("backend"), disk.get("pdev_path", "")
    words = [
        f"format={disk.get('format', 'raw')}",
        f"vdev={disk.get('vdev', '')}",
        f"access={'rw' if disk.get('readwrite') else 'ro'}",
        # One that is not there is found by libxl, as it was when the domain was made.
        *([f"backendtype={backend}"] if backend else []),
        *(["devtype=cdrom"] if disk.get("is_cdrom") else []),
        *(["no-discard"] if disk.get("discard_enable") == "False" else []),
        f"target={path}",  # takes the rest of the text, so it is the last
    ]
    return _quoted(domain, ",".join(words))


_NIC_WORDS = {"mac", "bridge", "ip", "script", "model", "nictype", "devid", "mtu", "ifname"}


def _nic(domain: str, nic: Config) -> str:
    rest = {key: value for key, value in nic.items() if key not in _NIC_WORDS and _is_set(value)}
    rest.pop("trusted", None)
    _require_nothing(domain, "vif", rest)
    names = ("mac", "bridge", "ip", "script", "mtu")
    words = [f"{key}={nic[key]}" for key in names if nic.get(key)]
    words += [f"vifname={nic['ifname']}"] if nic.get("ifname") else []
    return _quoted(domain, ",".join(words))


def _quoted(domain: str, value: Any) -> str:
    """Write a value in xl's language, which has no escapes: what would need one is refused."""
    text = str(value)
    if not text.isprintable() or ('"' in text and "'" in text):
        raise DomainRefused(domain=domain, why=f"{text!r} cannot be told to `xl create`")
    return f"'{text}'" if '"' in text else f'"{text}"'
