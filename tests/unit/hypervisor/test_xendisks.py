"""Drives as xenstore has them, sorted and refused; and a configuration told again to xl."""

from __future__ import annotations

import ctypes
import json
import os
import re
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm.failures import CaptureFailed
from snapvm.hypervisor import xencfg, xenconfig, xendisks
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.hypervisor.xenrings import Rings, ring_references
from snapvm.refusals import DiskRefused, DomainRefused
from tests.fakes.xenstored import FakeXenstored

BACK = "/local/domain/0/backend/vbd/7/51712"
QDISK_BACK = "/local/domain/0/backend/qdisk/7/51712"
DISK = {
    "dev": "xvda",
    "params": "/dev/vg0/demo-d0",
    "type": "phy",
    "mode": "w",
    "device-type": "disk",
    "script": "/etc/xen/scripts/block",
}


def drives(back: str = BACK, **changes: str) -> Any:
    return xendisks.classify("demo", seen(back, **changes))


def seen(back: str = BACK, **changes: str) -> tuple[xendisks.Vbd, ...]:
    server = FakeXenstored()
    server.values["/libxl/7/device/vbd/51712/backend"] = back
    for key, value in (
        DISK | {name.replace("_", "-"): text for name, text in changes.items()}
    ).items():
        server.values[f"{back}/{key}"] = value
    with server.connected() as store:
        return xendisks.read_vbds(store, 7)


def test_a_volume_is_captured() -> None:
    (disk,) = drives().disks
    assert (disk.target, disk.device) == ("xvda", Path("/dev/vg0/demo-d0"))
    assert drives(params="vg0/demo-d0").disks[0].device == Path("/dev/vg0/demo-d0")


@pytest.mark.parametrize(
    ("has_open", "is_now", "is_refused"),
    [
        ("fd:1f", "fd:1f", False),
        ("FD:1F", "fd:1f", False),
        ("fd:1f", "fd:20", True),
        ("fd:1f", "", False),
        ("", "fd:20", False),
    ],
)
@pytest.mark.parametrize("kind", ["phy", "file"])
def test_a_name_that_is_anothers_by_now_is_not_captured_for_it(
    monkeypatch: pytest.MonkeyPatch, has_open: str, is_now: str, is_refused: bool, kind: str
) -> None:
    """Its volume was renamed while it ran, and its memory was kept with what has the name now."""
    monkeypatch.setattr(xendisks, "number_of", lambda _: is_now)
    if is_refused and kind == "phy":
        with pytest.raises(DiskRefused, match="another volume by now") as refused:
            drives(physical_device=has_open, type=kind)
        assert "lvrename" in refused.value.hint()
    else:  # of a loop device the number is its own
        assert drives(physical_device=has_open, type=kind).disks


def test_the_number_of_a_device_is_as_xenstore_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    status = SimpleNamespace(st_mode=stat.S_IFBLK, st_rdev=os.makedev(253, 31))
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", lambda _: status)
        number = xendisks.number_of(Path("/dev/vg0/web"))
    assert number == "fd:1f"
    assert xendisks.number_of(Path("/dev/null")) == ""
    assert xendisks.number_of(Path("/dev/vg0/gone")) == ""


def test_what_a_guest_says_of_its_rings_may_be_anything() -> None:
    server = FakeXenstored()
    server.values["/local/domain/7/device/vbd/51712/ring-ref"] = "8"
    server.values["/local/domain/7/device/vbd/51728/queue-0/ring-ref0"] = "9"
    with server.connected() as store:
        numbers = ["51712", "51728"]
        assert ring_references(store, 7, numbers) == {"51712": [8], "51728": [9]}
        server.values["/local/domain/7/device/vbd/51712/ring-ref"] = "-1 or so"
        with pytest.raises(XenFailed, match="holds no grant"):
            ring_references(store, 7, numbers)
        assert ring_references(store, 7, numbers[1:]) == {"51728": [9]}


class FakeGrants:
    """Xen's grants of a guest whose rings are at rest; some are another domain's to map."""

    def __init__(self, *foreign: int) -> None:
        self.foreign = foreign
        self.page = ctypes.create_string_buffer(4096)

    def xengnttab_open(self, _logger: object, _flags: int) -> int:
        return 1

    def xengnttab_close(self, _handle: int) -> None: ...

    def xengnttab_map_grant_ref(
        self, _handle: int, _domid: int, reference: int, _prot: int
    ) -> int | None:
        return None if reference in self.foreign else ctypes.addressof(self.page)

    def xengnttab_unmap(self, _handle: int, _address: int, _count: int) -> None: ...


def test_a_ring_that_is_another_domains_is_not_waited_for() -> None:
    """An ISO served by a driver domain: its grants are not ours to map, and every take failed."""
    assert [vbd.is_captured for vbd in (*seen(), *seen(mode="r"))] == [True, False]
    libraries: Any = SimpleNamespace(grants=FakeGrants(9), logger=None)
    Rings(libraries, 7, "demo", {"51712": [8]}).drain()
    with pytest.raises(CaptureFailed, match="ring of disk 51728"):
        Rings(libraries, 7, "demo", {"51712": [8], "51728": [9]}).drain()


def test_a_guest_has_no_say_in_what_its_disks_are() -> None:
    """Its own folder, which it may write, names the volume of another and hides its second disk."""
    server = FakeXenstored()
    for number in ("51712", "51728"):
        back = f"/local/domain/0/backend/vbd/7/{number}"
        server.values[f"/libxl/7/device/vbd/{number}/backend"] = back
        server.values |= {f"{back}/{key}": value for key, value in DISK.items()}
        server.values[f"{back}/params"] = f"/dev/vg0/mine-{number}"
    other = "/local/domain/0/backend/vbd/9/51712"
    server.values |= {f"{other}/{key}": value for key, value in DISK.items()}
    server.values["/local/domain/7/device/vbd/51712/backend"] = other
    with server.connected() as store:
        found = xendisks.read_vbds(store, 7)
    assert [vbd.params for vbd in found] == ["/dev/vg0/mine-51712", "/dev/vg0/mine-51728"]


def test_a_disk_without_a_backend_is_not_left_out_in_silence() -> None:
    with pytest.raises(DiskRefused, match="does not name"):
        drives(back="")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": "file", "params": "/srv/a.img"}, "the file /srv/a.img"),
        ({"script": "/etc/xen/scripts/block-drbd"}, "block-drbd"),
        ({"params": ""}, "does not say"),
        ({"back": "/local/domain/3/backend/vbd/7/51712"}, "domain 3"),
        ({"back": QDISK_BACK, "params": "qcow2:/srv/a.qcow2"}, "format of its own"),
        ({"back": QDISK_BACK, "params": "aio:/srv/a.img", "type": "qdisk"}, "the file /srv/a.img"),
        ({"back": "/local/domain/0/backend/9pfs/7/51712"}, "9pfs"),
    ],
)
def test_others_are_refused_with_the_reason(changes: dict[str, str], words: str) -> None:
    with pytest.raises(DiskRefused, match=words):
        drives(**changes)


@pytest.mark.parametrize(
    ("changes", "caches"),
    [
        ({}, []),
        ({"back": QDISK_BACK, "params": "aio:/dev/vg0/demo-d0", "type": "qdisk"}, [DISK["params"]]),
        ({"type": "file", "node": "/dev/loop3"}, ["/dev/loop3", DISK["params"]]),
    ],
)
def test_what_lies_before_a_volume_is_known(changes: dict[str, str], caches: list[str]) -> None:
    """QEMU and loop devices keep what they were given in the host's page cache."""
    (vbd,) = seen(**changes)
    assert vbd.device == Path("/dev/vg0/demo-d0")
    assert [str(path) for path in vbd.caches] == caches
    assert drives(**changes).disks[0].device == vbd.device


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "r", "back": QDISK_BACK, "params": "qcow2:/srv/base.qcow2", "type": "qdisk"},
        {"device_type": "cdrom", "back": QDISK_BACK, "params": "aio:/srv/deleted.iso"},
        {
            "device_type": "cdrom",
            "type": "file",
            "params": "/srv/deleted.iso",
            "node": "/dev/loop3",
        },
    ],
)
def test_nothing_lies_before_what_cannot_change(changes: dict[str, str]) -> None:
    """Each was flushed in the window, which failed: one has a format, others are gone."""
    (vbd,) = seen(**changes)
    assert vbd.caches == ()


@pytest.mark.parametrize("changes", [{"mode": "r"}, {"device_type": "cdrom"}])
def test_what_cannot_change_is_left_out_and_not_all_may_be(changes: dict[str, str]) -> None:
    with pytest.raises(DomainRefused, match="no disk"):
        drives(**changes)


CONFIG: dict[str, Any] = {
    "c_info": {"type": "pv", "name": "demo", "uuid": "u-u", "domid": 5},
    "b_info": {
        "max_vcpus": 2,
        "max_memkb": 131072,
        "target_memkb": 131072,
        "type.pv": {},
        "kernel": "/boot/vmlinuz",
        "cmdline": "console=hvc0 x='1'",
    },
    "disks": [
        {
            "pdev_path": "/dev/vg0/a,b",
            "vdev": "xvda",
            "backend": "phy",
            "format": "raw",
            "readwrite": 1,
        }
    ],
    "on_reboot": "restart",
}


def test_a_configuration_is_found_in_what_xl_lists() -> None:
    assert xenconfig.parse("demo", json.dumps([{"domid": 5, "config": CONFIG}])) == CONFIG
    for text in ("", "[]", "{}", '[{"config": 1}]', '[{"config": {"c_info": 1}}]'):
        with pytest.raises(DomainRefused):
            xenconfig.parse("demo", text)


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


def test_a_configuration_is_told_to_xl() -> None:
    lines = xencfg.tell("demo", CONFIG).splitlines()
    assert 'name = "demo"' in lines and "memory = 128" in lines and "vcpus = 2" in lines
    assert "cmdline = \"console=hvc0 x='1'\"" in lines
    assert 'on_reboot = "restart"' in lines
    assert any(line.endswith('target=/dev/vg0/a,b"]') for line in lines)


@pytest.mark.parametrize(
    ("backend", "told"),
    [("phy", ["backendtype=phy"]), ("qdisk", ["backendtype=qdisk"]), (None, [])],
)
def test_who_serves_a_drive_is_told_where_it_is_known(backend: str | None, told: list[str]) -> None:
    """libxl leaves it open for drives it chose for itself, and takes no qcow2 for the kernel's."""
    config = json.loads(json.dumps(CONFIG))
    config["disks"] = [{"pdev_path": "/srv/a.qcow2", "vdev": "xvdb", "format": "qcow2"}]
    if backend:
        config["disks"][0]["backend"] = backend
    (line,) = (line for line in xencfg.tell("demo", config).splitlines() if "disk" in line)
    assert [word for word in line.split(",") if word.startswith("backendtype")] == told


def test_what_cannot_be_told_is_refused() -> None:
    told = ((("b_info", "numa_nodes"), [1]), (("unheard",), 1), (("channels",), [{"name": "a"}]))
    for path, value in told:
        config = json.loads(json.dumps(CONFIG))
        place = config
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(DomainRefused, match=path[-1]):
            xencfg.tell("demo", config)


def test_vcpus_shares_and_mtu_are_told_to_xl() -> None:
    """A guest with two of eight vCPUs online, capped, would boot with eight and without its cap."""
    config = json.loads(json.dumps(CONFIG))
    shares = {"sched": "credit2", "weight": 512, "cap": 50}
    config["b_info"] |= {"max_vcpus": 8, "avail_vcpus": [0, 1], "sched_params": shares}
    config["nics"] = [{"mac": "00:16:3e:00:00:01", "bridge": "br0", "mtu": 9000, "devid": 0}]
    lines = xencfg.tell("demo", config).splitlines()
    assert {"vcpus = 2", "maxvcpus = 8", "cpu_weight = 512", "cap = 50"} <= set(lines)
    assert any("mtu=9000" in line for line in lines)
    config["b_info"]["sched_params"]["budget"] = 4000
    with pytest.raises(DomainRefused, match="budget"):
        xencfg.tell("demo", config)


def told(**changed: Any) -> list[str]:
    """Tell a configuration of which places are changed."""
    config = json.loads(json.dumps(CONFIG))
    for place, values in changed.items():
        config[place] = {**config[place], **values} if isinstance(values, dict) else values
    config = xenconfig.parse("demo", json.dumps([{"config": config}]))
    return xencfg.tell("demo", config).splitlines()


def test_where_it_may_run_is_told_to_xl() -> None:
    """A pinned domain could be taken back by hand alone, by `snapvm undo` too."""
    lines = told(
        b_info={
            "max_vcpus": 2,
            "vcpu_hard_affinity": [[0], [2, 3]],
            "vcpu_soft_affinity": [[1], [1]],
            "numa_placement": "False",
        },
        c_info={"pool_name": "fast", "poolid": 3},
    )
    assert {'cpus = ["0", "2,3"]', 'cpus_soft = ["1", "1"]', 'pool = "fast"'} <= set(lines)
    with pytest.raises(DomainRefused, match="vcpu_hard_affinity"):
        told(b_info={"vcpu_hard_affinity": [[0], []]})
    with pytest.raises(DomainRefused, match="poolid"):
        told(c_info={"poolid": 3})


def test_clock_and_boot_loader_are_told_to_xl() -> None:
    """The first two were left out in silence."""
    lines = told(
        b_info={
            "disable_migrate": "True",
            "rtc_timeoffset": 3600,
            "localtime": "True",
            "tsc_mode": "native",
            "bootloader_args": ["--kernel=/vmlinuz", "-q"],
        }
    )
    assert {"nomigrate = 1", 'rtc_timeoffset = "3600"', "localtime = 1"} <= set(lines)
    assert {'tsc_mode = "native"', 'bootloader_args = ["--kernel=/vmlinuz", "-q"]'} <= set(lines)
    assert not [line for line in told(b_info={"disable_migrate": "False"}) if "nomig" in line]


@pytest.mark.parametrize(("allowed", "interval"), [(62500, 50000), (1, 50000), (7, 3), (9999, 0)])
def test_how_fast_a_nic_may_be_is_told_to_xl(allowed: int, interval: int) -> None:
    nic = {"mac": "00:16:3e:00:00:01", "rate_bytes_per_interval": allowed}
    (line,) = (
        line
        for line in told(nics=[nic | ({"rate_interval_usecs": interval} if interval else {})])
        if line.startswith("vif")
    )
    found = re.search(r"rate=(\d+)B/s@(\d+)us", line)
    assert found is not None
    a_second, usecs = int(found[1]), int(found[2])
    assert usecs == (interval or 50000)
    assert a_second * usecs // 1_000_000 == allowed  # libxlu_vif.c, xlu_vif_parse_rate


def test_a_driver_domain_is_told_by_its_name() -> None:
    nic = {"mac": "00:16:3e:00:00:01", "backend_domid": 3, "backend_domname": "net"}
    assert any("backend=net" in line for line in told(nics=[nic]))
    with pytest.raises(DomainRefused, match="backend_domid"):
        told(nics=[{"backend_domid": 3}])


def test_a_frame_buffer_is_told_to_xl() -> None:
    vnc = {"enable": "True", "listen": "127.0.0.1", "display": 2, "findunused": "False"}
    screen = {"devid": 0, "vnc": vnc, "sdl": {"enable": "False"}, "keymap": "de"}
    (line,) = (line for line in told(vfbs=[screen], vkbs=[{"devid": 0}]) if "vfb" in line)
    words = "vnc=1,vnclisten=127.0.0.1,vncdisplay=2,vncunused=0,sdl=0,keymap=de"
    assert line == f'vfb = ["{words}"]'
    refused: tuple[dict[str, Any], ...] = (
        {"vfbs": [screen], "vkbs": [{}, {}]},
        {"vfbs": [screen], "vkbs": [{"backend_type": "qemu", "feature_multi_touch": True}]},
        {"vfbs": [screen], "vkbs": [{"backend_type": "linux"}]},
        {"vfbs": [{"vnc": {"passwd": "a,b"}}]},
        {"vfbs": [{"backend_domid": 3}]},
    )
    for changed in refused:
        with pytest.raises(DomainRefused, match="cannot be told"):
            told(**changed)


def test_passed_through_devices_are_named() -> None:
    assert xenconfig.passthrough(CONFIG) == ""
    assert xenconfig.passthrough(CONFIG | {"pcidevs": [{}]}) == "a PCI device"
    # Such a domain was captured, and came back without its device's memory.
    memory = {**CONFIG["b_info"], "iomem": [{"start": 0xFE000, "number": 1}]}
    assert xenconfig.passthrough(CONFIG | {"b_info": memory}) == "a device's memory"
    nodes = {**CONFIG["b_info"], "vnuma_nodes": [{"memkb": 65536}]}
    assert xenconfig.passthrough(CONFIG | {"b_info": nodes}) == "virtual NUMA nodes"
