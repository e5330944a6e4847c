"""A whole host of fakes with one running domain of two disks: where unit tests begin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from snapvm.catalog import Catalog
from snapvm.failures import CommandFailed
from snapvm.guard import Guard
from snapvm.host import Host
from snapvm.lvm.device import NotAVolume, Number
from snapvm.lvm.holders import Holder
from snapvm.lvm.volumes import Lvm
from snapvm.model import (
    DmUuid,
    Domain,
    DomainState,
    DomainUuid,
    GuestDisk,
    HypervisorKind,
    LvRef,
    LvUuid,
    VgUuid,
)
from snapvm.settings import Settings
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.lvm import FakeLvm
from tests.fakes.machine import Machine

DOMAIN = "demo"
UUID = DomainUuid("11111111-2222-3333-4444-555555555555")
GROUPS = ("vg0", "vg1")


@dataclass
class Scene:
    """The fakes and the host made of them."""

    lvm: FakeLvm
    hypervisor: FakeHypervisor
    host: Host

    @property
    def machine(self) -> Machine:
        """The one domain."""
        return self.hypervisor.machines[DOMAIN]

    def count(self, steps: int) -> None:
        """Let the domain count."""
        for _ in range(steps):
            self.hypervisor.step(DOMAIN)

    def disk_data(self) -> list[str]:
        """Return what stands on the volumes that have the disks' names."""
        return [self.lvm.named(vg, f"{DOMAIN}-d{i}").data for i, vg in enumerate(GROUPS)]

    def ids(self, uuid: DomainUuid = UUID) -> list[str]:
        """Return the ids of all records, the oldest first."""
        records = self.host.catalog.records(uuid)
        return [each.id for each in sorted(records, key=lambda each: each.place)]


class NoGuard(Guard):
    """A guard that always stands ready and never acts."""

    def __init__(self) -> None:
        """Without a process."""

    def wait_until_ready(self) -> None:
        """See ``Guard``."""

    def dismiss(self) -> None:
        """See ``Guard``."""


@contextmanager
def no_guard(_domain: Domain) -> Iterator[Guard]:
    """See ``Host.guarded``."""
    yield NoGuard()


def make_scene(
    folder: Path, *, state: DomainState = DomainState.RUNNING, thick: Sequence[str] = ()
) -> Scene:
    """Make two groups with a pool and a disk each, and a domain that uses both disks.

    ``thick`` names the groups whose disk is a thick volume.
    """
    lvm = FakeLvm()
    disks = []
    for number, vg in enumerate(GROUPS):
        lvm.add_pool(vg)
        pool = "" if vg in thick else "pool"
        volume = lvm.add_disk(vg, f"{DOMAIN}-d{number}", pool=pool, data="0")
        disks.append(GuestDisk(target=f"vd{'ab'[number]}", device=Path("/dev", vg, volume.name)))

    def uuid_of_device(path: Path) -> DmUuid:
        """See ``device.dm_uuid``: a volume without a device cannot be asked."""
        try:
            volume = lvm.under(path.parent.name, path.name)
        except CommandFailed:
            raise NotAVolume(f"{path}: No such file or directory") from None
        if not volume.active:
            raise NotAVolume(f"{path}: No such file or directory")
        return DmUuid(vg=VgUuid(lvm.vg_uuid(volume.vg)), lv=LvUuid(volume.uuid))

    def holders_of(volume: LvRef, _number: Number | None) -> tuple[Holder, ...]:
        """See ``holders.of``."""
        found = lvm.named(volume.vg, volume.lv)
        return tuple(found.lies_on) if found.active else ()

    def written_sectors(device: Path | tuple[int, int]) -> int | None:
        """See ``device.written_sectors``."""
        if isinstance(device, tuple):
            return next(v.written for v in lvm.volumes if v.active and v.minor == device[1])
        try:
            volume = lvm.under(device.parent.name, device.name)
        except CommandFailed:
            return None
        return volume.written if volume.active else None

    hypervisor = FakeHypervisor(lvm)
    domain = Domain(
        name=DOMAIN,
        uuid=UUID,
        hypervisor=HypervisorKind.LIBVIRT,
        state=state,
        memory_bytes=1 << 20,
        vcpus=1,
        definition="<domain/>",
    )
    hypervisor.add(domain, tuple(disks))
    settings = Settings(state_dir=folder / "state", run_dir=folder / "run")
    host = Host(
        hypervisor=hypervisor,
        lvm=Lvm(lvm, uuid_of_device, lvm.copy_back, holders_of, written_sectors, lvm.flush),
        catalog=Catalog(settings.state_dir, settings.run_dir),
        settings=settings,
        guarded=no_guard,
    )
    return Scene(lvm=lvm, hypervisor=hypervisor, host=host)
