"""How far a killed rollback came, and what became of its disks since.

Its journal says it, LVM, and the kernel, which counts what is written to a disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from snapvm import rollbackjournal, takingback
from snapvm.attention import StartedTooSoon
from snapvm.domainrun import DomainRun
from snapvm.lvm.report import Report
from snapvm.lvm.volumes import Lvm
from snapvm.rollbackjournal import JournalDisk, Phase

UNDECIDED = (Phase.PREPARE, Phase.EXCHANGED)
"""After these LVM and the domain tell whether there is a way back."""
_BEFORE_ITS_END = (*UNDECIDED, Phase.SWAPPED)
"""In these nothing has been made of what a rollback keeps and what it makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is found of a killed rollback."""

    phase: Phase
    """How far it came, which may be further than was written down."""
    has_thick: bool
    written: tuple[JournalDisk, ...]
    """The disks that somebody has written to since its journal was, while its domain is off."""
    is_over: bool = False
    """It was not killed, or was finished, and its journal is from before that."""

    @property
    def is_spoiled(self) -> bool:
        """Whether the domain has run on clones while thick disks were not written back."""
        return self.phase is Phase.SWAPPED and self.has_thick and self._has_run_on_clones

    @property
    def is_used(self) -> bool:
        """Whether the domain has run on the disks that it goes back to."""
        # What is written to a thick one on its way back may be the rollback's own.
        return self._has_run_on_clones if self.phase is Phase.SWAPPED else bool(self.written)

    @property
    def _has_run_on_clones(self) -> bool:
        return any(not disk.is_thick for disk in self.written)


def look(
    lvm: Lvm, report: Report, journal: dict[str, Any], name: str, *, was_stopped: bool
) -> Found:
    """Find how far a rollback came, and whether its domain, which may be off, has run since.

    Raises ``StartedTooSoon`` for a domain that was started on some of the clones, and
    ``OldJournal`` for a journal that does not fit the disks.
    """
    phase, disks = Phase(journal["phase"]), rollbackjournal.disks_of(journal)
    if phase in _BEFORE_ITS_END:
        # A state folder that was restored from a backup may have a journal of months ago.
        if takingback.is_settled(report, journal["set"], disks):
            return Found(phase=Phase.STARTED, has_thick=False, written=(), is_over=True)
        takingback.require_known(report, journal["set"], disks)
    if phase is Phase.SWAPPED:
        takingback.require_presents(report, journal["set"], disks)
    written = rollbackjournal.written_since(journal, lvm, report) if was_stopped else ()
    if phase in UNDECIDED:
        is_past = _is_past_return(report, journal, name, written, was_stopped=was_stopped)
        phase = Phase.SWAPPED if is_past else Phase.PREPARE
    return Found(phase=phase, has_thick=rollbackjournal.has_thick(disks), written=written)


def is_new_boot(journal: dict[str, Any]) -> bool:
    """Tell whether the domain may have been started, and ended, on the disks it went back to."""
    return DomainRun.from_dict(journal).is_before_boot


def _is_past_return(
    report: Report,
    journal: dict[str, Any],
    name: str,
    written: tuple[JournalDisk, ...],
    *,
    was_stopped: bool,
) -> bool:
    """Tell whether the former domain is gone and its disks are kept, which no journal says yet.

    After a reboot that is never so with a thick disk: it is still the present one, and may have
    been written since its undo snapshot was made.  In the same boot the kernel tells whether it
    was, as by a domain that its owner let run on.
    """
    set_, disks = journal["set"], rollbackjournal.disks_of(journal)
    if is_new_boot(journal) and was_stopped and rollbackjournal.has_thick(disks):
        return False
    moved = takingback.have_moved(report, set_, disks, is_new_boot=is_new_boot(journal))
    swapped = takingback.are_swapped(report, set_, disks)
    if moved and not was_stopped and not swapped:
        raise StartedTooSoon(name)
    if not was_stopped or is_new_boot(journal):
        return swapped and (was_stopped or moved)
    has_run_on_clones = any(not disk.is_thick for disk in written)
    is_ended = Phase(journal["phase"]) is Phase.EXCHANGED and not written
    return swapped and (has_run_on_clones or is_ended)
