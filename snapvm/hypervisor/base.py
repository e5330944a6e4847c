"""The interface to a hypervisor: what each driver must provide, and what it promises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

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

if TYPE_CHECKING:
    from snapvm.xenguest import GuestFrames, HostFacts, Standing, WrittenImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Drives:
    """The drives of a domain: those to capture, and those that cannot change."""

    disks: tuple[GuestDisk, ...]
    omitted: tuple[OmittedDisk, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliance:
    """A domain's disk that needs the present contents of a device of this host."""

    domain: str
    target: str
    """The disk of that domain."""
    device: Path
    tie: str
    """How the disk relates to the device, as a verb with what follows: "is an overlay on"."""
    why: str
    remedy: str


@runtime_checkable
class ImageWriter(Protocol):
    """Makes a libvirt save image around QEMU's stream; ``consistency`` provides it."""

    filter_argv: Sequence[str]
    """The program through which the stream must pass into the file; empty for none."""

    def begin(self, path: Path, definition: str, cookie: str) -> int:
        """Make the file; return a descriptor positioned where the stream is to begin."""

    def end(self, path: Path) -> int:
        """Mark the file as whole; return its size in bytes."""


class GuestImage(Protocol):
    """An image of a Xen PV guest's memory, made page by page.

    Every method but ``close`` raises ``BadImage`` for a guest whose state is inconsistent, and
    ``OSError`` when the file cannot be written.
    """

    def prepare(self, shared_info: Callable[[], bytes], progress: Progress) -> str:
        """While the guest runs: copy what can be copied now.

        ``shared_info`` reads the guest's page of that name as it is at the moment.  Returns a text
        that says how memory will be captured, and why that way.
        """

    def rehearse(self, shared_info: bytes) -> None:
        """Just before the pause, and after the last fork: do once what ``catch`` will do.

        Memory for ``catch`` has been touched then, and it is known what the guest writes often.
        """

    def catch(self, standing: Standing) -> None:
        """While the guest stands still: copy what has changed, and what is valid only now."""

    def give_up(self) -> None:
        """From another thread: make ``catch`` end soon, by ``BadImage``; there is no image then."""

    def write(self, progress: Progress) -> WrittenImage:
        """When the guest runs again: write the rest of the image, and bring it to the disk."""

    def redefine(self, definition: str) -> None:
        """Replace the configuration in a written image by one that is not much longer."""

    def close(self) -> None:
        """Give back memory and mappings; harmless at any time."""


class StreamImage(Protocol):
    """An image around a stream that Xen's own saver writes.

    The first two methods raise ``OSError`` when the file cannot be written, and ``BadImage``.
    """

    descriptor: int
    """Of the file, positioned where the stream is to begin."""

    def end_stream(self, device_model: bytes) -> WrittenImage:
        """Bring the image to the disk as a whole; return its size, and what a restore needs.

        ``device_model`` is the state of an HVM domain's QEMU, and empty for PVH.
        """

    def redefine(self, definition: str) -> None:
        """Put another definition into the image that was brought to the disk."""

    def close(self) -> None:
        """Close the file."""


@runtime_checkable
class XenImages(Protocol):
    """Makes an image of a Xen domain in the way its type needs; ``consistency`` provides it."""

    def of_pages(
        self, path: Path, definition: str, host: HostFacts, frames: GuestFrames
    ) -> GuestImage:
        """Make the file of one of a PV domain; raise ``OSError``."""

    def of_stream(self, path: Path, definition: str) -> StreamImage:
        """Make the file of one of an HVM or PVH domain; raise ``OSError``."""


MemoryImage = ImageWriter | XenImages
"""What makes a memory image; each driver uses the kind of its hypervisor."""


Freeze = Callable[[], None]
"""Has the guest's agent freeze its file systems, while it runs; only the first call counts."""


class Capture(Protocol):
    """One capture of one domain, from when it is prepared."""

    @property
    def method(self) -> str:
        """A text for the record: how memory is captured and, in parentheses, why that way."""

    @property
    def is_brief(self) -> bool:
        """Whether its window is hardly longer than the block, however late it begins.

        In that of others all memory is written, or all that has changed since they were prepared.
        """

    def window(
        self, *, leave_standing: bool = False, freeze: Freeze | None = None
    ) -> AbstractContextManager[None]:
        """Pause the domain for the block, with its disks drained and flushed.

        ``freeze`` is called before that, as late as the way of capturing allows: the guest's
        programs cannot write from then on.  Whoever gave it has to see to the thaw.

        With ``leave_standing`` the domain stays paused after a block that ends well, because it is
        about to be stopped.  In every other case a domain that ran before runs again afterwards,
        and a domain that its owner had paused stays paused; otherwise ``StuckPaused`` is raised.
        Raises ``CaptureFailed`` before the block when memory cannot be captured, and
        ``WindowBroken`` after it when somebody else ran, stopped or changed the domain meanwhile.
        """

    def arm(self) -> None:
        """In the pause, beside the LVM snapshots: do what memory needs before the guest runs."""

    def give_up(self) -> None:
        """From another thread: make ``arm`` end soon; the capture is of no use then."""

    def drain(self) -> MemoryRecord | None:
        """After the pause: write the rest of memory into the image, and make the image whole.

        Returns what to record, or None when memory was not asked for.  Raises ``CaptureFailed``.
        """


class GuestAgent(Protocol):
    """A program inside the guest that helps, where one is installed; no call waits for ever."""

    def is_expected(self, domain: Domain) -> bool:
        """Tell whether the domain is set up for an agent; the guest is not asked."""

    def check(self, domain: Domain) -> None:
        """Raise ``DomainRefused`` unless an agent answers that could freeze file systems now."""

    def freeze(self, domain: Domain) -> None:
        """Have the guest flush its file systems and stop writing to them; raise ``NotFrozen``."""

    def thaw(self, domain: Domain) -> bool:
        """Undo ``freeze``; harmless when nothing is frozen or the domain is off.

        Returns False when the agent says that nothing was frozen any more.  Raises ``StillFrozen``
        when it does not do it.
        """

    def set_clock(self, domain: Domain) -> float:
        """Set the guest's clock; return by how many seconds; raise ``ClockNotSet``."""


class Hypervisor(Protocol):
    """A driver.  Its methods take the ``Domain`` that ``find`` returned."""

    kind: HypervisorKind

    @property
    def agent(self) -> GuestAgent:
        """The agents in the guests of its domains."""

    def find(self, name: str) -> Domain:
        """Return the domain as it is now; raise ``UnknownDomain``."""

    def name_of(self, uuid: DomainUuid) -> str:
        """Return the present name of a domain; empty when no domain has this uuid."""

    def drives(self, domain: Domain) -> Drives:
        """Return its drives; raise ``DiskRefused`` for one that cannot be captured."""

    def boots_as(self, domain: Domain) -> Domain:
        """Return the domain with the definition of its next boot, which may be another than now.

        Raises ``DomainRefused``.
        """

    def relying(self, domain: Domain) -> Iterable[Reliance]:
        """Return the devices on which domains rely, also domains that are off.

        Of ``domain`` itself only what its definition alone does not tell is returned.  A device
        that is simply the disk of a domain that is off does not count.  Raises ``DomainRefused``.
        """

    def side_places(self, domain: Domain) -> tuple[SidePlace, ...]:
        """Return where the host keeps the domain's UEFI variables and the state of its vTPM."""

    def check_capture(self, domain: Domain, *, with_memory: bool) -> None:
        """Raise ``Refused`` when the domain cannot be captured now; touch nothing."""

    def foresee(self, domain: Domain) -> str:
        """Return how memory would be captured now and, after a colon, why that way.

        The domain is not disturbed.  Settings that have to be changed to find out are set back at
        once; after a crash the next ``foresee``, ``capture`` or ``abandon`` sets them back.  Raises
        ``Refused`` and ``CaptureFailed``.
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

        Without an ``image`` memory is not captured, and there is only the pause.  ``domain_ends``
        says that the domain will be stopped after its capture, so that the capture may leave it
        unfit for anything else.
        """

    def check_processor(
        self, domain: Domain, cookie: str, processor: bytes, versions: Mapping[str, str]
    ) -> None:
        """Raise ``DomainRefused`` when the processor of an image is none of this host's.

        ``cookie`` is what the image tells, and ``processor`` are the CPUID leaves in xl's;
        ``versions`` were those of its domain.
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
        """Raise ``Refused`` when the domain could not be restored; touch nothing.

        ``memory_bytes`` is how much memory it had when the image was made, and ``cookie`` what else
        the image tells: libvirt's cookie names the processor, and of xl's it is the configuration.
        Without an image the domain is to be booted from its disks or, unless it ``starts``, to be
        left off.
        """

    def frozen(self, domain: Domain) -> AbstractContextManager[None]:
        """Pause a running domain for the block; it runs again when the block fails.

        After a block that ends well the domain stays paused, because it is about to be stopped.
        Raises ``DomainFailed``, and leaves the domain alone, when it has ended, was started or has
        got other devices since it was found.
        """

    def resume(self, domain: Domain) -> None:
        """Make a paused domain run; raise ``StuckPaused`` when it does not."""

    def touched(self) -> tuple[DomainUuid, ...]:
        """Return the domains that are set up for a capture, by a snapvm that is at work or died.

        After a killed `take` there is a journal as well; after a killed `doctor` only this.
        """

    def abandon(self, domain: Domain) -> None:
        """End what a killed snapvm left in the hypervisor; harmless when there is nothing."""

    def stop(self, domain: Domain) -> None:
        """End the domain at once, as pulling the plug does; harmless when it is off."""

    def restore(self, domain: Domain, image: Path, *, paused: bool, channels: int = 1) -> None:
        """Start the domain from a memory image; raise ``DomainFailed`` when that fails.

        ``channels`` is how many threads may read an image that allows several.
        """

    def start(self, domain: Domain, *, paused: bool) -> None:
        """Boot the domain from its disks; raise ``DomainFailed`` when that fails."""

    def versions(self, domain: Domain) -> dict[str, str]:
        """Return the versions, and what else matters for a later restore of a domain."""
