"""Two hosts that see one state folder: neither takes the other's work for what was killed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import checking, consistency, hostid
from snapvm.attention import LeftBehind
from snapvm.catalog import Catalog
from snapvm.errors import ExitStatus, Locked, WorkElsewhere
from snapvm.model import Record, Silent
from snapvm.recordfolder import Work
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.fakes.storage import no_room
from tests.unit.deeds import fail_deed, hang, revive, roll_back, take, take_half

IDS = {"a": "3d1219c7c4c5404aaa1f6d2a48adfda4", "b": "e1219c7c4c5404aaa1f6d2a48adfda43"}


@pytest.fixture
def be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Be the host ``a``, until told to be another."""
    path = tmp_path / "machine-id"

    def become(host: str) -> None:
        path.write_text(f"{IDS[host]}\n" if host in IDS else host)

    monkeypatch.setattr(hostid, "PATH", path)
    become("a")
    return become


def half_a_take(scene: Scene) -> None:
    take_half(scene, "b")


def half_a_delete(scene: Scene) -> None:
    record = take(scene, "b")
    hang(scene, "lvremove", "lvrename")
    with pytest.raises(LeftBehind):
        consistency.delete(scene.host, [record], Silent())
    revive(scene)


def a_stop(scene: Scene) -> None:
    scene.host.catalog.write_journal(UUID, Work.STOP, {"record": "x", "set": "0123456789ab"})


HALVES = {"take": half_a_take, "delete": half_a_delete, "stop": a_stop}

DEEDS: dict[str, Callable[[Scene, Record], object]] = {
    "take": lambda scene, _: take(scene, "c"),
    "rollback": roll_back,
    "delete": lambda scene, record: consistency.delete(scene.host, [record], Silent()),
    "prune": lambda scene, record: consistency.prune(scene.host, [[record]], Silent()),
    "repair": lambda scene, _: consistency.repair_all(scene.host, None, Silent()),
}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("deed", DEEDS)
def test_what_another_host_is_at_is_left_alone(
    scene: Scene, be: Callable[[str], None], half: str, deed: str
) -> None:
    record = take(scene, "a")
    HALVES[half](scene)
    before, (left,) = scene.lvm.names(), scene.host.catalog.leftovers(UUID)
    assert left.unusable is None
    be("b")
    with pytest.raises(WorkElsewhere) as refused:
        DEEDS[deed](scene, record)
    assert refused.value.exit_status is ExitStatus.LOCKED
    assert refused.value.hint().endswith(": snapvm repair --take-over demo")
    assert "before it was installed anew" in refused.value.hint(), "it has the name of before"
    assert scene.lvm.names() == before and scene.ids() == ["a"]
    assert [each.path for each in scene.host.catalog.leftovers(UUID)] == [left.path]
    (found,) = checking.look(scene.host, None, Silent(), deep=False)
    assert "at work on the domain" in found.problem and "--take-over" in found.remedy
    be("a")
    consistency.repair_all(scene.host, DOMAIN, Silent())
    assert scene.host.catalog.leftovers(UUID) == () and scene.ids() == ["a"]
    assert checking.look(scene.host, None, Silent(), deep=False) == ()


@pytest.mark.parametrize("half", HALVES)
def test_what_a_dead_host_began_is_dealt_with_by_who_says_so(
    scene: Scene, be: Callable[[str], None], half: str
) -> None:
    take(scene, "a")
    before = scene.lvm.names()
    HALVES[half](scene)
    be("b")
    consistency.repair_all(scene.host, DOMAIN, Silent(), take_over=True)
    assert scene.host.catalog.leftovers(UUID) == ()
    assert scene.lvm.names() == before and scene.ids() == ["a"]


def test_a_rollback_of_another_host_is_left_alone_too(
    scene: Scene, be: Callable[[str], None]
) -> None:
    """Of one that died its journal is taken over as after a boot: no memory meets newer disks."""
    record = take(scene, "a")
    fail_deed(scene, "stop")
    hang(scene, "lvremove", "lvrename")
    with pytest.raises(LeftBehind):
        roll_back(scene, record)
    revive(scene)
    before = scene.lvm.names()
    be("b")
    with pytest.raises(WorkElsewhere):
        consistency.repair_all(scene.host, DOMAIN, Silent())
    assert scene.lvm.names() == before
    consistency.repair_all(scene.host, DOMAIN, Silent(), take_over=True)
    assert scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("known", ["", "uninitialized", "old"])
def test_where_no_host_is_known_all_is_this_one_s(
    scene: Scene, be: Callable[[str], None], known: str
) -> None:
    """An older snapvm wrote down no host, and a system may have no id."""
    if known != "old":
        be(known)
    half_a_take(scene)
    (left,) = scene.host.catalog.leftovers(UUID)
    if known == "old":
        path = left.path / "intent.json"
        written = json.loads(path.read_text())
        del written["host"]
        path.write_text(json.dumps(written))
    be("b")
    consistency.repair_all(scene.host, DOMAIN, Silent())
    assert scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("host", ["no object", {}, {"id": 5}, {"id": "x", "name": None}])
def test_a_host_that_is_nonsense_is_another_or_none(
    scene: Scene, be: Callable[[str], None], host: object
) -> None:
    half_a_take(scene)
    (left,) = scene.host.catalog.leftovers(UUID)
    path = left.path / "intent.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": host}))
    (left,) = scene.host.catalog.leftovers(UUID)
    is_known = isinstance(host, dict) and bool(host.get("id"))
    assert (left.unusable is not None) is is_known and left.intent["kind"] == "take"


def test_a_journal_does_not_give_the_id_away(scene: Scene, be: Callable[[str], None]) -> None:
    """machine-id(5) wants it kept to the host."""
    half_a_take(scene)
    (left,) = scene.host.catalog.leftovers(UUID)
    assert IDS["a"] not in (left.path / "intent.json").read_text()


def test_a_delete_needs_no_room(scene: Scene, be: Callable[[str], None]) -> None:
    """It may be what makes room: then nobody knows which host began it."""
    record = take(scene, "a")
    with no_room():
        consistency.delete(scene.host, [record], Silent())
    assert scene.ids() == [] and scene.host.catalog.leftovers(UUID) == ()


def elsewhere(scene: Scene) -> Scene:
    """Return the scene as another host sees it, whose locks are its own."""
    settings = scene.host.settings
    other = Catalog(settings.state_dir, settings.run_dir.parent / "other-run")
    return replace(scene, host=replace(scene.host, catalog=other))


@pytest.mark.parametrize("deed", DEEDS)
def test_one_that_begins_in_the_same_moment_is_told(
    scene: Scene, be: Callable[[str], None], deed: str
) -> None:
    """Before the first has written its journal, which is all that would tell of it."""
    record = take(scene, "a")
    before = scene.lvm.names()
    other = elsewhere(scene)
    with scene.host.catalog.locked(UUID, DOMAIN), pytest.raises(Locked) as refused:
        DEEDS[deed](other, record)
    assert f"process {os.getpid()} of host {hostid.name()}" in str(refused.value)
    assert f"rm {scene.host.settings.state_dir}/domains/.{UUID}.lock" in refused.value.hint()
    assert scene.lvm.names() == before and scene.ids() == ["a"]
    DEEDS[deed](other, record)


def test_the_first_ever_is_told_of_too(scene: Scene) -> None:
    """The lock of all hosts had no folder before there was a snapshot, and nobody held it."""
    scene.host.settings.state_dir.mkdir()
    other = elsewhere(scene).host.catalog
    with (
        scene.host.catalog.locked(UUID, DOMAIN),
        pytest.raises(Locked),
        other.locked(UUID, DOMAIN),
    ):
        pytest.fail("both work on it")


def test_a_check_does_not_take_for_dead_what_is_at_work_elsewhere(
    scene: Scene, be: Callable[[str], None]
) -> None:
    take(scene, "a")
    half_a_take(scene)
    be("b")
    other = elsewhere(scene)
    with scene.host.catalog.locked(UUID, DOMAIN):
        assert checking.look(other.host, None, Silent(), deep=False) == ()
        with pytest.raises(Locked):
            consistency.repair_all(other.host, DOMAIN, Silent(), take_over=True)
    (found,) = checking.look(other.host, None, Silent(), deep=False)
    assert "left its work unfinished" in found.problem


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_has_those_of_the_host(
    scene: Scene, be: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    take(scene, "a")
    real, state = fcntl.flock, str(scene.host.settings.state_dir)

    def flock(descriptor: int, how: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(state):
            raise OSError(number, os.strerror(number))
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    take(scene, "b")
    with scene.host.catalog.locked(UUID, DOMAIN), pytest.raises(Locked) as refused:
        take(scene, "c")
    assert "rm " not in refused.value.hint()
    assert set(scene.ids()) == {"a", "b"}


def test_a_lock_that_a_server_of_smb_does_not_grant_is_held(
    scene: Scene, be: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux says EACCES of it there, which was taken for a file system without locks."""
    take(scene, "a")
    real, state = fcntl.flock, str(scene.host.settings.state_dir)

    def flock(descriptor: int, how: int) -> None:
        try:
            real(descriptor, how)
        except BlockingIOError:
            if not os.readlink(f"/proc/self/fd/{descriptor}").startswith(state):
                raise
            raise OSError(errno.EACCES, os.strerror(errno.EACCES)) from None

    monkeypatch.setattr(fcntl, "flock", flock)
    other = elsewhere(scene)
    with scene.host.catalog.locked(UUID, DOMAIN), pytest.raises(Locked):
        take(other, "b")
    take(other, "b")
    assert set(scene.ids()) == {"a", "b"}


def test_the_lock_of_all_hosts_is_no_domain(scene: Scene, be: Callable[[str], None]) -> None:
    take(scene, "a")
    take(scene, "b")
    lock = scene.host.settings.state_dir / "domains" / f".{UUID}.lock"
    assert lock.stat().st_mode & 0o777 == 0o600
    assert scene.host.catalog.domains() == ((UUID, DOMAIN),)
    assert checking.look(scene.host, None, Silent(), deep=False) == ()


def test_records_are_for_all(scene: Scene, be: Callable[[str], None]) -> None:
    record = take(scene, "a")
    be("b")
    settings = scene.host.settings
    other = Catalog(settings.state_dir, settings.run_dir.parent / "other-run")
    assert list(other.records(UUID)) == [record]
    roll_back(scene, record)
    assert checking.look(scene.host, None, Silent(), deep=False) == ()
