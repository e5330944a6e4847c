"""The work of ``snapvm verify`` and ``snapvm inspect``: look into a memory image and print."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from snapvm import checksum, imageformats, images, sidefiles
from snapvm.cli import output
from snapvm.cli.lookup import catalog_of, find
from snapvm.cli.progress import shown
from snapvm.cli.session import Session
from snapvm.cli.words import counted
from snapvm.errors import BadName, UnknownSnapshot
from snapvm.failures import StorageFailed
from snapvm.memory import libvirtimage, savedstream
from snapvm.memory.finding import Finding, Report, Severity
from snapvm.memory.paging import Hole, Mapping, translate, who_maps
from snapvm.memory.pagingmode import FOUR_LEVEL, FRAME_SHIFT, PAE_UNDER_XEN
from snapvm.memory.verify import verify_image
from snapvm.memory.xenformat import XL_MAGIC, DomainType
from snapvm.memory.xenframes import Survey, survey
from snapvm.model import MemoryRecord, Progress, Record
from snapvm.refusals import (
    BadImage,
    NotAllowed,
    NothingToLookInto,
    Refused,
    UnreadableFile,
    Unsound,
)

SHOWN_ADDRESSES = 256


@dataclass(frozen=True, slots=True)
class _Place:
    """The image that the user means."""

    path: Path
    memory: MemoryRecord | None = None
    """What the snapshot's record says of the image; None where the user named a file."""

    @property
    def is_libvirts(self) -> bool:
        """Whether it is the image of a libvirt domain."""
        if self.memory is None:
            return libvirtimage.is_one(self.path)
        return self.memory.format != imageformats.XL_SAVE

    def checked(self) -> str:
        """Say what is known to be right of an image of libvirt's, which is read where it must be.

        Raises ``BadImage`` for one that was cut short.
        """
        if self.memory is not None and checksum.is_known(self.memory.checksum):
            return "header, length and checksum"
        is_told = savedstream.require_end(self.path, unpacks=True)
        end = "its header and its end" if is_told else "its header alone"
        if self.memory is None:
            return end
        lacks = (
            "its checksum cannot be computed here"
            if self.memory.checksum
            else "its record has no checksum"
        )
        return f"{end}, {lacks}"


@contextmanager
def _placed(session: Session, text: str, progress: Progress | None = None) -> Iterator[_Place]:
    """Yield the image that is meant, once a snapshot's image is known to be whole.

    With a ``progress`` all of a snapshot's image is read and compared with its checksum.  Raises
    ``UnknownSnapshot`` where the snapshot is deleted before the end of the block: its image, or
    what lies beside it, would be called lost.
    """
    record = _record(session, text)
    if record is None:
        yield _Place(_named(text))
        return
    if record.memory is None:
        raise NothingToLookInto(ref=record.ref, why="it has disks only, no memory")
    catalog = catalog_of(session)
    path = catalog.path(record, record.memory.file)
    try:
        images.check(path, record.memory)
        if progress is not None:
            progress.phase("reading the memory image")
            images.check_contents(path, record.memory, progress)
            for side in record.side_files:
                sidefiles.require_whole(path.parent, side)
        yield _Place(path, record.memory)
    except (Refused, StorageFailed):
        catalog.again(record)
        raise


def _record(session: Session, text: str) -> Record | None:
    """Return the snapshot that is meant; None where it is a file.

    A text with a slash, or without an @, is a path; so is one that names a file and no snapshot.
    """
    if "/" in text or "@" not in text:
        return None
    try:
        return find(catalog_of(session), text)
    except (UnknownSnapshot, BadName, NotAllowed):
        # Not before: anybody may have put a file of a snapshot's name where root happens to stand.
        if not os.path.isfile(text):
            raise
        return None


def _named(text: str) -> Path:
    """Return the path of the file that the user named; raise ``UnreadableFile``.

    A link is followed here, for the user means the file behind it; in a record a link is damage.
    """
    try:
        mode = os.stat(text).st_mode
    except OSError as error:
        raise UnreadableFile(path=text, why=error.strerror or str(error)) from error
    if not stat.S_ISREG(mode):  # a link to a pipe, as /dev/stdin, names what has no path
        raise UnreadableFile(path=text, why="it is not a regular file")
    return Path(os.path.realpath(text)) if os.path.islink(text) else Path(text)


def verify(session: Session, text: str, *, as_json: bool) -> None:
    """Check an image and print the result; raise ``Unsound`` when a restore would fail or lose."""
    with (
        shown(quiet=session.verbose) as progress,
        _placed(session, text, progress) as place,
    ):
        progress.phase("checking the memory image")
        found: str | Report
        if place.is_libvirts:
            found = place.checked()
        else:
            _require_xls(place)
            found = verify_image(place.path)
    if isinstance(found, str):
        _tell_of_libvirts(text, found, as_json=as_json)
    else:
        _tell_of_xls(text, place.path, found, as_json=as_json)


def _tell_of_xls(text: str, path: Path, report: Report, *, as_json: bool) -> None:
    if not as_json:
        output.say_findings(map(_line, report.findings))
    if not report.is_sound:
        serious = [problem for problem in report.counts if problem.severity is not Severity.ODD]
        first = next(found for found in report.findings if found.problem in serious)
        raise Unsound(
            path=str(path),
            problems=sum(report.counts[problem] for problem in serious),
            first=first.problem.value,
            report=_as_values(report),
        )
    if as_json:
        output.out_json(_as_values(report))
    else:
        output.say(
            f"{text}: sound, {counted(report.pages, 'page')}, "
            f"{counted(report.tables, 'page table')}, {counted(report.vcpus, 'vCPU')}"
        )


def _require_xls(place: _Place) -> None:
    """Raise ``BadImage`` when a file that was named, and is not libvirt's, is not xl's either.

    A file that cannot be read is left to whoever reads it next, and says better what is wrong.
    """
    if place.memory is not None or not place.path.is_file():
        return
    with suppress(OSError), place.path.open("rb") as file:
        if file.read(len(XL_MAGIC)) != XL_MAGIC:
            why = "it is neither an image of libvirt nor one of `xl save`"
            raise BadImage(path=str(place.path), offset_bytes=0, why=why)


def _tell_of_libvirts(text: str, checked: str, *, as_json: bool) -> None:
    if as_json:
        output.out_json({"sound": True, "checked": checked})
    else:
        output.say(f"{text}: whole (a libvirt image: {checked})")


def _as_values(report: Report) -> dict[str, Any]:
    return {
        "sound": report.is_sound,
        "pages": report.pages,
        "tables": report.tables,
        "vcpus": report.vcpus,
        "counts": {problem.name: count for problem, count in report.counts.items()},
        "findings": [
            {
                "problem": finding.problem.name,
                "severity": finding.problem.severity.name,
                "pfn": finding.pfn,
                "index": finding.index,
                "target_pfn": finding.target_pfn,
                "offset_bytes": finding.offset_bytes,
                "detail": finding.detail,
            }
            for finding in report.findings
        ],
    }


def _line(finding: Finding) -> str:
    places = (
        ("frame", finding.pfn),
        ("entry", finding.index),
        ("to frame", finding.target_pfn),
        ("at byte", finding.offset_bytes),
    )
    where = ", ".join(f"{name} {value:#x}" for name, value in places if value is not None)
    what = f"{finding.problem.severity.name.lower()}: {finding.problem.value}"
    return "; ".join(part for part in (what, where, finding.detail) if part)


def inspect(
    session: Session,
    text: str,
    *,
    va: int | None,
    frame: int | None,
    cr3: int | None,
    as_json: bool,
) -> None:
    """Translate an address, or tell who maps a frame."""
    with _placed(session, text) as place, _surveyed(text, place) as image:
        root = _root(text, image) if cr3 is None else cr3
        wide = image.pv_info is None or image.pv_info.width_bytes == 8
        mode = FOUR_LEVEL if wide else PAE_UNDER_XEN
        if va is not None:
            found: list[Mapping | Hole] = [translate(mode, root, va, image.read_frame)]
        else:
            mappings = who_maps(mode, root, frame or 0, image.read_frame)
            found = list(islice(mappings, SHOWN_ADDRESSES))
            if next(mappings, None) is not None:
                output.note(f"there are more; only the first {SHOWN_ADDRESSES} are shown")
    if as_json:
        output.out_json([_part(part, va) for part in found])
        return
    for part in found:
        output.say(_told(part, va))
    if not found:
        output.say(f"nothing maps frame {frame:#x}")


def _surveyed(ref: str, place: _Place) -> AbstractContextManager[Survey]:
    """Open an image of xl's; raise ``NothingToLookInto`` for one of libvirt's."""
    if place.is_libvirts:
        why = "its image is libvirt's, and `inspect` walks only page tables of Xen PV domains"
        raise NothingToLookInto(ref=ref, why=why)
    _require_xls(place)
    return survey(place.path)


def _root(ref: str, image: Survey) -> int:
    """Return the address of vCPU 0's root table; raise ``NothingToLookInto`` without one."""
    if image.header.domain_type is DomainType.HVM:
        why = "an image of a PVH or HVM domain does not tell where its page tables are (--cr3 does)"
        raise NothingToLookInto(ref=ref, why=why)
    if 0 not in image.vcpus:
        raise BadImage(path=str(image.path), offset_bytes=0, why="it holds no vCPU 0")
    return image.vcpus[0].root << FRAME_SHIFT


def _part(part: Mapping | Hole, va: int | None) -> dict[str, Any]:
    if isinstance(part, Hole):
        why = part.why.name
        return {"mapped": False, "why": why, "level": part.level, "entry": part.entry}
    return {
        "mapped": True,
        "va": part.va if va is None else va,
        "frame": part.frame + ((0 if va is None else va - part.va) >> FRAME_SHIFT),
        "writable": part.writable,
        "user": part.user,
        "executable": part.executable,
        "table": part.table_frame,
        "index": part.index,
        "entry": part.entry,
    }


def _told(part: Mapping | Hole, va: int | None) -> str:
    values = _part(part, va)
    if isinstance(part, Hole):
        place = f", {part.level} entry {part.entry:#x}" if part.level else ""
        return f"{0 if va is None else va:#x} is not mapped: {part.why.value}{place}"
    rights = "".join(
        letter if values[name] else "-"
        for letter, name in (("w", "writable"), ("u", "user"), ("x", "executable"))
    )
    return (
        f"{values['va']:#x} is frame {values['frame']:#x}, r{rights}, "
        f"by entry {part.index} ({part.entry:#x}) of the table in frame {part.table_frame:#x}"
    )
