"""What a server or a disk does not show just now is neither gone nor damaged."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from snapvm import rebuilding, repair
from snapvm.attention import HalfBack, JournalUnusable, LeftBehind
from snapvm.errors import ExitStatus, Locked
from snapvm.failures import CommandTimedOut, StorageFailed
from snapvm.model import DomainState, Record, SideKind, SidePlace, SnapshotId
from snapvm.recordfolder import Damaged, Work
from snapvm.refusals import HostLacks, RecordUnread
from tests.fakes.faults import Faults, Place, failing_at
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.fakes.verbs import rebuild
from tests.unit.cli.conftest import Call
from tests.unit.deeds import roll_back, take, take_half


def lost(file: str, error: int, *names: str) -> AbstractContextManager[Faults]:
    """Have these operations fail on files of a name."""

    def of(place: Place) -> int:
        return error if place.path.endswith(f"/{file}") and place.name in names else 0

    return failing_at(1, of, lasts=True)


@pytest.mark.parametrize("error", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_prune_deletes_nothing_while_images_are_not_shown(
    call: Call, scene: Scene, error: int
) -> None:
    """The newest were called useless, for their images were out of sight, and deleted."""
    ids = [take(scene).id for _ in range(3)]
    with lost(f"{ids[-1]}/memory.save", error, "stat"):
        ended = call("prune", DOMAIN, "--keep-last", "1", "--yes")
    assert ended.status == ExitStatus.FAILED and os.strerror(error) in ended.err
    assert scene.ids() == ids


def test_prune_deletes_nothing_while_lvm_does_not_answer(call: Call, scene: Scene) -> None:
    """LVM was back when it came to delete: what was lost was kept, and what was whole went."""
    ids = [take(scene).id for _ in range(3)]
    newest = scene.host.catalog.get(UUID, ids[-1])
    scene.lvm.volumes.remove(scene.lvm.named("vg1", newest.disks[1].snapshot.lv))
    silent = ["lvs"]

    def fail_once(argv: tuple[str, ...]) -> None:
        if argv[1] in silent:
            silent.clear()
            raise CommandTimedOut(argv=argv, seconds=120.0)

    prune = ("prune", DOMAIN, "--keep-last", "1")
    scene.lvm.before = fail_once
    assert call(*prune, "--dry-run").status == 0
    silent.append("lvs")
    ended = call(*prune, "--yes")
    assert ended.status == ExitStatus.FAILED and "did not end within 120 s" in ended.err
    assert scene.ids() == ids
    assert call(*prune, "--yes").status == 0
    assert scene.ids() == ids[1:], "the newest is lost: it takes no place, and its time is not come"


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ESTALE, errno.EACCES])
def test_a_record_that_cannot_be_read_now_is_not_made_anew(scene: Scene, error: int) -> None:
    """It lost its note, its checksum and whether it ran, though it was whole."""
    record = take(scene, "x")
    with lost("x/snapshot.json", error, "open"):
        (entry,) = scene.host.catalog.entries(UUID)
        rebuilt, (hopeless,) = rebuilding.look(scene.host)
        rebuild(scene)
    assert isinstance(entry, Damaged) and isinstance(entry.trouble(), RecordUnread)
    assert "catalog rebuild" not in entry.trouble().hint()
    assert rebuilt == () and "it may be whole" in hopeless.why
    assert scene.host.catalog.get(UUID, record.id) == record


def test_a_record_whose_end_cannot_be_read_now_is_not_made_anew(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server went away behind the first page: a read that got that far is no failure."""
    record = take(scene, "x")
    path = scene.host.catalog.path(record, "snapshot.json")

    def cut_short(call: Callable[..., bytes]) -> Callable[..., bytes]:
        def read(descriptor: int, count: int, *at: int) -> bytes:
            is_its = os.readlink(f"/proc/self/fd/{descriptor}") == str(path)
            if is_its and any(at):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return call(descriptor, min(count, 100) if is_its else count, *at)

        return read

    with monkeypatch.context() as patch:
        for name in ("read", "pread"):
            patch.setattr(os, name, cut_short(getattr(os, name)))
        (entry,) = scene.host.catalog.entries(UUID)
        rebuild(scene)
    assert isinstance(entry, Damaged) and isinstance(entry.trouble(), RecordUnread)
    assert scene.host.catalog.get(UUID, record.id) == record


def test_one_with_a_bad_block_may_be_made_anew(scene: Scene) -> None:
    take(scene, "x")
    with lost("x/snapshot.json", errno.EIO, "open"):
        (entry,) = scene.host.catalog.entries(UUID)
    assert isinstance(entry, Damaged) and "catalog rebuild" in entry.trouble().hint()


def test_the_list_advises_to_make_only_those_anew_that_are_damaged(
    call: Call, scene: Scene
) -> None:
    """A record of a newer snapvm, or one that is just not let be read, was called damaged."""
    for name in "abc":
        take(scene, name)
    folder = scene.host.catalog.folder(UUID, SnapshotId("a")).parent
    (folder / "b" / "snapshot.json").write_text('{"schema": 99}')
    with lost("c/snapshot.json", errno.EACCES, "open"):
        told = call("list").err.splitlines()
    assert len(told) == 4 and not any("damaged" in line for line in told)
    assert told[0].startswith("warning: demo@b cannot be read: ")
    assert told[1] == f"warning: demo@c cannot be read: {os.strerror(errno.EACCES)}"
    assert "use the snapvm that wrote it" in told[2] and "fix what prevents it" in told[3]
    (folder / "a" / "snapshot.json").write_text("{")
    told = call("list").err.splitlines()
    assert told[0].startswith("warning: demo@a is damaged: ") and "rebuild" in told[2]


def test_a_journal_that_cannot_be_read_now_is_to_stay(scene: Scene) -> None:
    """One was told to move it away: how its rollback had been begun was lost then."""
    take_half(scene, "half")
    with lost("intent.json", errno.EMFILE, "open"), pytest.raises(JournalUnusable) as unread:
        repair.finish_pending(scene.host, UUID, DOMAIN)
    assert unread.value.hint().startswith("leave it where it is")
    repair.finish_pending(scene.host, UUID, DOMAIN)


def test_a_journal_that_is_not_shown_is_not_said_to_be_removed(scene: Scene) -> None:
    take(scene, "x")
    scene.host.catalog.write_journal(UUID, Work.STOP, {"record": "x"})
    with lost(".stop.json", errno.ESTALE, "stat", "lstat"), pytest.raises(StorageFailed):
        scene.host.catalog.end_journal(UUID, Work.STOP)
    assert scene.host.catalog.leftovers(UUID)


@pytest.fixture
def with_variables(tmp_path: Path, scene: Scene) -> tuple[Scene, Record]:
    path = tmp_path / "nvram" / "demo_VARS.fd"
    path.parent.mkdir()
    path.write_text("0")
    scene.machine.places = (SidePlace(kind=SideKind.NVRAM, path=path),)
    scene.count(5)
    record = take(scene, "x")
    scene.count(3)
    return scene, record


def test_variables_out_of_reach_end_a_rollback_as_half_done(
    with_variables: tuple[Scene, Record],
) -> None:
    """The domain was off, and all that was said was that there is a bug in snapvm."""
    scene, record = with_variables

    def of(place: Place) -> int:
        is_late = scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF
        return (
            errno.EIO if is_late and place.name == "stat" and place.path.endswith("/nvram") else 0
        )

    with failing_at(1, of, lasts=True), pytest.raises(HalfBack, match="Input/output error"):
        roll_back(scene, record)
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def test_what_was_current_is_left_behind_when_it_cannot_be_looked_for(scene: Scene) -> None:
    """The domain was back, and all that was said was that there is a bug in snapvm."""
    record = take(scene, "x")
    deeds: list[str] = []
    scene.hypervisor.before = deeds.append

    def of(place: Place) -> int:
        is_its = place.name == "stat" and Path(place.path).name.startswith("undo-")
        return errno.EIO if is_its and "stop" in deeds else 0

    with failing_at(1, of, lasts=True), pytest.raises(LeftBehind, match="Input/output error"):
        roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert len(scene.ids()) == 2 and scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("stop", [False, True])
def test_a_host_without_room_for_an_lvm_keeps_a_whole_snapshot(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch, stop: bool
) -> None:
    """It was said to be refused, with nothing touched; with --stop the domain stayed paused."""

    def no_room(*_: object, **__: object) -> None:
        raise HostLacks(what="room for lvm to run in (Cannot allocate memory)", remedy="later")

    monkeypatch.setattr(scene.host.lvm, "retag", no_room)
    ended = call("take", DOMAIN, "--name", "x", *(["--stop"] if stop else []))
    assert ended.status == 0 and scene.ids() == ["x"]
    state = scene.hypervisor.state_of(DOMAIN)
    assert state is (DomainState.SHUTOFF if stop else DomainState.RUNNING)
    assert scene.host.catalog.leftovers(UUID) == ()


def test_a_lock_of_another_host_holds_whatever_can_be_read_of_it(scene: Scene) -> None:
    """On NFS the name of the holder may not be readable; the lock was taken for none."""
    for name in ("w", "x"):
        take(scene, name)
    held = scene.host.settings.state_dir / "domains" / f".{UUID}.lock"
    with held.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with lost(held.name, errno.EIO, "pread"), pytest.raises(Locked):
            take(scene, "y")


def test_what_cannot_be_removed_is_named_with_its_folder(scene: Scene) -> None:
    """`memory.save: Read-only file system` is not where anybody could look, and had no hint."""
    gone = scene.host.catalog.hide(take(scene, "x"))
    with lost("memory.save", errno.EROFS, "unlink"), pytest.raises(StorageFailed) as failed:
        scene.host.catalog.forget(gone)
    assert failed.value.path == str(gone) and "findmnt --target" in failed.value.hint()


def test_an_image_that_was_moved_and_linked_to_says_what_to_do(
    call: Call, scene: Scene, tmp_path: Path
) -> None:
    """Old images go to slower disks; "Too many levels of symbolic links" was all that was said."""
    record = take(scene, "x")
    assert record.memory is not None
    image = scene.host.catalog.path(record, record.memory.file)
    image.rename(tmp_path / "archived")
    image.symlink_to(tmp_path / "archived")
    told = f"it is a link; put the file itself into {image.parent}"
    assert told in call("rollback", "demo@x", "--yes").err and told in call("check").out
    (tmp_path / "archived").rename(image)
    assert call("rollback", "demo@x", "--yes").status == 0
