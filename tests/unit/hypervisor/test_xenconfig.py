"""The configuration of a domain, read, and what an image has of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from snapvm.hypervisor import xenconfig
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.xlconfig import CONFIG


def test_a_configuration_is_found_in_what_xl_lists() -> None:
    assert xenconfig.parse("demo", json.dumps([{"domid": 5, "config": CONFIG}])) == CONFIG
    for text in ("", "[]", "{}", '[{"config": 1}]', '[{"config": {"c_info": 1}}]'):
        with pytest.raises(DomainRefused):
            xenconfig.parse("demo", text)


def test_one_of_another_toolstack_is_said_to_be() -> None:
    """It was "IndexError('list index out of range')"."""
    with pytest.raises(DomainRefused, match="xl has no configuration of it") as refused:
        xenconfig.parse("demo", "[\n]\n\n")
    assert "another toolstack" in refused.value.hint()


def test_an_xl_that_is_set_to_tell_no_json_is_said_to_be() -> None:
    """It was "JSONDecodeError('Expecting value: line 1 column 1 (char 0)')"."""
    told = "(domain\n\t(domid 5)\n\t(create_info)\n\t(hvm 0)\n\t(name demo)\n)\n"
    with pytest.raises(DomainRefused, match="S-expressions") as refused:
        xenconfig.parse("demo", told)
    assert "output_format" in refused.value.hint() and "/etc/xen/xl.conf" in refused.value.hint()


@pytest.mark.parametrize(
    "changed",
    [
        {"b_info": {"target_memkb": None}},
        {"b_info": {"max_memkb": "131072"}},
        {"b_info": {"max_vcpus": [2]}},
        {"b_info": {"type.pv": 1}},
        {"disks": {"vdev": "xvda"}},
        {"disks": [1]},
        {"nics": 1},
        {"nics": [1]},
        {"nics": [{"rate_bytes_per_interval": "much"}]},
        {"vfbs": [1]},
        {"vfbs": [{"vnc": 1}]},
        {"b_info": {"vcpu_hard_affinity": 1}},
        {"b_info": {"vcpu_hard_affinity": [["0"]]}},
        {"b_info": {"bootloader_args": "-q"}},
        {"b_info": {"type.pv": {"bootloader_args": [1]}}},
        {"on_crash": 0},
    ],
    ids=str,
)
def test_what_libxl_does_not_write_is_refused(changed: dict[str, Any]) -> None:
    """Found by fuzzing, the first three."""
    with pytest.raises(DomainRefused):
        xenconfig.parse("demo", json.dumps([{"config": CONFIG | changed}]))


def test_an_image_demands_no_number_and_has_room() -> None:
    config = json.loads(xenconfig.for_image(CONFIG, 40000))
    assert "domid" not in config["c_info"]
    assert config["b_info"]["target_memkb"] == 40000 * 4 - 1024
    assert json.loads(xenconfig.for_image(CONFIG, 100))["b_info"]["target_memkb"] == 131072


def test_passed_through_devices_are_named() -> None:
    assert xenconfig.passthrough(CONFIG) == ""
    assert xenconfig.passthrough(CONFIG | {"pcidevs": [{}]}) == "a PCI device"
    # Such a domain was captured, and came back without its device's memory.
    memory = {**CONFIG["b_info"], "iomem": [{"start": 0xFE000, "number": 1}]}
    assert xenconfig.passthrough(CONFIG | {"b_info": memory}) == "a device's memory"
    nodes = {**CONFIG["b_info"], "vnuma_nodes": [{"memkb": 65536}]}
    assert xenconfig.passthrough(CONFIG | {"b_info": nodes}) == "virtual NUMA nodes"
    assert xenconfig.passthrough(CONFIG | {"virtios": [{"type": "virtio,device"}]}) == (
        "a virtio device"
    )


def test_guests_of_the_guest_would_be_lost() -> None:
    """Xen saves nothing of them (public/arch-x86/hvm/save.h), and xl saves the guest all the same.

    Its kernel thinks after a rollback that the processor still is in the mode for guests.
    """
    for value, name in (("True", "nested virtualisation (nestedhvm)"), ("False", "")):
        b_info = {**CONFIG["b_info"], "nested_hvm": value}
        assert xenconfig.passthrough(CONFIG | {"b_info": b_info}) == name
