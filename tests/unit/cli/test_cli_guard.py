"""What a guard does when snapvm is dead, on fakes."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator

import pytest

from snapvm.cli import guard as cli_guard
from snapvm.failures import CommandFailed
from snapvm.guard import Post
from snapvm.model import DomainState
from tests.fakes import mortal
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import revive, take


@pytest.fixture
def post() -> Iterator[Post]:
    """Yield the end of a guard whose snapvm is dead as soon as the guard is ready."""
    answers = os.open(os.devnull, os.O_WRONLY)
    yield Post(io.StringIO(json.dumps([UUID, DOMAIN]) + "\n"), answers)
    os.close(answers)


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
