"""What a volume of ours says about the record it belongs to, so that a lost one can be made anew.

One tag holds it: domain's uuid, id, disk, number of disks, time and the domain's name, between
slashes.  LVM's tags take letters, digits and ``_+.-/=!:#&`` (lvm(8), TAGS); a name with anything
else is left out.  Another says which host made it: of several that see a group each may have a
state folder of its own, and know the domain, which was migrated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from snapvm import hostid, naming
from snapvm.lvm import argv
from snapvm.model import DomainUuid, LvRef, Record, Role, SnapshotId

_PREFIX = "snapvm.of="
_HOST = "snapvm.on="
_ORDER = "snapvm.order="
_LEGAL = re.compile(r"[A-Za-z0-9_+.=!:#&/-]*\Z")
_TAG = re.compile(
    r"snapvm\.of=(?P<uuid>[0-9a-f-]{36})/(?P<id>[^/]+)/(?P<target>[^/]+)/(?P<disks>\d{1,3})/"
    r"(?P<stamp>\d{8}T\d{6}Z)/(?P<name>.*)\Z",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Belonging:
    """To which record a volume belongs, and as what."""

    domain_uuid: DomainUuid
    domain: str
    """Its name; empty when a tag cannot hold it."""
    id: SnapshotId
    target: str
    disks: int
    """How many the record has."""
    created: datetime
    """About when, in UTC."""
    order: str = ""
    """See ``Record.order``."""


def of(record: Record, target: str) -> Belonging:
    """Return what the volume of one of a record's disks is to say."""
    return Belonging(
        domain_uuid=record.domain_uuid,
        domain=record.domain,
        id=record.id,
        target=target,
        disks=len(record.disks),
        created=datetime.fromisoformat(record.created),
        order=record.order,
    )


def record_tags(belonging: Belonging) -> tuple[str, ...]:
    """Return the tags that say it; none for a disk whose name LVM would refuse."""
    if not _LEGAL.match(belonging.target) or "/" in belonging.target:
        return ()
    name = belonging.domain if _LEGAL.match(belonging.domain) else ""
    parts = (
        belonging.domain_uuid,
        belonging.id,
        belonging.target,
        str(belonging.disks),
        naming.stamp(belonging.created),
        name,
    )
    order = belonging.order if _LEGAL.match(belonging.order) else ""
    return (_PREFIX + "/".join(parts), *([_ORDER + order] if order else []))


def tags(set_: str, origin: LvRef, role: Role, whose: Belonging) -> tuple[str, ...]:
    """Return all tags of a volume: what it is, and whose, should its record ever be lost."""
    here = hostid.now()
    host = (f"{_HOST}{here}",) if here else ()
    return (*argv.tags(set_, origin, role), *record_tags(whose), *host)


def written(its_tags: Iterable[str]) -> tuple[str, ...]:
    """Return those of the tags of a volume that say whose it is, nonsense or not."""
    return tuple(sorted(tag for tag in its_tags if tag.startswith((_PREFIX, _HOST, _ORDER))))


def is_of_another_host(its_tags: Iterable[str]) -> bool:
    """Tell whether the tags of a volume say that another host made it; no when they do not say."""
    hosts = (tag.removeprefix(_HOST) for tag in its_tags if tag.startswith(_HOST))
    return any(map(hostid.is_another, hosts))


def read(its_tags: Iterable[str]) -> Belonging | None:
    """Return what the tags of a volume say; None when they say nothing, or nonsense."""
    found = tuple(its_tags)
    match = next(filter(None, map(_TAG.match, found)), None)
    if match is None or not naming.is_id(match["id"]):
        return None
    created = naming.moment(match["stamp"])
    if created is None:
        return None
    return Belonging(
        domain_uuid=DomainUuid(match["uuid"]),
        domain=match["name"],
        id=SnapshotId(match["id"]),
        target=match["target"],
        disks=int(match["disks"]),
        created=created,
        order=next(filter(None, map(_order_in, found)), ""),
    )


def _order_in(tag: str) -> str:
    """Return the time that a tag puts a record at; empty for any other tag."""
    text = tag.removeprefix(_ORDER)
    try:
        return text if text != tag and datetime.fromisoformat(text) else ""
    except ValueError:
        return ""
