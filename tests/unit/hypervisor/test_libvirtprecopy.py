"""When precopy freezes and stops a guest: late, and it is said rightly why it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm.clock import WindowClock
from snapvm.failures import CaptureFailed, NotFrozen, PausedMeanwhile
from snapvm.hypervisor import libvirtprecopy
from snapvm.hypervisor.capturejob import CaptureJob
from snapvm.hypervisor.libvirtprecopy import SETTINGS, PrecopyCapture
from snapvm.hypervisor.migrationstream import MigrationStream, State
from snapvm.model import Silent
from tests.unit.hypervisor.fakedomain import DOMAIN

MEMORY = DOMAIN.memory_bytes
MB = 10**6
BIG = 40_000 * MB
PREFLIGHT = MEMORY // 20 + (64 << 20)
"""What there is at least beyond the size of memory, or no capture is begun."""


@dataclass(frozen=True)
class Moment:
    """What QEMU, the clock and the file system say when they are looked at once."""

    at: float
    syncs: int
    remaining: int
    free: int
    written: int = 0
    is_paused: bool = False
    """By its owner."""
    is_setting_up: bool = False
    """QEMU has not begun to write."""
    is_over: bool = False
    """QEMU has stopped the guest, for the end of the stream."""


@dataclass
class World:
    """Stands for the domain's pause, QEMU's stream and what is around them."""

    moments: list[Moment]
    now: Moment = field(init=False)
    stopped_at: list[float] = field(default_factory=list)
    frozen_at: list[float] = field(default_factory=list)
    freezing_fails: bool = False
    is_begun: bool = False
    when_asked: Callable[[], None] = lambda: None
    parameters: dict[str, int] = field(default_factory=dict)
    """What QEMU is set to."""
    how: str = ""
    is_waited_for: bool = True
    """A file that is written slowly is given up, for the guest waits for it."""

    def __post_init__(self) -> None:
        self.now = self.moments[0]

    # --- the pause ---

    @contextmanager
    def ended_by_resume(self, **_how: object) -> Iterator[None]:
        yield

    def suspend(self) -> None:
        assert self.is_waited_for, "a slow file could keep the guest standing still"
        self.stopped_at.append(self.now.at)

    def freeze(self) -> None:
        rate = self.parameters.get("max-bandwidth", 1 << 40)
        assert rate <= 1000 or not self.is_begun, "QEMU could stop the guest meanwhile"
        if self.freezing_fails:
            raise NotFrozen(domain="demo", why="nobody answers")
        self.frozen_at.append(self.now.at)

    def refuse_owners(self) -> None:
        if self.now.is_paused:
            raise PausedMeanwhile(domain="demo")

    # --- the stream ---

    @property
    def written_bytes(self) -> int:
        return self.now.written

    def set(self, parameters: dict[str, int]) -> None:
        self.parameters |= parameters

    def is_before_the_end(self) -> bool:
        self.when_asked()
        return not (self.now.is_over or self.now.is_setting_up)

    def begin(self) -> None:
        assert not self.is_waited_for, "a slow file would be given up though nobody waits"
        self.is_begun = True

    def guest_waits(self) -> None:
        self.is_waited_for = True

    def let_go(self) -> None: ...
    def tell(self, _state: State) -> None: ...

    def wait_for(
        self, _is_there: object, *, limit_seconds: float, tick: Callable[[State], None]
    ) -> None:
        tick({"status": "setup"})
        for moment in self.moments:
            self.now = moment
            if moment.is_over:
                return
            ram = {"dirty-sync-count": self.now.syncs, "remaining": self.now.remaining}
            tick({"status": "active", "ram": ram})


Play = Callable[..., tuple[list[float], str]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Play:
    """Capture while all this comes to pass; return when the guest was stopped, and the record."""

    def played(
        *moments: Moment,
        world: World | None = None,
        freezes: bool = False,
        memory_bytes: int = 0,
    ) -> tuple[list[float], str]:
        world = World(list(moments)) if world is None else world
        pause: Any = SimpleNamespace(
            ended_by_resume=world.ended_by_resume,
            suspend=world.suspend,
            stopped_at=lambda: None,
            refuse_owners=world.refuse_owners,
            owners_kept=nullcontext,
        )
        nothing: Any = None

        @contextmanager
        def stream(_job: object, _image: object, *, guest_waits: bool = True) -> Iterator[World]:
            world.is_waited_for = guest_waits
            yield world

        monkeypatch.setattr(MigrationStream, "prepared", stream)
        monkeypatch.setattr(libvirtprecopy, "ready", lambda *_: nullcontext())
        clock = SimpleNamespace(monotonic=lambda: world.now.at, sleep=lambda _seconds: None)
        monkeypatch.setattr(libvirtprecopy, "time", clock)
        monkeypatch.setattr(
            "os.statvfs", lambda _path: SimpleNamespace(f_bavail=world.now.free, f_frsize=1)
        )
        job = CaptureJob(
            domain=replace(DOMAIN, memory_bytes=memory_bytes or (BIG if freezes else MEMORY)),
            handle=nothing,
            lender=nothing,
            run_dir=tmp_path,
            pause=pause,
            folder=tmp_path,
            clock=WindowClock(),
            progress=Silent(),
            limit_seconds=3600,
            window_limit_seconds=30,
            precopy_limit_seconds=60,
        )
        with (
            PrecopyCapture.prepared(job, nothing, "") as capture,
            capture.window(freeze=world.freeze if freezes else None),
        ):
            assert world.is_waited_for
            return world.stopped_at, capture.method.removeprefix(PrecopyCapture.way)

    return played


def moment(at: float, syncs: int, remaining: int, *, room: int = 10 * BIG) -> Moment:
    return Moment(at, syncs, remaining, room)


def test_a_big_guest_runs_on_until_all_of_it_was_written_once(play: Play) -> None:
    """Its first pass takes longer than what comes after it may; it stood still for half of it."""
    first_pass = [moment(float(at), 1, MEMORY - MEMORY * at // 300) for at in range(0, 301, 20)]
    again = [moment(301.0, 2, 80 * MB), moment(360.0, 3, 60 * MB), moment(360.9, 3, 50 * MB)]
    assert play(*first_pass, *again) == ([], "")


def test_one_that_outruns_the_stream_is_stopped_in_time(play: Play) -> None:
    first = [moment(0.0, 0, MEMORY), moment(100.0, 1, 10 * MB)]
    again = [moment(101.0, 2, 80 * MB), moment(161.5, 9, 70 * MB), moment(162.0, 9, 60 * MB)]
    assert play(*first, *again) == (
        [161.5],
        "; the guest was stopped after 60 s of writing again what it had changed, with 70 MB to go",
    )


def test_in_the_first_pass_too_all_that_it_may_have_changed_has_to_fit(play: Play) -> None:
    """QEMU tells nothing of it before its second look, when it may be more than there is room."""
    first_pass = [
        moment(float(at), 1, rest := MEMORY - MEMORY * at // 10, room=rest + PREFLIGHT)
        for at in range(10)
    ]
    late = moment(10.0, 2, MEMORY // 4, room=PREFLIGHT)
    stopped, said = play(*first_pass, late)
    in_time = next(now for now in first_pass if now.free < MEMORY + (48 << 20))
    assert stopped == [in_time.at]
    assert "since there was room for" in said


def test_a_file_system_that_others_fill_stops_the_guest_in_its_first_pass(play: Play) -> None:
    """While there is room for the rest: what it changes from now on would not fit."""
    rest = MEMORY // 2
    stopped, said = play(moment(0.0, 1, MEMORY), moment(1.0, 1, rest, room=rest + MB))
    assert stopped == [1.0]
    assert "since there was room for" in said and "changed" not in said


def test_memory_written_three_times_over_is_enough(play: Play) -> None:
    written = 3 * MEMORY + 1
    stopped, said = play(
        moment(0.0, 1, MEMORY), moment(5.0, 2, MB), Moment(9.0, 40, 90 * MB, 10 * MEMORY, written)
    )
    assert stopped == [9.0]
    assert said == (
        "; the guest was stopped since it changed memory faster than it was written,"
        " with 90 MB to go"
    )


def test_one_that_its_owner_pauses_is_not_written_to_the_end(play: Play) -> None:
    paused = Moment(2.0, 1, MEMORY // 2, 10 * MEMORY, is_paused=True)
    with pytest.raises(PausedMeanwhile):
        play(moment(1.0, 1, MEMORY), paused, moment(3.0, 2, 0))


def test_file_systems_are_frozen_for_the_end_and_not_for_all_of_the_memory(play: Play) -> None:
    """A guest of 300 s of first pass could not write for all of them."""
    first_pass = [moment(float(at), 1, BIG - BIG * at // 300) for at in range(296)]
    world = World([*first_pass, moment(299.5, 1, 100 * MB), moment(300.0, 2, 50 * MB)])
    assert play(world=world, freezes=True) == ([], "")
    assert world.frozen_at == [299.5]
    assert world.parameters == SETTINGS.parameters, "QEMU goes on as fast as before"


def test_until_it_is_frozen_qemu_does_not_stop_the_guest_by_itself(play: Play) -> None:
    """But looks once more for what the guest has changed, which a limit of none would not do."""
    world = World([moment(0.0, 1, BIG), moment(1.0, 1, BIG // 2)])
    with pytest.raises(CaptureFailed):
        play(world=world, freezes=True)
    assert world.parameters == {"downtime-limit": 1}


def test_a_frozen_guest_that_goes_on_changing_memory_is_stopped_soon(play: Play) -> None:
    world = World([moment(0.0, 1, MB), *(moment(float(at), 2, 900 * MB) for at in range(1, 10))])
    assert play(world=world, freezes=True) == (
        [6.0],
        "; the guest was stopped after 6 s of frozen file systems, with 900 MB to go",
    )


def test_one_that_has_to_be_stopped_is_frozen_before(play: Play) -> None:
    world = World([moment(0.0, 1, BIG), moment(1.0, 1, BIG // 2, room=MEMORY)])
    stopped, _ = play(world=world, freezes=True)
    assert stopped == world.frozen_at == [1.0]


def test_one_that_qemu_has_stopped_before_is_not_asked_to_freeze(play: Play) -> None:
    """No agent answers then: it would stand still for as long as one may take."""
    world = World([moment(0.0, 1, BIG), Moment(1.0, 1, 0, BIG, is_over=True)])
    with pytest.raises(CaptureFailed, match="systems were frozen: take the snapshot again"):
        play(world=world, freezes=True)
    assert world.frozen_at == []


def test_one_that_does_not_freeze_is_not_stopped(play: Play) -> None:
    world = World([moment(0.0, 1, BIG), moment(1.0, 1, MB)], freezing_fails=True)
    with pytest.raises(NotFrozen):
        play(world=world, freezes=True)
    assert world.stopped_at == []


def test_one_that_is_small_is_frozen_before_all_of_it(play: Play) -> None:
    """QEMU may be through with it before anybody has asked how far it is."""
    world = World([moment(7.0, 2, MB)])
    play(world=world, freezes=True, memory_bytes=128 << 20)
    assert world.frozen_at == [7.0] and world.parameters == {}


def test_a_guest_that_is_stopped_at_once_does_not_wait_for_a_qemu_that_crawls(play: Play) -> None:
    """It would stand still for the hour that a capture may take."""
    world = World([Moment(0.0, 1, BIG, MEMORY, is_setting_up=True)])
    with pytest.raises(CaptureFailed):
        play(world=world, freezes=True)
    assert world.parameters == SETTINGS.parameters


def test_one_that_its_owner_pauses_in_that_moment_is_not_asked_to_freeze(play: Play) -> None:
    world = World([moment(0.0, 1, BIG), moment(1.0, 1, MB)])

    def pause() -> None:
        world.now = replace(world.now, is_paused=world.now.at == 1.0)

    world.when_asked = pause
    with pytest.raises(PausedMeanwhile):
        play(world=world, freezes=True)
    assert world.frozen_at == []
