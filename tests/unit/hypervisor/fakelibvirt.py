"""A libvirt with one domain, as far as the driver asks it before a rollback."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from snapvm.model import Domain, DomainState, DomainUuid, HypervisorKind

IMAGE = Path("/images/my memory.save")


OFF = Domain(
    name="my web",
    uuid=DomainUuid("11111111-2222-3333-4444-555555555555"),
    hypervisor=HypervisorKind.LIBVIRT,
    state=DomainState.SHUTOFF,
    memory_bytes=1 << 20,
    vcpus=1,
    definition="<domain><devices/></domain>",
)


class libvirtError(Exception):  # noqa: N801 - libvirt's own name
    """With a code of virErrorNumber; 1 is an internal error."""

    def __init__(self, said: str, code: int = 1) -> None:
        super().__init__(said)
        self.code = code

    def get_error_message(self) -> str:
        return str(self)

    def get_error_code(self) -> int:
        return self.code


LIBVIRT = SimpleNamespace(libvirtError=libvirtError)
"""What stands for the module."""


@dataclass
class Startable:
    """A network or a storage pool that is defined, and may be started."""

    is_active: bool
    volumes: frozenset[str] = frozenset({"d0"})
    """Of a pool."""

    def storageVolLookupByName(self, name: str) -> str:  # noqa: N802 - libvirt's own name
        if name not in self.volumes:
            raise libvirtError(f"Storage volume not found: no storage vol named '{name}'", 50)
        return name

    def isActive(self) -> int:  # noqa: N802 - libvirt's own name
        return int(self.is_active)


@dataclass
class Secret:
    """A secret: one that is ephemeral has no value after a boot, one that is private tells none."""

    uuid: str
    kind: int = 1
    usage: str = ""
    fails: int = 0
    """With which code it tells no value."""

    def value(self) -> bytes:
        if self.fails:
            raise libvirtError(f"secret '{self.uuid}' does not have a value", self.fails)
        return b"open sesame"


EMULATOR = "/usr/bin/qemu-system-x86_64"


@dataclass
class Connection:
    """A libvirt with one domain, or none; the one that is there may have been saved."""

    is_saved: bool = False
    is_known: bool = True
    is_persistent: bool = True
    job: int = 0
    """What libvirt does with it: 2 is something of which nobody knows how long it takes, and -1 a
    migration from another host."""
    definition: str = OFF.definition
    """Of the image, and what is defined."""
    asked: list[str] = field(default_factory=list)
    machines: frozenset[tuple[str, str]] = frozenset({("kvm", "pc-q35-10.0"), ("qemu", "pc")})
    networks: dict[str, bool] = field(default_factory=dict)
    """Those that are defined, and whether they are active."""
    pools: dict[str, bool] = field(default_factory=dict)
    """The same of storage pools."""
    filters: frozenset[str] = frozenset({"clean-traffic"})
    """Of networks."""
    secrets: tuple[Secret, ...] = ()
    screens: tuple[str, ...] = ("vnc", "dbus")
    labels: tuple[str, ...] = ("apparmor", "dac")
    """By what it keeps domains apart."""
    features: frozenset[str] = frozenset()
    """Of the processor that there is."""
    version: int = 11_003_000
    fails: int = 0
    """With which code whatever is asked for by a name, or about emulators; 0: it does not."""

    def lookupByUUIDString(self, uuid: str) -> Connection:  # noqa: N802 - libvirt's own name
        assert uuid == OFF.uuid
        if not self.is_known:
            raise libvirtError("Domain not found", 42)
        return self

    def getLibVersion(self) -> int:  # noqa: N802 - libvirt's own name
        self._fail()
        return self.version

    def isPersistent(self) -> int:  # noqa: N802 - libvirt's own name
        return int(self.is_persistent)

    def jobInfo(self) -> list[int]:  # noqa: N802 - libvirt's own name
        if self.job < 0:
            said = "migration statistics are available only on the source host"
            raise libvirtError(f"Operation not supported: {said}", 84)
        return [self.job]

    def getDomainCapabilities(  # noqa: N802 - libvirt's own name
        self, emulator: str | None, arch: str | None, machine: str | None, kind: str, flags: int
    ) -> str:
        assert (arch, flags) == ("x86_64", 0)
        self._fail()
        if emulator not in (None, EMULATOR):
            raise libvirtError(f"Cannot check QEMU binary {emulator}: No such file", 38)
        if machine and (kind, machine) not in self.machines:
            raise libvirtError(f"the machine '{machine}' is not supported by emulator", 8)
        values = "".join(f"<value>{screen}</value>" for screen in self.screens)
        listed = f"<graphics><enum name='type'>{values}</enum></graphics>"
        return f"<domainCapabilities><devices>{listed}</devices></domainCapabilities>"

    def getCapabilities(self) -> str:  # noqa: N802 - libvirt's own name
        self._fail()
        models = "".join(f"<secmodel><model>{each}</model></secmodel>" for each in self.labels)
        return f"<capabilities><host>{models}</host></capabilities>"

    def compareHypervisorCPU(  # noqa: N802 - libvirt's own name
        self, emulator: str, arch: str, machine: str, kind: str, cpu: str, flags: int
    ) -> int:
        assert (emulator, arch, machine, kind) == (EMULATOR, "x86_64", "pc-q35-10.0", "kvm")
        assert flags == 1, "not told what is missing"
        self._fail()
        wanted = set(re.findall(r"name=.(\w+). policy=.require", cpu))
        if wanted - self.features:
            missing = ",".join(sorted(wanted - self.features))
            raise libvirtError(f"the CPU is incompatible with host CPU: {missing}", 91)
        return 2

    def networkLookupByName(self, name: str) -> Startable:  # noqa: N802 - libvirt's own name
        self._fail()
        if name not in self.networks:
            raise libvirtError(f"Network not found: no network with matching name '{name}'", 43)
        return Startable(self.networks[name])

    def storagePoolLookupByName(self, name: str) -> Startable:  # noqa: N802 - libvirt's own name
        self._fail()
        if name not in self.pools:
            raise libvirtError(f"Storage pool not found: no pool with matching name '{name}'", 49)
        return Startable(self.pools[name])

    def nwfilterLookupByName(self, name: str) -> str:  # noqa: N802 - libvirt's own name
        self._fail()
        if name not in self.filters:
            raise libvirtError(f"Network filter not found: no nwfilter named '{name}'", 62)
        return name

    def secretLookupByUUIDString(self, uuid: str) -> Secret:  # noqa: N802 - libvirt's own name
        return self._secret(lambda secret: secret.uuid == uuid, f"uuid '{uuid}'")

    def secretLookupByUsage(  # noqa: N802 - libvirt's own name
        self, kind: int, usage: str
    ) -> Secret:
        return self._secret(lambda secret: (secret.kind, secret.usage) == (kind, usage), usage)

    def _secret(self, is_it: Callable[[Secret], bool], said: str) -> Secret:
        self._fail()
        for secret in self.secrets:
            if is_it(secret):
                return secret
        raise libvirtError(f"Secret not found: no secret with matching {said}", 66)

    def _fail(self) -> None:
        if self.fails:
            raise libvirtError(
                "this function is not supported by the connection driver", self.fails
            )

    def hasManagedSaveImage(self, flags: int) -> int:  # noqa: N802 - libvirt's own name
        assert flags == 0
        return int(self.is_saved)

    def saveImageGetXMLDesc(self, path: str, _flags: int) -> str:  # noqa: N802 - libvirt's own name
        self.asked.append(path)
        return self.definition

    def XMLDesc(self, flags: int) -> str:  # noqa: N802 - libvirt's own name
        assert flags == 2, "not what the next start is from"
        return self.definition
