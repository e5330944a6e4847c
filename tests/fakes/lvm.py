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
from snapvm.lvm.reading import FIELDS, FULL_FIELDS, GROUP_FIELDS
from snapvm.model import LvRef, Progress
from snapvm.process import Completed
from tests.fakes import lvmreport
from tests.fakes.lvmgroups import FakeGroups
from tests.fakes.lvmtalk import FakeConversation
from tests.fakes.lvmvolume import FakeVolume
from tests.fakes.lvmwords import bytes_of, configured, parse, selects

UNSEEN: dict[str, str] = {}
"""What vgs says of a group whose storage is not there."""
_QUESTIONS = ("lvs", "vgs", "pvs", "lvmconfig", "version")


class FakeLvm(FakeGroups):
    """A ``Runner`` on which lvm works on volumes in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[tuple[str, ...]], None] = lambda _argv: None
        """Called with every command line first; a test makes it raise."""
        self.after: Callable[[tuple[str, ...]], None] = lambda _argv: None
        self.vg_free_bytes = 1 << 33
        """Of every group."""
        self.said_at_a_scan: list[str] = []
        """What an lvs says of its scan: one text for each command, until there are no more."""
        self.hanging: list[str] | None = None
        """When it is a list, a warm lvm does nothing that it is told, and it is listed here."""
        self.is_echoing = False
        """Whether what it is told comes back behind a prompt, as with GNU readline (RHEL, SUSE)."""
        self.unreadable: set[str] = set()
        """Groups whose metadata make no sense to lvm, which reports all others and fails."""
        self.is_old = False
        """Whether it is older than the property of autoactivation (2.03.12)."""
        self.has_no_room = False
        """Whether /etc/lvm/archive is on a file system that is full."""
        self.says_without_room = "/etc/lvm/archive/.lvm_x: fclose failed: No space left on device"
        self.busy_seconds = 0.0
        """How long a program waits for somebody else who changes the groups."""
        self.has_snapshot_target = True
        """Whether the kernel's module for thick snapshots is there; to ask for it loads it."""
        self.has_stuck_daemon = False
        """Whether an lvmdbusd does not answer: an lvm that has changed something waits for it."""
        self._lock = RLock()
        self._verbs = {
            "lvs": self._lvs,
            "vgs": self._vgs,
            "pvs": self._pvs,
            "lvmconfig": self._lvmconfig,
            "version": self._version,
            "lvcreate": self._lvcreate,
            "lvrename": self._lvrename,
            "lvchange": self._lvchange,
            "lvremove": self._lvremove,
            "lvconvert": self._lvconvert,
        }

    # --- Runner ---

    def run(
        self, argv: Sequence[str], *, timeout_seconds: float = 120.0, kill: bool = True
    ) -> Completed:
        """See ``Runner.run``."""
        if argv[0] == "dmsetup":
            return self._dmsetup(tuple(argv))
        if self.busy_seconds > timeout_seconds:
            raise CommandTimedOut(argv=tuple(argv), seconds=timeout_seconds)
        if argv[1] in _QUESTIONS:
            return self.obey(argv)
        assert not kill, f"it might leave devices suspended: {argv}"
        try:
            with crashpoint.around(" ".join(argv[:2])):
                return self.obey(argv)
        except CommandFailed as failure:
            options, _ = parse(list(argv[2:]))
            if self._set_by("log/report_command_log", options) != "1":
                raise
            # What is said of a failure is a report then, on standard output (lvm2, lib/log/log.c).
            raise replace(failure, stderr="", stdout=failure.stderr) from failure

    def _dmsetup(self, argv: tuple[str, ...]) -> Completed:
        self.before(argv)
        text = ""
        if argv[1] == "target-version":
            self.has_snapshot_target = True
        else:
            text = lvmreport.statuses(self.volumes, argv[3:])
        return Completed(argv=argv, status=0, stdout=text, stderr="", seconds=0.0)

    def obey(self, argv: Sequence[str]) -> Completed:
        """Do what a command line says; a group is one command's at a time, by its lock."""
        command = tuple(argv)
        assert command[0] == "lvm", command
        options, _ = parse(list(command[2:]))
        is_patient = self._set_by("global/wait_for_locks", options) != "0"
        if not self._lock.acquire(blocking=is_patient):
            raise self._failure("flock failed: Resource temporarily unavailable", command)
        try:
            self.before(command)
            self._require_shown(command)
            stdout = self._verbs[command[1]](list(command[2:]))
            if command[1] not in _QUESTIONS:
                named = {word.partition("/")[0] for word in command[2:]}
                self.unflushed |= {(vg, command[1]) for vg in named & self._group_uuids.keys()}
            self.after(command)
        finally:
            self._lock.release()
        return Completed(argv=command, status=0, stdout=stdout, stderr="", seconds=0.0)

    @contextmanager
    def converse(self, argv: Sequence[str]) -> Iterator[FakeConversation]:
        """See ``Runner.converse``."""
        assert tuple(argv) == ("lvm",), argv
        yield FakeConversation(self)

    # --- the verbs ---

    def _lvs(self, words: list[str]) -> str:
        options, _ = parse(words)
        is_full = options["--options"] == [",".join(FULL_FIELDS)]
        assert is_full or options["--options"] == [",".join(FIELDS)]
        if is_full and self.is_old:
            raise self._failure("Unrecognised field: lv_autoactivation")
        said = [self.said_at_a_scan.pop(0)] if self.said_at_a_scan else self._of_doubled()
        rows = [
            lvmreport.row(
                volume,
                vg_uuid=volume.namesake or self.vg_uuid(volume.vg),
                vg_tags=self.group_tags.get(volume.vg, set()),
                vg_free_bytes=self.vg_free_bytes,
                vg_volumes=self._count(volume.vg),
                max_volumes=self.max_volumes,
                is_external_origin=bool(self._overlays(volume)),
            )
            | ({"lv_autoactivation": "enabled" * volume.autoactivated} if is_full else {})
            for volume in self.volumes
            if volume.vg not in self.away | dict.fromkeys(self.unreadable)
        ]
        return self._reported("lv", rows, options, said)

    def _reported(
        self, kind: str, rows: list[dict[str, str]], options: dict[str, list[str]], said: list[str]
    ) -> str:
        """Print a report; what failed on the way is in its log alone (lvm2, lib/log/log.c)."""
        for vg in sorted(self.unreadable):
            said += [f"Internal error: LV segments corrupted in {vg}-x."]
            said += [f"Cannot process volume group {vg}", "failure"]
        text = lvmreport.report(kind, rows, {**self.conf, **configured(options)}, said)
        if self.unreadable:
            raise CommandFailed(argv=("lvm", f"{kind}s"), status=5, stderr="", stdout=text)
        return text

    def _vgs(self, words: list[str]) -> str:
        assert {"--foreign", "--shared", ",".join(GROUP_FIELDS)} <= set(words), words
        options, _ = parse(words)
        names = dict.fromkeys((*self._group_uuids, *(volume.vg for volume in self.volumes)))
        rows = [
            lvmreport.group_row(vg, self.vg_uuid(vg), [v for v in self.volumes if v.vg == vg])
            | self.away.get(vg, {})
            for vg in names
            if self.away.get(vg) != UNSEEN and vg not in self.unreadable
        ]
        return self._reported("vg", rows, options, [])

    def _lvmconfig(self, words: list[str]) -> str:
        options, (setting,) = parse(words)
        assert options["--type"] == ["full"], words
        profile = options.get("--metadataprofile", [""])[0]
        default = "100" if setting.endswith("_threshold") else "0"
        return f"{setting.rpartition('/')[2]}={self._set_to(setting, profile, default)}\n"

    def _version(self, _words: list[str]) -> str:
        return f"  LVM version:     {'2.03.11' if self.is_old else '2.03.31'}(2) (2025-02-27)\n"

    def _lvcreate(self, words: list[str]) -> str:
        options, operands = parse(words)
        vg, _, origin_name = operands[0].partition("/")
        self._archive(options)
        self._require_free(vg, options["--name"][0])
        if 0 < self.max_volumes <= self._count(vg):
            raise self._failure(f"Maximum number of logical volumes reached in {vg}")
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
        if not self.has_snapshot_target:
            raise self._failure("snapshot target support missing from kernel?")
        self._archive(options)
        vg, _, origin_name = operands[0].partition("/")
        origin, store = self.named(vg, origin_name), self.named(vg, operands[1])
        if store.origin or store.pool or origin.pool or store.active:
            raise self._failure(f"{vg}/{store.name} cannot become a snapshot of {origin.name}")
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
            target.written += 1

    def _lvrename(self, words: list[str]) -> str:
        options, (vg, old, new) = parse(words)
        self._archive(options)
        volume = self.named(vg, old)
        self._require_free(vg, new)
        if self.lags is not None:
            self.lags.setdefault((vg, old), volume)
        for upon in (v for v in self.volumes if (v.vg, v.origin) == (vg, old)):
            upon.origin = new
        volume.name, volume.suspended = new, False
        return ""

    def _lvchange(self, words: list[str]) -> str:
        options, operands = parse(words)
        if not {"--activate", "--refresh"} & options.keys():
            self._archive(options)
        for operand in operands:
            vg, _, name = operand.partition("/")
            self._change(self.named(vg, name), options)
        return ""

    def _change(self, volume: FakeVolume, options: dict[str, list[str]]) -> None:
        volume.suspended &= "--refresh" not in options
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
                raise self._failure(f"Logical volume {volume.name} is already so")
            volume.writable = writable
        if "--activate" in options:
            active = options["--activate"] == ["y"]
            stores = [v for v in self.volumes if v.origin and not v.pool]
            upon = [v for v in stores if (v.vg, v.origin) == (volume.vg, volume.name)]
            for each in () if active else (volume, *upon):
                self._require_closed(each, options)
            volume.active = active
            volume.written = volume.written if active else 0
            for other in upon:
                other.active = active

    def _lvremove(self, words: list[str]) -> str:
        options, operands = parse(words)
        if not any(volume.vg == operands[0] for volume in self.volumes):
            raise self._failure(f'Volume group "{operands[0]}" not found')
        selected = [
            volume
            for volume in self.volumes
            if volume.vg == operands[0] and selects(options["--select"][0], volume)
        ]
        if selected:
            self._archive(options)
        for volume in selected:
            self._require_closed(volume, options)
            if volume.moving:
                raise self._failure(f"Can't remove locked logical volume {volume.name}.")
            if volume.merging and not volume.invalid:
                raise self._failure(f"Can't remove merging snapshot logical volume {volume.name}.")
            for gone in (volume, *self._overlays(volume)):
                self.volumes.remove(gone)
                self._tell_pool(gone)
                if gone.pool and gone.origin and "--nohistory" not in options:
                    self._record(gone)
        return ""

    # --- inside ---

    def _archive(self, options: dict[str, list[str]]) -> None:
        """Before it changes a group LVM keeps a copy of what there was, or does nothing."""
        if self.has_no_room and options.get("--autobackup") != ["n"]:
            raise self._failure(self.says_without_room)

    def _record(self, gone: FakeVolume) -> None:
        if self.conf.get("metadata/record_lvs_history") == "1":
            self.history.add(f"{gone.vg}/{gone.name}")
