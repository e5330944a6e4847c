"""A Xen with one domain that is captured: its drives in xenstore, and the job that captures it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from snapvm.clock import WindowClock
from snapvm.hypervisor import xendisks
from snapvm.hypervisor.xencapture import XenJob
from snapvm.model import Domain, DomainState, DomainUuid, ForeignPtes, HypervisorKind, Silent
from tests.fakes.xenstored import FakeXenstored
from tests.unit.hypervisor.fakedrives import DISK, FakeGrants
from tests.unit.hypervisor.fakexen import CONFIG, RUNNING

DOMID = RUNNING.domid
DISK_NUMBER, CDROM_NUMBER, NEW_NUMBER = "51712", "51728", "51744"


def add_drive(server: FakeXenstored, number: str, **changes: str) -> None:
    """Have libxl attach a drive, to which the guest has not connected yet."""
    back = f"/local/domain/0/backend/vbd/{DOMID}/{number}"
    server.set(f"/libxl/{DOMID}/device/vbd/{number}/backend", back)
    for name, value in {**DISK, "dev": f"xvd{number}", **changes}.items():
        server.set(f"{back}/{name}", value)
    server.set(f"/local/domain/{DOMID}/device/vbd/{number}/backend", back)


def connect(server: FakeXenstored, number: str, reference: str) -> None:
    """Have the guest say which page its ring is."""
    server.set(f"/local/domain/{DOMID}/device/vbd/{number}/ring-ref", reference)


def attach_interface(server: FakeXenstored) -> None:
    back = f"/local/domain/0/backend/vif/{DOMID}/1"
    server.set(f"/libxl/{DOMID}/device/vif/1/backend", back)


Scene = tuple[FakeXenstored, XenJob]


class FakeXen:
    """Stands for ``XenControl``, with a domain whose rings are at rest."""

    def __init__(self) -> None:
        self.libraries = SimpleNamespace(grants=FakeGrants(), logger=None, major=4, minor=20)
        self.now = RUNNING
        self.root_now = b"cr3"
        self.obeys = True
        """Whether the guest can be asked to suspend itself."""

    def info(self, _domid: int) -> object:
        return self.now

    def root(self, _domid: int) -> bytes:
        return self.root_now

    def standing(self, *_: object) -> None:
        """Have nothing to tell."""

    def pause(self, _domid: int) -> None:
        self.now = replace(self.now, flags=self.now.flags | 8)

    def unpause(self, _domid: int) -> None:
        self.now = replace(self.now, flags=self.now.flags & ~8)

    def resume(self, _domid: int) -> None:
        self.now = replace(self.now, flags=self.now.flags & (8 | 2))

    def suspends_itself(self, _domid: int) -> bool:
        return self.obeys

    def suspend(self, _domid: int) -> None:
        """Suspend an HVM guest that does not do so itself."""
        self.now = replace(self.now, flags=self.now.flags | 4 | 2 << 16)

    def suspends(self, server: FakeXenstored) -> None:
        """Have the guest suspend itself when it is asked to."""

        def answer(path: str, value: str) -> None:
            if value == "suspend":
                server.set(path, "")
                self.now = replace(self.now, flags=self.now.flags | 4 | 2 << 16)

        server.on_write = answer

    def destroy(self) -> None:
        """Begin to; Xen does not say so before it is done."""
        self.root_now = bytes(8)


@contextmanager
def captured(folder: Path) -> Iterator[Scene]:
    """Yield what xenstored says of the domain, and the job."""
    server = FakeXenstored()
    add_drive(server, DISK_NUMBER)
    add_drive(server, CDROM_NUMBER, **{"device-type": "cdrom", "mode": "r"})
    connect(server, DISK_NUMBER, "8")
    connect(server, CDROM_NUMBER, "9")
    control: Any = FakeXen()
    domain = Domain(
        name="web",
        uuid=DomainUuid("u"),
        hypervisor=HypervisorKind.XEN,
        state=DomainState.RUNNING,
        memory_bytes=1,
        vcpus=1,
        definition="",
    )
    with server.connected() as store:
        yield (
            server,
            XenJob(
                domain=domain,
                config=CONFIG,
                info=RUNNING,
                attached=xendisks.attached(store, DOMID),
                control=control,
                store=store,
                folder=folder,
                clock=WindowClock(),
                progress=Silent(),
                foreign_ptes=ForeignPtes.ZERO,
            ),
        )
