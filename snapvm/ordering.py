"""Which snapshot was made after which: its time tells, unless the clock was set back.

An earlier record may have a time that is still to come, if the clock was years ahead when it was
made.  What is made after it gets an ``order`` just behind that time, which stands for its own time
wherever records are put in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta

from snapvm.catalog import Catalog
from snapvm.model import DomainUuid, moment

_STEP = timedelta(milliseconds=1)
"""What records tell times to."""


def order(catalog: Catalog, uuid: DomainUuid, name: str, now: datetime) -> str:
    """Return the ``order`` of a record that a domain gets now; empty where its time will do.

    Domains of one name are one for ``latest`` and `prune`: see ``Catalog.uuids_of``.
    """
    newest = max(_places(catalog, uuid, name), default=None)
    if newest is None or now - newest >= _STEP:
        return ""
    with suppress(OverflowError):  # somebody has written the end of all time into a record
        return (newest + _STEP).isoformat(timespec="milliseconds")
    return ""


def _places(catalog: Catalog, uuid: DomainUuid, name: str) -> Iterator[datetime]:
    for each in {uuid, *catalog.uuids_of(name)}:
        for record in catalog.records(each):
            place = moment(record.place[0])
            if place is not None:
                yield place
