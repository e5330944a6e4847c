"""``snapshot.json``: write a record as text, read it back, and refuse what is not a record.

The format is versioned and described by ``snapshot.schema.json`` beside this module; a test holds
the two together.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

from snapvm import naming
from snapvm.model import (
    DiskRecord,
    DomainState,
    DomainUuid,
    HypervisorKind,
    LvRef,
    LvUuid,
    MemoryRecord,
    OmittedDisk,
    Record,
    RecordKind,
    SideFile,
    SideKind,
    SnapshotId,
    Timing,
    VgUuid,
    VolumeKind,
    WindowPart,
)
from snapvm.refusals import RecordNewer, RecordUnusable

SCHEMA_VERSION = 1
SIZE_LIMIT_BYTES = 4 << 20
"""No real record comes near this size; a larger file is not read."""

_LIMIT_MS = 1e12
"""About thirty years; no time in a record comes near it."""

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


def dump(record: Record) -> str:
    """Return the text of ``snapshot.json``."""
    return json.dumps(as_dict(record), indent=1) + "\n"


def as_dict(record: Record) -> dict[str, Any]:
    """Return the record as plain JSON values; ``snapvm list --json`` prints the same."""
    return {
        "schema": SCHEMA_VERSION,
        "id": record.id,
        "set": record.set,
        "kind": record.kind.value,
        "created": record.created,
        "named": record.named,
        "note": record.note,
        "domain": {
            "name": record.domain,
            "uuid": record.domain_uuid,
            "hypervisor": record.hypervisor.value,
            "state": record.state.value,
            "memory_bytes": record.memory_bytes,
            "vcpus": record.vcpus,
        },
        "capture": record.capture,
        "memory": None if record.memory is None else _memory_dict(record.memory),
        "disks": [
            {
                "target": disk.target,
                "kind": disk.kind.value,
                "size_bytes": disk.size_bytes,
                "volume": ref_dict(disk.volume),
                "snapshot": ref_dict(disk.snapshot),
            }
            for disk in record.disks
        ],
        "omitted": [omitted_dict(drive) for drive in record.omitted],
        "timing": {
            "pause_ms": record.timing.pause_ms,
            "total_ms": record.timing.total_ms,
            "parts": [
                {"name": part.name, "start_ms": part.start_ms, "duration_ms": part.duration_ms}
                for part in record.timing.parts
            ],
        },
        "written_bytes": record.written_bytes,
        "versions": dict(record.versions),
        **({"quiesced": True} if record.quiesced else {}),
        **({"side_files": _side_dicts(record.side_files)} if record.side_files else {}),
        **({"order": record.order} if record.order else {}),
    }


def omitted_dict(drive: OmittedDisk) -> dict[str, Any]:
    """Return what was left out as JSON has it."""
    read_only = {"read_only": True} if drive.read_only else {}
    return {"target": drive.target, "why": drive.why, **read_only}


def _side_dicts(sides: tuple[SideFile, ...]) -> list[dict[str, Any]]:
    return [
        {
            "kind": side.kind.value,
            "name": side.name,
            "size_bytes": side.size_bytes,
            "checksum": side.checksum,
        }
        for side in sides
    ]


def _memory_dict(memory: MemoryRecord) -> dict[str, Any]:
    optional = {"checksum": memory.checksum, "foreign": dict(memory.foreign)}
    return {
        "file": memory.file,
        "format": memory.format,
        "size_bytes": memory.size_bytes,
        **{key: value for key, value in optional.items() if value},
    }


def ref_dict(ref: LvRef) -> dict[str, str]:
    """Return a volume as plain JSON values."""
    known = {"vg_uuid": ref.vg_uuid} if ref.vg_uuid else {}
    return {"vg": ref.vg, "lv": ref.lv, "uuid": ref.uuid, **known}


def load(text: bytes, path: str) -> Record:
    """Read the text of a ``snapshot.json``; ``path`` is only named in the error.

    Raises ``RecordNewer`` for a text of a newer schema, and ``RecordUnusable`` for one that is not
    JSON, or in which anything is missing or of the wrong type.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordUnusable(path=path, why=f"it is not JSON ({error})") from None
    return from_dict(data, path)


def may_be_of(text: bytes, domain: str) -> bool:
    """Tell whether a text may be a record of a domain of this name, without parsing it.

    A JSON text without a backslash holds its strings literally, in UTF-8 (RFC 8259, 7 and 8.1).
    """
    return b"\\" in text or domain.encode(errors="surrogatepass") in text


def from_dict(data: Any, path: str) -> Record:
    """Read a record from plain JSON values; see ``load``."""
    try:
        version = _version(data)
        if version > SCHEMA_VERSION:
            why = f"(schema {version}, this one knows {SCHEMA_VERSION})"
            raise RecordNewer(path=path, why=f"it was written by a newer snapvm {why}")
        return _record(data)
    except _Wrong as wrong:
        raise RecordUnusable(path=path, why=str(wrong)) from None


class _Wrong(ValueError):
    """What is wrong with a record; ``from_dict`` adds the path."""


def _version(data: Any) -> int:
    if not isinstance(data, dict):
        raise _Wrong("it is not a JSON object")
    version = data.get("schema")
    if type(version) is not int or version < 1:
        raise _Wrong("it has no schema number")
    return version


def _record(data: dict[str, Any]) -> Record:
    domain = _get(data, "domain", dict)
    memory = data.get("memory")
    timing = _get(data, "timing", dict)
    versions = _get(data, "versions", dict)
    id_ = _get(data, "id", str)
    set_ = _get(data, "set", str)
    if not naming.is_id(id_) or not naming.is_set(set_):
        raise _Wrong("its id or set is malformed")
    return Record(
        id=SnapshotId(id_),
        set=set_,
        kind=_enum(data, "kind", RecordKind),
        created=_get(data, "created", str),
        named=_get(data, "named", bool),
        note=_get(data, "note", str),
        domain=_name(domain),
        domain_uuid=DomainUuid(_get(domain, "uuid", str)),
        hypervisor=_enum(domain, "hypervisor", HypervisorKind),
        state=_enum(domain, "state", DomainState),
        memory_bytes=_count(domain, "memory_bytes"),
        vcpus=_count(domain, "vcpus"),
        capture=_get(data, "capture", str),
        memory=None if memory is None else _memory(_get(data, "memory", dict)),
        disks=_each(data, "disks", _disk),
        omitted=_each(data, "omitted", _omitted),
        timing=Timing(
            pause_ms=_milliseconds(timing, "pause_ms"),
            total_ms=_milliseconds(timing, "total_ms"),
            parts=_each(timing, "parts", _part),
        ),
        written_bytes=_count(data, "written_bytes"),
        versions={name: _get(versions, name, str) for name in versions},
        quiesced=_get_or(data, "quiesced", default=False),
        side_files=_each(data, "side_files", _side_file) if "side_files" in data else (),
        order=_get_or(data, "order", default=""),
    )


def _name(data: dict[str, Any]) -> str:
    """Read a domain's name; refuse a text that C or UTF-8 does not have: nobody can be asked."""
    name = _get(data, "name", str)
    if "\0" in name or name.encode(errors="replace").decode() != name:
        raise _Wrong(f"no domain can have the name {name!r}")
    return name


def _memory(data: dict[str, Any]) -> MemoryRecord:
    file = _get(data, "file", str)
    if "/" in file or file.startswith(".") or not file or not file.isprintable():
        raise _Wrong(f"its memory image {file!r} is not a plain file name")
    foreign: dict[str, Any] = _get_or(data, "foreign", default={})
    return MemoryRecord(
        file=file,
        format=_get(data, "format", str),
        size_bytes=_count(data, "size_bytes"),
        checksum=_get_or(data, "checksum", default=""),
        foreign={kind: _count(foreign, kind) for kind in foreign},
    )


def _omitted(data: dict[str, Any]) -> OmittedDisk:
    return OmittedDisk(
        target=_get(data, "target", str),
        why=_get(data, "why", str),
        read_only=_get_or(data, "read_only", default=False),
    )


def _side_file(data: dict[str, Any]) -> SideFile:
    name = _get(data, "name", str)
    if "/" in name or "\0" in name or name.startswith(".") or not name:
        raise _Wrong(f"its side file {name!r} is not a plain file name")
    return SideFile(
        kind=_enum(data, "kind", SideKind),
        name=name,
        size_bytes=_count(data, "size_bytes"),
        checksum=_get(data, "checksum", str),
    )


def _disk(data: dict[str, Any]) -> DiskRecord:
    return DiskRecord(
        target=_get(data, "target", str),
        kind=_enum(data, "kind", VolumeKind),
        size_bytes=_count(data, "size_bytes"),
        volume=ref(_get(data, "volume", dict)),
        snapshot=ref(_get(data, "snapshot", dict)),
    )


def ref(data: dict[str, Any]) -> LvRef:
    """Read a volume; refuse a name that LVM could take for something else, such as an option.

    Raises ``ValueError``.
    """
    vg, lv, uuid = _get(data, "vg", str), _get(data, "lv", str), _get(data, "uuid", str)
    if not naming.is_lvm_name(vg) or not naming.is_lvm_name(lv):
        raise _Wrong(f"no volume can have the name {f'{vg}/{lv}'!r}")
    # The undo snapshot of a thick disk has no uuid until it is made.
    if uuid and not naming.is_lvm_uuid(uuid):
        raise _Wrong(f"{uuid!r} is not the uuid of a volume")
    vg_uuid = _get_or(data, "vg_uuid", default="")
    if vg_uuid and not naming.is_lvm_uuid(vg_uuid):
        raise _Wrong(f"{vg_uuid!r} is not the uuid of a volume group")
    return LvRef(vg=vg, lv=lv, uuid=LvUuid(uuid), vg_uuid=VgUuid(vg_uuid))


def _part(data: dict[str, Any]) -> WindowPart:
    return WindowPart(
        name=_get(data, "name", str),
        start_ms=_milliseconds(data, "start_ms", least=-_LIMIT_MS),
        duration_ms=_milliseconds(data, "duration_ms"),
    )


def _get(data: dict[str, Any], key: str, kind: type[T]) -> T:
    value = data.get(key)
    if type(value) is not kind:
        raise _Wrong(f"{key!r} is missing or not a {kind.__name__}")
    return value


def _get_or(data: dict[str, Any], key: str, *, default: T) -> T:
    """Read what older versions of snapvm did not write; it has the type of the default."""
    return _get(data, key, type(default)) if key in data else default


def _enum(data: dict[str, Any], key: str, kind: type[E]) -> E:
    text = _get(data, key, str)
    try:
        return kind(text)
    except ValueError:
        raise _Wrong(f"{key!r} is {text!r}, which this snapvm does not know") from None


def _count(data: dict[str, Any], key: str) -> int:
    value = _get(data, key, int)
    if not 0 <= value < 1 << 63:
        raise _Wrong(f"{key!r} is out of range")
    return value


def _milliseconds(data: dict[str, Any], key: str, *, least: float = 0.0) -> float:
    value = data.get(key)
    if not isinstance(value, (int, float)) or not least <= value < _LIMIT_MS:
        raise _Wrong(f"{key!r} is missing or not a time in milliseconds")
    return float(value)


def _each(data: dict[str, Any], key: str, read: Callable[[dict[str, Any]], T]) -> tuple[T, ...]:
    items = _get(data, key, list)
    for item in items:
        if type(item) is not dict:
            raise _Wrong(f"{key!r} holds something that is not an object")
    # A list first: a generator costs a `list` of ten thousand records 40 ms.
    return tuple([read(item) for item in items])
