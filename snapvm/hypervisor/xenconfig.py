"""Read a Xen domain's configuration, which libxl keeps as JSON.

``xl list -l`` prints it, and an image has it for ``xl restore``.  For ``xl create`` it has to be
translated (`xencfg`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from snapvm.hypervisor.startfiles import StartFile
from snapvm.model import OmittedDisk
from snapvm.refusals import DomainRefused

DOMID = "domid"
TYPES = ("type.pv", "type.pvh")
"""Where ``b_info`` has what only a domain of this type has."""
HVM = "type.hvm"
"""Where it has what only an HVM domain has."""
ON_EVENTS = ("on_poweroff", "on_reboot", "on_watchdog", "on_crash", "on_soft_reset")
AFFINITIES = {"vcpu_hard_affinity": "cpus", "vcpu_soft_affinity": "cpus_soft"}
"""Fields with a list of host CPUs for each vCPU, and xl's names for them."""

_KERNELS = ("kernel", "ramdisk", "bootloader")
_STUB_DOMAIN = ("stubdomain_kernel", "stubdomain_ramdisk")
_FIRMWARE = ("firmware", "system_firmware", "smbios_firmware", "acpi_firmware")
"""Fields of ``b_info`` that are files: what a guest boots, what its QEMU's own domain does, if it
has one, and, in ``type.hvm``, what an HVM guest is given besides (libxl_dom.c)."""
_QEMU_ARGUMENTS = ("extra", "extra_hvm")
"""What an HVM domain's QEMU is told besides: xl's ``device_model_args``."""
_KIB_PER_PAGE = 4
_SLACK_KIB = 1024
"""By this much a domain's memory may exceed its target (LIBXL_MAXMEM_CONSTANT)."""
_PASSTHROUGH = {
    "pcidevs": "a PCI device",
    "usbdevs": "a USB device",
    "usbctrls": "a USB controller",
    "p9s": "a shared file system",
    "p9": "a shared file system",
    "pvcallsifs": "PV calls",
    "virtios": "a virtio device",
    "vtpms": "a virtual TPM",
    "rdms": "reserved device memory",
    "dtdevs": "a device tree device",
    "iomem": "a device's memory",
    "ioports": "a device's I/O ports",
    "irqs": "a device's interrupt",
}
"""Fields at the top of the configuration; only the last three are in ``b_info``."""
_ELSEWHERE = {
    "pcidevs": ("pci", "a device of this host (pci), with whatever is on it"),
    "usbdevs": ("usb", "a device of this host (usb), with whatever is on it"),
    "vtpms": ("vtpm", "a virtual TPM, whose state another domain has"),
}
"""Where a domain may have data besides, and what that is called."""
_SHARED = "p9s"

_SIZES = ("target_memkb", "max_memkb", "max_vcpus")
_RATES = ("rate_bytes_per_interval", "rate_interval_usecs")

Config = dict[str, Any]


def parse(domain: str, listed: str) -> Config:
    """Read the configuration in the output of ``xl list -l``; raise ``DomainRefused``."""
    if listed.startswith("("):
        raise DomainRefused(
            domain=domain,
            why="xl is set to tell configurations as S-expressions, from which some is left out",
            remedy="remove `output_format` from /etc/xen/xl.conf: the default is json",
        )
    return _read(domain, listed, lambda told: told[0]["config"], "xl does not tell")


def parse_stored(domain: str, text: str) -> Config:
    """Read the configuration in an image; raise ``DomainRefused``."""
    return _read(domain, text, lambda told: told, "the image does not tell")


def _read(domain: str, text: str, within: Callable[[Any], Config], failing: str) -> Config:
    try:
        config = within(json.loads(text, parse_float=_whole, parse_constant=_whole))
        _require_shape(config)
    except IndexError:  # `xl list -l` ends well for a domain of which libxl has no notes
        raise DomainRefused(
            domain=domain,
            why="xl has no configuration of it",
            remedy="another toolstack may have created it, such as xapi, or what libxl keeps in "
            "/var/lib/xen is lost: then restart it with xl",
        ) from None
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DomainRefused(domain=domain, why=f"{failing} its configuration ({error!r})") from None
    return dict(config)


def _require_shape(config: Config) -> None:
    """Raise ``TypeError`` unless the fields that are read have the types that libxl writes."""
    if not isinstance(config, dict):
        raise TypeError("no configuration")
    b_info = config.get("b_info")
    shapes: list[tuple[Any, type]] = [(config.get("c_info"), dict), (b_info, dict)]
    if isinstance(b_info, dict):
        shapes += [(b_info.get(key, {}), dict) for key in (*TYPES, HVM, "sched_params", "arch_x86")]
        shapes.append((b_info.get("avail_vcpus", []), list))
        shapes += [(b_info.get(key, 0), int) for key in _SIZES]
        for key in AFFINITIES:
            numbers = [number for cpus in b_info.get(key, []) for number in cpus]
            shapes += [(number, int) for number in numbers]
        quota = b_info.get("xenstore_quota", {}).get("quota", [])
        shapes += [(quota, list), *((each, dict) for each in quota)]
        own = (each for each in map(b_info.get, TYPES) if isinstance(each, dict))
        for place in (b_info, *own):
            for key in ("bootloader_args", *_QEMU_ARGUMENTS):
                words = place.get(key, [])
                shapes += [(words, list), *((word, str) for word in words)]
    shapes += [(config.get(key, ""), str) for key in ON_EVENTS]
    for key in ("disks", "nics", "vfbs", "vkbs", *_ELSEWHERE, _SHARED):
        devices = config.get(key, [])
        shapes.append((devices, list))
        shapes += [(device, dict) for device in devices] if isinstance(devices, list) else []
    screens = [*config.get("vfbs", []), (b_info or {}).get(HVM, {})]
    looks = ("vnc", "sdl", "spice")
    shapes += [(screen.get(key, {}), dict) for screen in screens for key in looks]
    for key in _RATES:
        shapes += [(nic.get(key, 1), int) for nic in config.get("nics", [])]
    for value, shape in shapes:
        if type(value) is not shape:
            raise TypeError(f"{value!r} in the place of a {shape.__name__}")


def _whole(text: str) -> int:
    """Refuse a number that is not whole: libxl writes none, and ``int()`` of infinity fails."""
    raise ValueError(f"{text} is not a whole number")


def is_pv(config: Config) -> bool:
    """Tell whether it is of a PV domain, and not of an HVM or PVH domain."""
    return config["c_info"].get("type") not in ("hvm", "pvh")


def is_hvm(config: Config) -> bool:
    """Tell whether it is of a domain with a device model, and not of a PV or PVH domain."""
    return bool(config["c_info"].get("type") == "hvm")


def left_out(domain: str, listed: str) -> tuple[OmittedDisk, ...]:
    """Return where a domain may keep data beside its drives.

    There is nothing to tell of a domain whose configuration xl does not tell.
    """
    try:
        config = parse(domain, listed)
    except DomainRefused:
        return ()
    devices = (
        OmittedDisk(target=f"{name}{number}", why=why)
        for key, (name, why) in _ELSEWHERE.items()
        for number in range(len(config.get(key, [])))
    )
    folders = (
        OmittedDisk(target=f"9pfs{number}", why=f"a shared folder {shared.get('path', '')}".strip())
        for number, shared in enumerate(config.get(_SHARED, []))
    )
    return (*devices, *folders)


def qemu_arguments(config: Config) -> tuple[str, ...]:
    """Return what an HVM domain's QEMU is told that libxl knows nothing of."""
    if not is_hvm(config):
        return ()
    return tuple(word for key in _QEMU_ARGUMENTS for word in config["b_info"].get(key, []))


def for_image(config: Config, total_pages: int) -> str:
    """Return the text for an image, without a domid, and with memory for ``total_pages``."""
    c_info = {key: value for key, value in config["c_info"].items() if key != DOMID}
    b_info = dict(config["b_info"])
    needed_kib = total_pages * _KIB_PER_PAGE - _SLACK_KIB
    for key in ("target_memkb", "max_memkb"):
        # A guest that has not yet ballooned down is larger than its target.
        if key in b_info:
            b_info[key] = max(b_info[key], needed_kib)
    return json.dumps({**config, "c_info": c_info, "b_info": b_info}, separators=(",", ":"))


def passthrough(config: Config) -> str:
    """Name a part of the domain that an image cannot hold; return an empty text without one."""
    places = {**config["b_info"], **config}
    found = (what for key, what in _PASSTHROUGH.items() if places.get(key))
    # libxl_create.c: "stream does not preserve node information".
    nodes = "virtual NUMA nodes" if config["b_info"].get("vnuma_nodes") else ""
    # Xen saves nothing of guests that run in the guest (public/arch-x86/hvm/save.h).
    has_guests = is_set(config["b_info"].get("nested_hvm"))
    return next(found, nodes or ("nested virtualisation (nestedhvm)" if has_guests else ""))


def start_files(config: Config, *, boots: bool) -> Iterator[StartFile]:
    """Yield what a start needs besides the captured disks.

    Kernels and firmware are needed only when the domain ``boots``.  But QEMU wants to be given an
    HVM domain's kernel whenever it starts (libxl_dm.c, libxl__build_device_model_args_new).
    libxl looks at each drive that the control domain serves without a script of the drive's own
    (tools/libs/light/libxl_device.c, libxl__device_disk_set_backend).  One that is empty may name a
    file that libxl had made for it, and makes again (libxl_disk.c, LIBXL_STUBDOM_EMPTY_CDROM).
    """
    for disk in config.get("disks", []):
        is_captured = is_set(disk.get("readwrite")) and not is_set(disk.get("is_cdrom"))
        is_elsewhere = any(map(disk.get, ("backend_domid", "backend_domname", "script")))
        path = "" if disk.get("format") == "empty" else str(disk.get("pdev_path", ""))
        if path.startswith("/") and not (is_captured or is_elsewhere):
            yield StartFile(what=f"drive {disk.get('vdev', '?')}", path=Path(path))
    for nic in config.get("nics", []):
        script = str(nic.get("script", ""))
        if script.startswith("/") and not any(map(nic.get, ("backend_domid", "backend_domname"))):
            what = f"script of the network interface {nic.get('mac', '?')}"
            yield StartFile(what=what, path=Path(script))
    b_info = config["b_info"]
    for place, keys in _programs(b_info, boots=boots, needs_kernels=boots or is_hvm(config)):
        for key in keys:
            path = str(place.get(key, ""))
            if path.startswith("/"):
                yield StartFile(what=key.replace("_", " "), path=Path(path))


def _programs(
    b_info: Config, *, boots: bool, needs_kernels: bool
) -> Iterator[tuple[Config, tuple[str, ...]]]:
    """Yield where files are named that a domain runs, and in which fields."""
    yield b_info, ("device_model",)
    if is_set(b_info.get("device_model_stubdomain")):
        yield b_info, _STUB_DOMAIN
    if needs_kernels:
        for place in (b_info, *(b_info.get(key, {}) for key in TYPES)):
            yield place, _KERNELS
    if boots:
        yield b_info.get(HVM, {}), _FIRMWARE


def servers(config: Config) -> Iterator[str]:
    """Yield the names of the domains that serve devices, where it is not the control domain."""
    for kind in ("disks", "nics", "vfbs", "vkbs"):
        for device in config.get(kind, []):
            if device.get("backend_domname"):
                yield str(device["backend_domname"])


def is_set(value: Any) -> bool:
    """Tell whether a value is set; libxl writes its three-valued booleans as texts."""
    return bool(value) and value != "False"
