"""A libvirtd with the domains of the fake hypervisor, as libvirt's Python module shows it.

Every question to it may fail: ``mishap`` is asked each time.
"""

# ruff: noqa: N802 - the names are libvirt's own

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.libvirtdomain import INVALID, LibvirtDomain, LibvirtError, do
from tests.fakes.qemu import Qemu, QemuMachine

NO_DOMAIN, SYSTEM = 42, 38
"""Of virErrorNumber."""
DEFINITION = """<domain type='kvm'>
  <name>demo</name>
  <devices>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/><source dev='/dev/vg0/demo-d0'/><target dev='vda'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/><source dev='/dev/vg1/demo-d1'/><target dev='vdb'/>
    </disk>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
  </devices>
</domain>"""
_PAUSED = 4
_LOCAL = frozenset({"isAlive", "name", "UUIDString", "connect", "ID", "_o"})
"""What the module knows without asking anybody."""


@dataclass(frozen=True, kw_only=True)
class Mishap:
    """How a question fails."""

    code: int = 0
    said: str = ""
    answer: str = ""
    """What is answered in place of a failure, which is none that makes sense."""
    is_done: bool = False
    """What was asked for has been done all the same."""
    is_lost: bool = False
    """The connection is lost."""
    refuses: int = 0
    """So many attempts to connect fail before there is another libvirtd."""


class Asked:
    """An object of libvirt's module: what it does not know itself it asks the daemon."""

    def __init__(self, link: Link, real: Any) -> None:
        self._link = link
        self._real = real

    def __getattr__(self, name: str) -> Any:
        if name == "_o":
            return self
        asked = getattr(self._real, name)
        return asked if name in _LOCAL else partial(self._link.ask, name, asked)


@dataclass(eq=False)
class Link:
    """One connection, with those who listen to QEMU's events on it."""

    daemon: Libvirtd
    is_alive: bool = True
    listeners: dict[int, tuple[str, Callable[..., None]]] = field(default_factory=dict)

    def ask(self, name: str, deed: Callable[..., Any], *given: Any) -> Any:
        if not self.is_alive:
            raise LibvirtError("client socket is closed", SYSTEM)
        mishap = self.daemon.mishap(name)
        if mishap is None:
            return deed(*given)
        if mishap.is_done:
            deed(*given)
        if mishap.answer:
            return mishap.answer
        if mishap.is_lost:
            self.is_alive = False
            self.listeners.clear()
            self.daemon.refuses = mishap.refuses
        raise LibvirtError(mishap.said, mishap.code)


class Libvirtd:
    """The daemon; ``module`` and ``qemu_module`` are what Python imports."""

    def __init__(self, hypervisor: FakeHypervisor) -> None:
        self.hypervisor = hypervisor
        self.mishap: Callable[[str], Mishap | None] = lambda _name: None
        self.refuses = 0
        self._links: list[Link] = []
        self.module = SimpleNamespace(
            libvirtError=LibvirtError,
            VIR_DOMAIN_EVENT_ID_DEVICE_ADDED=19,
            open=self._open,
            registerErrorHandler=lambda *_: None,
            virEventRegisterDefaultImpl=lambda: None,
        )
        self.qemu_module = SimpleNamespace(
            qemuMonitorCommand=lambda handle, line, _flags: _domain(handle).command(line),
            qemuMonitorCommandWithFiles=lambda handle, line, files, _flags: _domain(
                handle
            ).commandWithFiles(line, files),
            qemuAgentCommand=lambda handle, line, _seconds, _flags: _domain(handle).agent(line),
            qemuMonitorEventRegister=lambda link, _domain, name, heard, *_: link.listen(
                name, heard
            ),
            qemuMonitorEventDeregister=lambda link, number: link.forget(number),
        )

    def adopt(self, name: str) -> QemuMachine:
        """Make a domain of the fake hypervisor a QEMU, whose events are told."""
        known = self.hypervisor.machines if name in self.hypervisor.machines else {}
        machine = known.get(name) or self.hypervisor.forgotten[name]
        if not isinstance(machine, QemuMachine):
            machine = QemuMachine(**vars(machine))
            self.hypervisor.machines[name] = machine
        machine.tell = self._tell
        return machine

    def _tell(self, event: str) -> None:
        now = time.time()
        for link in self._links:
            for name, heard in tuple(link.listeners.values()):
                if name == event:
                    heard(None, None, name, int(now), int(now % 1 * 1e6), None, None)

    def _open(self, _uri: str) -> Asked:
        link = Link(self)
        if self.refuses:
            self.refuses -= 1
            raise LibvirtError("Failed to connect socket to '/run/libvirt/libvirt-sock'", SYSTEM)
        self._links.append(link)
        asked: Asked = link.ask("open", lambda: Asked(link, _Connection(link)))
        return asked

    def handle(self, link: Link, machine: QemuMachine) -> Asked:
        connected = partial(Asked, link, _Connection(link))
        return Asked(link, LibvirtDomain(self.hypervisor, connected, machine))


def _domain(handle: Any) -> Any:
    return handle._o


@dataclass
class _Connection:
    link: Link

    @property
    def _known(self) -> list[QemuMachine]:
        daemon = self.link.daemon
        return [daemon.adopt(name) for name in daemon.hypervisor.machines]

    def isAlive(self) -> int:
        return int(self.link.is_alive)

    def getURI(self) -> str:
        return "qemu:///system"

    def setKeepAlive(self, _seconds: int, _count: int) -> int:
        return 0

    def getLibVersion(self) -> int:
        return 10_000_000

    def getVersion(self) -> int:
        return 10_000_000

    def getCapabilities(self) -> str:
        return "<capabilities><host/></capabilities>"

    def getDomainCapabilities(self, *_: object) -> str:
        return "<domainCapabilities/>"

    def _found(self, is_it: Callable[[QemuMachine], bool]) -> Asked:
        for machine in self._known:
            if is_it(machine):
                return self.link.daemon.handle(self.link, machine)
        raise LibvirtError("Domain not found", NO_DOMAIN)

    def lookupByName(self, name: str) -> Asked:
        return self._found(lambda machine: machine.domain.name == name)

    def lookupByUUIDString(self, uuid: str) -> Asked:
        return self._found(lambda machine: machine.domain.uuid == uuid)

    def listAllDomains(self) -> list[Asked]:
        return [self.link.daemon.handle(self.link, machine) for machine in self._known]

    def listen(self, name: str, heard: Callable[..., None]) -> int:
        number = max(self.link.listeners, default=0) + 1
        self.link.listeners[number] = (name, heard)
        return number

    def domainEventRegisterAny(
        self, _domain: object, _kind: int, heard: Callable[..., None], _own: object
    ) -> int:
        return self.listen("a device", heard)

    def forget(self, number: int) -> None:
        self.link.listeners.pop(number)

    def domainEventDeregisterAny(self, number: int) -> None:
        self.forget(number)

    def saveImageGetXMLDesc(self, _path: str, _flags: int) -> str:
        return DEFINITION

    def restoreFlags(self, path: str, _definition: None, flags: int) -> None:
        hypervisor = self.link.daemon.hypervisor
        for name in (*hypervisor.machines, *hypervisor.forgotten):
            machine = self.link.daemon.adopt(name)
            with_paused = bool(flags & _PAUSED)
            do(partial(hypervisor.restore, machine.domain, Path(path), paused=with_paused))
            machine.qemu = Qemu()

    def createXML(self, _definition: str, _flags: int) -> NoReturn:
        raise LibvirtError("no domain is forgotten here", INVALID)
