"""Translate a PV or PVH domain's configuration from libxl's JSON into xl's language, to boot it.

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
from typing import Any

from snapvm.hypervisor import memoryfile
from snapvm.hypervisor.xenconfig import (
    AFFINITIES,
    DOMID,
    ON_EVENTS,
    TYPES,
    Config,
    is_hvm,
    is_set,
)
from snapvm.refusals import DomainRefused

log = logging.getLogger(__name__)

_OFF_FIRST = (
    "shut it off first (xl shutdown): snapvm then brings back its disks, and leaves it to you to "
    "start it from its own configuration file (xl create)"
)


def tell(domain: str, config: Config) -> str:
    """Return a PV or PVH domain's configuration in xl's language, or raise ``DomainRefused``."""
    if is_hvm(config):
        why = "it is an HVM domain, whose configuration snapvm cannot pass to `xl create`"
        raise DomainRefused(domain=domain, why=why, remedy=_OFF_FIRST)
    left = json.loads(json.dumps(config))
    lines: list[str] = []

    def take(place: Config, key: str, word: str) -> None:
        if key in place:
            lines.append(f"{word} = {_quoted(domain, place.pop(key))}")

    c_info, b_info = left.pop("c_info"), left.pop("b_info")
    c_info.pop(DOMID, None)
    for key in ("type", "name", "uuid", "pool_name", "passthrough"):
        take(c_info, key, key.removesuffix("_name"))
    if "pool_name" in config["c_info"]:
        c_info.pop("poolid", None)  # its number, which may be another by now
    own = {key: value for kind in TYPES for key, value in b_info.pop(kind, {}).items()}
    b_info.setdefault("bootloader_args", own.pop("bootloader_args", []))  # as libvirt has it
    b_info.pop("type", None)
    lines += [*_vcpus(domain, b_info), *_memory(b_info), *_lists(domain, b_info)]
    for key, word in _WORDS.items():
        take(b_info, key, word)
        take(own, key, word)
    lines += [line for place in (c_info, b_info, own) for line in _switches(place)]
    disks = [_disk(domain, disk) for disk in left.pop("disks", [])]
    nics = [_nic(domain, nic) for nic in left.pop("nics", [])]
    lines += [f"disk = [{', '.join(disks)}]", f"vif = [{', '.join(nics)}]"]
    lines += _screens(domain, left)
    for key in ON_EVENTS:
        if key in left:
            lines.append(f"{key} = {_quoted(domain, left.pop(key).replace('_', '-'))}")
    for name, rest in (("c_info", c_info), ("b_info", b_info), ("type", own), ("", left)):
        _require_nothing(domain, name, _without_defaults(rest))
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
    _require_nothing(domain, "sched_params", _without_defaults(share))


def _lists(domain: str, b_info: Config) -> Iterator[str]:
    """Translate where each vCPU may run, what xenstored allows, how the boot loader is called."""
    for key, word in AFFINITIES.items():
        if b_info.get(key):
            cpus = [",".join(map(str, numbers)) for numbers in b_info.pop(key)]
            if not all(cpus):
                _require_nothing(domain, "b_info", {key: cpus})
            yield f"{word} = [{', '.join(_quoted(domain, each) for each in cpus)}]"
    quota = b_info.pop("xenstore_quota", {}).get("quota", [])  # since Xen 4.22
    quotas = [f"{each.get('name', '')}={each.get('val', 0)}" for each in quota]
    words = b_info.pop("bootloader_args", [])
    for word, texts in (("xenstore_quota", quotas), ("bootloader_args", words)):
        if texts:
            yield f"{word} = [{', '.join(_quoted(domain, text) for text in texts)}]"


def _switches(place: Config) -> Iterator[str]:
    """Translate what is on or off; a default of libxl's may be another by now, so both are told."""
    for key, word in _SWITCHES.items():
        if key in place:
            yield f"{word} = {_number(place.pop(key))}"
    if is_set(place.get("arch_x86", {}).get("msr_relaxed")):  # xl warns of the word itself
        yield "msr_relaxed = 1"


def _memory(b_info: Config) -> Iterator[str]:
    """Translate the sizes of memory, which are whole MiB in xl's language."""
    for key, word in (("target_memkb", "memory"), ("max_memkb", "maxmem")):
        if key in b_info:
            yield f"{word} = {b_info.pop(key) >> 10}"


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


def _require_nothing(domain: str, name: str, rest: Config) -> None:
    if rest:
        what = ", ".join(sorted(rest))
        raise DomainRefused(
            domain=domain,
            why=f"its configuration cannot be passed to `xl create`: {name} {what}".rstrip(),
            remedy=_OFF_FIRST,
        )


_UNTRUSTED = "untrusted"
"""The guest does not trust who serves the device, and copies what that is to have (XSA-403)."""
_PV_DISK = "xen"
"""What a disk is that xl is not told more of, and not a disk of virtio."""
_DISK_WORDS = {"backend_domname": "backend", "script": "script"}
_DISK_TOLD = {
    *_DISK_WORDS,
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


def _disk(domain: str, disk: Config) -> str:
    rest = {key: value for key, value in disk.items() if key not in _DISK_TOLD and is_set(value)}
    if rest.get("specification") == _PV_DISK:
        del rest["specification"]
    if disk.get("backend_domname"):
        rest.pop("backend_domid", None)  # its number, which may be another by now
    _require_nothing(domain, "disk", rest)
    backend, path = disk.get("backend"), disk.get("pdev_path", "")
    words = [
        f"format={disk.get('format', 'raw')}",
        f"vdev={disk.get('vdev', '')}",
        f"access={'rw' if disk.get('readwrite') else 'ro'}",
        # Without a backend libxl chooses one, as it did when the domain was made.
        *([f"backendtype={backend}"] if backend else []),
        *(f"{word}={disk[key]}" for key, word in _DISK_WORDS.items() if disk.get(key)),
        *(["devtype=cdrom"] if disk.get("is_cdrom") else []),
        *(["no-discard"] if disk.get("discard_enable") == "False" else []),
        *(["direct-io-safe"] if is_set(disk.get("direct_io_safe")) else []),
        *([_UNTRUSTED] if disk.get("trusted") == "False" else []),
        f"target={path}",  # takes the rest of the text, so it is the last
    ]
    return _quoted(domain, ",".join(words))


_NIC_WORDS = {
    "mac": "mac",
    "bridge": "bridge",
    "gatewaydev": "gatewaydev",
    "ip": "ip",
    "script": "script",
    "mtu": "mtu",
    "vlan": "vlan",
    "ifname": "vifname",
    "backend_domname": "backend",
}
_NIC_TOLD = {*_NIC_WORDS, "model", "nictype", "devid", "rate_bytes_per_interval", "trusted"}
_DEFAULT_INTERVAL_USECS = 50_000


def _nic(domain: str, nic: Config) -> str:
    rest = {key: value for key, value in nic.items() if key not in _NIC_TOLD and is_set(value)}
    interval = rest.pop("rate_interval_usecs", 0) or _DEFAULT_INTERVAL_USECS
    if nic.get("backend_domname"):
        rest.pop("backend_domid", None)  # its number, which may be another by now
    _require_nothing(domain, "vif", rest)
    words = [f"{word}={nic[key]}" for key, word in _NIC_WORDS.items() if nic.get(key)]
    allowed = nic.get("rate_bytes_per_interval")
    if allowed:
        words.append(f"rate={_rate(allowed, interval)}@{interval}us")
    words += [_UNTRUSTED] if nic.get("trusted") == "False" else []
    return _quoted(domain, ",".join(words))


def _rate(allowed: int, interval: int) -> str:
    """Tell a number of bytes in so many microseconds as bytes a second.

    It is rounded up, because xl rounds down when it converts it back, and takes no number of more
    than 32 bits, but a unit (libxlu_vif.c).
    """
    rate = -(-allowed * 1_000_000 // interval)
    return f"{rate}B/s" if rate < 1 << 32 else f"{-(-rate // 1000)}KB/s"


_VNC_WORDS = {
    "enable": "vnc",
    "listen": "vnclisten",
    "passwd": "vncpasswd",
    "display": "vncdisplay",
    "findunused": "vncunused",
}
_SDL_WORDS = {"enable": "sdl", "opengl": "opengl", "display": "display", "xauthority": "xauthority"}


def _screens(domain: str, left: Config) -> Iterator[str]:
    """Translate frame buffers; xl gives each a keyboard, and there must be no other keyboards."""
    screens, keyboards = left.pop("vfbs", []), left.pop("vkbs", [])
    for keyboard in keyboards:
        usual = {"devid": keyboard.get("devid"), "backend_type": "qemu"}
        rest = {key: value for key, value in keyboard.items() if usual.get(key) != value}
        _require_nothing(domain, "vkb", {key: each for key, each in rest.items() if is_set(each)})
    if len(keyboards) not in (0, len(screens)):
        _require_nothing(domain, "", {"vkbs": keyboards})
    if screens:
        yield f"vfb = [{', '.join(_screen(domain, screen) for screen in screens)}]"


def _screen(domain: str, screen: Config) -> str:
    screen.pop("devid", None)
    words: Config = {}
    for place, names in ((screen.pop("vnc", {}), _VNC_WORDS), (screen.pop("sdl", {}), _SDL_WORDS)):
        words |= {names[key]: place.pop(key) for key in names if key in place}
        screen |= place
    words |= {"keymap": screen.pop("keymap")} if "keymap" in screen else {}
    _require_nothing(domain, "vfb", {key: value for key, value in screen.items() if is_set(value)})
    told = [f"{word}={_number(value)}" for word, value in words.items()]
    joined = ",".join(told)
    if any("," in text for text in told) or not joined.isprintable():
        _require_nothing(domain, "", {"vfbs": told})  # which does not name the password
    return _quoted(domain, joined)


def _number(value: Any) -> Any:
    """Turn a boolean of libxl into a number; leave any other value as it is."""
    return int(value == "True") if value in ("True", "False") else value


def _quoted(domain: str, value: Any) -> str:
    """Quote a value in xl's language, with its escapes (libxlu_cfg.c, xlu__cfgl_dequote)."""
    text = str(value)
    if not text.isprintable():
        why = f"{text!r} cannot be passed to `xl create`"
        raise DomainRefused(domain=domain, why=why, remedy=_OFF_FIRST)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
