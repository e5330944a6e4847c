"""A stateful stand-in for a hypervisor: one that runs domains which count onto their disks.

A domain's memory is a number; every ``step`` of a running domain raises it and writes it to the
devices it holds open, by volume and not by name, as QEMU does.  It passes ``tests/contract``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from snapvm import crashpoint
from snapvm.attention import StuckPaused
from snapvm.clock import WindowClock
from snapvm.errors import UnknownDomain
from snapvm.failures import DomainFailed
from snapvm.hypervisor.base import Capture, Drives, MemoryImage, Reliance
from snapvm.interrupt import shielded
from snapvm.model import (
    Domain,
    DomainState,
    DomainUuid,
    GuestDisk,
    HypervisorKind,
    Progress,
    SidePlace,
    SideShape,
)
from snapvm.refusals import DomainRefused, HostLacks
from tests.fakes.agent import FakeAgent
from tests.fakes.capture import FakeCapture
from tests.fakes.lvm import FakeLvm
from tests.fakes.machine import FROZEN, Machine

_BOOTED = "<domain type='as it is defined'/>"
_DONE = {"restore": "restored", "start": "started"}


class FakeHypervisor:
    """See ``Hypervisor``; everything happens in memory."""

    kind = HypervisorKind.LIBVIRT

    def __init__(self, lvm: FakeLvm) -> None:
        self._lvm = lvm
        self.agent = FakeAgent(self)
        self.machines: dict[str, Machine] = {}
        self.forgotten: dict[str, Machine] = {}
        """What ran and is not known any more; an image, or a definition, brings it back."""
        self.forgets = False
        """Whether a domain that ends is forgotten, as xl forgets it."""
        self.before: Callable[[str], None] = lambda _deed: None
        """Called with the name of every deed first; a test makes it raise."""
        self.arming: Callable[[threading.Event], object] = lambda _given_up: None
        """How memory is armed in the window; the event says that it is given up."""
        self.room_bytes = 1 << 40
        """How much memory this host has for a domain that is restored."""
        self.lacks: str | None = None
        """The cookie of an image whose processor this host lacks."""
        self.lacks_leaves: bytes | None = None
        """The same, as an image of Xen's says it."""
        self.domain_ends = False
        """Whether the last capture was told that the domain is to be stopped."""
        self.installed = {"fake": "1"}
        """The version of each program that it consists of."""
        self.set_for_capture: set[DomainUuid] = set()
        """The domains whose hypervisor has settings of a capture that are not put back yet."""
        self.relied_on: list[Reliance] = []
        """How domains rely on volumes; see ``Hypervisor.relying``."""
        self._runs = 0

    # --- setting up and looking ---

    def add(self, domain: Domain, disks: tuple[GuestDisk, ...]) -> Machine:
        """Define a domain."""
        machine = Machine(domain=domain, disks=disks)
        self.machines[domain.name] = machine
        if domain.state.has_memory:
            self._open(machine)
            self._number(machine)
        return machine

    def step(self, name: str) -> None:
        """Let a running domain count once: to its memory, then to every disk it holds."""
        machine = self.machines[name]
        if machine.domain.state is DomainState.RUNNING and not machine.frozen:
            machine.count += 1
            for volume in machine.held:
                volume.data = str(machine.count)
                volume.written += 1
            for place in machine.places:
                path = place.path / "state" if place.shape is SideShape.FOLDER else place.path
                path.write_text(str(machine.count))

    def state_of(self, name: str) -> DomainState:
        """Return what a domain does; one that is not known any more is off."""
        known = self.forgotten if name in self.forgotten else self.machines
        return known[name].domain.state

    def suspend(self, name: str) -> None:
        """Make a running domain stand still."""
        with crashpoint.around("suspend"):
            self._set(name, DomainState.PAUSED)

    def rename(self, name: str, new: str) -> None:
        """Give a domain another name: `xl rename` takes any, `virsh domrename` one that is off."""
        machine = self.machines.pop(name)
        machine.domain = replace(machine.domain, name=new)
        self.machines[new] = machine

    def forget(self, name: str) -> None:
        """End a domain and forget it, as xl does, and libvirt does with a transient one."""
        forgets, self.forgets = self.forgets, True
        self.stop(self.machines[name].domain)
        self.forgets = forgets

    # --- Hypervisor ---

    def find(self, name: str) -> Domain:
        """See ``Hypervisor.find``."""
        if name not in self.machines:
            raise UnknownDomain(domain=name)
        return self.machines[name].domain

    def name_of(self, uuid: DomainUuid) -> str:
        """See ``Hypervisor.name_of``."""
        known = (machine.domain for machine in self.machines.values())
        return next((domain.name for domain in known if domain.uuid == uuid), "")

    def drives(self, domain: Domain) -> Drives:
        """See ``Hypervisor.drives``."""
        if domain.name not in self.machines:
            raise DomainRefused(domain=domain.name, why="it is not there")
        machine = self.machines[domain.name]
        disks = machine.boot_disks if domain.definition == _BOOTED else None
        return Drives(disks=machine.disks if disks is None else disks, omitted=machine.omitted)

    def boots_as(self, domain: Domain) -> Domain:
        """See ``Hypervisor.boots_as``."""
        return replace(domain, definition=_BOOTED)

    def relying(self, domain: Domain) -> list[Reliance]:
        """See ``Hypervisor.relying``."""
        return self.relied_on

    def side_places(self, domain: Domain) -> tuple[SidePlace, ...]:
        """See ``Hypervisor.side_places``."""
        return self.machines[domain.name].places if domain.name in self.machines else ()

    def check_capture(self, domain: Domain, *, with_memory: bool) -> None:
        """See ``Hypervisor.check_capture``."""
        self.before("check_capture")

    def foresee(self, domain: Domain) -> str:
        """See ``Hypervisor.foresee``."""
        self.set_for_capture.add(domain.uuid)
        self.before("foresee")
        self.set_for_capture.discard(domain.uuid)
        return FakeCapture.method

    @contextmanager
    def capture(
        self,
        domain: Domain,
        folder: Path,
        *,
        image: MemoryImage | None,
        clock: WindowClock,
        progress: Progress,
        domain_ends: bool = False,
    ) -> Iterator[Capture]:
        """See ``Hypervisor.capture``."""
        self.before("capture")
        self.domain_ends = domain_ends
        machine = self.machines[domain.name]
        was_running = domain.state is DomainState.RUNNING
        folder_of_image = folder if image else None
        yield FakeCapture(self, machine, folder_of_image, clock, was_running=was_running)

    def check_processor(
        self, domain: Domain, cookie: str, processor: bytes, versions: Mapping[str, str]
    ) -> None:
        """See ``Hypervisor.check_processor``."""
        if processor == self.lacks_leaves:
            raise HostLacks(what="such a processor", remedy="")

    def check_restore(
        self,
        domain: Domain,
        image: Path | None,
        *,
        memory_bytes: int = 0,
        cookie: str = "",
        starts: bool = True,
    ) -> None:
        """See ``Hypervisor.check_restore``."""
        self.before("check_restore" if starts else "check_restore, left off")
        if memory_bytes > self.room_bytes:
            raise HostLacks(what="memory", remedy="")
        if cookie == self.lacks:
            raise HostLacks(what="such a processor", remedy="")

    @contextmanager
    def frozen(self, domain: Domain) -> Iterator[None]:
        """See ``Hypervisor.frozen``."""
        self.before("freeze")
        state = self.state_of(domain.name)
        was_running = state is DomainState.RUNNING
        if domain.state.has_memory is not state.has_memory:
            what = "on" if state.has_memory else "off"
            raise DomainFailed(domain=domain.name, deed="suspended", why=f"it is {what} by now")
        if state.has_memory and self.machines[domain.name].domain.run != domain.run:
            raise DomainFailed(domain=domain.name, deed="suspended", why="it was started anew")
        try:
            if was_running:
                self.suspend(domain.name)
            yield
        except BaseException:
            if was_running:
                with shielded():  # as the drivers do
                    self.resume(domain)
            raise

    def resume(self, domain: Domain) -> None:
        """See ``Hypervisor.resume``."""
        if self.state_of(domain.name) not in (DomainState.PAUSED, DomainState.RUNNING):
            raise StuckPaused(domain=domain.name, why="it is off")
        with crashpoint.around("resume"):
            self._set(domain.name, DomainState.RUNNING)

    def touched(self) -> tuple[DomainUuid, ...]:
        """See ``Hypervisor.touched``."""
        return tuple(self.set_for_capture)

    def abandon(self, domain: Domain) -> None:
        """See ``Hypervisor.abandon``."""
        self.before("abandon")
        self.set_for_capture.discard(domain.uuid)

    def stop(self, domain: Domain) -> None:
        """See ``Hypervisor.stop``."""
        self.before("stop")
        machine = self.machines.get(domain.name)
        if machine is not None:
            with crashpoint.around("stop"):
                for volume in machine.held:
                    volume.opened = False
                machine.held = []
                machine.domain = replace(machine.domain, run=None)
                self._set(domain.name, DomainState.SHUTOFF)
                if self.forgets:
                    self.forgotten[domain.name] = self.machines.pop(domain.name)

    def restore(
        self,
        domain: Domain,
        image: Path,
        *,
        paused: bool,
        channels: int = 1,
    ) -> None:
        """See ``Hypervisor.restore``."""
        machine = self._before_start("restore", domain)
        with crashpoint.around("restore"):
            held = int.from_bytes(image.read_bytes()[-8:], "little")
            machine.count, machine.frozen = held & ~FROZEN, bool(held & FROZEN)
            machine.clock_behind_seconds = 3600.0
            self._start(machine, paused=paused)

    def start(self, domain: Domain, *, paused: bool) -> None:
        """See ``Hypervisor.start``."""
        machine = self._before_start("start", domain)
        with crashpoint.around("start"):
            self._start(machine, paused=paused)
            machine.frozen = False
            machine.count = max(int(volume.data or 0) for volume in machine.held)

    def versions(self, domain: Domain) -> dict[str, str]:
        """See ``Hypervisor.versions``."""
        return dict(self.installed)

    # --- inside ---

    def _before_start(self, deed: str, domain: Domain) -> Machine:
        self.before(deed)
        if domain.name in self.forgotten:
            if deed == "start" and not domain.definition:
                raise DomainFailed(domain=domain.name, deed=_DONE[deed], why="nobody knows it")
            self.machines[domain.name] = self.forgotten.pop(domain.name)
        if self.state_of(domain.name).has_memory:
            raise DomainFailed(domain=domain.name, deed=_DONE[deed], why="it runs already")
        return self.machines[domain.name]

    def _start(self, machine: Machine, *, paused: bool) -> None:
        self._open(machine)
        self._number(machine)
        self._set(machine.domain.name, DomainState.PAUSED if paused else DomainState.RUNNING)

    def _number(self, machine: Machine) -> None:
        self._runs += 1
        machine.domain = replace(machine.domain, run=str(self._runs))

    def _open(self, machine: Machine) -> None:
        machine.held = [
            self._lvm.under(disk.device.parent.name, disk.device.name) for disk in machine.disks
        ]
        for volume in machine.held:
            if not volume.active:
                why = f"no device {volume.name}"
                raise DomainFailed(domain=machine.domain.name, deed="started", why=why)
            volume.opened = True

    def _set(self, name: str, state: DomainState) -> None:
        machine = self.machines[name]
        machine.domain = replace(machine.domain, state=state)
