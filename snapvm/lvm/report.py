"""What LVM reports, as values: rows of one ``lvs`` call, and of ``vgs`` where that says too little.

The meaning of the ten letters of ``lv_attr`` is in lvs(8), NOTES.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from snapvm.lvm import argv
from snapvm.model import DmUuid, LvRef, LvUuid, VgUuid, VolumeKind
from snapvm.refusals import VolumeRefused

_INVALID_STATES = frozenset("IS")
"""Invalid, invalid and suspended."""
_LOST_STATES = _INVALID_STATES | frozenset("mM")
"""And merge failed, the same and suspended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogicalVolume:
    """One row of the report."""

    vg: str
    vg_uuid: VgUuid
    vg_tags: frozenset[str]
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
    """Room for the metadata of its group; LVM refuses any change of the group without."""
    vg_volumes_left: int | None
    """How many volumes more its group may have; None where nothing but room limits them."""
    vg_lock_type: str
    profile: str
    """What may have settings of its own for this volume, or for all of its group."""
    read_ahead: str
    """How many sectors, or `auto`, as LVM is told."""
    not_at_boot: bool = False
    """LVM does not activate it of itself; only a full report tells (``Lvm.full_report``)."""

    @property
    def ref(self) -> LvRef:
        """Name and identity, as records keep it."""
        return LvRef(vg=self.vg, lv=self.name, uuid=self.uuid, vg_uuid=self.vg_uuid)

    @property
    def dm_uuid(self) -> DmUuid:
        """What tells it from every other volume, one of a copy of its group too."""
        return DmUuid(vg=self.vg_uuid, lv=self.uuid)

    @property
    def is_foreign(self) -> bool:
        """Whether its tags say that it was made in another group, as those of a copy do."""
        return argv.is_foreign(self.tags, self.vg_uuid, self.vg_tags)

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
        """Whether the kernel has given this thick snapshot up, now or before a boot (lvs(8)).

        Its store ran full, or could not be written.
        """
        is_marked = self.is_thick_snapshot and argv.TAG_LOST in self.tags
        return is_marked or self.is_given_up

    @property
    def is_given_up(self) -> bool:
        """Whether the kernel says so now, as far as it knows: no mark of ours counts."""
        return self.is_thick_snapshot and self.state in _LOST_STATES

    @property
    def is_newly_lost(self) -> bool:
        """Whether it is a thick snapshot of ours that is lost, and is not marked so yet."""
        is_ours = argv.TAG_OURS in self.tags and not self.is_foreign
        is_invalid = self.is_thick_snapshot and self.state in _INVALID_STATES
        return is_ours and is_invalid and argv.TAG_LOST not in self.tags

    @property
    def is_known_whole(self) -> bool:
        """Whether the kernel has this thick snapshot, and says how full it is."""
        return self.is_active and self.data_percent is not None and not self.is_lost

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
    def is_locked(self) -> bool:
        """Whether it, or a part of it, is being moved (lvs(8): the third letter is a capital)."""
        return self.attr[2:3].isupper()

    @property
    def has_fixed_number(self) -> bool:
        """Whether its device is to have the same number each time (lvchange(8), --persistent)."""
        return self.attr[3:4] == "m"

    @property
    def is_skipped(self) -> bool:
        """Whether it is activated only for who says so each time (lvchange(8), -K)."""
        return self.attr[9:10] == "k"

    @property
    def state(self) -> str:
        """Fifth letter of lv_attr: a, s, I, … or `-` when inactive."""
        return self.attr[4:5]

    @property
    def is_active(self) -> bool:
        """Whether the kernel has a device for it, and all is well with that."""
        return self.state == "a"

    @property
    def is_mapped(self) -> bool:
        """Whether the kernel has a device for it, which need not be in order."""
        return self.state != "-"

    @property
    def is_open(self) -> bool:
        """Whether something holds its device open."""
        return self.attr[5:6] == "o"


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeGroup:
    """One row of the report of groups, which has more of them than that of volumes."""

    name: str
    uuid: VgUuid
    is_exported: bool
    system_id: str
    """Of the one host that may use it; empty when any may (lvmsystemid(7))."""
    lock_type: str
    volumes: int
    """How many are in it, whether LVM shows them or not."""


class Report:
    """All volumes of the host at one moment, and what was asked besides of groups without one."""

    def __init__(
        self, volumes: Iterable[LogicalVolume], groups: tuple[VolumeGroup, ...] | None = None
    ) -> None:
        self.volumes = tuple(volumes)
        self.groups = groups
        """All of them, those whose volumes are not shown too; None when it was not asked."""
        self._shown: set[str] = {name for v in self.volumes for name in (v.vg, v.vg_uuid)}
        self._by_dm_uuid = {volume.dm_uuid: volume for volume in self.volumes}
        self._by_uuid: dict[LvUuid, list[LogicalVolume]] = {}
        for volume in self.volumes:
            self._by_uuid.setdefault(volume.uuid, []).append(volume)
        self._by_name = {(volume.vg, volume.name): volume for volume in self.volumes}
        self._named: dict[str, set[VgUuid]] = {}
        for volume in self.volumes:
            self._named.setdefault(volume.vg, set()).add(volume.vg_uuid)
        self._upon: dict[tuple[str, str], list[LogicalVolume]] = {}
        """By group and name: what a volume of that name is the origin of."""
        for volume in self.volumes:
            if volume.origin:
                self._upon.setdefault((volume.vg, volume.origin), []).append(volume)

    def lv_from_dm_uuid(self, dm_uuid: DmUuid) -> LogicalVolume | None:
        """Return the volume that the kernel has under these uuids, or None."""
        return self._by_dm_uuid.get(dm_uuid)

    def lv_of(self, ref: LvRef) -> LogicalVolume | None:
        """Return the volume that something written earlier means; None when it is not there.

        It is the one of its uuid in the group of its uuid, or in one that an administrator's tag
        says that group has become (``argv.became_tag``): one of another group may be a copy.
        Raises ``VolumeRefused`` when two groups are said to be, and where no group's uuid was
        written down, as ``_lv_by_names`` does.
        """
        if not ref.vg_uuid:
            return self._lv_by_names(ref.uuid, ref.vg)
        found = self._by_uuid.get(ref.uuid, ())
        exact = [volume for volume in found if volume.vg_uuid == ref.vg_uuid]
        said = exact or [v for v in found if argv.goes_by(v.vg_uuid, v.vg_tags, ref.vg_uuid)]
        if len(said) > 1:
            groups = sorted(volume.vg for volume in said)
            raise VolumeRefused(
                volume=" or ".join(f"{vg}/{ref.lv}" for vg in groups),
                why=f"each of the groups {', '.join(groups)} is tagged as what {ref.vg} was",
                remedy="take the tag snapvm.was off all but one (vgchange --deltag)",
            )
        return next(iter(said), None)

    def heirs(self, ref: LvRef) -> tuple[LogicalVolume, ...]:
        """Return the volumes that may be what a volume has become, and may be copies of it.

        A group of which others are shown to be copies has no heir among those.
        """
        found = [v for v in self._by_uuid.get(ref.uuid, ()) if v.vg_uuid != ref.vg_uuid]
        if not found:
            return ()
        known = next((v for v in self.volumes if v.vg_uuid == ref.vg_uuid), None)
        copies = {} if known is None else self._copies_of(known)
        return tuple(volume for volume in found if volume.vg_uuid not in copies)

    def _lv_by_names(self, uuid: LvUuid, vg: str) -> LogicalVolume | None:
        """Return the volume of this uuid that was in group ``vg``, or None when it is gone.

        The group may have another name by now; but not while there is a copy of it on this host,
        whose volumes have the same uuids: then only the name tells which group is meant.  Raises
        ``VolumeRefused`` when none has it, or two.
        """
        found = self._by_uuid.get(uuid, [])
        named = [volume for volume in found if volume.vg == vg]
        if not found or len(named) == 1:
            return next(iter(named), None)
        groups = self._copies_of(found[0]).values()
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

    def decides(self, ref: LvRef) -> bool:
        """Tell whether it alone says of a volume that it is there, or gone."""
        if ref.vg_uuid:
            return self.shows(ref)
        return ref.uuid in self._by_uuid or self.shows(ref)

    def group_now(self, ref: LvRef) -> str:
        """Return the name that the group of a volume has now; empty when it is not shown."""
        group = ref.vg_uuid or ref.vg
        return next((v.vg for v in self.volumes if group in (v.vg, v.vg_uuid)), "")

    def shows(self, ref: LvRef) -> bool:
        """Tell whether there are volumes of its group in it, which are all of them then."""
        return (ref.vg_uuid or ref.vg) in self._shown

    def groups_named(self, vg: str) -> frozenset[VgUuid]:
        """Return the groups of a name that have volumes in it; there may be two of a name."""
        return frozenset(self._named.get(vg, ()))

    def _copies_of(self, volume: LogicalVolume) -> dict[VgUuid, str]:
        """Return all groups that share uuids with a volume's, and their names; its own too."""
        shared = [those for those in self._by_uuid.values() if len(those) > 1]
        kin = [those for those in shared if any(v.vg_uuid == volume.vg_uuid for v in those)]
        return {other.vg_uuid: other.vg for those in ([volume], *kin) for other in those}

    def lv_from_name(self, vg: str, name: str) -> LogicalVolume | None:
        """Return the volume of this name, or None."""
        return self._by_name.get((vg, name))

    def snapshots_of(self, origin: LogicalVolume) -> tuple[LogicalVolume, ...]:
        """Return every thick snapshot of a volume, whoever made it."""
        upon = self._upon.get((origin.vg, origin.name), ())
        return tuple(volume for volume in upon if volume.is_thick_snapshot)

    def overlays_of(self, origin: LogicalVolume) -> tuple[LogicalVolume, ...]:
        """Return every thin volume of another pool that has a volume for its external origin."""
        upon = self._upon.get((origin.vg, origin.name), ())
        return tuple(v for v in upon if v.is_thin_volume and v.pool != origin.pool)

    def tagged(self, tag: str) -> tuple[LogicalVolume, ...]:
        """Return every volume that carries a tag."""
        return tuple(volume for volume in self.volumes if tag in volume.tags)
