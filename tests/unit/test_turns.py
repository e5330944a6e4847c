"""Work in one volume group waits for its turn before a domain stands still, not in the pause."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapvm import locking, turns
from snapvm.errors import Locked
from snapvm.locking import locked
from snapvm.model import DomainState
from tests.fakes.capture import FakeCapture
from tests.fakes.scene import DOMAIN, GROUPS, Scene, make_scene
from tests.unit.deeds import delete, take

LONG_SECONDS = 20.0


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A domain that has locks already."""
    made = make_scene(tmp_path, thick=("vg1",))
    take(made, "a")
    return made


@contextmanager
def at_work_in(scene: Scene, group: str) -> Iterator[None]:
    """Have somebody else be at work in a group, for another domain."""
    with turns.taken(scene.host.settings.run_dir, [group]):
        yield


def test_a_domain_runs_while_its_take_waits_for_others(scene: Scene) -> None:
    """Each of many nightly takes stood still for as long as all the others needed LVM."""
    began = threading.Event()
    scene.hypervisor.before = lambda deed: began.set() if deed == "window" else None
    with ThreadPoolExecutor(1) as pool:
        with at_work_in(scene, "vg0"):
            waiting = pool.submit(take, scene, "b")
            assert not began.wait(0.5)
            assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
        assert waiting.result(LONG_SECONDS).id == "b"
    assert began.is_set() and scene.ids() == ["a", "b"]


@pytest.mark.parametrize("group", GROUPS)
def test_a_removal_waits_for_a_window(scene: Scene, group: str) -> None:
    """With issue_discards=1 in lvm.conf it takes minutes, in which a take would have failed."""
    (record,) = scene.host.catalog.records(scene.machine.domain.uuid)
    before = scene.lvm.names()
    with ThreadPoolExecutor(1) as pool:
        with at_work_in(scene, group):
            waiting = pool.submit(delete, scene, record)
            time.sleep(0.3)
            assert scene.lvm.names() == before
        waiting.result(LONG_SECONDS)
    assert scene.ids() == [] and scene.lvm.names() != before


def test_a_take_has_the_turn_in_all_of_its_groups(scene: Scene) -> None:
    """A window, and the making of a store before it: the others see both."""
    run_dir = scene.host.settings.run_dir
    seen: dict[str, list[bool]] = {vg: [] for vg in GROUPS}

    def look(argv: tuple[str, ...]) -> None:
        if argv[1] in ("lvcreate", "lvconvert"):
            group = argv[-2 if argv[1] == "lvconvert" else -1].partition("/")[0]
            seen[group].append(is_taken(run_dir / f"{group}.group.lock"))

    scene.lvm.before = look
    take(scene, "b")
    assert seen == {"vg0": [True], "vg1": [True, True]}
    assert not any(is_taken(run_dir / f"{vg}.group.lock") for vg in GROUPS)


def is_taken(file: Path) -> bool:
    try:
        with locked(file, "somebody", wait_seconds=0):
            return False
    except Locked:
        return True


def test_one_that_works_again_and_again_lets_others_in_between(tmp_path: Path) -> None:
    """As a `prune` does, of hundreds of snapshots."""
    deletions, is_seen = 40, threading.Event()
    ended: list[bool] = []

    def prune() -> None:
        while len(ended) < deletions and not is_seen.is_set():
            with turns.taken(tmp_path, ["vg0"]):
                time.sleep(0.05)
            ended.append(True)

    with ThreadPoolExecutor(1) as pool:
        pruning = pool.submit(prune)
        time.sleep(0.12)
        with turns.taken(tmp_path, ["vg0"]):
            is_seen.set()
            assert len(ended) < deletions / 2
        pruning.result(LONG_SECONDS)


def test_one_that_writes_all_memory_in_its_window_keeps_nobody_waiting(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes minutes; its domain runs for most of them, or stands still for that anyway."""
    monkeypatch.setattr(FakeCapture, "is_brief", False)
    free: list[bool] = []
    file = scene.host.settings.run_dir / "vg0.group.lock"
    scene.hypervisor.before = lambda deed: (
        free.append(not is_taken(file)) if deed == "window" else None
    )
    take(scene, "b")
    assert free == [True]


def test_a_turn_that_does_not_come_is_done_without(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "LIMIT_SECONDS", 0.2)
    with at_work_in(scene, "vg0"):
        take(scene, "b")
    assert scene.ids() == ["a", "b"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Which locks were asked for, and for how long; none of a group is to be had."""
    seen: list[tuple[str, float]] = []

    @contextmanager
    def held(path: Path, name: str, *, wait_seconds: float) -> Iterator[None]:
        seen.append((path.name, wait_seconds))
        time.sleep(wait_seconds / 2)
        if path.name.endswith(".group.lock"):
            raise Locked(domain=name, holder="somebody")
        yield

    monkeypatch.setattr(locking, "locked", held)
    monkeypatch.setattr(turns, "LIMIT_SECONDS", 0.2)
    return seen


def test_no_two_wait_for_each_other(tmp_path: Path, asked: list[tuple[str, float]]) -> None:
    """One that wants the same groups, whatever its disks' order is, asks in the same order."""
    groups = [f"vg{number}" for number in range(8)]
    with turns.taken(tmp_path, reversed(groups)):
        assert [name for name, _ in asked if "group" in name] == [
            f"{vg}.group.lock" for vg in groups
        ]


def test_for_more_groups_it_is_waited_no_longer(
    tmp_path: Path, asked: list[tuple[str, float]]
) -> None:
    with turns.taken(tmp_path, ["vg0", "vg1", "vg2"]):
        waits = [seconds for _, seconds in asked]
        assert len(waits) == 6 and waits == sorted(waits, reverse=True) and waits[-1] < 0.02


def test_where_there_can_be_no_lock_nobody_waits(tmp_path: Path) -> None:
    (tmp_path / "vg0.group.lock").mkdir()
    with turns.taken(tmp_path, GROUPS):
        assert (tmp_path / "vg1.group.lock").exists()


def test_what_fails_in_a_turn_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(Locked), turns.taken(tmp_path, ["vg0"]):
        raise Locked(domain="demo", holder="somebody")
    with locked(tmp_path / "vg0.group.lock", "vg0", wait_seconds=0):
        pass
