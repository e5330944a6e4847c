"""A configuration told again to xl: nothing is left out in silence."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from snapvm.hypervisor import xencfg, xenconfig
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.xlconfig import CONFIG


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
        with pytest.raises(DomainRefused, match=path[-1]) as refused:
            xencfg.tell("demo", config)
        assert "shut it off first" in refused.value.hint()


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
    assert "nomigrate = 0" in told(b_info={"disable_migrate": "False"})


def test_how_libvirt_has_a_boot_loader_called_is_told_to_xl() -> None:
    """It has it in the former place (libxl_conf.c, libxlMakeDomBuildInfo): `undo` was refused."""
    own = {"bootloader": "pygrub", "bootloader_args": ["-q"]}
    lines = told(b_info={"type.pv": own})
    assert {'bootloader = "pygrub"', 'bootloader_args = ["-q"]'} <= set(lines)


def test_whom_a_guest_does_not_trust_is_told_to_xl() -> None:
    """It was left out in silence; and a disk that is safe for direct I/O could not be told."""
    (disk,) = CONFIG["disks"]
    nic = {"mac": "00:16:3e:00:00:01", "bridge": "br0"}
    words = {"direct_io_safe": [False, True], "trusted": ["False", "True"]}
    for is_safe, trusted in zip(*words.values(), strict=True):
        lines = told(
            disks=[{**disk, "direct_io_safe": is_safe, "trusted": trusted}],
            nics=[{**nic, "trusted": trusted}],
        )
        (disk_line,) = (line for line in lines if line.startswith("disk"))
        (nic_line,) = (line for line in lines if line.startswith("vif"))
        assert (",direct-io-safe," in disk_line) is is_safe
        assert {",untrusted," in disk_line, ",untrusted" in nic_line} == {trusted == "False"}


@pytest.mark.parametrize(("value", "number"), [("True", 1), ("False", 0)])
def test_how_a_boot_loader_is_confined_is_told_to_xl(value: str, number: int) -> None:
    """Its disks alone could be taken back by hand only."""
    lines = told(b_info={"bootloader_restrict": value, "bootloader_user": "xen-loader"})
    assert {f"bootloader_restrict = {number}", 'bootloader_user = "xen-loader"'} <= set(lines)
    assert not [line for line in told() if "bootloader" in line]


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


def test_a_very_fast_nic_is_told_to_xl() -> None:
    """xl takes no number of more than 32 bits: the domain was ended, and not started again."""
    forty_gbit = {"mac": "00:16:3e:00:00:01", "rate_bytes_per_interval": 250_000_000}
    assert any("rate=5000000KB/s@50000us" in line for line in told(nics=[forty_gbit]))


def test_a_vlan_is_told_to_xl() -> None:
    """xl has it since Xen 4.19; an `undo` was refused."""
    nic = {"mac": "00:16:3e:00:00:01", "bridge": "br0", "vlan": "10/20p"}
    assert any("vlan=10/20p" in line for line in told(nics=[nic]))


def test_the_number_of_a_nic_is_told_to_xl() -> None:
    """When another had been detached it came back with that one's, by which a guest may name it."""
    macs = [{"mac": f"00:16:3e:00:00:0{n}"} for n in range(3)]
    for numbers, words in (
        ((0, 1, 2), ["", "", ""]),
        ((1, 0, 5), ["devid=1,", "devid=0,", "devid=5,"]),
    ):
        nics = [{**mac, "devid": n} for mac, n in zip(macs, numbers, strict=True)]
        (line,) = (line for line in told(nics=nics) if line.startswith("vif"))
        expected = [f'"{word}mac={mac["mac"]}"' for word, mac in zip(words, macs, strict=True)]
        assert line == f"vif = [{', '.join(expected)}]"


def test_a_driver_domain_is_told_by_its_name() -> None:
    nic = {"mac": "00:16:3e:00:00:01", "backend_domid": 3, "backend_domname": "net"}
    assert any("backend=net" in line for line in told(nics=[nic]))
    with pytest.raises(DomainRefused, match="backend_domid"):
        told(nics=[{"backend_domid": 3}])


def test_who_sets_a_drive_up_is_told_to_xl() -> None:
    """As of an ISO image that a storage domain or iSCSI has; an `undo` was refused."""
    (disk,) = CONFIG["disks"]
    iso = {"pdev_path": "iqn=a,b", "vdev": "xvdc", "format": "raw", "is_cdrom": 1}
    served = {"backend_domid": 3, "backend_domname": "storage"}
    (line,) = (
        line
        for line in told(disks=[disk, iso | served, iso | {"script": "block-iscsi"}])
        if line.startswith("disk")
    )
    assert ["backend=storage" in each for each in line.split('", "')] == [False, True, False]
    assert ["script=block-iscsi" in each for each in line.split('", "')] == [False, False, True]
    with pytest.raises(DomainRefused, match="backend_domid"):
        told(disks=[disk, iso | {"backend_domid": 3}])


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
        {"vfbs": [{"vnc": {"passwd": "geheim\n"}}]},
        {"vfbs": [{"backend_domid": 3}]},
    )
    for changed in refused:
        with pytest.raises(DomainRefused, match="cannot be passed") as refusal:
            told(**changed)
        assert "geheim" not in str(refusal.value)  # it is logged, and mailed by cron


@pytest.mark.parametrize(
    ("cmdline", "line"),
    [
        (r"match=a\.b sep=\n", r'cmdline = "match=a\\.b sep=\\n"'),
        ("""dyndbg="file a.c +p" x='1'""", r'''cmdline = "dyndbg=\"file a.c +p\" x='1'"'''),
        ("ends\\", r'cmdline = "ends\\"'),
    ],
)
def test_a_text_is_told_with_the_escapes_of_xl(cmdline: str, line: str) -> None:
    r"""xl took `\n` for a new line, and refused `\.` when the domain had been ended; a text with
    both kinds of quotes was refused."""
    assert line in told(b_info={"cmdline": cmdline})
    with pytest.raises(DomainRefused, match="cannot be passed"):
        told(b_info={"cmdline": "two\nlines"})


def test_a_python_that_was_built_upon_an_old_glibc_tells_xl_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rollback to disks alone had ended the domain, and was a bug then, with uv's Python."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    with xencfg.in_memory("name = 'demo'\n") as path:
        assert Path(path).is_file() and Path(path).read_text() == "name = 'demo'\n"
    assert not Path(path).exists()
