"""A `take` captures the disks that the domain runs on, or that nobody uses while it is off."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snapvm import diagnosis, retry
from snapvm.model import DomainState, DomainUuid
from snapvm.refusals import DiskRefused, VolumeRefused
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import take
from tests.unit.occupied import OTHER, volumes


def test_a_volume_that_only_has_the_name_of_the_one_in_use_is_not_captured(scene: Scene) -> None:
    """LVM renames below a running domain, whose memory knows nothing of the new one's contents."""
    used = scene.lvm.named("vg0", "demo-d0")
    used.name = "demo-d0-broken"
    restored = scene.lvm.add_disk("vg0", "demo-d0", pool="pool", data="restored from a backup")
    with pytest.raises(DiskRefused, match="the domain runs on another volume") as refused:
        take(scene)
    assert "give that volume its name back" in refused.value.hint()
    assert scene.ids() == []
    restored.name, used.name = "from-backup", "demo-d0"
    take(scene)


# --- a domain that is off -------------------------------------------------------------------------


def test_one_that_is_off_is_not_taken_while_another_runs_on_a_disk_of_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk would be caught in motion, and be recorded as one that was shut down."""
    monkeypatch.setattr(retry, "_SOON_SECONDS", 0.0)
    scene.hypervisor.stop(scene.machine.domain)
    uuid = DomainUuid(UUID.replace("1", "9"))
    running = replace(scene.machine.domain, name=OTHER, uuid=uuid, state=DomainState.RUNNING)
    scene.hypervisor.add(running, scene.machine.disks[1:])
    before = volumes(scene)
    with pytest.raises(VolumeRefused, match=r"vg1/demo-d1 .*the domain is off") as refused:
        take(scene)
    users = "`fuser -v /dev/vg1/demo-d1` and `lsblk /dev/vg1/demo-d1` show it"
    assert users in refused.value.hint()
    assert volumes(scene) == before and scene.ids() == []
    assert diagnosis.look(scene.host, DOMAIN).refusals[0].message() == refused.value.message()
    scene.hypervisor.stop(running)
    assert take(scene).state is DomainState.SHUTOFF
    assert diagnosis.look(scene.host, DOMAIN).refusals == []


def test_one_whose_disk_is_only_looked_into_is_taken(scene: Scene) -> None:
    """As udev does when the last user of a device has closed it."""
    scene.hypervisor.stop(scene.machine.domain)
    disk = scene.lvm.named("vg1", "demo-d1")
    looks = iter([True, True])

    def before(argv: tuple[str, ...]) -> None:
        if argv[1] == "lvs":
            disk.opened = next(looks, False)

    scene.lvm.before = before
    assert take(scene).state is DomainState.SHUTOFF


def test_doctor_tells_of_a_volume_that_only_has_the_name_of_the_one_in_use(scene: Scene) -> None:
    scene.lvm.named("vg1", "demo-d1").opened = False
    (refusal,) = diagnosis.look(scene.host, DOMAIN).refusals
    assert "the domain runs on another volume" in refusal.message()
