"""What was chosen before another snapvm was waited for, and is not what it was after that."""

from __future__ import annotations

import json
from typing import Any

import pytest

from snapvm import locking
from snapvm.errors import ExitStatus
from snapvm.model import SnapshotId
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.cli.conftest import Call
from tests.unit.deeds import delete, take


def take_while_waiting(scene: Scene, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have another snapvm end on the domain just before the lock is had: it took these."""
    left, lock = list(names), locking._lock

    def wait(*words: Any, **more: Any) -> None:
        while left:
            take(scene, left.pop(0))
        lock(*words, **more)

    monkeypatch.setattr(locking, "_lock", wait)


@pytest.mark.parametrize("verb", ["delete", "rollback"])
def test_a_latest_that_is_another_one_when_its_turn_comes_is_refused(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """It was chosen before the lock was waited for, and was no longer the latest."""
    call("take", DOMAIN, "--name", "a")
    scene.count(3)
    take_while_waiting(scene, monkeypatch, "b")
    done = call(verb, f"{DOMAIN}@latest", "--yes", "--wait", "60", "--json")
    assert done.status == ExitStatus.REFUSED
    assert json.loads(done.out)["error"]["kind"] == "MeansAnother"
    assert "demo@latest meant demo@a when this command began, but now means demo@b\n" in done.err
    assert done.err.endswith("name the snapshot you mean: demo@a or demo@b\n")
    assert scene.ids() == ["a", "b"] and scene.machine.count == 3
    assert call(verb, f"{DOMAIN}@a", "--yes").status == 0


def test_a_latest_among_several_that_is_another_one_by_then_is_refused(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        call("take", DOMAIN, "--name", name)
    take_while_waiting(scene, monkeypatch, "c")
    words = ("delete", f"{DOMAIN}@a", f"{DOMAIN}@latest", "--yes")
    assert call(*words).status == ExitStatus.REFUSED and scene.ids() == ["a", "b", "c"]
    assert call(*words).out == "deleted demo@a, demo@c\n"


def test_a_prune_does_not_go_on_when_what_it_keeps_is_gone(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was waiting for the delete of `c`, and then deleted `a` and `b`, the last ones."""
    for name in "abc":
        call("take", DOMAIN, "--name", name)
    lock = locking._lock

    def wait(*words: Any, **more: Any) -> None:
        monkeypatch.setattr(locking, "_lock", lock)
        delete(scene, scene.host.catalog.get(UUID, SnapshotId("c")))
        lock(*words, **more)

    monkeypatch.setattr(locking, "_lock", wait)
    words = ("prune", DOMAIN, "--keep-last", "1", "--include-named", "--yes", "--wait", "60")
    done = call(*words)
    assert done.status == ExitStatus.REFUSED and scene.ids() == ["a", "b"]
    assert "be kept now: demo@c, which was to be kept, was deleted in the meantime\n" in done.err
    assert call(*words).status == 0 and scene.ids() == ["b"]


def test_a_prune_leaves_the_newest_when_what_it_keeps_goes_on_the_way(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It deleted the newest of them first: what was to be kept in the place of `d` was gone."""
    for name in "abcd":
        call("take", DOMAIN, "--name", name)
    lock = locking._lock

    def wait(*words: Any, **more: Any) -> None:
        if len(scene.ids()) == 3:
            monkeypatch.setattr(locking, "_lock", lock)
            delete(scene, scene.host.catalog.get(UUID, SnapshotId("d")))
        lock(*words, **more)

    monkeypatch.setattr(locking, "_lock", wait)
    done = call("prune", DOMAIN, "--keep-last", "1", "--include-named", "--yes", "--json")
    assert done.status == ExitStatus.FAILED and scene.ids() == ["b", "c"]
    assert json.loads(done.out)["deleted"] == ["demo@a"]


def test_nobody_is_asked_about_a_latest_that_is_none_any_more(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("take", DOMAIN, "--name", "a")
    take_while_waiting(scene, monkeypatch, "b")
    assert "now means demo@b" in call("rollback", f"{DOMAIN}@latest", "--wait", "60").err


@pytest.mark.parametrize("left", [4, 3])
def test_a_backup_that_begins_on_the_way_keeps_no_other_from_being_pruned(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """It was looked for once, before the lock was waited for; then it ended all."""
    for name in "abcd":
        call("take", DOMAIN, "--name", name)
    lock = locking._lock

    def wait(*words: Any, **more: Any) -> None:
        if len(scene.ids()) == left:
            scene.lvm.named("vg0", "demo-d0.b").opened = True
        lock(*words, **more)

    monkeypatch.setattr(locking, "_lock", wait)
    words = ("prune", DOMAIN, "--keep-last", "1", "--include-named", "--yes", "--json")
    done = call(*words)
    told = json.loads(done.out)
    assert done.status == ExitStatus.FAILED and scene.ids() == ["b", "d"]
    assert (told["deleted"], told["not_touched"]) == (["demo@a", "demo@c"], ["demo@b"])
    assert "demo@b and is in use" in told["error"]["message"]
