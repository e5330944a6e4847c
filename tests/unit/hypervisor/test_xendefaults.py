"""What libxl has set by itself in a configuration is told to xl like what was asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from snapvm.hypervisor import xencfg, xenconfig
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.xlconfig import CONFIG

# libxl_create.c (libxl__domain_create_info_setdefault, ..build_info_setdefault), libxl_x86.c,
# libxl_disk.c, libxl_nic.c, libxl_console.c of Xen 4.17 to 4.22, in the order of those functions.
C_INFO = {
    "run_hotplug_scripts": "True",
    "driver_domain": "False",
    "ssidref": 11,
    "xend_suspend_evtchn_compat": "False",
    "passthrough": "disabled",
}
B_INFO = {
    "device_model_stubdomain": "False",
    "vpmu": "False",
    "device_model_version": "qemu_xen",
    "blkdev_start": "xvda",
    "numa_placement": "False",
    "nodemap": [0],
    "stubdomain_memkb": 0,
    "claim_mode": "False",
    "localtime": "False",
    "disable_migrate": "False",
    "event_channels": 1023,
    "acpi": "True",
    "arch_x86": {"msr_relaxed": "False"},
    "dm_restrict": "False",
    "video_memkb": 0,
    "shadow_memkb": 2048,
    "iommu_memkb": 0,
    "max_grant_version": 2,
    "bootloader_restrict": "False",
    "sched_params": {"sched": "credit2", "weight": 256, "cap": 0},
}
OF_PV = {"e820_host": "False", "slack_memkb": 0}
OF_PVH = {"pvshim": "False"}
NOT_OF_PV = {"timer_mode": "no_delay_for_missed_ticks", "apic": "True", "nested_hvm": "False"}
DISK = {
    "discard_enable": "True",
    "colo_enable": "False",
    "colo_restore_enable": "False",
    "trusted": "True",
    "specification": "xen",
}
NIC = {
    "devid": 0,
    "mtu": 1500,
    "model": "rtl8139",
    "mac": "00:16:3e:00:00:01",
    "bridge": "xenbr0",
    "script": "/etc/xen/scripts/vif-bridge",
    "nictype": "vif",
    "trusted": "True",
}


def told(kind: str, **changed: Any) -> set[str]:
    """Tell a configuration in which all defaults are set; ``changed`` is of ``b_info``."""
    config = json.loads(json.dumps(CONFIG))
    own = OF_PV if kind == "pv" else OF_PVH
    config["c_info"] |= {**C_INFO, "type": kind}
    config["b_info"] |= {**B_INFO, f"type.{kind}": own}
    if kind == "pvh":
        config["c_info"] |= {"hap": "True", "oos": "True"}
        config["b_info"] |= NOT_OF_PV
    config["b_info"] |= changed
    config["disks"][0] |= DISK
    config["nics"] = [NIC]
    config = xenconfig.parse("demo", json.dumps([{"config": config}]))
    return set(xencfg.tell("demo", config).splitlines())


@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_defaults_of_libxl_do_not_keep_a_domain_from_its_disks(kind: str) -> None:
    """On a host where xl takes memory from the control domain, and on any after the guest had
    rebooted, `undo` and a rollback to disks alone were refused for each domain."""
    lines = told(kind)
    assert {"acpi = 1", "vpmu = 0", "nomigrate = 0", 'passthrough = "disabled"'} <= lines
    assert ('timer_mode = "no_delay_for_missed_ticks"' in lines) == (kind == "pvh")
    assert not [line for line in lines if "msr_relaxed" in line]  # xl warns of it
    (disk,) = (line for line in lines if line.startswith("disk"))
    assert "specification" not in disk


def test_what_is_switched_is_told_to_xl() -> None:
    """It was left out in silence: the guest had a performance monitor, and then none."""
    switched = {
        "acpi": "False",
        "vpmu": "True",
        "nested_hvm": "True",
        "altp2m": "external",
        "arch_x86": {"msr_relaxed": "True"},
    }
    lines = {"acpi = 0", "vpmu = 1", "nestedhvm = 1", 'altp2m = "external"', "msr_relaxed = 1"}
    assert lines <= told("pvh", **switched)


def test_what_xenstored_allows_is_told_to_xl() -> None:
    """Since Xen 4.22 xl lists it of each domain."""
    quota = [{"name": "nodes", "val": 1000}, {"name": "outstanding"}]
    lines = told("pv", xenstore_quota={"quota": quota})
    assert 'xenstore_quota = ["nodes=1000", "outstanding=0"]' in lines


@pytest.mark.parametrize("quota", [[], {"quota": {}}, {"quota": [1]}], ids=str)
def test_quotas_that_libxl_does_not_write_are_refused(quota: object) -> None:
    with pytest.raises(DomainRefused, match="does not tell"):
        told("pv", xenstore_quota=quota)


def test_a_disk_of_virtio_is_no_disk_of_xen() -> None:
    config = json.loads(json.dumps(CONFIG))
    config["disks"][0]["specification"] = "virtio"
    with pytest.raises(DomainRefused, match="disk specification"):
        xencfg.tell("demo", config)


EVENTS = ("on_poweroff", "on_reboot", "on_watchdog", "on_crash", "on_soft_reset")


@pytest.mark.parametrize("kind", ["pv", "pvh", "hvm"])
def test_what_libxl_leaves_out_is_told_where_xl_has_another_default(kind: str) -> None:
    """It came back as one that is restarted when it reboots, or is reset."""
    config = json.loads(json.dumps(CONFIG))
    config["c_info"]["type"] = kind
    config["b_info"] = {}
    del config["on_reboot"]
    lines = xencfg.tell("demo", config).splitlines()
    told_events = [line for line in lines if line.startswith("on_")]
    assert told_events == ['on_reboot = "destroy"', 'on_soft_reset = "destroy"']


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize(
    ("action", "word"),
    [
        ("destroy", "destroy"),
        ("restart", "restart"),
        ("restart_rename", "rename-restart"),
        ("preserve", "preserve"),
        ("coredump_destroy", "coredump-destroy"),
        ("coredump_restart", "coredump-restart"),
        ("soft_reset", "soft-reset"),
    ],
)
def test_what_becomes_of_a_domain_that_ends_is_told_in_the_words_of_xl(
    event: str, action: str, word: str
) -> None:
    """xl knows no "restart-rename": the domain was ended, and not started again."""
    config = {**CONFIG, event: action}
    assert f'{event} = "{word}"' in xencfg.tell("demo", config).splitlines()


def test_an_action_that_xl_does_not_know_is_refused() -> None:
    with pytest.raises(DomainRefused, match="on_crash"):
        xencfg.tell("demo", {**CONFIG, "on_crash": "unheard"})
