"""A thick disk is written in place, and somebody opens it when its domain has ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from snapvm import repair, retry
from snapvm.attention import HalfBack
from snapvm.model import DomainState
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit.deeds import roll_back, take_at_five


def open_after_the_end(scene: Scene, *, closed: Callable[[], bool]) -> None:
    """Have something open a disk as soon as its domain has ended, until ``closed``."""
    disk = scene.lvm.named("vg1", "demo-d1")

    def before(argv: tuple[str, ...]) -> None:
        if argv[1] == "lvs" and not scene.machine.held:
            disk.opened = not closed()

    scene.lvm.before = before


def test_a_thick_disk_that_somebody_opens_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "_SOON_SECONDS", 0.0)
    scene = make_scene(tmp_path, thick=("vg0", "vg1"))
    record = take_at_five(scene)
    open_after_the_end(scene, closed=lambda: False)
    with pytest.raises(HalfBack, match=r"vg1/demo-d1 .*something other") as failed:
        roll_back(scene, record)
    assert "`fuser -v /dev/vg1/demo-d1`" in failed.value.hint(), "who has it, is to be found first"
    assert failed.value.hint().endswith(f"snapvm repair {DOMAIN}")
    assert scene.disk_data()[1] == "8"
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF
    scene.lvm.before = lambda _argv: None
    scene.lvm.named("vg1", "demo-d1").opened = False
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def test_one_whose_last_user_is_about_to_go_is_waited_for(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, thick=("vg0", "vg1"))
    record = take_at_five(scene)
    looks = iter([False, False])
    open_after_the_end(scene, closed=lambda: next(looks, True))
    roll_back(scene, record)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]
