"""What xl cannot be told of an HVM domain is refused, and never left out."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.hvmconfig import WINDOWS, told


@pytest.mark.parametrize(
    ("own", "what"),
    [
        ({"unheard": "True"}, "unheard"),
        # It may be on if nobody says otherwise, as most of them are.
        ({"unheard": "False"}, "unheard"),
        ({"unheard": 0}, "unheard"),
        ({"vnc": {"websocket": 1}}, "vnc websocket"),
        ({"sdl": {"unheard": "False"}}, "sdl unheard"),
        ({"spice": {"unheard": 0}}, "spice unheard"),
        ({"vga": {"kind": "std", "heads": 2}}, "vga"),
        ({"vga": {"kind": "virtio"}}, "vga"),
        ({"vga": "std"}, "vga"),
        ({"timeoffset": "3600"}, "timeoffset"),
        ({"mmio_hole_memkb": 1000000}, "mmio_hole_memkb"),
        ({"mmio_hole_memkb": 4 << 20}, "mmio_hole_memkb"),
        ({"mmio_hole_memkb": "much"}, "mmio_hole_memkb"),
        ({"rdm_mem_boundary_memkb": 1}, "rdm_mem_boundary_memkb"),
        ({"rdm": {"policy": "strict"}}, "rdm"),
        ({"rdm": {"strategy": "guest"}}, "rdm"),
        ({"rdm": {"strategy": "host", "unheard": 1}}, "rdm"),
        ({"rdm": ["host"]}, "rdm"),
        ({"viridian_enable": [0, 1], "viridian_disable": [1]}, "viridian_enable"),
        ({"viridian_enable": [0, 13]}, "viridian_enable"),
        ({"viridian_disable": [13]}, "viridian_enable"),
        ({"viridian_enable": [*range(1, 64)]}, "viridian_enable"),
        ({"viridian_enable": ["base"]}, "viridian_enable"),
        ({"viridian": "maybe"}, "viridian"),
        ({"viridian": 0}, "viridian"),
        ({"viridian": "maybe", "viridian_enable": [0]}, "viridian"),
        ({"mca_caps": 3}, "mca_caps"),
        ({"gfx_passthru_kind": "igd"}, "gfx_passthru_kind"),
        ({"gfx_passthru": "False", "gfx_passthru_kind": "igd"}, "gfx_passthru_kind"),
        ({"smbios": [{"key": "oem", "value": ""}]}, "smbios"),
        ({"smbios": [{"value": "x"}]}, "smbios"),
        ({"smbios": {"oem": "x"}}, "smbios"),
        ({"smbios": [{"key": "oem", "value": "x", "unheard": 1}]}, "smbios"),
        ({"serial": "pty", "serial_list": ["pty"]}, "serial"),
        ({"serial": ["pty"]}, "serial"),
        ({"usbdevice_list": [1]}, "usbdevice_list"),
        ({"altp2m": "mixed"}, "altp2m"),
        ({"ms_vm_genid": "generate"}, "ms_vm_genid"),
        ({"boot": {"order": "c"}}, "boot"),
        ({"hpet": 1}, "hpet"),
    ],
    ids=str,
)
def test_of_its_own(own: dict[str, Any], what: str) -> None:
    with pytest.raises(DomainRefused, match=f"type.hvm {what}$") as refused:
        told(own)
    assert "shut it off first" in refused.value.hint()


@pytest.mark.parametrize(
    ("beside", "what"),
    [
        ({"unheard": 1}, "unheard"),
        ({"video_memkb": 9000}, "video_memkb"),
        ({"shadow_memkb": -1}, "shadow_memkb"),
        ({"device_model_version": "unknown"}, "device_model_version"),
        ({"device_model_version": ["qemu_xen"]}, "device_model_version"),
        ({"device_model_ssid_label": "a", "device_model_ssidref": 5}, "device_model_ssid_label, "),
        ({"kernel": "/usr/lib/xen-4.20/boot/hvmloader"}, "kernel"),
        ({"extra_pv": "-q"}, "extra_pv"),
        ({"dm_restrict": "yes"}, "dm_restrict"),
        ({"vnuma_nodes": [{}]}, "vnuma_nodes"),
        ({"cpuid": [{"leaf": 1, "ecx": "x"}]}, "cpuid"),
        ({"type.pv": {"kernel": "/x"}}, "type.pv"),
    ],
    ids=str,
)
def test_of_what_is_beside_that(beside: dict[str, Any], what: str) -> None:
    with pytest.raises(DomainRefused, match=what):
        told({}, beside)


@pytest.mark.parametrize("key", ["apic", "timer_mode", "nested_hvm"])
def test_one_thing_in_two_places(key: str) -> None:
    """libxl does not start such a domain (libxl_types.idl, `deprecated_by`)."""
    with pytest.raises(DomainRefused, match=f"type.hvm {key}"):
        told({key: "True"}, {key: "False"})


@pytest.mark.parametrize(
    "devices",
    [
        {"pcidevs": [{"bus": 3}]},
        {"usbctrls": [{"version": 2}]},
        {"usbdevs": [{"ctrl": 0}]},
        {"channels": [{"name": "agent"}]},
        {"vtpms": [{"devid": 0}]},
        {"nics": [{"nictype": "vif_unheard"}]},
        {"nics": [{"nictype": ["vif"]}]},
        {"nics": [{"devid": -1}]},
        {"nics": [{"devid": "one"}]},
        {"nics": [{"model": "e1000,mac=00:16:3e:00:00:09"}]},
        {"disks": [{"vdev": "hda", "script": "a,b", "pdev_path": "/x"}]},
        {"vkbs": [{"backend_type": "linux"}]},
    ],
    ids=str,
)
def test_of_its_devices(devices: dict[str, list[dict[str, Any]]]) -> None:
    with pytest.raises(DomainRefused, match="cannot be passed"):
        told({}, None, **devices)


@pytest.mark.parametrize("screen", ["vnc", "spice"])
def test_a_password_is_in_no_message(screen: str) -> None:
    """It is logged, and mailed by cron."""
    with pytest.raises(DomainRefused, match=f"type.hvm {screen} passwd") as refused:
        told({screen: {"passwd": "geheim\n"}})
    assert "geheim" not in str(refused.value)


def test_a_whole_configuration_with_one_thing_more() -> None:
    whole = copy.deepcopy(WINDOWS["b_info"])
    own = whole.pop("type.hvm")
    assert told(own, whole)
    with pytest.raises(DomainRefused, match=r"type.hvm unheard$"):
        told({**own, "unheard": "False"}, whole)
