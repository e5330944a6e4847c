"""Translate what only an HVM domain has into xl's language (tools/xl/xl_parse.c).

It is in ``type.hvm``, or beside it and only of use to QEMU.  A field that is not known here is
refused even when it is off or 0, as many of these are on if nobody says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, Final

from snapvm.hypervisor import xencfgscreens
from snapvm.hypervisor.xencfgwords import listed, require_nothing, taken_switches, taken_values
from snapvm.hypervisor.xenconfig import HVM, Config

_SWITCHES = {
    "pae": "pae",
    "acpi_s3": "acpi_s3",
    "acpi_s4": "acpi_s4",
    "acpi_laptop_slate": "acpi_laptop_slate",
    "nx": "nx",
    "hpet": "hpet",
    "vpt_align": "vpt_align",
    "pirq": "hvm_pirq",
    "nographic": "nographic",
    "usb": "usb",
    "vkb_device": "vkb_device",
    "xen_platform_pci": "xen_platform_pci",
    "xen_platform_pci_bar_uc": "xen_platform_pci_bar_uc",
}
_VALUES = {
    "firmware": "firmware_override",
    "bios": "bios",
    "system_firmware": "bios_path_override",
    "smbios_firmware": "smbios_firmware",
    "acpi_firmware": "acpi_firmware",
    "hdtype": "hdtype",
    "boot": "boot",
    "keymap": "keymap",
    "usbversion": "usbversion",
    "soundhw": "soundhw",
    "vendor_device": "vendor_device",
}
_TEXTS = {
    "serial": ("serial", "serial_list"),
    "usbdevice": ("usbdevice", "usbdevice_list"),
}
"""Words of xl's that are a text or a list, and the fields for the one and the other."""
_BESIDE = {
    "apic": "apic",
    "dm_restrict": "dm_restrict",
    "device_model_stubdomain": "device_model_stubdomain_override",
}
_PROGRAM = {
    "device_model": "device_model_override",
    "device_model_user": "device_model_user",
    "stubdomain_kernel": "stubdomain_kernel",
    "stubdomain_cmdline": "stubdomain_cmdline",
    "stubdomain_ramdisk": "stubdomain_ramdisk",
}
_ARGUMENTS = {
    "extra": "device_model_args",
    "extra_pv": "device_model_args_pv",
    "extra_hvm": "device_model_args_hvm",
}
_MODELS = {"qemu_xen": "qemu-xen", "qemu_xen_traditional": "qemu-xen-traditional"}
"""What libxl and what xl call the device models."""
_MOVED = ("apic", "timer_mode", "nested_hvm")
"""Fields that were in ``type.hvm`` once (libxl_types.idl, `deprecated_by`)."""
_LOADER = "hvmloader"
"""A kernel of this name would be left out by xl."""
_SIZES_BESIDE = {"video_memkb": "videoram", "stubdomain_memkb": "stubdomain_memory"}
_SIZES = {"rdm_mem_boundary_memkb": "rdm_mem_boundary"}
_HOLE = "mmio_hole_memkb"
_HOLE_MIB = range(256, 3841)
"""xl takes no other size (xen.git public/hvm/e820.h)."""
_VIRIDIAN = (
    *("base", "freq", "time_ref_count", "reference_tsc", "hcall_remote_tlb_flush", "apic_assist"),
    *("crash_ctl", "synic", "stimer", "hcall_ipi", "ex_processor_masks", "no_vp_limit"),
    "cpu_hotplug",
)
"""In the order of their numbers (libxl_types.idl, viridian_enlightenment)."""
_VIRIDIAN_WORD = {"viridian": "viridian"}
_VIRIDIAN_WIDTH: Final = 64
"""`all` enables so many, known or not (libxl.h)."""
_LMCE: Final = 1
"""The one capability that xl knows (xen.git public/hvm/params.h)."""
_NOTHING: Final[tuple[object, ...]] = ("", [], {}, None)


def tell(domain: str, b_info: Config, own: Config) -> Iterator[str]:
    """Translate ``own``, which is ``type.hvm``, and take what is told out of both places.

    Raises ``DomainRefused``.
    """
    _move(domain, b_info, own)
    if PurePath(str(b_info.get("kernel", ""))).name == _LOADER:
        require_nothing(domain, "b_info", {"kernel": _LOADER})
    yield from taken_switches(domain, HVM, own, _SWITCHES)
    yield from taken_values(domain, HVM, own, _VALUES)
    yield from _device_model(domain, b_info)
    yield from _sizes(domain, b_info, own)
    yield from xencfgscreens.tell_own(domain, own)
    yield from _viridian(domain, own)
    yield from _lists(domain, own)
    yield from _rest(domain, own)
    require_nothing(domain, HVM, {key: each for key, each in own.items() if each not in _NOTHING})


def _move(domain: str, b_info: Config, own: Config) -> None:
    """Put fields in their newer places; ACPI is on where both places say so (libxl_internal.h)."""
    for key in _MOVED:
        if key in own:
            if key in b_info:
                require_nothing(domain, HVM, {key: own[key]})
            b_info[key] = own.pop(key)
    acpi = own.pop("acpi", None)
    if acpi == "False" or (acpi is not None and "acpi" not in b_info):
        b_info["acpi"] = acpi


def _device_model(domain: str, b_info: Config) -> Iterator[str]:
    """Translate which QEMU serves it, and how it is started."""
    yield from taken_switches(domain, "b_info", b_info, _BESIDE)
    version = b_info.pop("device_model_version", None)
    if version is not None:
        if not isinstance(version, str) or version not in _MODELS:
            require_nothing(domain, "b_info", {"device_model_version": version})
        yield f'device_model_version = "{_MODELS[version]}"'
    yield from taken_values(domain, "b_info", b_info, _PROGRAM)
    if "device_model_ssid_label" not in b_info:
        b_info.pop("device_model_ssidref", None)  # libxl's own, of every stub domain
    for key, word in _ARGUMENTS.items():
        arguments = _taken_list(domain, "b_info", b_info, key, str)
        if arguments:
            yield listed(domain, word, arguments)


def _sizes(domain: str, b_info: Config, own: Config) -> Iterator[str]:
    """Translate the sizes of memory, which are whole MiB in xl's language.

    Xen rounds the memory for shadow page tables up (libxl_x86.c), and libxl has it in KiB if it has
    computed it.  A hole of 0 is that of libxl's choice, and xl does not take it.
    """
    if "shadow_memkb" in b_info:
        kib = _taken_size(domain, "b_info", b_info, "shadow_memkb")
        yield f"shadow_memory = {-(-kib >> 10)}"
    for place, name, words in ((b_info, "b_info", _SIZES_BESIDE), (own, HVM, _SIZES)):
        for key, word in words.items():
            if key in place:
                yield f"{word} = {_taken_mib(domain, name, place, key)}"
    hole = _taken_mib(domain, HVM, own, _HOLE) if _HOLE in own else 0
    if hole:
        if hole not in _HOLE_MIB:
            require_nothing(domain, HVM, {_HOLE: hole})
        yield f"mmio_hole = {hole}"


def _viridian(domain: str, own: Config) -> Iterator[str]:
    """Translate what of Hyper-V the guest is shown; ``all`` includes what has no name yet."""
    is_on = own.pop("viridian", None)
    switch = {} if is_on is None else {"viridian": is_on}
    told = [*taken_switches(domain, HVM, switch, _VIRIDIAN_WORD)]
    enabled = {*_taken_list(domain, HVM, own, "viridian_enable", int)}
    disabled = {*_taken_list(domain, HVM, own, "viridian_disable", int)}
    if not enabled and not disabled:
        yield from told
        return
    named = {*range(len(_VIRIDIAN))}
    nameless = {*range(len(_VIRIDIAN), _VIRIDIAN_WIDTH)}
    is_all = nameless <= enabled
    known = named | nameless if is_all else named
    # After `all`, a word takes out what it disables, and nothing else can be left out.
    is_partly_all = is_all and not named <= enabled | disabled
    if not enabled | disabled <= known or enabled & disabled or is_partly_all:
        require_nothing(domain, HVM, {"viridian_enable": enabled})
    words = [
        *(["defaults"] if is_on == "True" else []),
        *(["all"] if is_all else [_VIRIDIAN[number] for number in sorted(enabled)]),
        *(f"!{_VIRIDIAN[number]}" for number in sorted(disabled)),
    ]
    yield listed(domain, "viridian", words)


def _lists(domain: str, own: Config) -> Iterator[str]:
    """Translate what is a text or a list of them, and what the guest reads in its SMBIOS."""
    for word, (text, several) in _TEXTS.items():
        told = _taken_list(domain, HVM, own, several, str)
        if told and text in own:
            require_nothing(domain, HVM, {text: own[text]})
        yield from taken_values(domain, HVM, own, {text: word})
        if told:
            yield listed(domain, word, told)
    told = []
    for each in _taken_list(domain, HVM, own, "smbios", dict):
        key, value = each.pop("key", ""), each.pop("value", "")
        if not (isinstance(key, str) and isinstance(value, str) and key and value) or each:
            require_nothing(domain, HVM, {"smbios": each})
        told.append(f"{key}={value}")
    if told:
        yield listed(domain, "smbios", told)


def _rest(domain: str, own: Config) -> Iterator[str]:
    """Translate what is of a kind of its own."""
    altp2m = own.pop("altp2m", "False")
    if altp2m != "False":  # xl warns of the word itself
        yield from taken_switches(domain, HVM, {"altp2m": altp2m}, {"altp2m": "altp2mhvm"})
    capabilities = own.pop("mca_caps", 0)
    if capabilities not in (0, _LMCE):
        require_nothing(domain, HVM, {"mca_caps": capabilities})
    if capabilities:
        yield 'mca_caps = ["lmce"]'
    kind = own.pop("gfx_passthru_kind", None)
    if kind is None:
        yield from taken_switches(domain, HVM, own, {"gfx_passthru": "gfx_passthru"})
    elif own.pop("gfx_passthru", None) == "True":
        yield from taken_values(domain, HVM, {"kind": kind}, {"kind": "gfx_passthru"})
    else:
        require_nothing(domain, HVM, {"gfx_passthru_kind": kind})
    yield from _reserved(domain, own)
    # It tells a guest that its disks are of another time, which they are: it must not be the same
    # (Microsoft, "Virtual Machine Generation ID"), and xl takes none anyway.
    if any(_taken_list(domain, HVM, own, "ms_vm_genid", int)):
        yield 'ms_vm_genid = "generate"'


def _reserved(domain: str, own: Config) -> Iterator[str]:
    """Translate what is kept free for devices of the host (libxlu_pci.c, xlu_rdm_parse).

    xl reads what it was not told of the one when it is told the other, so both are told.  Without a
    strategy there is nothing to tell, and libxl's policy is ``relaxed``.
    """
    rdm = own.pop("rdm", {})
    told = (rdm.get("strategy", "ignore"), rdm.get("policy", "relaxed")) if _is_rdm(rdm) else None
    if told in (("host", "relaxed"), ("host", "strict")):
        yield f'rdm = "strategy=host,policy={told[1]}"'
    elif told != ("ignore", "relaxed"):
        require_nothing(domain, HVM, {"rdm": rdm})


def _is_rdm(rdm: Any) -> bool:
    return isinstance(rdm, dict) and rdm.keys() <= {"strategy", "policy"}


def _taken_size(domain: str, name: str, place: Config, key: str) -> int:
    """Take a number of KiB out of a place."""
    kib = place.pop(key)
    if type(kib) is not int or kib < 0:
        require_nothing(domain, name, {key: kib})
    return int(kib)


def _taken_mib(domain: str, name: str, place: Config, key: str) -> int:
    """Take a number of KiB out of a place, and return it in MiB, of which it has to be whole."""
    kib = _taken_size(domain, name, place, key)
    if kib % 1024:
        require_nothing(domain, name, {key: kib})
    return kib >> 10


def _taken_list(domain: str, name: str, place: Config, key: str, kind: type) -> list[Any]:
    """Take a list out of a place, in which all are of this kind."""
    values = place.pop(key, [])
    if not isinstance(values, list) or any(type(value) is not kind for value in values):
        require_nothing(domain, name, {key: values})
    return list(values)
