"""What will restore a domain's memory: which libvirt, and its own QEMU or one of the domain's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm import compression
from snapvm.hypervisor import libvirtlink, qmp
from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.model import Domain, DomainState
from snapvm.refusals import DomainRefused
from snapvm.settings import Settings
from tests.unit.hypervisor.fakelibvirt import LIBVIRT, OFF, Connection, libvirtError

OWN = {"major": 11, "minor": 0, "micro": 1}


@dataclass
class Versions:
    """A libvirt and its QEMU, which it may not find."""

    default: Path | None

    def getLibVersion(self) -> int:  # noqa: N802 - libvirt's own name
        return 11_003_000

    def getVersion(self) -> int:  # noqa: N802 - libvirt's own name
        if self.default is None:
            raise libvirtError("Cannot find suitable emulator for x86_64")
        return 10_000_013

    def getDomainCapabilities(  # noqa: N802 - libvirt's own name
        self, emulator: None, arch: str, machine: None, kind: str, flags: int
    ) -> str:
        assert (emulator, arch, machine, kind, flags) == (None, "x86_64", None, "kvm", 0)
        if self.default is None:
            raise libvirtError("unable to find any emulator to serve 'x86_64' architecture")
        return f"<domainCapabilities><path>{self.default}</path></domainCapabilities>"


@dataclass
class Qemu:
    """The QEMU of the domain, as it runs."""

    is_gone: bool = False

    def qemuMonitorCommand(  # noqa: N802 - libvirt's own name
        self, _handle: object, line: str, _flags: int
    ) -> str:
        assert json.loads(line)["execute"] == "query-version"
        if self.is_gone:
            raise libvirtError("domain is not running", 55)
        return json.dumps({"return": {"qemu": OWN, "package": ""}})


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str | None]:
    """A function that tells the version of a domain's QEMU, by its name.

    There are two, and a link that leads to libvirt's own.
    """
    monkeypatch.setattr(libvirtlink, "libvirt", LIBVIRT)
    monkeypatch.setattr(qmp, "libvirt_qemu", Qemu())
    for name in ("default", "own"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("default")

    def version(
        name: str, *, default: str | None = "default", state: DomainState = DomainState.RUNNING
    ) -> str | None:
        emulator = f"<emulator>{tmp_path / name}</emulator>" if name else ""
        running: Domain = replace(
            OFF,
            state=state,
            definition="<domain type='kvm'><os><type arch='x86_64' machine='pc'>hvm</type></os>"
            f"<devices>{emulator}</devices></domain>",
        )
        connection = Versions(tmp_path / default if default else None)
        link: Any = SimpleNamespace(connection=connection, domain=lambda _uuid: object())
        found = LibvirtHypervisor(link, Settings()).versions(running)
        assert found["libvirt"] == "11.3.0"
        return found.get("qemu")

    return version


def test_a_domain_with_a_qemu_of_its_own_goes_by_that(told: Callable[..., str | None]) -> None:
    """A plain image was made for QEMU 11, which no libvirt before 12.1 restores with it: a rollback
    ended the domain, and its memory was lost."""
    assert told("own") == "11.0.1"
    assert told("own", default=None) == "11.0.1"


def test_any_other_goes_by_what_libvirt_will_start(told: Callable[..., str | None]) -> None:
    """The process may be older than the program, which was upgraded meanwhile."""
    for name in ("default", "link", ""):
        assert told(name) == "10.0.13"
    assert told("own", state=DomainState.SHUTOFF) == "10.0.13"
    assert told("own", default=None, state=DomainState.SHUTOFF) is None


def test_one_that_has_gone_meanwhile_keeps_nothing_from_working(
    monkeypatch: pytest.MonkeyPatch, told: Callable[..., str | None]
) -> None:
    monkeypatch.setattr(qmp, "libvirt_qemu", Qemu(is_gone=True))
    assert told("own") == "10.0.13"


@pytest.mark.parametrize(("libvirt", "reads"), [(10_005_000, False), (10_006_000, True)])
def test_what_zstd_has_compressed_is_read_since_10_6(
    connection: Connection, driver: LibvirtHypervisor, libvirt: int, *, reads: bool
) -> None:
    """That of Red Hat 9 (10.10) was refused."""
    vars(driver)["_settings"] = Settings(compress=compression.parse("zstd"))
    connection.version = libvirt
    running = replace(OFF, state=DomainState.RUNNING)
    if reads:
        driver.check_capture(running, with_memory=True)
    else:
        with pytest.raises(DomainRefused, match="compressed by zstd"):
            driver.check_capture(running, with_memory=True)
