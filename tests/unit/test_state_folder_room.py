"""Room where snapvm writes: a state folder that is full, or read-only, is met in time."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
from os import ST_RDONLY
from pathlib import Path
from types import SimpleNamespace

import pytest

from snapvm import diagnosis, durable
from snapvm.attention import LeftBehind
from snapvm.errors import ExitStatus
from snapvm.failures import ImageNotWritten, RollbackFailed, StorageFailed
from snapvm.hypervisor.libvirtprecopy import PrecopyCapture
from snapvm.model import DomainState
from snapvm.refusals import HostLacks, NoSpace
from tests.fakes.capture import FakeCapture
from tests.fakes.scene import DOMAIN, Scene, make_scene
from tests.unit.deeds import advice, mend, roll_back, take, take_half, with_settings


@pytest.fixture
def thick(tmp_path: Path) -> Scene:
    return make_scene(tmp_path, thick=("vg0", "vg1"))


def test_a_state_folder_that_is_read_only_is_told_before_anything(
    thick: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`doctor` saw nothing in the way; a rollback then said that `repair` was needed."""
    record = take(thick, "x")
    statvfs = os.statvfs

    def read_only(path: Path) -> SimpleNamespace:
        found = statvfs(path)
        names = ("f_bavail", "f_frsize", "f_blocks")
        return SimpleNamespace(**{name: getattr(found, name) for name in names}, f_flag=ST_RDONLY)

    monkeypatch.setattr(os, "statvfs", read_only)
    before = thick.lvm.names()
    (refusal,) = diagnosis.look(thick.host, DOMAIN).refusals
    assert "can be written to" in str(refusal) and "is read-only" in str(refusal)
    for deed in (lambda: take(thick, "y"), lambda: roll_back(thick, record)):
        with pytest.raises(HostLacks, match="is read-only"):
            deed()
    assert thick.lvm.names() == before and thick.ids() == ["x"]


def test_a_state_folder_whose_server_has_lost_it_hides_nothing_else_that_is_in_the_way(
    thick: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That was all that `doctor` said, and of the disks nothing."""

    def stale(_path: Path) -> os.statvfs_result:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "statvfs", stale)
    found = diagnosis.look(thick.host, DOMAIN)
    assert {str(refusal.__cause__) for refusal in found.refusals} == {
        "[Errno 116] Stale file handle"
    }
    assert [disk.target for disk in found.disks] == ["vda", "vdb"]


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ({"f_bfree": 3}, "4 MiB for what is written down needed, 12 KiB"),
        ({"f_ffree": 2}, "16 files"),
    ],
)
def test_a_state_folder_without_room_for_a_journal_is_told_before_anything(
    thick: Scene, monkeypatch: pytest.MonkeyPatch, left: dict[str, int], told: str
) -> None:
    """The domain had ended, its memory was lost, and it stayed off: how far it was had no room."""
    record = take(thick, "x")
    status = SimpleNamespace(
        f_bavail=1 << 20, f_bfree=1 << 20, f_blocks=1 << 30, f_frsize=4096, f_files=9, f_ffree=99
    )
    status.__dict__.update(left, f_flag=0)
    monkeypatch.setattr(os, "statvfs", lambda _path: status)
    (refusal,) = diagnosis.look(thick.host, DOMAIN).refusals
    assert told in str(refusal)
    assert "another place" not in refusal.hint(), "what is to be gone back to is not there"
    for deed in (lambda: take(thick, "y"), lambda: roll_back(thick, record)):
        with pytest.raises(NoSpace, match=told):
            deed()
    assert thick.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_a_state_folder_that_is_filled_meanwhile_does_not_cost_the_memory(
    thick: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large image is read for minutes before the domain ends."""
    record = take(thick, "x")
    before, statvfs = thick.lvm.names(), os.statvfs
    full = SimpleNamespace(f_bfree=0, f_frsize=4096, f_files=0, f_flag=0)

    def fill(deed: str) -> None:
        if deed == "freeze":
            monkeypatch.setattr(os, "statvfs", lambda _path: full)

    thick.hypervisor.before = fill
    thick.count(5)
    with pytest.raises(RollbackFailed, match="not enough room") as told:
        roll_back(thick, record)
    assert told.value.exit_status is ExitStatus.FAILED, "the domain stood still"
    assert "nothing was lost" in told.value.hint() and "make room there" in told.value.hint()
    monkeypatch.setattr(os, "statvfs", statvfs)
    assert thick.lvm.names() == before and thick.ids() == ["x"]
    assert thick.hypervisor.state_of(DOMAIN) is DomainState.RUNNING and thick.machine.count == 5


def test_a_repair_that_has_no_room_says_what_is_wanted(
    thick: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hint was that `snapvm repair` tries again, which it had just done."""
    take_half(thick, "half")

    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        patch.setattr(durable, "write", full)
        patch.setattr(shutil, "rmtree", full)
        with pytest.raises(LeftBehind) as left:
            mend(thick)
    assert left.value.hint() == "make room there first; then `snapvm repair` tries again"
    mend(thick)
    assert thick.ids() == [] and thick.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


@pytest.mark.parametrize("files", [0, 99])
def test_a_file_system_need_not_count_its_files(
    thick: Scene, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    status = SimpleNamespace(f_frsize=4096, f_files=files, f_ffree=files, f_flag=0)
    status.f_bavail = status.f_bfree = status.f_blocks = 1 << 20
    monkeypatch.setattr(os, "statvfs", lambda _path: status)
    assert diagnosis.look(thick.host, DOMAIN).refusals == []


def test_so_much_of_the_file_system_stays_free_as_was_asked(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    with pytest.raises(NoSpace, match="image_limit_percent"):
        take(with_settings(scene, image_limit_percent=0.001), "x")
    assert scene.ids() == [] and scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_too_little_room_for_a_short_pause_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By precopy the guest stood still for most of its memory, and nobody had foreseen it."""
    scene = make_scene(tmp_path)
    status = SimpleNamespace(f_frsize=1 << 19, f_files=0, f_flag=0)
    status.f_bavail = status.f_bfree = status.f_blocks = 131
    monkeypatch.setattr(os, "statvfs", lambda _path: status)
    assert advice(scene) == ()
    monkeypatch.setattr(FakeCapture, "method", PrecopyCapture.way)
    (told,) = advice(scene)
    assert told.startswith("the state folder has 65 MiB free, less than twice the guest's memory")
    status.f_bavail = 132
    assert advice(scene) == ()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (errno.ENOSPC, "make room there, then try again: df -h {0}; df -i {0}"),
        (errno.EROFS, "mount it writable, then try again: findmnt --target {0}"),
        (
            errno.EFBIG,
            "allow snapvm larger files (ulimit -f; LimitFSIZE= of its unit); findmnt --target {0}",
        ),
    ],
)
def test_what_is_full_or_read_only_in_the_middle_is_told_with_what_to_do(
    tmp_path: Path, error: int, told: str
) -> None:
    """Which folder it is in, not that of a draft, which is gone when it is read.

    Of a memory image too, the first to meet most of this: it said to check the file system.
    """
    folder = tmp_path / "a b"
    failure = StorageFailed(path=str(folder / ".x.draft" / "y"), why=os.strerror(error))
    assert failure.hint() == told.format(shlex.quote(str(folder)))
    image = ImageNotWritten.because(OSError(error, os.strerror(error)), "web", folder / ".x.draft")
    assert image.hint() == failure.hint()
    assert StorageFailed(path="stdout", why=os.strerror(error)).hint() == ""
