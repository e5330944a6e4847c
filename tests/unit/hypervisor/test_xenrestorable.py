"""What a Xen domain needs to be started is looked for before its present one is ended."""

from __future__ import annotations

import json
import re
import socket
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapvm.hypervisor import xenbridges, xenconfig, xensaved
from snapvm.model import DomainState
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.fakexen import CONFIG, RUNNING, STORED, Scene

IMAGE = Path("/image")


def refusing(why: str) -> AbstractContextManager[object]:
    """Expect a refusal with such a reason, or none when that is empty."""
    return pytest.raises(DomainRefused, match=why) if why else nullcontext()


@pytest.mark.parametrize(
    ("place", "file", "remedy"),
    [("XENDOMAINS", "web", "rm /"), ("LIBVIRT", "web.save", "virsh managedsave-remove web")],
)
def test_one_that_is_saved_for_its_next_start_does_not_go_back(
    scene: Scene,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    file: str,
    remedy: str,
) -> None:
    """The next boot of the host restored that memory upon the disks that had gone back."""
    _, driver = scene
    running = driver.find("web")
    off = replace(running, state=DomainState.SHUTOFF)
    monkeypatch.setattr(xensaved, place, tmp_path)
    driver.check_restore(off, IMAGE, cookie=STORED)
    (tmp_path / file).touch()
    # What is kept fits the disks of one that runs no more in any case.
    driver.check_restore(running, IMAGE, cookie=STORED)
    for image in (IMAGE, None):
        with pytest.raises(DomainRefused, match=f"its memory is kept for .*{tmp_path}") as refused:
            driver.check_restore(off, image, cookie=STORED)
        assert remedy in refused.value.hint()
    driver.check_restore(replace(off, name="w" * 255), IMAGE, cookie=STORED)


@pytest.mark.parametrize(
    ("line", "is_its"),
    [
        ("XENDOMAINS_SAVE={}", True),
        ('XENDOMAINS_SAVE="{}"', True),
        ("export XENDOMAINS_SAVE={}", True),
        ("XENDOMAINS_SAVE='{}'\nXENDOMAINS_RESTORE=true", True),
        ("#XENDOMAINS_SAVE={}", False),
        ('XENDOMAINS_SAVE=""', False),
    ],
)
def test_where_xendomains_saves_is_set_by_the_administrator(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, *, is_its: bool
) -> None:
    _, driver = scene
    off = replace(driver.find("web"), state=DomainState.SHUTOFF)
    settings, saved = tmp_path / "xendomains", tmp_path / "saved"
    saved.mkdir()
    (saved / "web").touch()
    settings.write_text("XENDOMAINS_SYSRQ=\n" + line.format(saved) + "\n")
    monkeypatch.setattr(xensaved, "SETTINGS", (tmp_path / "none", settings))
    with refusing(f"xendomains.*{saved}" if is_its else ""):
        driver.check_restore(off, IMAGE, cookie=STORED)


def drive(path: str, **others: object) -> dict[str, object]:
    return {"vdev": "xvdz", "format": "raw", "pdev_path": path, **others}


@pytest.mark.parametrize(
    ("what", "place", "is_for_boots"),
    [
        ("drive xvdz", {"disks": [drive("/gone/a.iso", is_cdrom=1, readwrite=1)]}, False),
        ("drive xvdz", {"disks": [drive("/gone/a.img")]}, False),
        ("script of the network interface [?]", {"nics": [{"script": "/gone/vif.sh"}]}, False),
        ("kernel", {"b_info": {"kernel": "/gone/vmlinuz"}}, True),
        ("ramdisk", {"b_info": {"type.pv": {"ramdisk": "/gone/initrd"}}}, True),
        ("bootloader", {"b_info": {"bootloader": "/gone/pygrub"}}, True),
    ],
)
def test_nothing_is_ended_for_a_start_that_would_miss_a_file(
    scene: Scene, what: str, place: dict[str, Any], is_for_boots: bool
) -> None:
    """`xl restore` finds out when the domain that was there is gone; a kernel it does not open."""
    _, driver = scene
    stored = json.dumps({**CONFIG, **place})
    definition = f'[{{"config": {stored}}}]'
    domain = replace(driver.find("web"), definition=definition)
    with pytest.raises(DomainRefused, match=rf"its {what} is not there \(/gone/") as refused:
        driver.check_restore(domain, None)
    assert refused.value.hint() == "put it back"
    driver.check_restore(domain, None, starts=False)
    with refusing("is not there" if not is_for_boots else ""):
        driver.check_restore(domain, IMAGE, cookie=stored)
    there = re.sub(r"/gone/[\w.]+", "/dev/null", definition)
    driver.check_restore(replace(domain, definition=there), None)


@pytest.mark.parametrize(("key", "what"), [("kernel", "kernel"), ("device_model", "device model")])
def test_the_qemu_of_an_hvm_domain_opens_more(scene: Scene, key: str, what: str) -> None:
    """It is given the kernel even when the domain is restored, and ends without it."""
    _, driver = scene
    hvm = {**CONFIG, "c_info": {**CONFIG["c_info"], "type": "hvm"}}
    domain = driver.find("web")
    for path, words in (("/gone/it", rf"its {what} is not there"), ("/dev/null", "")):
        with refusing(words):
            driver.check_restore(domain, IMAGE, cookie=json.dumps({**hvm, "b_info": {key: path}}))


def test_some_drives_are_not_looked_for(scene: Scene) -> None:
    """The disks are looked at elsewhere, and others are not this domain's to open."""
    _, driver = scene
    disks = [
        drive("/gone/d0", readwrite=1),
        drive("", is_cdrom=1, format="empty"),
        drive("pool/image"),
    ]
    definition = json.dumps([{"config": {**CONFIG, "disks": disks}}])
    driver.check_restore(replace(driver.find("web"), definition=definition), None)
    served = {"disks": [drive("/gone/a", backend_domname="storage"), drive("/gone/b", script="x")]}
    assert not list(xenconfig.start_files({**CONFIG, **served}, boots=True))
    # Since Xen 4.19, when the guest had rebooted: the file was of a run of the domain before.
    empty = {"disks": [drive("/run/xen/empty-cdrom.4", format="empty")]}
    assert not list(xenconfig.start_files({**CONFIG, **empty}, boots=True))


GONE_BRIDGE = {"mac": "00:16:3e:00:00:01", "bridge": "xenbr-gone", "script": "vif-bridge"}


@pytest.mark.parametrize(
    ("changes", "is_refused"),
    [
        ({}, True),
        ({"script": "/etc/xen/scripts/vif-bridge", "bridge": "longer-than-any-name"}, True),
        ({"bridge": "lo"}, False),
        ({"bridge": "lo", "script": ""}, False),
        ({"script": ""}, True),
        ({"bridge": ""}, False),  # xenbr0, for which eth0 will do
        ({"bridge": "xenbr7"}, False),
        ({"bridge": "7"}, True),
        ({"bridge": "xenbr8"}, True),
        ({"script": "/etc/xen/scripts/vif-openvswitch"}, False),
        ({"backend_domname": "net"}, False),
    ],
    ids=str,
)
def test_nothing_is_ended_for_a_start_without_its_bridge(
    scene: Scene,
    changes: dict[str, Any],
    is_refused: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bridges were renamed since the snapshot: the domain was ended, and then not restored.

    It was so where its configuration names no script, as few do: then libxl does not tell of one.
    """
    xen, driver = scene
    xen.info_of[7] = replace(RUNNING, domid=7, uuid="7")
    xen.store.values["/local/domain/7/name"] = "net"
    monkeypatch.setattr(xenbridges, "INTERFACES", tmp_path)
    for name in ("eth0", "eth7"):
        (tmp_path / name / "bridge").mkdir(parents=True)
    for script in ("vif-bridge", "vif-openvswitch"):
        (tmp_path / script).touch()
    config = {**CONFIG, "nics": [{**GONE_BRIDGE, **changes}]}
    stored = json.dumps(config).replace("/etc/xen/scripts", str(tmp_path))
    domain = replace(driver.find("web"), definition=f'[{{"config": {stored}}}]')
    why = r"bridge .* of its network interface 00:16:3e" if is_refused else ""
    for image in (IMAGE, None):
        with refusing(why):
            driver.check_restore(domain, image, cookie=stored)
    driver.check_restore(domain, None, starts=False)


IN_USE, NOT_HERE = "something else is listening there", "this host has no such address"


@pytest.mark.parametrize(
    ("vnc", "why"),
    [
        ({}, IN_USE),
        ({"enable": "True", "listen": "127.0.0.1"}, IN_USE),
        ({"listen": "127.0.0.1:DISPLAY", "display": 0}, IN_USE),
        ({"listen": "192.0.2.1"}, NOT_HERE),
        ({"enable": "False"}, ""),
        ({"findunused": "True"}, ""),
        ({"listen": "somewhere"}, ""),
        ({"display": "first"}, ""),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_hvm", [False, True], ids=["pv", "hvm"])
def test_nothing_is_ended_for_a_start_without_the_port_of_its_screen(
    scene: Scene, vnc: dict[str, object], why: str, *, is_hvm: bool
) -> None:
    """After a boot of the host libvirt had given the port of then to another domain."""
    xen, driver = scene
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        screen = {"vnc": {"display": port - 5900, "findunused": "False", **vnc}}
        changes: dict[str, Any] = {"vfbs": [screen]}
        if is_hvm:
            c_info = {**CONFIG["c_info"], "type": "hvm"}
            changes = {"c_info": c_info, "b_info": {**CONFIG["b_info"], "type.hvm": screen}}
        config = json.dumps({**CONFIG, **changes}).replace("DISPLAY", str(port - 5900))
        with refusing(why and f"listen on .* port {port}, and {why}"):
            driver.check_restore(driver.find("web"), IMAGE, cookie=config)
        # Its own QEMU listens there, and ends with it.
        xen.store.values["/local/domain/5/console/vnc-port"] = str(port)
        with refusing(why if why is NOT_HERE else ""):
            driver.check_restore(driver.find("web"), IMAGE, cookie=config)


POOLS = {"/local/pool/0/name": "Pool-0", "/local/pool/3/name": "fast"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"c_info": {**CONFIG["c_info"], "pool_name": "fast"}}, ""),
        ({"c_info": {**CONFIG["c_info"], "pool_name": "3"}}, ""),
        ({"c_info": {**CONFIG["c_info"], "pool_name": "slow"}}, "its CPU pool slow is not there"),
        ({"nics": [{"backend_domname": "net"}]}, ""),
        ({"nics": [{"backend_domname": "7"}]}, ""),
        ({"nics": [{"backend_domname": "0"}]}, ""),
        ({"nics": [{"backend_domname": "6"}]}, "domain 6, which serves a device of it"),
        ({"nics": [{"backend_domname": "firewall"}]}, "firewall, which serves a device of it"),
        ({"vfbs": [{"backend_domname": "screens"}]}, "screens, which serves a device of it"),
    ],
)
def test_nothing_is_ended_for_a_start_without_its_pool_or_a_server(
    scene: Scene, changes: dict[str, Any], why: str
) -> None:
    """It had been moved out of a pool that was given up; its driver domain was just restarted."""
    xen, driver = scene
    xen.store.values |= POOLS
    xen.info_of |= {domid: replace(RUNNING, domid=domid, uuid=str(domid)) for domid in (0, 7)}
    xen.store.values["/local/domain/7/name"] = "net"
    config = {**CONFIG, **changes}
    with refusing(why):
        driver.check_restore(driver.find("web"), IMAGE, cookie=json.dumps(config))


@pytest.mark.parametrize(
    ("pool", "pinned", "why"),
    [
        (None, [[0, 1], [2]], ""),
        (None, [[], [4]], ""),
        (None, [[0], [3, 1]], "its vCPU 1 is pinned to processors 1,3, and CPU pool Pool-0 has"),
        ("a pool of 19 letter", [[8]], ""),
        ("a pool of 19 letter", [[0]], r"a pool of 19 letter has none of them now \(8\)"),
        ("1", [[9]], ""),
        ("empty", [[9]], ""),
    ],
)
def test_nothing_is_ended_for_a_start_on_processors_that_are_gone(
    scene: Scene, pool: str | None, pinned: list[list[int]], why: str
) -> None:
    """With `smt=0` since its take: "setting affinity failed on vcpu", when the domain had ended."""
    xen, driver = scene
    xen.store.values |= {f"/local/pool/{n}/name": name for n, name in enumerate(xen.pools)}
    config = {
        **CONFIG,
        "c_info": {**CONFIG["c_info"], **({"pool_name": pool} if pool else {})},
        "b_info": {**CONFIG["b_info"], "vcpu_hard_affinity": pinned},
    }
    with refusing(why):
        driver.check_restore(driver.find("web"), IMAGE, cookie=json.dumps(config))


def test_one_that_is_pinned_to_nothing_costs_no_question(scene: Scene) -> None:
    xen, driver = scene
    driver.check_restore(driver.find("web"), IMAGE, cookie=STORED)
    assert not any(words[1] == "cpupool-list" for words in xen.ran)


def test_an_image_whose_configuration_is_not_one(scene: Scene) -> None:
    _, driver = scene
    for stored in ("[]", ""):
        with pytest.raises(DomainRefused, match="the image does not tell its configuration"):
            driver.check_restore(driver.find("web"), IMAGE, cookie=stored)
