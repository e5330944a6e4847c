"""The volume groups of the fake lvm: what is there, and what may be made in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from snapvm.failures import CommandFailed
from tests.fakes import lvmreport
from tests.fakes.lvmvolume import FakeVolume
from tests.fakes.lvmwords import configured, dashed, parse

_DEAF = {"metadata_read_only", "failed", "check_needed"}
"""How a pool is that takes no orders."""
_ALLOW_DOUBLED = "devices/allow_changes_with_duplicate_pvs"


class FakeGroups:
    """Volume groups in memory; a group is there as soon as something is made in it."""

    def __init__(self) -> None:
        self.volumes: list[FakeVolume] = []
        self.conf: dict[str, str] = {}
        """What lvm.conf has otherwise than by default, as far as it is understood."""
        self.profiles: dict[str, dict[str, str]] = {}
        """What metadata profiles have otherwise than lvm.conf (lvm.conf(5))."""
        self.max_volumes = 0
        """Of every group; 0: any number."""
        self.history: set[str] = set()
        """VG/LV of thin snapshots that are gone, where metadata/record_lvs_history keeps them."""
        self.lags: dict[tuple[str, str], FakeVolume] | None = None
        """When it is a dict, udev is late, and lvm does not wait for it: names in /dev lag behind.

        It holds the volumes that they still lead to, where those have other names by now.
        """
        self.away: dict[str, dict[str, str]] = {}
        """Groups that lvs is silent about, with what vgs says of each that it sees."""
        self.doubled: dict[str, str] = {}
        """By group: another device with a physical volume of it."""
        self.group_tags: dict[str, set[str]] = {}
        self.unflushed: set[tuple[str, str]] = set()
        """What a cut of the power would take: groups, and the verbs of what was done to them."""
        self._made = 0
        self._groups_made = 0
        self._group_uuids: dict[str, str] = {}

    def add_pool(self, vg: str, name: str = "pool") -> FakeVolume:
        """Make a thin pool."""
        return self._add(
            FakeVolume(vg=vg, name=name, uuid=self._uuid(), size_bytes=1 << 30, is_pool=True)
        )

    def add_disk(self, vg: str, name: str, *, pool: str = "pool", data: str = "") -> FakeVolume:
        """Make an active volume, a thick one when ``pool`` is empty."""
        return self._add(
            FakeVolume(
                vg=vg, name=name, uuid=self._uuid(), size_bytes=1 << 26, pool=pool, data=data
            )
        )

    def import_copy(self, vg: str, name: str) -> None:
        """Have a copy of a group under another name, as vgimportclone makes it of copied PVs.

        The group and its PVs get new uuids, the volumes keep theirs (lvm2, tools/vgimportclone.c).
        """
        copied = [replace(v, vg=name, tags=set(v.tags)) for v in self.volumes if v.vg == vg]
        for volume in copied:
            volume.active = volume.opened = False
            self._made += 1
            self._add(volume)

    def rename_group(self, vg: str, name: str) -> None:
        """Give a group another name; it keeps its uuid."""
        self._group_uuids[name] = self.vg_uuid(vg)
        del self._group_uuids[vg]
        for volume in self.volumes:
            volume.vg = name if volume.vg == vg else volume.vg

    def merge_group(self, vg: str, into: str) -> None:
        """Move all volumes of a group into another, as vgmerge(8); they keep their uuids."""
        del self._group_uuids[vg]
        for volume in self.volumes:
            volume.vg = into if volume.vg == vg else volume.vg

    def vg_uuid(self, vg: str) -> str:
        """Return the uuid of a group."""
        if vg not in self._group_uuids:
            self._groups_made += 1
            self._group_uuids[vg] = dashed(10**6 + self._groups_made)
        return self._group_uuids[vg]

    def named(self, vg: str, name: str) -> FakeVolume:
        """Return a volume; raise ``CommandFailed`` as lvm does when there is none."""
        for volume in self.volumes:
            if (volume.vg, volume.name) == (vg, name):
                return volume
        raise self._failure(f"Failed to find logical volume {vg}/{name}", (vg, name))

    def under(self, vg: str, name: str) -> FakeVolume:
        """Return the volume that /dev/VG/LV leads to; raises as ``named`` does."""
        late = (self.lags or {}).get((vg, name))
        return late if late is not None else self.named(vg, name)

    def flush(self, path: Path) -> None:
        """Have the disks below a volume empty their caches; see ``durable.sync_device``."""
        vg, name = path.parent.name, path.name
        if not any(v.active for v in self.volumes if (v.vg, v.name) == (vg, name)):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        self.unflushed = {(group, verb) for group, verb in self.unflushed if group != vg}

    def names(self) -> set[str]:
        """Return VG/LV of every volume."""
        return {f"{volume.vg}/{volume.name}" for volume in self.volumes}

    def _overlays(self, volume: FakeVolume) -> list[FakeVolume]:
        """Return what has a volume for its external origin, and is removed with it."""
        named = (v for v in self.volumes if (v.vg, v.origin) == (volume.vg, volume.name))
        return [other for other in named if other.pool not in ("", volume.pool)]

    def _add(self, volume: FakeVolume) -> FakeVolume:
        self.vg_uuid(volume.vg)  # known from now on, in a process that is forked too
        volume.minor = self._made
        self.volumes.append(volume)
        return volume

    def _uuid(self) -> str:
        self._made += 1
        return dashed(self._made)

    def _set_to(self, setting: str, profile: str, default: str) -> str:
        if profile and profile not in self.profiles:
            raise self._failure(f"Failed to load profile {profile}.")
        return {**self.conf, **self.profiles.get(profile, {})}.get(setting, default)

    def _set_by(self, setting: str, options: dict[str, list[str]]) -> str | None:
        """Return what a command line says of a setting, or else lvm.conf."""
        return {**self.conf, **configured(options)}.get(setting)

    def _require_closed(self, volume: FakeVolume, options: dict[str, list[str]]) -> None:
        """One into which udev looks is in use too, which LVM waits for by default."""
        is_hasty = self._set_by("activation/retry_deactivation", options) == "0"
        if volume.opened or (volume.active and is_hasty):
            raise self._failure(f"Logical volume {volume.vg}/{volume.name} in use.")

    def _count(self, vg: str) -> int:
        return sum(volume.vg == vg for volume in self.volumes)

    def _require_free(self, vg: str, name: str) -> None:
        if f"{vg}/{name}" in self.names() | self.history:
            text = f'Logical Volume "{name}" already exists in volume group "{vg}"'
            raise self._failure(text)

    def _require_pool_below_threshold(self, vg: str, name: str) -> None:
        """See thin_pool_below_threshold in lvm2's lib/metadata/thin_manip.c."""
        pool = self.named(vg, name)
        if pool.moving:
            raise self._failure(f"Cannot use locked pool volume {vg}/{name}.")
        room_percent = min(25.0, 100 * (4 << 20) / pool.metadata_bytes)
        setting = "activation/thin_pool_autoextend_threshold"
        threshold = float(self._set_to(setting, pool.profile, "100"))
        fullest = max(pool.data_percent, pool.metadata_percent)
        if pool.metadata_percent >= 100 - room_percent or fullest > threshold:
            text = f"Cannot create new thin volume, free space in thin pool {vg}/{name} reached "
            raise self._failure(f"{text}threshold.")

    def _tell_pool(self, gone: FakeVolume) -> None:
        """LVM has forgotten a volume already when it tells the pool (lvm2, lv_remove_single)."""
        pool = f"{gone.vg}/{gone.pool}"
        if gone.pool and self.named(gone.vg, gone.pool).health in _DEAF:
            raise self._failure(f"Failed to update thin pool {pool}.")

    def _may_be_active(self, vg: str, tags: Sequence[str]) -> bool:
        """See lvm.conf(5), activation/volume_list; what it leaves out is made all the same."""
        listed = self.conf.get("activation/volume_list", vg).split(",")
        return vg in listed or any(f"@{tag}" in listed for tag in tags)

    def _require_shown(self, command: tuple[str, ...]) -> None:
        """A group that is away is not found by name either; what may not be had is not done."""
        for word in command[2:]:
            if (vg := word.partition("/")[0]) in self.away:
                raise self._failure(f'Volume group "{vg}" not found', command)
            if any(volume.namesake for volume in self.volumes if volume.vg == vg):
                text = f"Multiple VGs found with the same name: skipping {vg}"
                raise self._failure(text, command)
            if vg in self.doubled and self.conf.get(_ALLOW_DOUBLED) != "1":
                text = f"Cannot update volume group {vg} with duplicate PV devices."
                raise self._failure(text, command)

    def _of_doubled(self) -> list[str]:
        """Return what every command says of such devices, which does not tell the group."""
        return [f"WARNING: Not using device {device} for PV x." for device in self.doubled.values()]

    def _pvs(self, words: list[str]) -> str:
        options, _ = parse(words)
        assert "--all" in options, "pvs shows only devices that are used"
        rows = [
            {"vg_name": vg, "pv_name": name, "pv_duplicate": told}
            for vg, device in self.doubled.items()
            for name, told in (("/dev/sda", ""), (device, "duplicate"))
        ]
        return lvmreport.report("pv", rows, {**self.conf, **configured(options)}, [])

    def _failure(self, text: str, argv: tuple[str, ...] = ()) -> CommandFailed:
        return CommandFailed(argv=argv, status=5, stderr=text)
