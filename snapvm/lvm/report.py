"""What LVM reports, as values: one ``lvs`` call, read as JSON.

Field names are those of lvs(8); the meaning of the ten letters of ``lv_attr`` is in its section
NOTES.  "Unknown" is never taken for "good": LVM leaves a field empty, or prints -1, when the
kernel target could not be asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from snapvm.failures import CommandFailed
from snapvm.model import DmUuid, LvRef, LvUuid, VgUuid, VolumeKind
from snapvm.refusals import VolumeRefused

FIELDS = (
    "vg_name",
    "vg_uuid",
    "vg_free",
    "vg_size",
    "vg_extent_size",
    "vg_attr",
    "vg_missing_pv_count",
    "vg_mda_free",
    "vg_lock_type",
    "lv_name",
    "lv_uuid",
    "lv_size",
    "lv_attr",
    "lv_layout",
    "lv_role",
    "lv_tags",
    "lv_kernel_major",
    "lv_kernel_minor",
    "lv_health_status",
    "origin",
    "origin_size",
    "pool_lv",
    "data_percent",
    "metadata_percent",
    "lv_metadata_size",
    "lv_profile",
    "vg_profile",
    "chunk_size",
)

_AS_EXPECTED = (
    'report/compact_output=0 report/compact_output_cols="" report/list_item_separator="," '
    "report/prefixes=0 "
    'log/command_names=0 log/prefix="" log/report_command_log=1 global/wait_for_locks=1'
)
"""What lvm.conf may have otherwise: every field in every row, and commas in lists.

And nothing before the lines: lvm prints a report as messages, on standard output.  What it says
besides, of a scan that it repeats, is in the report then (lvm2, lib/log/log.c: _vprint_log).
"""

ARGV = (
    "lvm",
    "lvs",
    "--config",
    _AS_EXPECTED,
    "--all",
    "--reportformat",
    "json",
    "--units",
    "b",
    "--nosuffix",
    "--options",
    ",".join(FIELDS),
)
"""Plain json and not json_std: the latter needs a newer LVM and has locale troubles (WHATS_NEW)."""


_LOST_STATES = frozenset("ISmM")
"""Invalid, invalid and suspended, merge failed, the same and suspended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogicalVolume:
    """One row of the report."""

    vg: str
    vg_uuid: VgUuid
    name: str
    uuid: LvUuid
    size_bytes: int
    attr: str
    layout: frozenset[str]
    roles: frozenset[str]
    tags: frozenset[str]
    device: tuple[int, int] | None
    """Major and minor number while it is active."""
    health: str
    origin: str
    origin_bytes: int | None
    """Size of what it is a snapshot of, when it became one."""
    pool: str
    data_percent: float | None
    """How full a pool is, how much of a thin volume is in use, how full a snapshot's store is."""
    metadata_percent: float | None
    metadata_bytes: int
    """How large the metadata of a thin pool is; else 0."""
    chunk_bytes: int
    """What a thick snapshot copies at a time, and a pool gives out at a time; else 0."""
    vg_free_bytes: int
    vg_bytes: int
    vg_extent_bytes: int
    vg_attr: str
    vg_missing_pvs: int
    vg_metadata_free_bytes: int
    """Room for what LVM writes down of its group, before a change of that is refused."""
    vg_lock_type: str
    profile: str
    """What may have settings of its own for this volume, or for all of its group."""

    @property
    def ref(self) -> LvRef:
        """Name and identity, as records keep it."""
        return LvRef(vg=self.vg, lv=self.name, uuid=self.uuid)

    @property
    def dm_uuid(self) -> DmUuid:
        """What tells it from every other volume, one of a copy of its group too."""
        return DmUuid(vg=self.vg_uuid, lv=self.uuid)

    @property
    def kind(self) -> VolumeKind:
        """How a snapshot of it is made."""
        return VolumeKind.THIN if self.is_thin_volume else VolumeKind.THICK

    @property
    def is_thin_volume(self) -> bool:
        """Whether it lives in a thin pool (and is not the pool)."""
        return "thin" in self.layout and "pool" not in self.layout

    @property
    def is_thick_snapshot(self) -> bool:
        """Whether it is a store that is attached to an origin."""
        return "thicksnapshot" in self.roles

    def is_snapshot_of(self, origin: LogicalVolume) -> bool:
        """Whether it is a store that is attached to just this origin."""
        return self.is_thick_snapshot and (self.vg, self.origin) == (origin.vg, origin.name)

    @property
    def is_external_origin(self) -> bool:
        """Whether thin volumes of another pool have it for their origin."""
        return "extthinorigin" in self.roles

    @property
    def disk_bytes(self) -> int:
        """Size of the disk seen in it; ``size_bytes`` of a thick snapshot is its store's."""
        if self.is_thick_snapshot and self.origin_bytes is not None:
            return self.origin_bytes
        return self.size_bytes

    @property
    def is_lost(self) -> bool:
        """Whether the kernel has given this thick snapshot up: its store ran full (lvs(8))."""
        return self.is_thick_snapshot and self.state in _LOST_STATES

    @property
    def is_known_whole(self) -> bool:
        """Whether the kernel has this thick snapshot, and says how full it is."""
        return self.is_active and self.data_percent is not None

    @property
    def is_merging(self) -> bool:
        """Whether a merge of this snapshot into its origin has begun, or waits to (lvs(8))."""
        return self.attr[0:1] == "S"

    @property
    def held_bytes(self) -> int:
        """How much a thick snapshot keeps of what has changed, its tables included."""
        return int(self.size_bytes * (self.data_percent or 0) / 100)

    @property
    def is_writable(self) -> bool:
        """Second letter of lv_attr: `w`, or `R` for one that is activated read-only."""
        return self.attr[1:2] == "w"

    @property
    def state(self) -> str:
        """Fifth letter of lv_attr: a, s, I, … or `-` when inactive."""
        return self.attr[4:5]

    @property
    def is_active(self) -> bool:
        """Whether the kernel has a device for it."""
        return self.state == "a"

    @property
    def is_open(self) -> bool:
        """Whether something holds its device open."""
        return self.attr[5:6] == "o"


class Report:
    """All volumes of the host at one moment."""

    def __init__(self, volumes: Iterable[LogicalVolume]) -> None:
        self.volumes = tuple(volumes)
        self._by_dm_uuid = {volume.dm_uuid: volume for volume in self.volumes}
        self._by_uuid: dict[LvUuid, list[LogicalVolume]] = {}
        for volume in self.volumes:
            self._by_uuid.setdefault(volume.uuid, []).append(volume)
        self._by_name = {(volume.vg, volume.name): volume for volume in self.volumes}

    def lv_from_dm_uuid(self, dm_uuid: DmUuid) -> LogicalVolume | None:
        """Return the volume that the kernel has under these uuids, or None."""
        return self._by_dm_uuid.get(dm_uuid)

    def lv_of(self, ref: LvRef) -> LogicalVolume | None:
        """Return the volume that something written earlier means; see ``lv_from_uuid``."""
        return self.lv_from_uuid(ref.uuid, ref.vg)

    def lv_from_uuid(self, uuid: LvUuid, vg: str) -> LogicalVolume | None:
        """Return the volume of this uuid that was in group ``vg``, or None when it is gone.

        The group may have another name by now; but not while there is a copy of it on this host,
        whose volumes have the same uuids: then only the name tells which group is meant.  Raises
        ``VolumeRefused`` when none has it, or two.
        """
        found = self._by_uuid.get(uuid, [])
        named = [volume for volume in found if volume.vg == vg]
        if not found or len(named) == 1:
            return next(iter(named), None)
        groups = self._copies_of(found[0])
        if vg in groups and not named:
            return None
        if len(groups) == 1:
            return found[0]
        raise VolumeRefused(
            volume=" or ".join(sorted(str(volume.ref) for volume in found)),
            why=f"which of the groups {', '.join(sorted(groups))} was {vg} cannot be told: they "
            "have volumes of the same uuids, as after vgimportclone",
            remedy=f"give the right one the name {vg} (vgrename), or hide the others from LVM "
            "(lvmdevices(8))",
        )

    def _copies_of(self, volume: LogicalVolume) -> set[str]:
        """Return the names of all groups that share uuids with that of a volume; its own too."""
        shared = [those for those in self._by_uuid.values() if len(those) > 1]
        kin = [those for those in shared if any(v.vg_uuid == volume.vg_uuid for v in those)]
        return {volume.vg, *(other.vg for those in kin for other in those)}

    def lv_from_name(self, vg: str, name: str) -> LogicalVolume | None:
        """Return the volume of this name, or None."""
        return self._by_name.get((vg, name))

    def snapshots_of(self, origin: LogicalVolume) -> tuple[LogicalVolume, ...]:
        """Return every thick snapshot of a volume, whoever made it."""
        return tuple(volume for volume in self.volumes if volume.is_snapshot_of(origin))

    def overlays_of(self, origin: LogicalVolume) -> tuple[LogicalVolume, ...]:
        """Return every thin volume of another pool that has a volume for its external origin."""
        return tuple(
            volume
            for volume in self.volumes
            if volume.is_thin_volume
            and (volume.vg, volume.origin) == (origin.vg, origin.name)
            and volume.pool != origin.pool
        )

    def tagged(self, tag: str) -> tuple[LogicalVolume, ...]:
        """Return every volume that carries a tag."""
        return tuple(volume for volume in self.volumes if tag in volume.tags)


def parse(text: str) -> Report:
    """Read the output of ``ARGV``.

    Raises ``CommandFailed`` when it is not the JSON that lvs(8) promises: a report cut short by a
    crash must not look like a host with fewer volumes.
    """
    try:
        rows = [row for section in _sections(text) for row in section.get("lv", ())]
        # chunk_size is a field of segments: a volume in several pieces has a row for each of them.
        volumes = (_volume(row) for row in rows)
        return Report({volume.dm_uuid: volume for volume in volumes}.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CommandFailed(
            argv=ARGV, status=0, stderr=f"its report could not be read: {error!r}"
        ) from error


def _sections(text: str) -> list[dict[str, Any]]:
    """Return what lvs reports, without the log behind it, which need not be JSON.

    With a warning there is a comma too many in it before 2.03.24, and characters stand as they are
    in it before 2.03.33 (lvm2, libdm-report.c).
    """
    begin = text.index("[", text.index('"report"'))
    sections, _ = json.JSONDecoder().raw_decode(text, begin)
    return list(sections)


def _volume(row: dict[str, Any]) -> LogicalVolume:
    return LogicalVolume(
        vg=row["vg_name"],
        vg_uuid=VgUuid(row["vg_uuid"]),
        # Hidden volumes are printed in square brackets.
        name=row["lv_name"].strip("[]"),
        uuid=LvUuid(row["lv_uuid"]),
        size_bytes=int(row["lv_size"]),
        attr=row["lv_attr"],
        layout=_words(row["lv_layout"]),
        roles=_words(row["lv_role"]),
        tags=_words(row["lv_tags"]),
        device=_device(row["lv_kernel_major"], row["lv_kernel_minor"]),
        health=row["lv_health_status"],
        origin=row["origin"].strip("[]"),
        origin_bytes=int(row["origin_size"]) if row["origin_size"] else None,
        pool=row["pool_lv"].strip("[]"),
        data_percent=_percent(row["data_percent"]),
        metadata_percent=_percent(row["metadata_percent"]),
        metadata_bytes=int(row["lv_metadata_size"] or 0),
        chunk_bytes=int(row["chunk_size"] or 0),
        vg_free_bytes=int(row["vg_free"]),
        vg_bytes=int(row["vg_size"]),
        vg_extent_bytes=int(row["vg_extent_size"]),
        vg_attr=row["vg_attr"],
        vg_missing_pvs=int(row["vg_missing_pv_count"]),
        vg_metadata_free_bytes=int(row["vg_mda_free"]),
        vg_lock_type=row["vg_lock_type"],
        profile=row["lv_profile"] or row["vg_profile"],
    )


def _words(text: str) -> frozenset[str]:
    return frozenset(word for word in text.split(",") if word)


def _percent(text: str) -> float | None:
    return float(text) if text and not text.startswith("-") else None


def _device(major: str, minor: str) -> tuple[int, int] | None:
    if not major or not minor or major.startswith("-"):
        return None
    return int(major), int(minor)
