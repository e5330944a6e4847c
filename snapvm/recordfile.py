"""``snapshot.json``: write a record as text, read it back, and refuse what is not a record.

The format is versioned and described by ``snapshot.schema.json`` beside this module; a test holds
the two together.
"""

from __future__ import annotations

import json
from typing import Any

from snapvm import naming
from snapvm.jsonvalues import (
    Unknown,
    Wrong,
    count,
    each,
    lv_uuid,
    lvm_name,
    milliseconds,
    one_of,
    optional,
    required,
    vg_uuid,
)
from snapvm.model import (
    DiskRecord,
    DomainState,
    DomainUuid,
    HypervisorKind,
    LvRef,
    MemoryRecord,
    OmittedDisk,
    Record,
    RecordKind,
    SideFile,
    SideKind,
    SnapshotId,
    Timing,
    VolumeKind,
    WindowPart,
)
from snapvm.refusals import RecordNewer, RecordUnusable

SCHEMA_VERSION = 1
SIZE_LIMIT_BYTES = 4 << 20
"""No real record comes near this size; a larger file is not read."""


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
    if_any = {"checksum": memory.checksum, "foreign": dict(memory.foreign)}
    return {
        "file": memory.file,
        "format": memory.format,
        "size_bytes": memory.size_bytes,
        **{key: value for key, value in if_any.items() if value},
    }


def ref_dict(ref: LvRef) -> dict[str, str]:
    """Return a volume as plain JSON values."""
    known = {"vg_uuid": ref.vg_uuid} if ref.vg_uuid else {}
    return {"vg": ref.vg, "lv": ref.lv, "uuid": ref.uuid, **known}


def load(text: bytes, path: str) -> Record:
    """Read the text of a ``snapshot.json``; ``path`` is only named in the error.

    Raises ``RecordNewer`` for a text of a newer schema, or with a word that is not known, and
    ``RecordUnusable`` for one that is not JSON, or in which anything is missing or of the wrong
    type.
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
    except Unknown as word:
        raise RecordNewer(path=path, why=f"a newer snapvm may have written it: {word}") from None
    except Wrong as wrong:
        raise RecordUnusable(path=path, why=str(wrong)) from None


def _version(data: Any) -> int:
    if not isinstance(data, dict):
        raise Wrong("it is not a JSON object")
    version = data.get("schema")
    if type(version) is not int or version < 1:
        raise Wrong("it has no schema number")
    return version


def _record(data: dict[str, Any]) -> Record:
    domain = required(data, "domain", dict)
    memory = data.get("memory")
    timing = required(data, "timing", dict)
    versions = required(data, "versions", dict)
    id_ = required(data, "id", str)
    set_ = required(data, "set", str)
    if not naming.is_id(id_) or not naming.is_set(set_):
        raise Wrong("its id or set is malformed")
    return Record(
        id=SnapshotId(id_),
        set=set_,
        kind=one_of(data, "kind", RecordKind),
        created=required(data, "created", str),
        named=required(data, "named", bool),
        note=required(data, "note", str),
        domain=_name(domain),
        domain_uuid=DomainUuid(required(domain, "uuid", str)),
        hypervisor=one_of(domain, "hypervisor", HypervisorKind),
        state=one_of(domain, "state", DomainState),
        memory_bytes=count(domain, "memory_bytes"),
        vcpus=count(domain, "vcpus"),
        capture=required(data, "capture", str),
        memory=None if memory is None else _memory(required(data, "memory", dict)),
        disks=each(data, "disks", _disk),
        omitted=each(data, "omitted", _omitted),
        timing=Timing(
            pause_ms=milliseconds(timing, "pause_ms"),
            total_ms=milliseconds(timing, "total_ms"),
            parts=each(timing, "parts", _part),
        ),
        written_bytes=count(data, "written_bytes"),
        versions={name: required(versions, name, str) for name in versions},
        quiesced=optional(data, "quiesced", default=False),
        side_files=each(data, "side_files", _side_file) if "side_files" in data else (),
        order=optional(data, "order", default=""),
    )


def _name(data: dict[str, Any]) -> str:
    """Read a domain's name; refuse one by which no hypervisor can be asked: NUL, or no UTF-8."""
    name = required(data, "name", str)
    if "\0" in name or name.encode(errors="replace").decode() != name:
        raise Wrong(f"no domain can have the name {name!r}")
    return name


def _memory(data: dict[str, Any]) -> MemoryRecord:
    file = required(data, "file", str)
    if "/" in file or file.startswith(".") or not file or not file.isprintable():
        raise Wrong(f"its memory image {file!r} is not a plain file name")
    foreign: dict[str, Any] = optional(data, "foreign", default={})
    return MemoryRecord(
        file=file,
        format=required(data, "format", str),
        size_bytes=count(data, "size_bytes"),
        checksum=optional(data, "checksum", default=""),
        foreign={kind: count(foreign, kind) for kind in foreign},
    )


def _omitted(data: dict[str, Any]) -> OmittedDisk:
    return OmittedDisk(
        target=required(data, "target", str),
        why=required(data, "why", str),
        read_only=optional(data, "read_only", default=False),
    )


def _side_file(data: dict[str, Any]) -> SideFile:
    name = required(data, "name", str)
    if "/" in name or "\0" in name or name.startswith(".") or not name:
        raise Wrong(f"its side file {name!r} is not a plain file name")
    return SideFile(
        kind=one_of(data, "kind", SideKind),
        name=name,
        size_bytes=count(data, "size_bytes"),
        checksum=required(data, "checksum", str),
    )


def _disk(data: dict[str, Any]) -> DiskRecord:
    return DiskRecord(
        target=required(data, "target", str),
        kind=one_of(data, "kind", VolumeKind),
        size_bytes=count(data, "size_bytes"),
        volume=ref(required(data, "volume", dict)),
        snapshot=ref(required(data, "snapshot", dict)),
    )


def ref(data: dict[str, Any]) -> LvRef:
    """Read a volume; refuse a name that LVM could take for something else, such as an option.

    Raises ``Wrong``.
    """
    return LvRef(
        vg=lvm_name(data, "vg"),
        lv=lvm_name(data, "lv"),
        # The undo snapshot of a thick disk has no uuid until it is made.
        uuid=lv_uuid(data, "uuid", may_be_empty=True),
        vg_uuid=vg_uuid(data, "vg_uuid"),
    )


def _part(data: dict[str, Any]) -> WindowPart:
    return WindowPart(
        name=required(data, "name", str),
        start_ms=milliseconds(data, "start_ms", may_be_negative=True),
        duration_ms=milliseconds(data, "duration_ms"),
    )
