"""Two mishaps in a row, whatever they are, and what the owner or a boot does in between.

A command dies, or its disk, LVM or hypervisor fails it; then a repair or another command meets the
same; then comes a repair that nothing befalls.  After that: what can be seen is whole; the domain
runs on its former disks, or on a snapshot's with its memory, and if it is off that was said;
nothing is left over.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from snapvm import checking, consistency, hostid, naming, retry, rollbackrepair
from snapvm.attention import StartedTooSoon
from snapvm.consistency import TakeRequest
from snapvm.errors import ExitStatus, SnapvmError
from snapvm.failures import DeleteStopped
from snapvm.model import DomainState, Record, SideKind, SidePlace, Silent
from tests.fakes import meanwhile
from tests.fakes.machine import FROZEN
from tests.fakes.mishaps import attempt, befall
from tests.fakes.mortal import Command
from tests.fakes.picture import Picture, disks, picture
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.fakes.verbs import (
    FIRST,
    KEPT,
    NEXT,
    rebuild,
    rebuild_damaged,
    records,
    repair,
    roll_back,
)

KINDS = {"thin": (), "thick": ("vg0", "vg1"), "mixed": ("vg1",)}
STATES = (DomainState.RUNNING, DomainState.RUNNING, DomainState.PAUSED, DomainState.SHUTOFF)
KEPT_AT, NOW = 5, 8
ATTEMPTS = 4


@dataclass
class Story:
    """What happens, and what of it excuses how it ends."""

    scene: Scene
    dice: random.Random
    told: list[str] = field(default_factory=list)
    may_be_off: bool = False
    is_torn: bool = False
    """The owner had the domain run on disks that do not belong together."""
    has_run: bool = False
    newest: str = ""
    """What its disks held when it began."""
    wrong: list[str] = field(default_factory=list)
    errors: list[SnapvmError] = field(default_factory=list)

    def befall(self, command: Command) -> None:
        before = picture(self.scene)
        told, failed = befall(self.scene, command, self.dice)
        self.told += [told, in_short(failed)]
        if failed is not None:
            self.errors.append(failed)
        self.judge(failed, before, picture(self.scene), command)

    def attempt(self, command: Command) -> SnapvmError | None:
        failed = attempt(self.scene, command)
        if failed is not None:
            self.errors.append(failed)
        return failed

    # --- what is between ---

    def meanwhile(self) -> None:
        deed = self.dice.choice((meanwhile.nothing, *meanwhile.DEEDS))
        self.told.append(deed.__name__)
        if deed in (meanwhile.let_run, meanwhile.use, meanwhile.hold, meanwhile.reboot_and_start):
            self.is_torn |= len(set(disks(self.scene))) != 1
            self.has_run = True
        if deed not in (meanwhile.nothing, meanwhile.let_run, meanwhile.reboot_and_start):
            self.may_be_off = True
        deed(self.scene)
        if deed in (meanwhile.let_run, meanwhile.reboot_and_start):
            # A disk of it may be without its name, which a failure has told.
            self.may_be_off |= not meanwhile.is_on(self.scene)

    # --- judgement ---

    def judge(
        self, failed: SnapvmError | None, before: Picture, after: Picture, command: Command
    ) -> None:
        """Whoever says that all was put back, or nothing touched, has to be right."""
        says_untouched = failed is not None and failed.exit_status <= ExitStatus.LOCKED
        says_put_back = failed is not None and failed.exit_status is ExitStatus.FAILED
        if not (says_untouched or says_put_back) or isinstance(failed, DeleteStopped):
            return
        if before[2] or command in (repair, rebuild_damaged):
            return  # what was pending may have been finished
        if before != after:
            self.wrong.append(f"all was put back, it says: {before} became {after}")

    def end(self) -> None:
        """Repair until there is nothing left to repair, doing what the failures say is to do."""
        for _ in range(ATTEMPTS):
            failed = self.attempt(repair)
            self.told.append(f"repair: {in_short(failed)}")
            if failed is None:
                break
            if isinstance(failed, StartedTooSoon) or "its start does not finish" in str(failed):
                meanwhile.destroy(self.scene)
                self.may_be_off = True
        else:
            self.wrong.append("it is never repaired")
        self.attempt(rebuild)
        self.wrong += list(self.problems())

    def problems(self) -> Iterator[str]:
        scene = self.scene
        for finding in checking.look(scene.host, None, Silent(), deep=True):
            yield f"check: {finding.subject}: {finding.problem}"
        kept = [contents(scene, record) for record in records(scene)]
        may_be_gone = self.has_run or "delete" in self.told
        if not may_be_gone and [self.newest] * 2 not in (disks(scene), *kept):
            yield f"{self.newest} is nowhere"
        yield from self._of_domain()
        for record, found in zip(records(scene), kept, strict=True):
            found += [
                scene.host.catalog.path(record, s.file).read_text() for s in record.side_files
            ]
            if record.memory is not None:
                image = scene.host.catalog.path(record, record.memory.file).read_bytes()
                found.append(str(int.from_bytes(image[-8:], "little") & ~FROZEN))
            expected = {KEPT: str(KEPT_AT)}.get(record.id, found[0])
            if set(found) != {expected} and not (self.is_torn and naming.is_undo(record.id)):
                yield f"{record.id} holds {found}"
        ours = {f"{v.vg}/{v.name}" for v in scene.lvm.volumes if "snapvm=1" in v.tags}
        known = {f"{d.snapshot.vg}/{d.snapshot.lv}" for r in records(scene) for d in r.disks}
        if ours != known:
            yield f"volumes {ours ^ known}"
        tags = {tag for volume in scene.lvm.volumes for tag in volume.tags}
        if tags & {"snapvm.st=new", "snapvm.st=roll"}:
            yield f"tags {tags}"
        folder = scene.host.settings.state_dir / "domains" / UUID
        # The next journal takes the place of one that could be neither written nor removed.
        new = {path.name for path in folder.glob("*.new") if path.is_file()}
        left = {path.name for path in folder.glob(".*")} - {".name"} - new
        if left:
            yield f"files {left}"

    def _of_domain(self) -> Iterator[str]:
        scene = self.scene
        state = scene.hypervisor.state_of(DOMAIN)
        was_told = any(e.exit_status is ExitStatus.ATTENTION for e in self.errors)
        is_taken = "dying" in scene.ids() or "delete" in self.told
        is_stopped = is_taken and "take --stop" in self.told
        # One that was made anew from LVM's tags does not know that the domain was on.
        was_off = any(record.id == KEPT and not record.state.is_on for record in records(scene))
        if state is DomainState.SHUTOFF and not (
            self.may_be_off or was_told or is_stopped or was_off
        ):
            yield "the domain is off, and nobody said so"
        if state is DomainState.PAUSED and not self.may_be_off:
            yield "the domain is paused"
        if state is not DomainState.SHUTOFF and not scene.machine.held:
            yield "it has no disks"
        if self.is_torn:
            return
        if state is DomainState.RUNNING:
            if scene.machine.frozen:
                yield "its file systems are frozen"
            scene.count(1)
        expected = {str(scene.machine.count)} if meanwhile.is_on(scene) else set(disks(scene)[:1])
        if set(disks(scene)) != expected:
            yield f"memory {expected}, disks {disks(scene)}, {state}"


def in_short(failed: SnapvmError | None) -> str:
    return "ok" if failed is None else f"{type(failed).__name__}: {str(failed)[:70]}"


def contents(scene: Scene, record: Record) -> list[str]:
    return [scene.lvm.named(disk.snapshot.vg, disk.snapshot.lv).data for disk in record.disks]


def begun(folder: Path, dice: random.Random) -> Story:
    """A domain with a snapshot, which has been gone back to already, or not."""
    kind = dice.choice(list(KINDS))
    scene = make_scene(folder, thick=KINDS[kind])
    meanwhile.first_boot(scene)
    state, forgets = dice.choice(STATES), dice.choice((False, False, True))
    if not forgets:
        nvram = SidePlace(kind=SideKind.NVRAM, path=folder / "demo_VARS.fd")
        scene.machine.places = (nvram,)
    scene.count(KEPT_AT)
    has_memory = dice.choice((True, True, False))
    request = TakeRequest(domain=DOMAIN, name=KEPT, with_memory=has_memory, quiesce=has_memory)
    consistency.take(scene.host, request, Silent())
    scene.count(NOW - KEPT_AT)
    told = [kind, state.value, "transient" if forgets else "defined", f"memory {has_memory}"]
    story = Story(scene, dice, told)
    if dice.choice((False, False, True)):
        roll_back(scene)
        scene.count(20)  # what it holds now was never held before
        story.told.append("gone back once")
    scene.hypervisor.forgets = forgets
    if state is DomainState.PAUSED:
        scene.hypervisor.suspend(DOMAIN)
        story.may_be_off = True
    if state is DomainState.SHUTOFF:
        meanwhile.destroy(scene)
        story.may_be_off = True
    return story


def tell(folder: Path, seed: str, monkeypatch: pytest.MonkeyPatch) -> Story:
    dice = random.Random(seed)
    (place := folder / seed).mkdir()
    monkeypatch.setattr(hostid, "BOOT_PATH", place / "boot_id")
    story = begun(place, dice)
    story.newest = disks(story.scene)[0]
    for commands in (FIRST, NEXT):
        verb = dice.choice(list(commands))
        story.told.append(verb)
        story.befall(commands[verb])
        story.meanwhile()
    story.end()
    shutil.rmtree(place)
    return story


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a dead process has written is there for the next one; nobody waits for what is not."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    monkeypatch.setattr(retry, "_SOON_SECONDS", 0.0)
    monkeypatch.setattr(rollbackrepair, "_START_SECONDS", 0.0)
    monkeypatch.setattr(rollbackrepair, "_END_SECONDS", 0.0)


@pytest.mark.parametrize("stories", [40, pytest.param(4000, marks=pytest.mark.long)])
def test_repairs_mend_what_two_mishaps_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stories: int
) -> None:
    wrong = []
    for number in range(stories):
        story = tell(tmp_path, str(number), monkeypatch)
        wrong += [f"{number}: {', '.join(story.told)}: {each}" for each in story.wrong]
    assert not wrong, "\n".join(wrong)
