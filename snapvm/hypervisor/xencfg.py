"""Translate a domain's configuration from libxl's JSON into xl's language, to boot it.

``xl create`` reads only that language (xl.cfg(5); tools/xl/xl_parse.c), which cannot express all
that libxl knows: a configuration that cannot be translated as a whole is refused.

libxl leaves out of its JSON what nobody has set (tools/libs/light/libxl_types.idl).  But it sets
its own defaults, in the same place, before xl takes memory from the control domain ("autoballoon"),
and when it creates a domain, which xl does again from there when the guest reboots (libxl_mem.c,
libxl_domain_need_memory; xl_vmcontrol.c, create_domain).  So they are there on many hosts, and are
told as if they had been asked for.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from snapvm.hypervisor import memoryfile, xencfgdisks, xencfghvm, xencfgnics, xencfgscreens
from snapvm.hypervisor.xencfgwords import listed, number, quoted, require_nothing
from snapvm.hypervisor.xenconfig import (
    AFFINITIES,
    DOMID,
    HVM,
    ON_EVENTS,
    TYPES,
    Config,
    is_hvm,
    is_set,
)
from snapvm.refusals import DomainRefused

log = logging.getLogger(__name__)


def tell(domain: str, config: Config) -> str:
    """Return a domain's configuration in xl's language, or raise ``DomainRefused``."""
    left = json.loads(json.dumps(config))
    lines: list[str] = []

    def take(place: Config, key: str, word: str) -> None:
        if key in place:
            lines.append(f"{word} = {quoted(domain, place.pop(key))}")

    c_info, b_info = left.pop("c_info"), left.pop("b_info")
    c_info.pop(DOMID, None)
    for key in ("type", "name", "uuid", "pool_name", "passthrough"):
        take(c_info, key, key.removesuffix("_name"))
    if "pool_name" in config["c_info"]:
        c_info.pop("poolid", None)  # its number, which may be another by now
    kinds = (HVM,) if is_hvm(config) else TYPES
    own = {key: value for kind in kinds for key, value in b_info.pop(kind, {}).items()}
    if is_hvm(config):
        lines += xencfghvm.tell(domain, b_info, own)
    b_info.setdefault("bootloader_args", own.pop("bootloader_args", []))  # as libvirt has it
    b_info.pop("type", None)
    lines += [*_vcpus(domain, b_info), *_memory(b_info), *_lists(domain, b_info)]
    for key, word in _WORDS.items():
        take(b_info, key, word)
        take(own, key, word)
    lines += [line for place in (c_info, b_info, own) for line in _switches(place)]
    lines.append(xencfgdisks.tell(domain, left.pop("disks", [])))
    lines.append(xencfgnics.tell(domain, left.pop("nics", []), has_cards=is_hvm(config)))
    lines += xencfgscreens.tell(domain, left)
    lines += _events(domain, left)
    for name, rest in (("c_info", c_info), ("b_info", b_info), ("type", own), ("", left)):
        require_nothing(domain, name, _without_defaults(rest))
    return "\n".join(lines) + "\n"


@contextmanager
def in_memory(text: str) -> Iterator[str]:
    """Yield the path of a file in memory, so that a domain starts even when all disks are full."""
    with open(memoryfile.made("domain.cfg"), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        yield f"/proc/{os.getpid()}/fd/{file.fileno()}"


def warn_of_no_way_back(domain: str, config: Config) -> None:
    """Warn, when disks alone are captured, if snapvm could not boot the domain from them."""
    try:
        tell(domain, config)
    except DomainRefused as refused:
        log.warning("a rollback to these disks needs the domain to be off first: %s", refused)


def _vcpus(domain: str, b_info: Config) -> Iterator[str]:
    """Translate the number of vCPUs, how many of them are online, and their share of time."""
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
    require_nothing(domain, "sched_params", _without_defaults(share))


def _lists(domain: str, b_info: Config) -> Iterator[str]:
    """Translate where each vCPU may run, what xenstored allows, how the boot loader is called."""
    for key, word in AFFINITIES.items():
        if b_info.get(key):
            cpus = [",".join(map(str, numbers)) for numbers in b_info.pop(key)]
            if not all(cpus):
                require_nothing(domain, "b_info", {key: cpus})
            yield listed(domain, word, cpus)
    quota = b_info.pop("xenstore_quota", {}).get("quota", [])  # since Xen 4.22
    quotas = [f"{each.get('name', '')}={each.get('val', 0)}" for each in quota]
    words = b_info.pop("bootloader_args", [])
    for word, texts in (("xenstore_quota", quotas), ("bootloader_args", words)):
        if texts:
            yield listed(domain, word, texts)


def _events(domain: str, left: Config) -> Iterator[str]:
    """Translate what becomes of a domain that ends; libxl leaves "destroy" out of its JSON."""
    for key in ON_EVENTS:
        action = left.pop(key, _LEFT_OUT if key in _OTHERWISE else None)
        if action is not None:
            if action not in _ACTIONS:
                require_nothing(domain, "", {key: action})
            yield f'{key} = "{_ACTIONS[action]}"'


def _switches(place: Config) -> Iterator[str]:
    """Translate what is on or off; a default of libxl's may be another by now, so both are told."""
    for key, word in _SWITCHES.items():
        if key in place:
            yield f"{word} = {number(place.pop(key))}"
    if is_set(place.get("arch_x86", {}).get("msr_relaxed")):  # xl warns of the word itself
        yield "msr_relaxed = 1"


def _memory(b_info: Config) -> Iterator[str]:
    """Translate the sizes of memory, which are whole MiB in xl's language."""
    for key, word in (("target_memkb", "memory"), ("max_memkb", "maxmem")):
        if key in b_info:
            yield f"{word} = {b_info.pop(key) >> 10}"


_LEFT_OUT = "destroy"
_OTHERWISE = ("on_reboot", "on_soft_reset")
"""The events at which xl does something else if it is not told what (xl_parse.c)."""
_ACTIONS = {
    _LEFT_OUT: "destroy",
    "restart": "restart",
    "restart_rename": "rename-restart",
    "preserve": "preserve",
    "coredump_destroy": "coredump-destroy",
    "coredump_restart": "coredump-restart",
    "soft_reset": "soft-reset",
}
"""What libxl and what xl call what they do then (xl_parse.c, action_on_shutdown_names)."""
_WORDS = {
    "kernel": "kernel",
    "ramdisk": "ramdisk",
    "cmdline": "cmdline",
    "bootloader": "bootloader",
    "bootloader_user": "bootloader_user",
    "event_channels": "max_event_channels",
    "max_grant_frames": "max_grant_frames",
    "max_maptrack_frames": "max_maptrack_frames",
    "max_grant_version": "max_grant_version",
    "tsc_mode": "tsc_mode",
    "timer_mode": "timer_mode",
    "rtc_timeoffset": "rtc_timeoffset",
    "altp2m": "altp2m",
    "altp2m_count": "altp2m_count",
    "vmtrace_buf_kb": "vmtrace_buf_kb",
}
"""xl's names for those fields of ``b_info`` that are a single value."""
_SWITCHES = {
    "hap": "hap",
    "oos": "oos",
    "driver_domain": "driver_domain",
    "acpi": "acpi",
    "nested_hvm": "nestedhvm",
    "vpmu": "vpmu",
    "disable_migrate": "nomigrate",
    "localtime": "localtime",
    "bootloader_restrict": "bootloader_restrict",
    "e820_host": "e820_host",
}
"""xl's names for fields that are on or off."""
_HARMLESS = {
    "shadow_memkb",
    "video_memkb",
    "claim_mode",
    "arch_arm",
    "arch_x86",
    "iommu_memkb",
    "paging_mempool",
    "apic",
    "device_model_version",
    "run_hotplug_scripts",
    "slack_memkb",
    "pvh",
    "ssidref",
    "xend_suspend_evtchn_compat",
    "tee",
    "numa_placement",
    "nodemap",
    "blkdev_start",
}
"""Fields that libxl computes, or that are of the host: they are made again at the next boot."""


def _without_defaults(place: Config) -> Config:
    return {key: value for key, value in place.items() if is_set(value) and key not in _HARMLESS}
