"""The seam to a hypervisor: what a driver must do, and what holds before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from snapvm.clock import WindowClock
from snapvm.model import (
    Domain,
    DomainUuid,
    GuestDisk,
    HypervisorKind,
    MemoryRecord,
    OmittedDisk,
    Progress,
    SidePlace,
)
from snapvm.xenguest import GuestFrames, HostFacts, Standing, WrittenImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Drives:
    """The drives of a domain: those to capture, and those that cannot change."""

    disks: tuple[GuestDisk, ...]
    omitted: tuple[OmittedDisk, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliance:
    """What a domain has upon a device of this host, and would lose if that were another."""

    domain: str
    target: str
    """Which disk of it."""
    device: Path
    tie: str
    """What the disk is to the device, as a verb and its rest."""
    why: str
    remedy: str


@runtime_checkable
class ImageWriter(Protocol):
    """Makes a file around libvirt's stream of memory; given by ``consistency``."""

    filter_argv: Sequence[str]
    """The program that the stream must pass through into the file; empty for none."""

    def begin(self, path: Path, definition: str, cookie: str) -> int:
        """Make the file and return a descriptor positioned where the stream begins."""

    def end(self) -> int:
        """Say in the file that it is whole; return its size in bytes."""


@runtime_checkable
class GuestImage(Protocol):
    """Makes an image of a Xen PV guest's frames; given by ``consistency``.

    Everything but ``close`` raises ``BadImage`` for a guest that contradicts itself and ``OSError``
    when the file cannot be written.
    """

    def prepare(
        self,
        path: Path,
        definition: str,
        host: HostFacts,
        frames: GuestFrames,
        shared_info: Callable[[], bytes],
        progress: Progress,
    ) -> str:
        """While the guest runs: make the file and copy what can be copied already.

        ``shared_info`` reads that page of the guest, which may change, as it is now.
        Returns, in words, how memory is going to be captured, and why that way.
        """

    def rehearse(self, shared_info: bytes) -> None:
        """Just before it stands still, and after the last fork: do once what ``catch`` will do.

        Memory is touched then, and what the guest writes all the time is known.
        """

    def catch(self, standing: Standing) -> None:
        """While it stands still: copy what has changed, and all that can only be had now."""

    def give_up(self) -> None:
        """From another thread: let ``catch`` end soon, by ``BadImage``; there is no image then."""

    def write(self, progress: Progress) -> WrittenImage:
        """When it runs again: write the image, all of it to the disk."""

    def redefine(self, definition: str) -> None:
        """Write another configuration into a written image, which is little longer at the most."""

    def close(self) -> None:
        """Give back memory and mappings; harmless at any time."""


MemoryImage = ImageWriter | GuestImage
"""What makes the image; each driver works with the one of its hypervisor."""


class Capture(Protocol):
    """One capture of one domain, prepared and not yet begun."""

    @property
    def method(self) -> str:
        """How memory is captured and, in parentheses, why that way; for the record."""

    def window(self, *, leave_standing: bool = False) -> AbstractContextManager[None]:
        """Let the domain stand still for the block, its disks drained and flushed.

        With ``leave_standing`` a block that ends well leaves it so: it is about to be stopped.
        However the block ends otherwise, a domain that ran before runs again afterwards and one
        that its owner had paused is paused; else ``StuckPaused`` is raised.  Raises
        ``CaptureFailed`` before the block when memory cannot be captured, and ``WindowBroken``
        after it when somebody else ran, stopped or changed the domain meanwhile.
        """

    def arm(self) -> None:
        """Inside the window, beside the LVM snapshots: do what memory needs before the thaw."""

    def give_up(self) -> None:
        """From another thread: let ``arm`` end soon; nothing can be made of the capture then."""

    def drain(self) -> MemoryRecord | None:
        """After the window: bring the rest of memory to the image and make it whole.

        Returns what to record, or None when memory was not asked for.  Raises ``CaptureFailed``.
        """


class GuestAgent(Protocol):
    """A helper inside the guest, where its owner has installed one; no call waits for ever."""

    def is_expected(self, domain: Domain) -> bool:
        """Tell whether the domain is set up for one; nobody is asked."""

    def check(self, domain: Domain) -> None:
        """Raise ``DomainRefused`` unless one answers that could freeze file systems now."""

    def freeze(self, domain: Domain) -> None:
        """Have everything written to the disks, and nothing any more; raise ``NotFrozen``."""

    def thaw(self, domain: Domain) -> None:
        """Take ``freeze`` back; harmless when nothing is frozen or the domain is off.

        Raises ``StillFrozen`` when the guest cannot be told.
        """

    def set_clock(self, domain: Domain) -> float:
        """Set the guest's clock; return by how many seconds; raise ``ClockNotSet``."""


class Hypervisor(Protocol):
    """A driver.  Domains are named by the ``Domain`` that ``find`` returned."""

    kind: HypervisorKind

    @property
    def agent(self) -> GuestAgent:
        """The agents in the guests of its domains."""

    def find(self, name: str) -> Domain:
        """Return the domain as it is now; raise ``UnknownDomain``."""

    def name_of(self, uuid: DomainUuid) -> str:
        """Return the name that a domain has now; empty when there is none of this uuid."""

    def drives(self, domain: Domain) -> Drives:
        """Return its drives; raise ``DiskRefused`` for one that cannot be captured."""

    def boots_as(self, domain: Domain) -> Domain:
        """Return what the domain will be when it is booted: what is defined may differ from it.

        Raises ``DomainRefused``.
        """

    def relying(self, domain: Domain) -> Iterable[Reliance]:
        """Return on what all domains rely, those that are off too; raise ``DomainRefused``.

        Of this one what its definition alone does not tell.  What they just have for a disk, and
        are booted from, is nothing of this kind.
        """

    def side_places(self, domain: Domain) -> tuple[SidePlace, ...]:
        """Say where the domain has its UEFI variables and the state of its vTPM."""

    def check_capture(self, domain: Domain, *, with_memory: bool) -> None:
        """Raise ``Refused`` when the domain cannot be captured now; touch nothing."""

    def foresee(self, domain: Domain) -> str:
        """Say how memory would be captured now and, after a colon, why that way.

        The domain runs on undisturbed; what has to be set to find out is set back at once, or by
        the next who asks, captures or abandons.  Raises ``Refused`` and ``CaptureFailed``.
        """

    def capture(
        self,
        domain: Domain,
        folder: Path,
        *,
        image: MemoryImage | None,
        clock: WindowClock,
        progress: Progress,
        domain_ends: bool = False,
    ) -> AbstractContextManager[Capture]:
        """Prepare a capture whose files go into ``folder``; leaving the block cleans up.

        Without an ``image`` there will be no memory, only the pause.  ``domain_ends`` says that
        the domain is stopped when it is captured, and does not have to be fit for anything else.
        """

    def check_restore(
        self,
        domain: Domain,
        image: Path | None,
        *,
        memory_bytes: int = 0,
        cookie: str = "",
        starts: bool = True,
    ) -> None:
        """Raise ``Refused`` when the domain could not be restored from this; touch nothing.

        ``memory_bytes`` is what it had when the image was made, ``cookie`` what the image says of
        the processor that it ran on.
        Without an image it is booted from its disks, or, if it ``starts`` not, left off.
        """

    def frozen(self, domain: Domain) -> AbstractContextManager[None]:
        """Let a running domain stand still for the block; it runs again when the block fails.

        A block that ends well leaves it standing still: it is about to be stopped.  One that has
        ended, was started, or has got other devices since it was found is left so: ``DomainFailed``
        is raised in place of the block.
        """

    def resume(self, domain: Domain) -> None:
        """Make a paused domain run; raise ``StuckPaused`` when it does not."""

    def touched(self) -> tuple[DomainUuid, ...]:
        """Return the domains that are set for a capture: by a snapvm at work, or one that died.

        `take` has a journal besides; of a killed `doctor` this is all that tells.
        """

    def abandon(self, domain: Domain) -> None:
        """End what a killed snapvm left going on in the hypervisor; harmless when nothing is."""

    def stop(self, domain: Domain) -> None:
        """End the domain at once, as pulling the plug does; harmless when it is off."""

    def restore(self, domain: Domain, image: Path, *, paused: bool, channels: int = 1) -> None:
        """Start the domain from a memory image; raise ``DomainFailed`` when it cannot be.

        An image that allows it may be read by so many threads at once.
        """

    def start(self, domain: Domain, *, paused: bool) -> None:
        """Boot the domain from its disks; raise ``DomainFailed`` when it cannot be."""

    def versions(self) -> dict[str, str]:
        """Return the versions that matter for a later restore."""
