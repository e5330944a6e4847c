"""What the user of a rollback asked for and was told, checked again once it has its turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from snapvm import identity, repair
from snapvm.host import Host
from snapvm.model import Domain, DomainState, DomainUuid, Progress, Record, RecordKind
from snapvm.recordfolder import Work
from snapvm.refusals import DomainRefused, UndoUnclear


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the user asked for, and had been told when saying yes."""

    undoes: bool = False
    """It is an `undo`: the record was what the last rollback had kept, and need not be that now."""
    state: DomainState | None = None
    """What the domain did when somebody was asked for a yes; None when nobody was."""
    require_meant: Callable[[Record], None] = lambda _record: None
    """Raises when what the user typed for the record, such as ``latest``, means another one now."""

    def require_as_told(self, domain: Domain) -> None:
        """Raise ``DomainRefused`` when memory would be lost of which the user was not told."""
        told = self.state
        if told is not None and domain.state.has_memory and not told.has_memory:
            raise DomainRefused(
                domain=domain.name,
                why=f"it was {told} when you were asked, and is {domain.state} now: what it has "
                "in memory would be lost",
                remedy="roll back again: you will then be asked about that",
            )


@contextmanager
def mended(host: Host, record: Record, progress: Progress, asked: Asked) -> Iterator[None]:
    """Finish what is pending for a record's domain, and hold its locks for the block.

    Raises ``Locked``, and what ``repair.finish_all`` and ``asked.require_meant`` raise;
    ``UndoUnclear`` when the record was chosen as what the last rollback kept, and may not be that.
    """
    with identity.locked(host.catalog, record, progress) as uuids:
        is_unclear = asked.undoes and _is_undo_unclear(host, record, uuids)
        repair.finish_all(host, uuids, record.domain)
        if is_unclear:
            raise UndoUnclear(domain=record.domain, chosen=record.id)
        asked.require_meant(record)
        yield


def _is_undo_unclear(host: Host, record: Record, uuids: Iterable[DomainUuid]) -> bool:
    """Tell whether a rollback was killed and is pending, or has ended since a record was chosen."""
    for uuid in uuids:
        if any(left.work is Work.ROLLBACK for left in host.catalog.leftovers(uuid)):
            return True
    known = host.catalog.records(record.domain_uuid)
    return any(each.kind is RecordKind.UNDO and each.place > record.place for each in known)
