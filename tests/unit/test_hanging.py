"""An lvm that hangs: what it does late is undone, and what it never does is left to repair."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from snapvm import consistency, repair
from snapvm.attention import LeftBehind
from snapvm.failures import CommandFailed, CommandTimedOut, SnapshotFailed
from snapvm.model import DomainState, Silent
from tests.fakes.lvmtalk import FakeConversation
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import begun, revive, roll_back, take


def test_an_lvm_that_hangs_for_good_is_left_to_repair(scene: Scene) -> None:
    """What it was told may yet be done: so nothing is said to be put back before it has ended."""
    before = scene.lvm.names()
    orders: list[str] = []
    scene.lvm.hanging = orders
    with pytest.raises(LeftBehind, match="still at work in vg0") as left:
        take(scene)
    assert isinstance(left.value.__cause__, SnapshotFailed)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.ids() == [] and len(scene.host.catalog.leftovers(UUID)) == 1
    scene.lvm.hanging = None
    for order in orders:
        with suppress(CommandFailed):  # the store it was to attach is gone
            scene.lvm.obey(("lvm", *order.split()))
    take(scene, "next")
    assert scene.ids() == ["next"] and scene.host.catalog.leftovers(UUID) == ()
    consistency.delete(scene.host, list(scene.host.catalog.records(UUID)), Silent())
    assert scene.lvm.names() == before


def test_what_an_lvm_makes_late_is_removed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for a moment, and what it did after the removal is removed too."""
    before = scene.lvm.names()
    orders: list[str] = []
    scene.lvm.hanging = orders

    monkeypatch.setattr(FakeConversation, "ended", obeying_at_last(scene, orders))
    with pytest.raises(SnapshotFailed):
        take(scene)
    assert scene.lvm.names() == before
    assert scene.ids() == [] and scene.host.catalog.leftovers(UUID) == ()


def obeying_at_last(scene: Scene, orders: list[str]) -> Callable[[FakeConversation, float], bool]:
    """Have the hanging lvms do what they were told as soon as somebody waits for them."""

    def ended(_talk: FakeConversation, limit_seconds: float) -> bool:
        if limit_seconds and scene.lvm.hanging is not None:
            scene.lvm.hanging = None
            for order in orders:
                with suppress(CommandFailed):
                    scene.lvm.obey(("lvm", *order.split()))
        return scene.lvm.hanging is None

    return ended


def hang_below_the_standing_domain(scene: Scene) -> list[str]:
    """Have lvm hang once a rollback exchanges the disks; return what it is told then."""
    orders: list[str] = []

    def before(deed: str) -> None:
        if deed == "freeze":
            scene.lvm.hanging = orders

    scene.hypervisor.before = before
    return orders


def test_a_disk_that_is_renamed_late_gets_its_name_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A domain without the disk of its name would run on, and not start the next time."""
    record = take(scene, "x")
    before = scene.lvm.names()
    orders = hang_below_the_standing_domain(scene)
    monkeypatch.setattr(FakeConversation, "ended", obeying_at_last(scene, orders))
    with pytest.raises(CommandTimedOut):
        roll_back(scene, record)
    assert orders and scene.lvm.names() == before
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.host.catalog.leftovers(UUID) == ()


def test_a_rename_that_hangs_for_good_is_left_to_repair(scene: Scene) -> None:
    record = take(scene, "x")
    before = scene.lvm.names()
    orders = hang_below_the_standing_domain(scene)
    with pytest.raises(LeftBehind, match="still at work in vg0"):
        roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    scene.lvm.hanging = None
    for order in orders:
        with suppress(CommandFailed):  # the store it was to attach is gone
            scene.lvm.obey(("lvm", *order.split()))
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.lvm.names() == before and scene.host.catalog.leftovers(UUID) == ()


def test_repair_gives_a_name_back_that_a_killed_rollback_takes_late(scene: Scene) -> None:
    """Its lvm has waited for the group's lock, and got it before the removal did."""
    record = take(scene, "x")
    before = scene.lvm.names()
    orders = hang_below_the_standing_domain(scene)
    with pytest.raises(LeftBehind):
        roll_back(scene, record)
    scene.lvm.hanging = None

    def obey(argv: tuple[str, ...]) -> None:
        if argv[1] == "lvremove" and orders:
            with suppress(CommandFailed):
                scene.lvm.obey(("lvm", *orders.pop().split()))

    scene.lvm.before = obey
    scene.hypervisor.before = lambda _deed: None
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert not orders and scene.lvm.names() == before
    assert scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("thick", [("vg1",), ("vg0", "vg1")], ids=["mixed", "thick"])
@pytest.mark.parametrize("work", ["take", "rollback"])
def test_a_store_that_is_made_late_is_not_forgotten(
    tmp_path: Path, work: str, thick: tuple[str, ...]
) -> None:
    """All was said to be put back; then it came, as large as a disk, and nothing named it."""
    scene, record = begun(tmp_path, *thick)
    before = scene.lvm.names()
    late: list[tuple[str, ...]] = []

    def hang(argv: tuple[str, ...]) -> None:
        if argv[1] == "lvcreate" and "--size" in argv:
            late.append(argv)
            raise CommandTimedOut(argv=argv, seconds=300)

    scene.lvm.before = hang
    with pytest.raises(LeftBehind, match="still at work in vg"):
        take(scene) if work == "take" else roll_back(scene, record)
    revive(scene)
    scene.lvm.obey(late[0])
    assert scene.lvm.names() > before
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.lvm.names() == before and scene.host.catalog.leftovers(UUID) == ()
