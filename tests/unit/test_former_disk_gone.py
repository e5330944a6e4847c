"""A rollback was killed, and a disk that is to get its name back is gone by then."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapvm.attention import LeftBehind
from snapvm.model import DomainState
from tests.fakes.scene import DOMAIN, UUID
from tests.unit.deeds import begun, die, mend


@pytest.mark.parametrize("vg", ["vg0", "vg1"])
@pytest.mark.parametrize("is_moved", [False, True], ids=["removed", "moved to another group"])
def test_nothing_is_renamed_when_a_former_disk_is_not_where_it_was(
    tmp_path: Path, vg: str, is_moved: bool
) -> None:
    """By lvremove or vgsplit: only some of the domain's disks would get their names back."""
    scene, record = begun(tmp_path)
    die(scene, record, "stop")
    (kept,) = (volume for volume in scene.machine.held if volume.vg == vg)
    kept.vg = "vg9"
    if not is_moved:
        scene.lvm.volumes.remove(kept)
    names = scene.lvm.names()
    for _ in range(2):
        with pytest.raises(LeftBehind, match=f"LVM does not report {vg}/demo-d{vg[-1]} "):
            mend(scene)
    assert scene.lvm.names() == names
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert len(scene.host.catalog.leftovers(UUID)) == 1
