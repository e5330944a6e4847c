"""A signal hides nothing that somebody has to see to, and undoes nothing that is done."""

from __future__ import annotations

import json
from typing import Any

import pytest

from snapvm.attention import StuckPaused
from snapvm.cli import failures, progress
from snapvm.errors import ExitStatus
from snapvm.failures import HypervisorFailed
from snapvm.model import Domain, DomainState, DomainUuid, SnapshotId
from tests.fakes.records import disks_only, put_record
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.cli.conftest import Call
from tests.unit.cli.signals import ctrl_c, left_with_ctrl_c
from tests.unit.deeds import die, fail_deed

OTHER = DomainUuid("0f0f0f0f-8a3b-4d6f-9e21-0c7a4b5d6e7f")
AT_WORK = [
    ("repair",),
    ("take", DOMAIN),
    ("rollback", f"{DOMAIN}@a", "--yes"),
    ("delete", f"{DOMAIN}@b", "--yes"),
    ("prune", "--all", "--keep-last", "1", "--include-named", "--yes"),
]


def leave_off(call: Call, scene: Scene) -> None:
    """Leave a domain off that was to go back to `a`, the first of two snapshots."""
    for name in "ab":
        call("take", DOMAIN, "--name", name)
    die(scene, scene.host.catalog.get(UUID, SnapshotId("a")), "restore")


def fail_deed_of_restore(deed: str) -> None:
    if deed == "restore":
        raise HypervisorFailed("a test wants it")


def test_that_a_domain_stands_still_is_told_whatever_is_typed(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user read that everything was put back, and the status was 130."""

    def resume(domain: Domain) -> None:
        ctrl_c()
        raise StuckPaused(domain=domain.name, why="it says no")

    tell = failures.tell

    def tell_late(*words: Any, **more: Any) -> int:
        ctrl_c()
        return tell(*words, **more)

    fail_deed(scene, "arm")
    with monkeypatch.context() as patch:
        patch.setattr(scene.hypervisor, "resume", resume)
        patch.setattr(progress, "shown", left_with_ctrl_c)
        patch.setattr(failures, "tell", tell_late)
        done = call("take", DOMAIN, "--json")
    assert done.status == ExitStatus.ATTENTION
    assert json.loads(done.out)["error"]["kind"] == "StuckPaused"
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED


def test_that_a_domain_is_off_is_told_whatever_is_typed(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("take", DOMAIN, "--name", "a")
    fail_deed(scene, "restore")
    with monkeypatch.context() as patch:
        patch.setattr(progress, "shown", left_with_ctrl_c)
        done = call("rollback", f"{DOMAIN}@a", "--yes", "--json")
    assert done.status == ExitStatus.ATTENTION
    assert json.loads(done.out)["error"]["kind"] == "NotStarted"


@pytest.mark.parametrize("words", AT_WORK, ids=" ".join)
def test_a_signal_hides_no_domain_that_could_not_be_brought_back(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """It came behind the failure: the status was 130, and all was said to be put back."""
    leave_off(call, scene)
    fail_deed(scene, "restore")
    with monkeypatch.context() as patch:
        patch.setattr(progress, "shown", left_with_ctrl_c)
        done = call(*words, "--json")
    assert done.status == ExitStatus.ATTENTION
    assert json.loads(done.out)["error"]["kind"] == "NotStarted"
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF


@pytest.mark.parametrize("is_in_it", [True, False], ids=["in it", "behind it"])
def test_a_signal_amid_a_repair_hides_no_domain_that_could_not_be_brought_back(
    call: Call, scene: Scene, is_in_it: bool
) -> None:
    leave_off(call, scene)
    made = disks_only("x", domain="zoo", domain_uuid=OTHER, disks=())
    put_record(scene.host.settings.state_dir, made)

    def before(deed: str) -> None:
        if deed == "restore" and is_in_it:
            ctrl_c()
        fail_deed_of_restore(deed)

    def looked_after(argv: tuple[str, ...]) -> None:
        if not is_in_it and not scene.host.catalog.leftovers(UUID):
            ctrl_c()

    scene.hypervisor.before, scene.lvm.before = before, looked_after
    done = call("repair", "--json")
    assert done.status == ExitStatus.ATTENTION
    assert json.loads(done.out)["error"]["kind"] == "NotStarted"


def test_a_repair_that_is_done_is_done(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_off(call, scene)
    monkeypatch.setattr(progress, "shown", left_with_ctrl_c)
    done = call("repair")
    assert done.status == ExitStatus.DONE and done.out == "finished the rollback of demo to a\n"
