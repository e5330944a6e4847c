"""All that LVM reports at one moment, to be asked for one volume or for a group of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from snapvm.lvm import argv
from snapvm.lvm.logicalvolume import NOT_SHARED, LogicalVolume
from snapvm.model import DmUuid, LvRef, LvUuid, VgUuid
from snapvm.refusals import VolumeRefused


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

    @property
    def is_shared(self) -> bool:
        """Whether other hosts may use it at the same time (lvmlockd(8))."""
        return self.lock_type not in NOT_SHARED


class Report:
    """All volumes of the host at one moment, and what was asked besides of groups without one."""

    def __init__(
        self,
        volumes: Iterable[LogicalVolume],
        groups: tuple[VolumeGroup, ...] | None = None,
        doubled: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.volumes = tuple(volumes)
        self.groups = groups
        """All of them, those whose volumes are not shown too; None when it was not asked."""
        self.doubled = doubled
        """Tells, by group, a device that LVM does not use: another has the same physical volume.

        It may have to ask LVM, which is not done in a window.
        """
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
                remedy="remove the tag snapvm.was=... (`vgs -o +vg_tags` shows it) from all but "
                "one: vgchange --deltag TAG GROUP",
            )
        return next(iter(said), None)

    def heirs(self, ref: LvRef) -> tuple[LogicalVolume, ...]:
        """Return what a volume may have become: those of its uuid in other groups, or copies of it.

        While its own group is there too, the groups that share uuids with that are copies for sure,
        and are left out.
        """
        found = [v for v in self._by_uuid.get(ref.uuid, ()) if v.vg_uuid != ref.vg_uuid]
        if not found:
            return ()
        known = next((v for v in self.volumes if v.vg_uuid == ref.vg_uuid), None)
        copies = {} if known is None else self._copies_of(known)
        return tuple(volume for volume in found if volume.vg_uuid not in copies)

    def _lv_by_names(self, uuid: LvUuid, vg: str) -> LogicalVolume | None:
        """Return the volume of this uuid that was in group ``vg``, or None when it is gone.

        The group may have another name by now.  But while a copy of it is on this host, whose
        volumes have the same uuids, only the name tells which of the two is meant.  Raises
        ``VolumeRefused`` when no group has that name then, or two have it.
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
            why=f"it cannot be told which of the groups {', '.join(sorted(groups))} was {vg}: they "
            "have volumes with the same uuids, as after vgimportclone",
            remedy=f"rename the right one to {vg} (vgrename), or hide the others from LVM "
            "(lvmdevices(8))",
        )

    def decides(self, ref: LvRef) -> bool:
        """Tell whether it is enough to say that a volume is there, or that it is gone."""
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

    def ours(self) -> tuple[LogicalVolume, ...]:
        """Return every volume that snapvm made, and no copy of one (``LogicalVolume.is_ours``)."""
        return tuple(volume for volume in self.volumes if volume.is_ours)
