"""How far a killed rollback came, and what became of its disks since.

Three things tell it together: its journal, LVM, and the kernel's count of what was written to
each disk.
"""

from __future__ import annotations

from dataclasses import dataclass

from snapvm import takingback
from snapvm.attention import StartedTooSoon
from snapvm.lvm.report import Report
from snapvm.lvm.volumes import Lvm
from snapvm.rollbackjournal import JournalDisk, Phase, RollbackJournal

UNDECIDED = (Phase.PREPARE, Phase.EXCHANGED)
"""In these phases the journal does not say whether there is a way back: LVM and the domain do."""
_BEFORE_ITS_END = (*UNDECIDED, Phase.SWAPPED)
"""In these phases the bookkeeping (``swapping.settle``) has not begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is found of a killed rollback."""

    phase: Phase
    """How far it came, which may be further than was written down."""
    has_thick: bool
    written: tuple[JournalDisk, ...]
    """The disks that were written to after its journal was; known only while its domain is off."""
    is_over: bool = False
    """It came to its end, by itself or by a repair; its journal is an old copy."""

    @property
    def is_spoiled(self) -> bool:
        """Whether the domain has run on clones while thick disks were not written back."""
        return self.phase is Phase.SWAPPED and self.has_thick and _has_clone(self.written)

    @property
    def is_used(self) -> bool:
        """Whether the domain has run on the disks that it goes back to."""
        # What is written to a thick one on its way back may be the rollback's own.
        return _has_clone(self.written) if self.phase is Phase.SWAPPED else bool(self.written)


def look(
    lvm: Lvm, report: Report, journal: RollbackJournal, name: str, *, was_stopped: bool
) -> Found:
    """Find how far a rollback came, and whether its domain, which may be off, has run since.

    Raises ``StartedTooSoon`` for a domain that was started on some of the clones, and
    ``OldJournal`` for a journal that does not fit the disks.
    """
    phase, set_, disks = journal.phase, journal.set, journal.disks
    if phase in _BEFORE_ITS_END:
        # A state folder that was restored from a backup may have a journal of months ago.
        if takingback.is_settled(report, set_, disks):
            return Found(phase=Phase.STARTED, has_thick=False, written=(), is_over=True)
        takingback.require_known(report, set_, disks)
    if phase is Phase.SWAPPED:
        takingback.require_presents(report, set_, disks)
    written = journal.written_since(lvm, report) if was_stopped else ()
    if phase in UNDECIDED:
        is_past = _is_past_return(report, journal, name, written, was_stopped=was_stopped)
        phase = Phase.SWAPPED if is_past else Phase.PREPARE
    return Found(phase=phase, has_thick=journal.has_thick, written=written)


def _is_past_return(
    report: Report,
    journal: RollbackJournal,
    name: str,
    written: tuple[JournalDisk, ...],
    *,
    was_stopped: bool,
) -> bool:
    """Tell whether the former domain is gone and its disks are kept, which no journal says yet.

    After a reboot the answer is no where there is a thick disk: that is still the present one, and
    may have been written to since its undo snapshot was made.  In the same boot the kernel's count
    tells whether it was, for example by a domain that its owner let run on.
    """
    set_, disks, is_new_boot = journal.set, journal.disks, journal.run.is_before_boot
    if is_new_boot and was_stopped and journal.has_thick:
        return False
    moved = takingback.have_moved(report, set_, disks, is_new_boot=is_new_boot)
    swapped = takingback.are_swapped(report, set_, disks)
    if moved and not was_stopped and not swapped:
        raise StartedTooSoon(name)
    if not was_stopped or is_new_boot:
        return swapped and (was_stopped or moved)
    is_ended = journal.phase is Phase.EXCHANGED and not written
    return swapped and (_has_clone(written) or is_ended)


def _has_clone(written: tuple[JournalDisk, ...]) -> bool:
    """Tell whether a thin disk was written to: the domain has run on its clone then."""
    return any(not disk.is_thick for disk in written)
