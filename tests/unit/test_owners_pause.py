"""A domain that its owner pauses while a snapshot is taken of it stays paused."""

from __future__ import annotations

import pytest

from snapvm.errors import SnapvmError
from snapvm.failures import CaptureFailed, PausedMeanwhile
from snapvm.model import DomainState
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import take


def pause_at(scene: Scene, deed: str, *, fails: bool = False) -> None:
    """Have the owner pause the domain when snapvm comes to a deed, which may then fail."""

    def before(now: str) -> None:
        if now == deed:
            scene.hypervisor.suspend(DOMAIN)
            if fails:
                raise CaptureFailed(domain=DOMAIN, why="No space left on device")

    scene.hypervisor.before = before


def test_one_that_is_paused_before_its_window_stays_so(scene: Scene) -> None:
    """While stores are made, which takes minutes; what takes the set back does not resume it."""
    before = scene.lvm.names()
    pause_at(scene, "capture")
    with pytest.raises(PausedMeanwhile):
        take(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED
    assert scene.lvm.names() == before
    assert scene.ids() == [] and scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("fails", [False, True])
def test_one_that_is_paused_while_memory_streams_out_stays_so(scene: Scene, fails: bool) -> None:
    """A stream that failed then made the domain run again."""
    pause_at(scene, "drain", fails=fails)
    if fails:
        with pytest.raises(SnapvmError):
            take(scene)
    else:
        take(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED
    assert len(scene.ids()) == (not fails) and scene.host.catalog.leftovers(UUID) == ()
