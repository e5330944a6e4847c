"""An HVM domain is booted from disks alone, and ended only when it can be."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapvm.model import Domain, DomainState
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.fakexen import CONFIG, Scene

IMAGE = Path("/image")


def listed(own: dict[str, Any], **beside: object) -> str:
    """Return what xl tells of an HVM domain; ``own`` is in ``type.hvm``, the rest in ``b_info``."""
    c_info = {**CONFIG["c_info"], "type": "hvm"}
    b_info = {**CONFIG["b_info"], **beside, "type.hvm": own}
    return json.dumps([{"domid": 5, "config": {**CONFIG, "c_info": c_info, "b_info": b_info}}])


def stored(text: str) -> str:
    """Return the same as an image has it."""
    return json.dumps(json.loads(text)[0]["config"])


def refusing(why: str) -> AbstractContextManager[object]:
    """Expect a refusal with such a reason, or none when that is empty."""
    return pytest.raises(DomainRefused, match=why) if why else nullcontext()


@contextmanager
def listening() -> Iterator[int]:
    """Have somebody listen on a port, and yield that."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def of(scene: Scene, definition: str) -> Domain:
    """Return the scene's domain, with a configuration."""
    _, driver = scene
    return replace(driver.find("web"), definition=definition)


def test_it_is_booted_from_its_disks(scene: Scene) -> None:
    """`undo` of one was refused: only its owner could start it again."""
    xen, driver = scene
    domain = of(scene, listed({"bios": "ovmf", "vnc": {"enable": "True", "passwd": "geheim"}}))
    driver.check_restore(domain, None)
    driver.stop(domain)
    driver.start(domain, paused=False)
    assert xen.ran[-1][:3] == ["xl", "create", "-q"] and "geheim" not in str(xen.ran)
    lines = xen.texts[-1].splitlines()
    assert {'type = "hvm"', 'bios = "ovmf"', "vnc = 1", 'vncpasswd = "geheim"'} <= set(lines)


def test_it_is_not_ended_when_xl_cannot_be_told_all(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    _, driver = scene
    domain = of(scene, listed({"unheard": "False"}))
    with refusing("type.hvm unheard"):
        driver.check_restore(domain, None)
    driver.check_restore(domain, None, starts=False)
    driver.check_restore(domain, IMAGE, cookie=stored(domain.definition))
    driver.check_capture(domain, with_memory=False)
    assert "a rollback to these disks needs the domain to be off first" in caplog.text
    caplog.clear()
    driver.check_capture(of(scene, listed({"bios": "ovmf"})), with_memory=False)
    assert not caplog.text  # it was warned of each


@pytest.mark.parametrize(
    ("own", "beside", "what", "is_for_restores"),
    [
        ({"firmware": "/gone/hvmloader"}, {}, "firmware", False),
        ({"system_firmware": "/gone/OVMF.fd"}, {}, "system firmware", False),
        ({"smbios_firmware": "/gone/smbios"}, {}, "smbios firmware", False),
        ({"acpi_firmware": "/gone/acpi"}, {}, "acpi firmware", False),
        ({}, {"kernel": "/gone/vmlinuz"}, "kernel", True),
        ({}, {"device_model": "/gone/qemu"}, "device model", True),
        (
            {},
            {"device_model_stubdomain": "True", "stubdomain_kernel": "/gone/kernel"},
            "stubdomain kernel",
            True,
        ),
        ({}, {"device_model_stubdomain": "False", "stubdomain_ramdisk": "/gone/rootfs"}, "", False),
        ({"firmware": "ours"}, {}, "", False),
    ],
    ids=str,
)
def test_it_is_not_ended_for_a_start_that_would_miss_a_file(
    scene: Scene, own: dict[str, Any], beside: dict[str, Any], what: str, *, is_for_restores: bool
) -> None:
    """libxl reads firmware for a boot alone (libxl_dom.c), and those of QEMU each time."""
    _, driver = scene
    domain = of(scene, listed(own, **beside))
    why = what and f"its {what} is not there"
    with refusing(why):
        driver.check_restore(domain, None)
    with refusing(why if is_for_restores else ""):
        driver.check_restore(domain, IMAGE, cookie=stored(domain.definition))
    there = re.sub(r"/gone/[\w.]+", "/dev/null", domain.definition)
    driver.check_restore(replace(domain, definition=there), None)


def test_it_is_not_ended_for_a_boot_without_the_port_of_its_screen(scene: Scene) -> None:
    xen, driver = scene
    with listening() as port:
        vnc = {"enable": "True", "display": port - 5900, "findunused": "False"}
        domain = of(scene, listed({"vnc": vnc}))
        with refusing(f"listen on .* port {port}"):
            driver.check_restore(domain, None)
        xen.store.values["/local/domain/5/console/vnc-port"] = str(port)
        driver.check_restore(domain, None)


@pytest.mark.parametrize("key", ["port", "tls_port"])
def test_nor_without_the_ports_of_spice(scene: Scene, key: str) -> None:
    """They are always fixed, and libxl noticed when the domain had ended."""
    xen, driver = scene
    with listening() as port:
        spice = {"enable": "True", "host": "127.0.0.1", key: port}
        domain, other = of(scene, listed({"spice": spice})), of(scene, listed({}))
        for text, why in (
            (domain.definition, f"listen on 127.0.0.1 port {port}"),
            (listed({"spice": {**spice, "host": ""}}), f"listen on 0.0.0.0 port {port}"),
            (listed({"spice": {**spice, "enable": "False"}}), ""),
            (listed({"spice": spice}, device_model_stubdomain="True"), ""),
        ):
            with refusing(why):
                driver.check_restore(other, IMAGE, cookie=stored(text))
        # Its own QEMU listens there, and ends with it.
        driver.check_restore(domain, None)
        driver.check_restore(domain, IMAGE, cookie=stored(domain.definition))
        xen.info_of.clear()
        with refusing(f"port {port}"):
            driver.check_restore(replace(domain, state=DomainState.SHUTOFF), None)


def test_a_restore_does_not_need_what_xl_tells_of_the_present_domain(scene: Scene) -> None:
    _, driver = scene
    driver.check_restore(of(scene, "[]"), IMAGE, cookie=stored(listed({})))
