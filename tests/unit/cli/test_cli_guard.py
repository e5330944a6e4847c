"""What a guard does when snapvm is dead, on fakes."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm import clock
from snapvm.attention import NotStarted, StuckPaused
from snapvm.catalog import Catalog
from snapvm.cli import guard as cli_guard
from snapvm.cli.session import Session
from snapvm.failures import CommandFailed
from snapvm.guard import Post
from snapvm.model import Domain, DomainState, SnapshotId
from snapvm.refusals import DomainRefused
from tests.fakes import mortal
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import revive, take


@pytest.fixture
def post() -> Iterator[Post]:
    """Yield the end of a guard whose snapvm is dead as soon as the guard is ready."""
    answers = os.open(os.devnull, os.O_WRONLY)
    yield Post(io.StringIO(json.dumps([UUID, DOMAIN]) + "\n"), answers)
    os.close(answers)


def test_it_has_its_driver_from_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is needed most when both of them would import it at the same time."""
    done: list[str] = []

    @contextmanager
    def standing_by(_stand: Callable[[Post], None]) -> Iterator[Any]:
        done.append("fork")
        yield SimpleNamespace(watching=None)

    monkeypatch.setattr(cli_guard, "load_driver", lambda: done.append("import"))
    monkeypatch.setattr(cli_guard, "standing_by", standing_by)
    monkeypatch.setattr("snapvm.cli.wiring.open_host", lambda *_: done.append("open"))
    with cli_guard.guarded_host(Session()):
        assert done == ["import", "fork", "open"]


def test_what_fails_at_first_is_tried_again(
    scene: Scene, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a program that the dead snapvm started has not come to its end."""
    monkeypatch.setattr("snapvm.cli.wiring.open_host", lambda _settings: scene.host)
    assert mortal.kill_at(scene, take, "after suspend 1")
    failures = 3

    def fail(argv: tuple[str, ...]) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise CommandFailed(argv=argv, status=5, stderr="it is busy")

    scene.lvm.before = fail
    cli_guard.stand(scene.host.settings, post)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.host.catalog.leftovers(UUID) == ()


def test_of_a_command_that_ends_before_it_has_a_domain_it_opens_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapvm.cli.wiring.open_host", lambda _: pytest.fail("it opens a host"))
    cli_guard.stand(scene.host.settings, Post(io.StringIO(), answers=-1))


@dataclass
class Away:
    """A hypervisor that does not answer for a while, and the clock by which the guard waits."""

    scene: Scene
    seconds: float
    now: float = 0.0

    def __post_init__(self) -> None:
        self._find, self._resume = self.scene.hypervisor.find, self.scene.hypervisor.resume

    def find(self, name: str) -> Domain:
        if self.now < self.seconds:
            raise DomainRefused(domain=name, why="Failed to connect socket")
        return self._find(name)

    def resume(self, domain: Domain) -> None:
        if self.now < self.seconds:
            self.sleep(30)
            raise StuckPaused(domain=domain.name, why="client socket is closed")
        self._resume(domain)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def away(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Callable[[float, str], Away]:
    def gone(seconds: float, deed: str) -> Away:
        away = Away(scene, seconds)
        monkeypatch.setattr("snapvm.cli.wiring.open_host", lambda _settings: scene.host)
        monkeypatch.setattr(scene.hypervisor, deed, getattr(away, deed))
        monkeypatch.setattr(cli_guard, "time", away)
        monkeypatch.setattr(clock, "time", away)
        return away

    return gone


@pytest.mark.parametrize("deed", ["find", "resume"])
def test_a_libvirtd_that_takes_long_to_restart_leaves_no_domain_paused(
    scene: Scene, post: Post, away: Callable[[float, str], Away], deed: str
) -> None:
    """The guard gave up after 5 s, and the next command was perhaps that of tomorrow."""
    assert mortal.kill_at(scene, take, "after suspend 1")
    away(20, deed)
    cli_guard.stand(scene.host.settings, post)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("deed", ["find", "resume"])
def test_one_that_never_answers_is_given_up(
    scene: Scene,
    post: Post,
    away: Callable[[float, str], Away],
    deed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr("syslog.syslog", lambda _priority, line: told.append(line))
    assert mortal.kill_at(scene, take, "after suspend 1")
    waited = away(1e9, deed)
    cli_guard.stand(scene.host.settings, post)
    assert 300 <= waited.now < 400
    assert len(told) == 1 and "snapvm died, and" in told[0]


def test_what_fails_for_good_is_told_once(
    scene: Scene, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("snapvm.cli.wiring.open_host", lambda _settings: scene.host)
    monkeypatch.setattr("syslog.syslog", lambda _priority, line: told.append(line))
    monkeypatch.setattr(cli_guard, "PATIENCE_SECONDS", 0.2)
    assert mortal.kill_at(scene, take, "after suspend 1")

    def fail(argv: tuple[str, ...]) -> None:
        raise CommandFailed(argv=argv, status=5, stderr="it is broken")

    scene.lvm.before = fail
    cli_guard.stand(scene.host.settings, post)
    assert len(told) == 1 and "it is broken" in told[0]
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    revive(scene)
    assert len(scene.host.catalog.leftovers(UUID)) == 1


def test_another_snapvm_that_is_at_work_on_the_domain_is_neither_waited_for_nor_told_of(
    scene: Scene, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It repairs what the dead one left before it does anything else."""
    told: list[str] = []
    settings = scene.host.settings
    patient = Catalog(settings.state_dir, settings.run_dir, wait_seconds=60)
    host = replace(scene.host, catalog=patient)
    monkeypatch.setattr("snapvm.cli.wiring.open_host", lambda _settings: host)
    monkeypatch.setattr("syslog.syslog", lambda _priority, line: told.append(line))
    monkeypatch.setattr(cli_guard, "PATIENCE_SECONDS", 0.2)
    assert mortal.kill_at(scene, take, "before suspend 1")
    begun = time.monotonic()
    with scene.host.catalog.locked(UUID, DOMAIN):
        cli_guard.stand(scene.host.settings, post)
    assert time.monotonic() - begun < 5
    assert told == [] and scene.host.catalog.leftovers(UUID)


def test_what_its_owner_has_to_see_to_is_not_tried_again(
    scene: Scene, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its domain does not start, which may take minutes each time."""
    tries: list[str] = []
    told: list[str] = []

    def fail(*_: object) -> tuple[str, ...]:
        tries.append("try")
        raise NotStarted(domain=DOMAIN, id=SnapshotId("a"), why="no room", remedy="make some")

    monkeypatch.setattr("snapvm.cli.wiring.open_host", lambda _settings: scene.host)
    monkeypatch.setattr("syslog.syslog", lambda _priority, line: told.append(line))
    monkeypatch.setattr("snapvm.repair.finish_pending", fail)
    cli_guard.stand(scene.host.settings, post)
    assert tries == ["try"] and len(told) == 1 and "make some" in told[0]
