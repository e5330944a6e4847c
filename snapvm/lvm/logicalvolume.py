"""A logical volume as LVM reports it: one row of ``lvs``, and what its letters mean.

The ten letters of ``lv_attr`` are explained in lvs(8), NOTES, and those of ``vg_attr`` in vgs(8).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from snapvm.lvm import argv
from snapvm.model import DmUuid, LvRef, LvUuid, VgUuid, VolumeKind

_INVALID = "I"
_INVALID_STATES = frozenset((_INVALID, "S"))
"""Invalid, invalid and suspended."""
_LOST_STATES = _INVALID_STATES | frozenset("mM")
"""And merge failed, the same and suspended."""
_SUSPENDED_STATES = frozenset("sSM")
"""Suspended, and nothing worse; or also invalid, or its merge failed."""
NOT_SHARED = ("", "none")
"""Lock types of a group that one host uses alone (lvmlockd(8)); empty without lvmlockd."""


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
    """LVM does not activate it by itself; only a full report tells (``Lvm.full_report``)."""

    @property
    def ref(self) -> LvRef:
        """Name and identity, as records keep it."""
        return LvRef(vg=self.vg, lv=self.name, uuid=self.uuid, vg_uuid=self.vg_uuid)

    @property
    def dm_uuid(self) -> DmUuid:
        """What tells it from every other volume, one of a copy of its group too."""
        return DmUuid(vg=self.vg_uuid, lv=self.uuid)

    @property
    def is_ours(self) -> bool:
        """Whether snapvm made it, in this group.

        If its tags say that it was made in another, it is a copy, such as one by a SAN's snapshot.
        """
        if argv.TAG_OURS not in self.tags:
            return False
        return not argv.is_foreign(self.tags, self.vg_uuid, self.vg_tags)

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
        is_invalid = self.is_thick_snapshot and self.state in _INVALID_STATES
        return self.is_ours and is_invalid and argv.TAG_LOST not in self.tags

    @property
    def is_known_whole(self) -> bool:
        """Whether the kernel has this thick snapshot, and says how full it is."""
        return self.is_active and self.data_percent is not None and not self.is_lost

    @property
    def is_merging(self) -> bool:
        """Whether a merge of this snapshot into its origin has begun, or waits to (lvs(8))."""
        return self.attr[0:1] == "S"

    @property
    def has_merging_snapshot(self) -> bool:
        """Whether a snapshot is being merged into it, or it is that snapshot itself (lvs(8))."""
        return self.attr[0:1] == "O" or self.is_merging

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
        """Whether LVM activates it only when told so explicitly each time (lvchange(8), -K)."""
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
    def is_suspended(self) -> bool:
        """Whether its device lets nothing through, and no lvm is at work on it.

        One that is has the lock of its group, for which a report waits.
        """
        return self.state in _SUSPENDED_STATES

    @property
    def is_open(self) -> bool:
        """Whether something holds its device open."""
        return self.attr[5:6] == "o"

    @property
    def needs_check(self) -> bool:
        """Whether the kernel wants thin_check to look at the metadata of this thin pool."""
        return self.state in ("c", "C") or self.health == "check_needed"

    @property
    def health_letter(self) -> str:
        """Ninth letter of lv_attr: what is wrong with it, such as D, F or M; `-` for nothing."""
        return self.attr[8:9]

    def given_up(self) -> LogicalVolume:
        """Return it as LVM would report it once the kernel has given this snapshot up."""
        attr = f"{self.attr[:4]}{_INVALID}{self.attr[5:]}"
        return replace(self, attr=attr, data_percent=None)

    @property
    def is_group_whole(self) -> bool:
        """Whether LVM finds all physical volumes of its group."""
        return not self.vg_missing_pvs and self.vg_attr[3:4] != "p"

    @property
    def is_group_writable(self) -> bool:
        """Whether LVM may change its group, which is neither read-only nor exported."""
        return self.vg_attr[0:1] == "w" and self.vg_attr[2:3] != "x"

    @property
    def is_group_shared(self) -> bool:
        """Whether other hosts may use its group at the same time (lvmlockd(8))."""
        return self.vg_lock_type not in NOT_SHARED
