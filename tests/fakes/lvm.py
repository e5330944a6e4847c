"""A stateful stand-in for the lvm command: what it is told to make is there to be reported.

It understands the command lines of ``snapvm.lvm.argv`` and nothing else, keeps the rules that
snapvm relies on (names are unique, an open volume is not removed, an active one shows a device),
and passes ``tests/contract`` like the real lvm does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import RLock

from snapvm import crashpoint
from snapvm.failures import CommandFailed, CommandTimedOut, StorageFailed
from snapvm.lvm.reading import AUTOACTIVATION_FIELDS, FIELDS, GROUP_FIELDS
from snapvm.model import LvRef, Progress
from snapvm.process import Completed
from tests.fakes import lvmreport
from tests.fakes.lvmtalk import FakeConversation
from tests.fakes.lvmvolume import FakeVolume
from tests.fakes.lvmwords import bytes_of, configured, dashed, parse, selects

UNSEEN: dict[str, str] = {}
"""What vgs says of a group whose storage is not there."""


class FakeLvm:
    """A ``Runner`` on which lvm works on volumes in memory."""

    def __init__(self) -> None:
        self.volumes: list[FakeVolume] = []
        self.before: Callable[[tuple[str, ...]], None] = lambda _argv: None
        """Called with every command line first; a test makes it raise."""
        self.after: Callable[[tuple[str, ...]], None] = lambda _argv: None
        self.vg_free_bytes = 1 << 33
        """Of every group."""
        self.max_volumes = 0
        """Of every group; 0: any number."""
        self.profiles: dict[str, dict[str, str]] = {}
        """What metadata profiles have otherwise than lvm.conf (lvm.conf(5))."""
        self.conf: dict[str, str] = {}
        """What lvm.conf has otherwise than by default, as far as it is understood."""
        self.said_at_a_scan: list[str] = []
        """What an lvs says of its scan, one a command, until there is no more."""
        self.hanging: list[str] | None = None
        """A list: what a warm lvm is told it does not do, not yet."""
        self.is_echoing = False
        """Whether what it is told comes back behind a prompt, as with GNU readline (RHEL, SUSE)."""
        self.away: dict[str, dict[str, str]] = {}
        """Groups that lvs is silent about, with what vgs says of each that it sees."""
        self.is_old = False
        """Whether it is older than the property of autoactivation (2.03.12)."""
        self.has_no_room = False
        """Whether /etc/lvm/archive is on a file system that is full, as far as lvremove goes."""
        self.busy_seconds = 0.0
        """How long a program waits for somebody else who changes the groups."""
        self.lags: dict[tuple[str, str], FakeVolume] | None = None
        """A dict: names in /dev stay as they are, since udev is late and lvm does not wait for it.

        It holds what they lead to that have been given to others.
        """
        self.history: set[str] = set()
        """VG/LV of thin snapshots that are gone, where metadata/record_lvs_history keeps them."""
        self._made = 0
        self._groups_made = 0
        self._group_uuids: dict[str, str] = {}
        self.group_tags: dict[str, set[str]] = {}
        self._lock = RLock()
        self._verbs = {
            "lvs": self._lvs,
            "vgs": self._vgs,
            "lvmconfig": self._lvmconfig,
            "lvcreate": self._lvcreate,
            "lvrename": self._lvrename,
            "lvchange": self._lvchange,
            "lvremove": self._lvremove,
            "lvconvert": self._lvconvert,
        }

    # --- setting up ---

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
        raise self._failure((vg, name), f"Failed to find logical volume {vg}/{name}")

    def under(self, vg: str, name: str) -> FakeVolume:
        """Return the volume that /dev/VG/LV leads to; raises as ``named`` does."""
        late = (self.lags or {}).get((vg, name))
        return late if late is not None else self.named(vg, name)

    def names(self) -> set[str]:
        """Return VG/LV of every volume."""
        return {f"{volume.vg}/{volume.name}" for volume in self.volumes}

    # --- Runner ---

    def run(
        self, argv: Sequence[str], *, timeout_seconds: float = 120.0, kill: bool = True
    ) -> Completed:
        """See ``Runner.run``."""
        if argv[0] == "dmsetup":
            self.before(tuple(argv))
            text = lvmreport.statuses(self.volumes, argv[3:])
            return Completed(argv=tuple(argv), status=0, stdout=text, stderr="", seconds=0.0)
        if self.busy_seconds > timeout_seconds:
            raise CommandTimedOut(argv=tuple(argv), seconds=timeout_seconds)
        if argv[1] in ("lvs", "vgs", "lvmconfig"):
            return self.obey(argv)
        with crashpoint.around(" ".join(argv[:2])):
            return self.obey(argv)

    def obey(self, argv: Sequence[str]) -> Completed:
        """Do what a command line says; a group is one command's at a time, by its lock."""
        command = tuple(argv)
        assert command[0] == "lvm", command
        options, _ = parse(list(command[2:]))
        is_patient = {**self.conf, **configured(options)}.get("global/wait_for_locks") != "0"
        if not self._lock.acquire(blocking=is_patient):
            raise self._failure(command, "flock failed: Resource temporarily unavailable")
        try:
            self.before(command)
            self._require_shown(command)
            stdout = self._verbs[command[1]](list(command[2:]))
            self.after(command)
        finally:
            self._lock.release()
        return Completed(argv=command, status=0, stdout=stdout, stderr="", seconds=0.0)

    @contextmanager
    def converse(self, argv: Sequence[str], *, urgent: bool = False) -> Iterator[FakeConversation]:
        """See ``Runner.converse``."""
        assert tuple(argv) == ("lvm",), argv
        yield FakeConversation(self)

    # --- the verbs ---

    def _lvs(self, words: list[str]) -> str:
        options, _ = parse(words)
        if options["--options"] == [",".join(AUTOACTIVATION_FIELDS)]:
            return self._tell_autoactivation()
        assert options["--options"] == [",".join(FIELDS)]
        said = [self.said_at_a_scan.pop(0)] if self.said_at_a_scan else []
        rows = [
            lvmreport.row(
                volume,
                vg_uuid=self.vg_uuid(volume.vg),
                vg_tags=self.group_tags.get(volume.vg, set()),
                vg_free_bytes=self.vg_free_bytes,
                vg_volumes=self._count(volume.vg),
                max_volumes=self.max_volumes,
                is_external_origin=bool(self._overlays(volume)),
            )
            for volume in self.volumes
            if volume.vg not in self.away
        ]
        return lvmreport.report("lv", rows, {**self.conf, **configured(options)}, said)

    def _tell_autoactivation(self) -> str:
        if self.is_old:
            raise self._failure((), "Unrecognised field: lv_autoactivation")
        rows = [
            {
                "vg_uuid": self.vg_uuid(volume.vg),
                "lv_uuid": volume.uuid,
                "lv_autoactivation": "enabled" if volume.autoactivated else "",
            }
            for volume in self.volumes
        ]
        return lvmreport.report("lv", rows, {}, [])

    def _vgs(self, words: list[str]) -> str:
        assert {"--foreign", "--shared", ",".join(GROUP_FIELDS)} <= set(words), words
        options, _ = parse(words)
        names = dict.fromkeys((*self._group_uuids, *(volume.vg for volume in self.volumes)))
        rows = [
            lvmreport.group_row(vg, self.vg_uuid(vg), [v for v in self.volumes if v.vg == vg])
            | self.away.get(vg, {})
            for vg in names
            if self.away.get(vg) != UNSEEN
        ]
        return lvmreport.report("vg", rows, {**self.conf, **configured(options)}, [])

    def _lvmconfig(self, words: list[str]) -> str:
        options, (setting,) = parse(words)
        assert options["--type"] == ["full"], words
        profile = options.get("--metadataprofile", [""])[0]
        return f"{setting.rpartition('/')[2]}={self._set_to(setting, profile, '100')}\n"

    def _lvcreate(self, words: list[str]) -> str:
        options, operands = parse(words)
        vg, _, origin_name = operands[0].partition("/")
        self._require_free(vg, options["--name"][0])
        if 0 < self.max_volumes <= self._count(vg):
            raise self._failure((), f"Maximum number of logical volumes reached in {vg}")
        if "--snapshot" not in options:
            self._add(
                FakeVolume(
                    vg=vg,
                    name=options["--name"][0],
                    uuid=self._uuid(),
                    size_bytes=int(options["--size"][0].removesuffix("b")),
                    tags=set(options.get("--addtag", [])),
                )
            )
            return ""
        origin = self.named(vg, origin_name)
        self._require_pool_below_threshold(vg, origin.pool)
        self._add(
            FakeVolume(
                vg=vg,
                name=options["--name"][0],
                uuid=self._uuid(),
                size_bytes=origin.size_bytes,
                pool=origin.pool,
                origin=origin.name,
                origin_bytes=origin.size_bytes,
                tags=set(options.get("--addtag", [])),
                writable=options["--permission"] == ["rw"],
                active=options["--activate"] == ["y"]
                and self._may_be_active(vg, options.get("--addtag", [])),
                skipped=options["--setactivationskip"] == ["y"],
                read_ahead=bytes_of(options.get("--readahead", ["auto"])[0]),
                data=origin.data,
            )
        )
        return ""

    def _lvconvert(self, words: list[str]) -> str:
        options, operands = parse(words)
        assert options["--type"] == ["snapshot"], words
        vg, _, origin_name = operands[0].partition("/")
        origin, store = self.named(vg, origin_name), self.named(vg, operands[1])
        if store.origin or store.pool or origin.pool or store.active:
            raise self._failure((), f"{vg}/{store.name} cannot become a snapshot of {origin.name}")
        store.origin, store.origin_bytes = origin.name, origin.size_bytes
        store.active, store.data = origin.active, origin.data
        store.chunk_bytes = int(options["--chunksize"][0].removesuffix("b"))
        return ""

    def copy_back(self, _runner: object, snapshot: LvRef, disk: LvRef, _progress: Progress) -> None:
        """See ``snapvm.lvm.copyback``; only a disk that nobody uses is written."""
        self.before(("copy", str(snapshot), str(disk)))
        target = self.named(disk.vg, disk.lv)
        assert not target.opened, f"{disk} is in use"
        if self.named(snapshot.vg, snapshot.lv).invalid:
            raise StorageFailed(path=str(snapshot.path), why="the snapshot is lost")
        with crashpoint.around("copy back"):
            target.data = self.named(snapshot.vg, snapshot.lv).data

    def _lvrename(self, words: list[str]) -> str:
        _, (vg, old, new) = parse(words)
        volume = self.named(vg, old)
        self._require_free(vg, new)
        if self.lags is not None:
            self.lags.setdefault((vg, old), volume)
        volume.name = new
        return ""

    def _lvchange(self, words: list[str]) -> str:
        options, operands = parse(words)
        for operand in operands:
            vg, _, name = operand.partition("/")
            self._change(self.named(vg, name), options)
        return ""

    def _change(self, volume: FakeVolume, options: dict[str, list[str]]) -> None:
        volume.tags |= set(options.get("--addtag", []))
        volume.tags -= set(options.get("--deltag", []))
        if "--setactivationskip" in options:
            volume.skipped = options["--setactivationskip"] == ["y"]
        if "--setautoactivation" in options:
            assert not self.is_old
            volume.autoactivated = options["--setautoactivation"] == ["y"]
        if "--permission" in options:
            writable = options["--permission"] == ["rw"]
            if writable == volume.writable:
                raise self._failure((), f"Logical volume {volume.name} is already so")
            volume.writable = writable
        if "--activate" in options:
            active = options["--activate"] == ["y"]
            if not active and volume.opened:
                raise self._failure((), f"Logical volume {volume.vg}/{volume.name} in use.")
            volume.active = active
            for other in self.volumes:
                if (other.vg, other.origin) == (volume.vg, volume.name) and not other.pool:
                    other.active = active

    def _lvremove(self, words: list[str]) -> str:
        options, operands = parse(words)
        if not any(volume.vg == operands[0] for volume in self.volumes):
            raise self._failure((), f'Volume group "{operands[0]}" not found')
        selected = [
            volume
            for volume in self.volumes
            if volume.vg == operands[0] and selects(options["--select"][0], volume)
        ]
        if selected and self.has_no_room and options.get("--autobackup") != ["n"]:
            raise self._failure(
                (), "/etc/lvm/archive/.lvm_x: close failed: No space left on device"
            )
        for volume in selected:
            if volume.opened:
                raise self._failure((), f"Logical volume {volume.vg}/{volume.name} in use.")
            for gone in (volume, *self._overlays(volume)):
                self.volumes.remove(gone)
                if gone.pool and gone.origin and "--nohistory" not in options:
                    self._record(gone)
        return ""

    # --- inside ---

    def _record(self, gone: FakeVolume) -> None:
        if self.conf.get("metadata/record_lvs_history") == "1":
            self.history.add(f"{gone.vg}/{gone.name}")

    def _require_shown(self, command: tuple[str, ...]) -> None:
        """A group that is away is not found by name either; what may not be had is not done."""
        for word in command[2:]:
            if (vg := word.partition("/")[0]) in self.away:
                raise self._failure(command, f'Volume group "{vg}" not found')

    def _overlays(self, volume: FakeVolume) -> list[FakeVolume]:
        """Return what has a volume for its external origin, and is removed with it."""
        named = (v for v in self.volumes if (v.vg, v.origin) == (volume.vg, volume.name))
        return [other for other in named if other.pool not in ("", volume.pool)]

    def _add(self, volume: FakeVolume) -> FakeVolume:
        self.vg_uuid(volume.vg)  # known from now on, in a process that is forked too
        volume.minor = self._made
        self.volumes.append(volume)
        return volume

    def _may_be_active(self, vg: str, tags: Sequence[str]) -> bool:
        """See lvm.conf(5), activation/volume_list; what it leaves out is made all the same."""
        listed = self.conf.get("activation/volume_list", vg).split(",")
        return vg in listed or any(f"@{tag}" in listed for tag in tags)

    def _uuid(self) -> str:
        self._made += 1
        return dashed(self._made)

    def _set_to(self, setting: str, profile: str, default: str) -> str:
        if profile and profile not in self.profiles:
            raise self._failure((), f"Failed to load profile {profile}.")
        return {**self.conf, **self.profiles.get(profile, {})}.get(setting, default)

    def _count(self, vg: str) -> int:
        return sum(volume.vg == vg for volume in self.volumes)

    def _require_free(self, vg: str, name: str) -> None:
        if f"{vg}/{name}" in self.names() | self.history:
            text = f'Logical Volume "{name}" already exists in volume group "{vg}"'
            raise self._failure((), text)

    def _require_pool_below_threshold(self, vg: str, name: str) -> None:
        """See thin_pool_below_threshold in lvm2's lib/metadata/thin_manip.c."""
        pool = self.named(vg, name)
        if pool.moving:
            raise self._failure((), f"Cannot use locked pool volume {vg}/{name}.")
        room_percent = min(25.0, 100 * (4 << 20) / pool.metadata_bytes)
        setting = "activation/thin_pool_autoextend_threshold"
        threshold = float(self._set_to(setting, pool.profile, "100"))
        fullest = max(pool.data_percent, pool.metadata_percent)
        if pool.metadata_percent >= 100 - room_percent or fullest > threshold:
            text = f"Cannot create new thin volume, free space in thin pool {vg}/{name} reached "
            raise self._failure((), f"{text}threshold.")

    def _failure(self, argv: tuple[str, ...], text: str) -> CommandFailed:
        return CommandFailed(argv=argv, status=5, stderr=text)
