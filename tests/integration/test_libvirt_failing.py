"""Each question to libvirt fails, once or from then on, before or after its effect.

A command then ends as it should, or says what failed; it never ends as a bug.  What it says of the
domain is true, and a repair that nothing befalls completes what it has left, QEMU's settings and
the host's permission included.  The driver is the real one; below it are fakes.
"""

from __future__ import annotations

import itertools
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from snapvm import consistency, hostid, retry
from snapvm.consistency import TakeRequest
from snapvm.errors import ExitStatus, SnapvmError
from snapvm.hypervisor import (
    libvirtagent,
    libvirtbackground,
    libvirtlink,
    libvirtprecopy,
    migrationstream,
    pause,
    qemurun,
    qmp,
    userfault,
)
from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.model import CaptureMethod, Silent
from tests.fakes import libvirtd, meanwhile, sweep, verbs
from tests.fakes.faults import caller
from tests.fakes.libvirtd import DEFINITION, Libvirtd, Mishap
from tests.fakes.mortal import Command
from tests.fakes.picture import picture
from tests.fakes.scene import DOMAIN, Scene, make_scene
from tests.fakes.sweep import Deed, claimed_wrongly, hurry, killed, left_wrong

FAKES = str(Path(libvirtd.__file__).parent)
FOR_EVER = 1 << 30
CLOSED, ENDED = "client socket is closed", "End of file while reading data: Input/output error"
LOCKED = "Timed out during operation: cannot acquire state change lock (held by monitor=other)"
MISHAPS = {
    "lost before": Mishap(code=38, said=CLOSED, is_lost=True),
    "lost after": Mishap(code=38, said=ENDED, is_lost=True, is_done=True),
    "restarted": Mishap(code=39, said=ENDED, is_lost=True, is_done=True, refuses=1),
    "gone": Mishap(code=38, said=ENDED, is_lost=True, is_done=True, refuses=FOR_EVER),
    "busy": Mishap(code=68, said=LOCKED),
    "failed": Mishap(code=1, said="internal error: unable to execute QEMU command"),
    "failed after": Mishap(code=9, said="operation failed: it was done", is_done=True),
    "denied": Mishap(code=88, said="access denied"),
    "empty": Mishap(answer='{"return": {}}', is_done=True),
    "nothing": Mishap(answer="{}", is_done=True),
}
ANSWERING = ("command", "agent")
LASTING = ("busy", "denied")
WITHOUT_LIBVIRT = ("catalog rebuild", "repair of a delete")
Way = tuple[int, str, bool]


@dataclass
class World:
    """A scene whose domains are libvirt's."""

    scene: Scene
    daemon: Libvirtd
    sysctl: Path
    seen: list[tuple[str, str]] = field(default_factory=list)
    struck: str = ""

    def connect(self, capture: CaptureMethod = CaptureMethod.AUTO) -> None:
        """Begin as a command does, with a connection of its own."""
        host = self.scene.host
        settings = replace(host.settings, capture=capture, agent_limit_seconds=0.05)
        driver = LibvirtHypervisor(libvirtlink.open_link("qemu:///system"), settings)
        self.scene.host = replace(host, hypervisor=driver, settings=settings)

    @contextmanager
    def failing(self, number: int, kind: str, *, lasts: bool) -> Iterator[None]:
        """Let the n-th question fail, or all from there on."""

        def mishap(name: str) -> Mishap | None:
            frame = sys._getframe(1)
            while frame.f_back is not None and frame.f_code.co_filename.startswith(FAKES):
                frame = frame.f_back
            where = caller(frame)
            if not where:
                return None
            self.seen.append((name, where))
            count = len(self.seen)
            if not kind or not (count == number or (lasts and count > number)):
                return None
            self.struck = self.struck or f"{name} at {where}"
            return MISHAPS[kind]

        self.daemon.mishap = mishap
        yield
        self.daemon.mishap = lambda _name: None
        self.daemon.refuses = 0


def taking_by(way: CaptureMethod) -> Command:
    def take(scene: Scene) -> object:
        return verbs.take(scene)

    take.__dict__["capture"] = way
    return take


def quiesced(scene: Scene) -> object:
    request = TakeRequest(domain=DOMAIN, name="dying", quiesce=True)
    return consistency.take(scene.host, request, Silent())


CASES: dict[str, tuple[Deed, Command]] = {
    **{name: case for name, case in sweep.CASES.items() if name not in WITHOUT_LIBVIRT},
    "take --capture precopy": (meanwhile.nothing, taking_by(CaptureMethod.PRECOPY)),
    "take --capture stop": (meanwhile.nothing, taking_by(CaptureMethod.STOP)),
    "take --capture libvirt": (meanwhile.nothing, taking_by(CaptureMethod.LIBVIRT)),
    "take --quiesce": (meanwhile.nothing, quiesced),
    "repair of a window": (killed(verbs.take, "after suspend 1"), verbs.repair),
    "repair of a stream": (killed(verbs.take, "after resume 1"), verbs.repair),
}


def begun(folder: Path, case: str, patch: pytest.MonkeyPatch) -> World:
    folder.mkdir()
    scene = make_scene(folder, thick=("vg1",))
    hostid.BOOT_PATH = meanwhile.first_boot(scene)
    world = World(scene, Libvirtd(scene.hypervisor), folder / "unprivileged_userfaultfd")
    world.sysctl.write_text("0\n")
    machine = world.daemon.adopt(DOMAIN)
    machine.domain = replace(machine.domain, definition=DEFINITION)
    patch.setattr(libvirtlink, "libvirt", world.daemon.module)
    for module in (libvirtlink, qmp, libvirtagent):
        patch.setattr(module, "libvirt_qemu", world.daemon.qemu_module)
    for name in ("allowed", "put_back"):
        patch.setattr(userfault, name, partial(REAL[name], sysctl=world.sysctl))
    scene.count(5)
    world.connect()
    consistency.take(scene.host, TakeRequest(domain=DOMAIN, name=verbs.KEPT), Silent())
    scene.count(3)
    CASES[case][0](scene)
    return world


REAL = {"allowed": userfault.allowed, "put_back": userfault.put_back}


def obeyed(world: World, command: Command) -> SnapvmError | None:
    """Return how a command, with a connection of its own, failed, if it did."""
    try:
        world.connect(getattr(command, "capture", CaptureMethod.AUTO))
        command(world.scene)
    except SnapvmError as error:
        return error
    return None


def ways(folder: Path, case: str, patch: pytest.MonkeyPatch) -> list[Way]:
    """Return which question fails, how, and whether those behind it do too."""
    world = begun(folder, case, patch)
    with world.failing(0, "", lasts=False):
        failed = obeyed(world, CASES[case][1])
    assert failed is None, failed
    shutil.rmtree(folder)
    by_place: dict[tuple[str, str], list[int]] = {}
    for number, place in enumerate(world.seen, 1):
        by_place.setdefault(place, []).append(number)
    numbers = sorted({number for its in by_place.values() for number in (its[0], its[-1])})
    once = itertools.product(numbers, MISHAPS, (False,))
    every = [*once, *itertools.product(numbers, LASTING, (True,))]
    return [
        (number, kind, lasts)
        for number, kind, lasts in every
        if not MISHAPS[kind].answer or world.seen[number - 1][0] in ANSWERING
    ]


def wrong_of(folder: Path, case: str, way: Way, patch: pytest.MonkeyPatch) -> list[str]:
    """Let a command meet a mishap; return what is wrong then, and after a repair."""
    number, mishap, lasts = way
    world = begun(folder, case, patch)
    scene, command = world.scene, CASES[case][1]
    before = picture(scene)
    failed, wrong = None, []
    with world.failing(number, mishap, lasts=lasts):
        try:
            failed = obeyed(world, command)
        except Exception as bug:
            wrong.append(f"a bug: {bug!r}")
    if failed is not None:
        wrong += told_wrongly(failed)
        wrong += claimed_wrongly(failed, before, picture(scene), command)
    elif not wrong and command is not verbs.doctor:  # which tells of it
        wrong += set_wrongly(world)
    after = obeyed(world, verbs.repair)
    if after is not None and after.exit_status is not ExitStatus.ATTENTION:
        wrong.append(f"the repair failed: {after}")
    wrong += set_wrongly(world)
    was_told = any(e is not None and e.exit_status is ExitStatus.ATTENTION for e in (failed, after))
    wrong += left_wrong(scene, may_be_off=was_told or "stop" in case)
    shutil.rmtree(folder)
    told = f" [{type(failed).__name__}: {failed}; {failed.hint()}]" if failed else ""
    what = f"{case}, {world.struck}, {mishap}{' and on' * lasts}"
    return [f"{what}: {each}{told}" for each in wrong]


def told_wrongly(failed: SnapvmError) -> Iterator[str]:
    if not failed.message():
        yield "it says nothing"


def set_wrongly(world: World) -> Iterator[str]:
    machine = world.daemon.adopt(DOMAIN)
    if not machine.qemu.is_as_it_was():
        yield f"QEMU is {machine.qemu}"
    if world.sysctl.read_text().strip() != "0":
        yield f"the permission is {world.sysctl.read_text()}"
    if left := [each.name for each in world.scene.host.settings.run_dir.glob("*.qemu")]:
        yield f"there is {left}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(qemurun, "PID_FILES", Path("/nowhere"))
    for module, name, value in (
        (libvirtlink, "_run_events", lambda: None),
        (retry, "_RESTART_SECONDS", 0.25),
        (pause, "EVENT_LIMIT_SECONDS", 0.01),
        (libvirtagent, "CONNECT_SECONDS", 0.05),
        (libvirtbackground, "ASK_SECONDS", 0.0),
        (libvirtprecopy, "_CALM_SECONDS", 0.0),
        (migrationstream, "DRAIN_POLL_SECONDS", 0.0),
        (migrationstream, "WINDOW_POLL_SECONDS", 0.0),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize("most", [4, pytest.param(1 << 20, marks=pytest.mark.long)])
@pytest.mark.parametrize("case", CASES)
def test_a_question_to_libvirt_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, most: int
) -> None:
    wrong: list[str] = []
    dice = random.Random(case)
    every = ways(tmp_path / "whole", case, monkeypatch)
    for way in dice.sample(every, min(most, len(every))):
        wrong += wrong_of(tmp_path / "one", case, way, monkeypatch)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("mishap", ["lost before", "lost after", "restarted"])
@pytest.mark.parametrize("case", ["take", "take --capture precopy", "take --capture stop"])
def test_a_libvirtd_that_is_restarted_behind_the_window_costs_no_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, mishap: str
) -> None:
    world = begun(tmp_path / "whole", case, monkeypatch)
    with world.failing(0, "", lasts=False):
        assert obeyed(world, CASES[case][1]) is None
    its = [number for number, (_, where) in enumerate(world.seen, 1) if "witness.py" in where]
    for number in range(max(its) + 1, len(world.seen) + 1):
        another = begun(tmp_path / str(number), case, monkeypatch)
        with another.failing(number, mishap, lasts=False):
            failed = obeyed(another, CASES[case][1])
        assert failed is None, f"{another.struck}: {failed}"
        assert not list(set_wrongly(another))
