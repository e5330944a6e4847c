"""Ctrl-C ends a verb that goes on after failures; it is not one of the things it tells about."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from snapvm import imagefacts, imageroom, images
from snapvm.errors import ExitStatus
from snapvm.lvm.volumes import Lvm
from snapvm.model import SnapshotId
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.cli.conftest import Call, Ended


def ctrl_c(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


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
