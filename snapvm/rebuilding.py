"""Records that are lost or damaged, put together from what LVM's tags and memory images say.

``snapvm.remaking`` writes them.  What neither says stays unknown and is told: the note, the pause,
the checksum of the image.  A record that would lack a disk is not made: memory and all disks, or
nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path

from snapvm import durable, imagefacts, naming, orphans, recordfile, sidefiles
from snapvm.failures import StorageFailed
from snapvm.host import Host
from snapvm.imagefacts import ImageFacts
from snapvm.lvm import argv, belonging, device
from snapvm.lvm.belonging import Belonging
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.report import Report
from snapvm.model import (
    DiskRecord,
    DomainState,
    HypervisorKind,
    LvUuid,
    Record,
    RecordKind,
    Role,
    SideFile,
    Timing,
)
from snapvm.recordfolder import RECORD_FILE, Damaged, Fault
from snapvm.refusals import BadImage, RecordUnusable

_WHOLE = frozenset({argv.role_tag(Role.OK), argv.role_tag(Role.UNDO)})
_NONE = "none of the volumes that LVM shows is tagged as belonging to it"
_Place = tuple[str, str]
"""The uuid of a record's domain, and its id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """A record that can be made anew, and what nobody knows of it any more."""

    record: Record
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hopeless:
    """A record that cannot be made anew, or must not be."""

    ref: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lost:
    """A set of volumes that no record names, all of them saying the same of it."""

    set: str
    volumes: tuple[LogicalVolume, ...]
    whose: Belonging
    targets: tuple[str, ...]
    """Of the volumes, in their order."""

    @property
    def place(self) -> _Place:
        """Of the record that they say they belong to."""
        return self.whose.domain_uuid, self.whose.id

    def __str__(self) -> str:
        return ", ".join(str(volume.ref) for volume in self.volumes)


class _CannotBe(Exception):
    """Why a record is not made anew."""


def look(
    host: Host, *, only: Collection[str] | None = None
) -> tuple[tuple[Rebuilt, ...], tuple[Hopeless, ...]]:
    """Decide what can be made anew, of some sets or of all, and what cannot; nothing is changed."""
    report = host.lvm.report()
    damaged: dict[_Place, Damaged] = {(e.domain_uuid, e.id): e for e in _damaged(host)}
    claims: dict[_Place, list[_Lost]] = {}
    for lost in _lost_sets(host, report):
        claims.setdefault(lost.place, []).append(lost)
    names = dict(host.catalog.domains())
    rebuilt: list[Rebuilt] = []
    hopeless: list[Hopeless] = []
    for place, claimants in claims.items():
        for lost in claimants:
            if only is not None and lost.set not in only:
                continue
            whose = lost.whose
            name = whose.domain or names.get(whose.domain_uuid, whose.domain_uuid)
            try:
                _require_alone(claimants)
                rebuilt.append(_rebuild(host, report, lost, name, damaged.get(place)))
            except _CannotBe as error:
                hopeless.append(Hopeless(ref=f"{name}@{whose.id}", why=str(error)))
    hopeless += [
        Hopeless(ref=f"{each.domain}@{each.id}", why=_why_kept(each))
        for place, each in damaged.items()
        if place not in claims
    ]
    return tuple(rebuilt), tuple(hopeless)


def _why_kept(entry: Damaged) -> str:
    """Say why a record that cannot be read stays as it is."""
    match entry.fault:
        case Fault.UNREAD:
            return f"it may be whole, but cannot be read now: {entry.why}"
        case Fault.NEWER:
            return entry.why
        case Fault.DAMAGED:
            return _NONE


def _damaged(host: Host) -> Iterator[Damaged]:
    return (entry for entry in host.catalog.entries() if isinstance(entry, Damaged))


def _lost_sets(host: Host, report: Report) -> Iterator[_Lost]:
    """Yield every set that is whole as far as its tags say, and that nothing names."""
    # Journals first: a take that ends meanwhile is found as a record then.
    known: set[str | None] = set()
    for uuid, _ in host.catalog.domains():
        known |= {left.set for left in host.catalog.leftovers(uuid)}
    known |= {record.set for record in host.catalog.entries() if isinstance(record, Record)}
    sets: dict[str, list[LogicalVolume]] = {}
    for volume in (v for v in report.ours() if not orphans.is_clone(v)):
        for set_ in argv.sets_in(volume.tags):
            sets.setdefault(set_, []).append(volume)
    for set_, volumes in sets.items():
        said = [belonging.read(volume.tags) for volume in volumes]
        whose = [each for each in said if each is not None]
        is_one = len(whose) == len(said) and len({(w.domain_uuid, w.id) for w in whose}) == 1
        if set_ not in known and naming.is_set(set_) and is_one:
            targets = tuple(each.target for each in whose)
            yield _Lost(set=set_, volumes=tuple(volumes), whose=whose[0], targets=targets)


def _rebuild(host: Host, report: Report, lost: _Lost, name: str, entry: Damaged | None) -> Rebuilt:
    """Put a record together; raise ``_CannotBe``."""
    _require_place(host, lost, entry)
    _require_all(lost)
    image = _image(host, lost.whose)
    if image is not None and image.targets - set(lost.targets):
        missing = ", ".join(sorted(image.targets - set(lost.targets)))
        raise _CannotBe(f"its image has disks without a volume: {missing}")
    record = _of_tags(host, report, lost, name)
    if image is not None:
        record = _with_memory(record, image)
    folder = host.catalog.folder(record.domain_uuid, record.id)
    _require_readable(record, folder / RECORD_FILE)
    with durable.failing_untouched(folder):
        is_bare = not durable.is_there(folder)
    unknown = _unknown(record, is_bare=is_bare)
    if any(belonging.is_of_another_host(volume.tags) for volume in lost.volumes):
        unknown += ("whether the catalog of the host that made it has it too",)
    return Rebuilt(record=record, unknown=unknown)


def _require_place(host: Host, lost: _Lost, entry: Damaged | None) -> None:
    """Raise ``_CannotBe`` when the record is there, or may be, or its take never ended."""
    if entry is None and host.catalog.has(lost.whose.domain_uuid, lost.whose.id):
        raise _CannotBe("another record has its id, or is being made or deleted")
    if entry is not None and entry.may_be_whole:
        raise _CannotBe(_why_kept(entry))
    if entry is None and not all(volume.tags & _WHOLE for volume in lost.volumes):
        raise _CannotBe("its volumes are of a take that never ended; `snapvm repair` removes them")


def _require_alone(claimants: Sequence[_Lost]) -> None:
    """Raise ``_CannotBe`` when several sets claim one record; one may be a guest's, on its LUN."""
    if len(claimants) > 1:
        claims = "; ".join(map(str, claimants))
        raise _CannotBe(
            f"several sets of volumes claim to be it: {claims}; remove those that "
            "are not, or hide a guest's from this host's LVM (lvmdevices(8))"
        )


def _require_all(lost: _Lost) -> None:
    found = len(set(lost.targets))
    if found != lost.whose.disks or len(lost.volumes) != found:
        raise _CannotBe(f"volumes of {found} of its {lost.whose.disks} disks are there: {lost}")


def _image(host: Host, whose: Belonging) -> ImageFacts | None:
    folder = host.catalog.folder(whose.domain_uuid, whose.id)
    try:
        return imagefacts.look(folder)
    except (BadImage, StorageFailed) as error:
        raise _CannotBe(f"its memory image is damaged: {error}") from error


def _side_files(host: Host, whose: Belonging) -> tuple[SideFile, ...]:
    """Return those that are there; the ones of a rollback's undo record may still wait aside."""
    folder = host.catalog.folder(whose.domain_uuid, whose.id)
    try:
        if not durable.is_there(folder):
            folder = host.catalog.aside(whose.domain_uuid, whose.id)
        return sidefiles.stored_in(folder)
    except OSError as error:
        why = f"its UEFI variables or vTPM state cannot be read ({error})"
        raise _CannotBe(why) from error


def _disk(report: Report, volume: LogicalVolume, target: str, id_: str) -> DiskRecord:
    plain = argv.disk_in(volume.tags)
    uuid = device.dashed(plain) if plain else LvUuid("")
    named = volume.name.removesuffix(f".{id_}")
    lv = argv.name_in(volume.tags) or (named if named != volume.name else "")
    if not lv:  # an older snapvm made it, and could not name it after its disk
        origin = report.lv_of(replace(volume.ref, uuid=uuid))
        upon = report.lv_from_name(volume.vg, volume.origin)
        # One of ours is what a rollback has kept: it gave the disk's name to a clone.
        lv = next((v.name for v in (origin, upon) if v and argv.TAG_OURS not in v.tags), "")
    if not naming.is_lvm_name(lv):
        raise _CannotBe(f"nothing says which disk {volume.ref} is a snapshot of")
    return DiskRecord(
        target=target,
        volume=replace(volume.ref, lv=lv, uuid=uuid),
        snapshot=volume.ref,
        kind=volume.kind,
        size_bytes=volume.disk_bytes,
    )


def _of_tags(host: Host, report: Report, lost: _Lost, name: str) -> Record:
    """Return the record of the disks alone, as what their volumes say is all there is."""
    whose = lost.whose
    is_undo = any(argv.role_tag(Role.UNDO) in volume.tags for volume in lost.volumes)
    by_target = sorted(zip(lost.volumes, lost.targets, strict=True), key=itemgetter(1))
    return Record(
        id=whose.id,
        set=lost.set,
        kind=RecordKind.UNDO if is_undo else RecordKind.DISKS,
        created=whose.created.isoformat(timespec="milliseconds"),
        named=not is_undo and naming.moment(whose.id) is None,
        note="made anew by `snapvm catalog rebuild`",
        domain=name,
        domain_uuid=whose.domain_uuid,
        hypervisor=host.hypervisor.kind,
        state=DomainState.SHUTOFF,
        memory_bytes=0,
        vcpus=0,
        capture="unknown: made anew from LVM's tags",
        memory=None,
        disks=tuple(_disk(report, volume, target, whose.id) for volume, target in by_target),
        omitted=(),
        timing=Timing(pause_ms=0, total_ms=0),
        written_bytes=0,
        side_files=_side_files(host, whose),
        order=whose.order,
    )


def _with_memory(record: Record, image: ImageFacts) -> Record:
    """Return a record of disks with the image that belongs to them, and what that says besides."""
    return replace(
        record,
        kind=RecordKind.FULL,
        domain=image.domain,
        hypervisor=image.hypervisor,
        state=image.state,
        memory_bytes=image.memory_bytes,
        vcpus=image.vcpus,
        capture=f"{record.capture} and the memory image",
        memory=image.memory,
        omitted=image.omitted,
        written_bytes=image.written_bytes,
    )


def _require_readable(record: Record, path: Path) -> None:
    """Raise ``_CannotBe`` for what could not be read back, such as absurd numbers of an image."""
    try:
        recordfile.load(recordfile.dump(record).encode(), str(path))
    except RecordUnusable as error:
        raise _CannotBe(f"what its image says is not possible: {error.why}") from error


def _unknown(record: Record, *, is_bare: bool) -> tuple[str, ...]:
    """Say what nothing that is left tells of a record; a bare one has lost its folder too."""
    unknown = ["its note", "how long the domain stood still"]
    if record.memory is not None:
        unknown.append("the checksum of its image")
        if record.hypervisor is HypervisorKind.LIBVIRT:
            # Nothing is thawed on a guess: the agent may be one that does not answer.
            unknown.append(
                "whether the guest's file systems were frozen (if it hangs after a rollback: "
                f"virsh domfsthaw {shlex.quote(record.domain)})"
            )
    else:
        unknown.append("whether the domain ran: a rollback leaves it shut off")
        if record.kind is not RecordKind.UNDO:
            unknown.append("whether there ever was a memory image")
    if record.side_files:
        unknown.append("whether its UEFI variables or vTPM state changed since")
    elif is_bare:
        unknown.append("whether there ever were UEFI variables or a vTPM's state")
    return tuple(unknown)
