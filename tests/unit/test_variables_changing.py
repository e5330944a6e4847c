"""UEFI variables that a guest changes while its memory is written are not those of the window."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapvm import consistency
from snapvm.consistency import TakeRequest
from snapvm.failures import CaptureFailed
from snapvm.model import DomainState, Record, SideKind, SidePlace, SideShape, Silent
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit.deeds import roll_back


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A domain that counts into the place of its variables."""
    scene = make_scene(tmp_path)
    scene.machine.places = (SidePlace(kind=SideKind.NVRAM, path=tmp_path / "demo_VARS.fd"),)
    scene.count(5)
    return scene


def take(scene: Scene, *, with_memory: bool) -> Record:
    request = TakeRequest(domain=DOMAIN, name="a", with_memory=with_memory)
    return consistency.take(scene.host, request, Silent())


def counts_on_while_memory_is_written(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    before = scene.hypervisor.before

    def go_on(deed: str) -> None:
        before(deed)
        if deed == "drain":
            scene.count(1)

    patch.setattr(scene.hypervisor, "before", go_on)


def test_they_are_not_recorded(scene: Scene) -> None:
    """QEMU had them in the image as they were when it came to them, and those won in a rollback."""
    with pytest.MonkeyPatch.context() as patch:
        counts_on_while_memory_is_written(scene, patch)
        with pytest.raises(CaptureFailed, match="UEFI variables"):
            take(scene, with_memory=True)
    assert not scene.host.catalog.has(UUID, "a")
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    roll_back(scene, take(scene, with_memory=True))
    assert scene.machine.places[0].path.read_text() == "6"


@pytest.mark.parametrize("what", ["no memory", "a vTPM"])
def test_where_the_image_has_none_of_them_nothing_is_wrong(scene: Scene, what: str) -> None:
    """What a vTPM has is in the state of the devices, which is that of the window."""
    if what == "a vTPM":
        tpm = scene.machine.places[0].path.parent / "tpm2"
        tpm.mkdir()
        place = SidePlace(kind=SideKind.TPM, path=tpm, shape=SideShape.FOLDER)
        scene.machine.places = (place,)
        (tpm / "state").write_text("5")
    with pytest.MonkeyPatch.context() as patch:
        counts_on_while_memory_is_written(scene, patch)
        record = take(scene, with_memory=what == "a vTPM")
    roll_back(scene, record)
    (place,) = scene.machine.places
    held = place.path / "state" if place.shape is SideShape.FOLDER else place.path
    assert held.read_text() == "5"
