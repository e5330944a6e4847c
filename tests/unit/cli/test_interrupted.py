"""Ctrl-C ends a verb that goes on after failures; it is not one of the things it tells about."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import pytest

from snapvm import imagefacts, imageroom, images, remaking
from snapvm.cli import progress
from snapvm.cli.volumestates import Volumes
from snapvm.errors import ExitStatus, Interrupted
from snapvm.failures import CommandFailed
from snapvm.host import Host
from snapvm.interrupt import watched
from snapvm.lvm.volumes import Lvm
from snapvm.model import (
    DomainState,
    DomainUuid,
    Progress,
    Record,
    Silent,
    SnapshotId,
)
from tests.fakes.records import disks_only, put_record
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.cli.conftest import Call, Ended
from tests.unit.cli.signals import ctrl_c
from tests.unit.deeds import die, revive


@pytest.fixture
def interrupted(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> Callable[[object, str, tuple[str, ...]], Ended]:
    """Call a verb, and interrupt it when it comes to a function."""

    def called(where: object, what: str, words: tuple[str, ...]) -> Ended:
        call("take", DOMAIN, "--name", "a")
        with monkeypatch.context() as patch:
            patch.setattr(where, what, ctrl_c)
            return call(*words)

    return called


@pytest.mark.parametrize(
    ("where", "what", "words"),
    [
        (images, "check_contents", ("check", "--deep")),
        (imageroom, "check", ("doctor", DOMAIN)),
        (Lvm, "report", ("show", f"{DOMAIN}@a")),
    ],
)
def test_a_look_ends(
    interrupted: Callable[..., Ended], where: object, what: str, words: tuple[str, ...]
) -> None:
    done = interrupted(where, what, words)
    assert done.status == ExitStatus.INTERRUPTED
    assert done.out == "" and done.err.startswith("snapvm: interrupted by SIGINT")


@pytest.mark.parametrize(
    ("words", "deed", "number"),
    [
        (("list",), "of", 2),
        (("list",), "tell_of_silence", 1),
        (("show", f"{DOMAIN}@a"), "tell_of_silence", 1),
    ],
)
def test_whoever_reads_json_gets_one_value(
    call: Call, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], deed: str, number: int
) -> None:
    """It was half an array, or a whole value and a second one behind it."""
    for name in "abc":
        call("take", DOMAIN, "--name", name)
    do, seen = getattr(Volumes, deed), count(1)

    def interrupted_at(volumes: Volumes, *of: Record) -> object:
        if next(seen) == number:
            ctrl_c()
        return do(volumes, *of)

    monkeypatch.setattr(Volumes, deed, interrupted_at)
    done = call(*words, "--json")
    assert done.status == ExitStatus.INTERRUPTED and json.loads(done.out)


def test_a_rebuild_ends_and_calls_no_image_damaged(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("take", DOMAIN, "--name", "a")
    record = scene.host.catalog.get(UUID, SnapshotId("a"))
    scene.host.catalog.path(record, "snapshot.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(imagefacts, "look", ctrl_c)
        done = call("catalog", "rebuild")
    assert done.status == ExitStatus.INTERRUPTED and "damaged" not in done.err


def test_a_rebuild_that_ends_says_that_what_it_made_stays(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said that everything was put back."""
    for name in "ab":
        call("take", DOMAIN, "--name", name, "--disk-only")
        record = scene.host.catalog.get(UUID, SnapshotId(name))
        scene.host.catalog.path(record, "snapshot.json").unlink()

    def decided(_host: Host, record: Record, _now: object) -> Record:
        ctrl_c()
        return record

    with monkeypatch.context() as patch:
        patch.setattr(remaking, "_decided_again", decided)
        done = call("catalog", "rebuild")
    assert done.status == ExitStatus.INTERRUPTED and len(scene.ids()) == 1
    assert "what was already done stays" in done.err


def interrupt_at(scene: Scene, verb: str, number: int) -> None:
    """Interrupt when lvm is told to do something for the n-th time."""
    seen = 0

    def before(argv: tuple[str, ...]) -> None:
        nonlocal seen
        seen += argv[1] == verb
        if argv[1] == verb and seen == number:
            ctrl_c()

    scene.lvm.before = before


def ours(scene: Scene) -> list[str]:
    return [volume.name for volume in scene.lvm.volumes if "snapvm=1" in volume.tags]


@pytest.mark.parametrize(
    ("verb", "number", "deleted"),
    [("lvs", 1, ""), ("lvremove", 1, "a"), ("lvs", 3, "a"), ("lvremove", 3, "ab")],
)
def test_a_delete_ends_with_the_snapshot_at_hand(
    call: Call, scene: Scene, verb: str, number: int, deleted: str
) -> None:
    for name in "abc":
        call("take", DOMAIN, "--name", name)
    interrupt_at(scene, verb, number)
    done = call("delete", *(f"{DOMAIN}@{name}" for name in "abc"), "--yes", "--json")
    left = "abc".removeprefix(deleted)
    assert done.status == ExitStatus.INTERRUPTED
    gone, kept = (", ".join(f"{DOMAIN}@{name}" for name in names) for names in (deleted, left))
    told = f"deleted {gone}, not touched {kept}" if deleted else "nothing was deleted"
    assert f"interrupted by SIGINT: {told}\n" in done.err
    assert json.loads(done.out)["deleted"] == [f"{DOMAIN}@{name}" for name in deleted]
    assert scene.ids() == list(left) and len(ours(scene)) == 2 * len(left)
    assert scene.host.catalog.leftovers(UUID) == ()


def test_a_prune_ends_with_the_snapshot_at_hand(call: Call, scene: Scene) -> None:
    for name in "abcd":
        call("take", DOMAIN, "--name", name)
    interrupt_at(scene, "lvremove", 1)
    done = call("prune", DOMAIN, "--keep-last", "1", "--include-named", "--yes")
    assert done.status == ExitStatus.INTERRUPTED and "deleted demo@" in done.err
    assert scene.ids() == ["b", "c", "d"] and done.out == "deleted demo@a\n"


OTHER = DomainUuid("0f0f0f0f-8a3b-4d6f-9e21-0c7a4b5d6e7f")


def have_two_domains(call: Call, scene: Scene) -> None:
    """Have two snapshots of each: d1 and d2 of `OTHER`, called web, and a and b."""
    for day in (1, 2):
        created = f"2026-03-{day:02}T12:00:00+00:00"
        made = disks_only(f"d{day}", created=created, domain="web", domain_uuid=OTHER, disks=())
        put_record(scene.host.settings.state_dir, made)
    for name in "ab":
        call("take", DOMAIN, "--name", name)


def test_a_prune_of_all_ends_with_the_domain_at_hand(call: Call, scene: Scene) -> None:
    have_two_domains(call, scene)
    interrupt_at(scene, "lvremove", 1)
    done = call("prune", "--all", "--keep-last", "1", "--include-named", "--yes", "--json")
    told = json.loads(done.out)
    assert done.status == ExitStatus.INTERRUPTED
    assert told["deleted"] == [f"{DOMAIN}@a"] and told["not_touched"] == ["web@d1"]
    assert len(scene.host.catalog.ids(OTHER)) == 2 and scene.ids() == ["b"]


def test_the_last_one_is_deleted_and_that_was_all(call: Call, scene: Scene) -> None:
    for name in "ab":
        call("take", DOMAIN, "--name", name)
    interrupt_at(scene, "lvremove", 3)
    done = call("delete", f"{DOMAIN}@a", f"{DOMAIN}@b", "--yes")
    assert done.status == ExitStatus.DONE and done.out == "deleted demo@a, demo@b\n"
    assert scene.ids() == [] and ours(scene) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("take", DOMAIN, "--name", "c"), "demo@c: memory"),
        (("rollback", f"{DOMAIN}@a", "--yes"), "demo is back at demo@a"),
        (("delete", f"{DOMAIN}@a", "--yes"), "deleted demo@a\n"),
        (("prune", DOMAIN, "--keep-last", "1", "--include-named", "--yes"), "deleted demo@a\n"),
    ],
)
def test_what_is_done_is_not_said_to_be_put_back(
    call: Call, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], told: str
) -> None:
    """While its guard ended, or the bar was taken away."""
    for name in "ab":
        call("take", DOMAIN, "--name", name)

    @contextmanager
    def shown(*, quiet: bool) -> Iterator[Progress]:
        assert not quiet
        yield Silent()
        ctrl_c()

    with monkeypatch.context() as patch:
        patch.setattr(progress, "shown", shown)
        done = call(*words)
    assert done.status == ExitStatus.DONE and done.out.startswith(told)
    monkeypatch.setattr(imageroom, "check", ctrl_c)
    assert call("doctor", DOMAIN).status == ExitStatus.INTERRUPTED, "as long as there is work"


def test_what_is_half_gone_is_not_called_untouched(call: Call, scene: Scene) -> None:
    have_two_domains(call, scene)

    def before(argv: tuple[str, ...]) -> None:
        if argv[1] == "lvremove":
            raise CommandFailed(argv=argv, status=5, stderr="a test wants it")
        if "a" not in scene.ids():
            ctrl_c()

    scene.lvm.before = before
    done = call("prune", "--all", "--keep-last", "1", "--include-named", "--yes", "--json")
    told = json.loads(done.out)
    assert done.status == ExitStatus.REPAIR_NEEDED and told["because"] == "LeftBehind"
    assert told["deleted"] == [] and told["not_touched"] == ["web@d1"]
    assert "volumes and files of demo@a; interrupted by SIGINT: nothing was deleted" in done.err


def test_an_interruption_of_what_fails_keeps_the_other_domains(call: Call, scene: Scene) -> None:
    have_two_domains(call, scene)

    def before(argv: tuple[str, ...]) -> None:
        if argv[1] == "lvremove":
            ctrl_c()
            raise CommandFailed(argv=argv, status=5, stderr="a test wants it")

    scene.lvm.before = before
    done = call("prune", "--all", "--keep-last", "1", "--include-named", "--yes", "--json")
    told = json.loads(done.out)
    assert len(scene.host.catalog.ids(OTHER)) == 2 and scene.ids() == ["b"]
    assert done.status == ExitStatus.REPAIR_NEEDED
    assert told["deleted"] == [] and told["not_touched"] == ["web@d1"]
    scene.lvm.before = lambda _argv: None
    assert call("repair").status == 0
    assert len(ours(scene)) == 2 and scene.host.catalog.leftovers(UUID) == ()


def test_what_the_first_one_began_a_second_one_does_not_cut_short() -> None:
    """As of somebody who holds Ctrl-C down: QEMU's settings stayed changed, and nothing told it."""
    put_back: list[str] = []
    with pytest.raises(Interrupted), watched():
        try:
            ctrl_c()
        finally:
            ctrl_c()
            put_back.append("all")
    assert put_back == ["all"]


@pytest.mark.parametrize("verb", ["repair", "take"])
@pytest.mark.parametrize("deed", ["restore", ""], ids=["restore", "everywhere"])
def test_a_rollback_that_is_finished_for_a_dead_one_is_finished(
    call: Call, scene: Scene, verb: str, deed: str
) -> None:
    """It was given up, and the domain stayed off: Ctrl-C was taken for why it does not start."""
    call("take", DOMAIN, "--name", "a")
    record = scene.host.catalog.get(UUID, SnapshotId("a"))
    die(scene, record, "restore")
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF

    def before(name: str | tuple[str, ...]) -> None:
        if not deed or name == deed:
            ctrl_c()

    scene.hypervisor.before = before
    scene.lvm.before = before
    done = call(verb, DOMAIN, "--json")
    revive(scene)
    assert done.status == ExitStatus.INTERRUPTED
    assert "finished the rollback of demo to a" in done.err
    assert ("what was already done stays" in done.err) is (verb == "repair")
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.host.catalog.leftovers(UUID) == () and "a" in scene.ids()
