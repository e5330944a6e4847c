"""The present state of the volumes of records, for what is printed and what `prune` judges."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from snapvm.cli import output
from snapvm.errors import SnapvmError
from snapvm.failures import CommandFailed, CommandTimedOut
from snapvm.lvm import health
from snapvm.lvm.health import Health
from snapvm.lvm.report import Report
from snapvm.model import Record
from snapvm.refusals import HostLacks

if TYPE_CHECKING:
    from snapvm.lvm.volumes import Lvm


class Volumes:
    """The present state of volumes.  LVM is asked once, and again about a group that it hides."""

    def __init__(self) -> None:
        self._lvm: Lvm | None = None
        self._report: Report | None = None
        self._silence: SnapvmError | None = None
        """Why LVM did not answer; None while it does."""

    def tell_of_silence(self) -> None:
        """Print why nothing is known about volumes, if LVM did not answer."""
        if self._silence is not None:
            output.note(f"the state of the volumes is not known: {self._silence}")

    def require_answer(self) -> None:
        """Raise why LVM did not answer, where something is to be decided by what it says."""
        if self._silence is not None:
            raise self._silence

    def of(self, record: Record) -> list[Health]:
        """Return the health of each disk's snapshot; it is unknown where LVM does not answer."""
        # LVM is not asked before the first record: an empty catalog is listed without it.
        if self._lvm is None:
            self._lvm = _lvm()
            self._report = self._answer(self._lvm.report)
        if self._report is not None:
            self._report = self._explained(self._lvm, self._report, record)
        return [health.of_disk(disk, self._report) for disk in record.disks]

    def are_useless(self, record: Record) -> bool:
        """Tell whether a record cannot be gone back to, for one of its volumes."""
        return health.is_useless(self.of(record))

    def _explained(self, lvm: Lvm, report: Report, record: Record) -> Report:
        snapshots = [disk.snapshot for disk in record.disks]
        known = self._answer(lambda: lvm.explained(report, snapshots))
        return known or Report(report.volumes, groups=())

    def _answer(self, ask: Callable[[], Report]) -> Report | None:
        """Ask LVM; return None where it is not installed, or does not answer."""
        try:
            return ask()
        except (HostLacks, CommandFailed, CommandTimedOut) as error:
            self._silence = error
            return None


def _lvm() -> Lvm:
    # heavy: sh and its threads, which an empty catalog does without
    from snapvm.lvm.volumes import Lvm
    from snapvm.process import ShRunner

    return Lvm(ShRunner())
