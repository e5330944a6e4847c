"""A window of a Xen domain: however it goes, the domain runs when it is over."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest

from snapvm.errors import Interrupted
from snapvm.failures import CaptureFailed, WindowBroken
from snapvm.hypervisor import xenrequest, xenstore
from snapvm.hypervisor.xenstandstill import lift
from snapvm.interrupt import watched
from tests.fakes.xenstored import Message
from tests.unit.hypervisor import standingxen
from tests.unit.hypervisor.standingxen import DOMID, NOTE, REQUEST, SUSPENDED, Scene, runs

scene = standingxen.scene

DYING = 1
CRASHED = 4 | 3 << 16


def test_it_suspends_itself_and_goes_on(scene: Scene) -> None:
    scene.guest_suspends()
    with scene.standstill.suspended():
        assert (scene.xen.flags, scene.xen.pauses) == (SUSPENDED, 1)
    assert scene.xen.deeds == ["pause", "resume", "unpause"]
    assert scene.store.resumed == [str(DOMID)]
    assert runs(scene)
    pause_ms = scene.clock.timing().pause_ms
    assert pause_ms > 0
    time.sleep(0.01)
    assert scene.clock.timing().pause_ms == pause_ms, "the pause has an end"


def test_an_error_in_the_window_lets_it_go_on(scene: Scene) -> None:
    scene.guest_suspends()
    scene.xen.resume_fails = 2
    with pytest.raises(ZeroDivisionError), scene.standstill.suspended():
        raise ZeroDivisionError
    assert runs(scene)


def test_a_guest_that_does_not_answer_is_not_suspended_later(scene: Scene) -> None:
    with pytest.raises(CaptureFailed, match="did not answer"), scene.standstill.suspended():
        pytest.fail("there is no window")
    assert scene.store.values[REQUEST] == ""
    assert "resume" not in scene.xen.deeds
    assert runs(scene)


def test_a_guest_that_writes_all_the_time_keeps_nobody_waiting(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither could the request be withdrawn, nor the command be interrupted."""
    monkeypatch.setattr(xenstore, "_CONFLICT_SECONDS", 0.1)
    scene.store.conflicts = 1 << 30
    with pytest.raises(CaptureFailed, match="did not within"), scene.standstill.suspended():
        pytest.fail("there is no window")
    assert scene.store.values[REQUEST] == ""
    assert runs(scene)


def test_a_store_that_goes_away_leaves_nobody_paused(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """That the guest goes on is a matter of Xen; xenstored is only told of it."""
    scene.guest_suspends()
    with scene.standstill.suspended():
        scene.store.refused.add(Message.RESUME)
    assert (scene.xen.flags, scene.xen.pauses) == (0, 0)
    assert "xenstored could not be told" in caplog.text


def test_a_store_that_goes_away_when_the_guest_was_asked(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The guest had heard the question, suspended itself, and was left so."""
    monkeypatch.setattr(xenrequest, "STOP_SECONDS", 5)

    def suspend() -> None:
        scene.xen.flags = SUSPENDED

    def answer(path: str, value: str) -> None:
        if path == REQUEST and value == "suspend":
            scene.store.refused.update(Message)
            threading.Timer(0.1, suspend).start()

    scene.store.on_write = answer
    with pytest.raises(CaptureFailed, match="EIO"), scene.standstill.suspended():
        pytest.fail("there is no window")
    assert (scene.xen.flags, scene.xen.pauses) == (0, 0)
    assert "may be about to suspend (xenstore:" in caplog.text


def test_an_interruption_between_question_and_answer_leaves_nobody_paused(scene: Scene) -> None:
    """A signal comes while the store is being asked something in the window."""
    scene.guest_suspends()

    def interrupt(_kind: int) -> None:
        signal.raise_signal(signal.SIGINT)
        scene.store.on_request = lambda _kind: None

    with watched(), pytest.raises(Interrupted), scene.standstill.suspended():
        scene.store.on_request = interrupt
        scene.connection.read("/anything")
    assert runs(scene)


def test_a_guest_that_answers_and_does_not_suspend(scene: Scene) -> None:
    scene.guest_suspends(flags=0)
    with pytest.raises(CaptureFailed, match="accepted the request"), scene.standstill.suspended():
        pytest.fail("there is no window")
    assert runs(scene)


def test_a_guest_that_crashes_instead_breaks_the_window(scene: Scene) -> None:
    scene.guest_suspends(flags=CRASHED)
    with pytest.raises(WindowBroken, match="crashed"), scene.standstill.suspended():
        pytest.fail("there is no window")
    assert "resume" not in scene.xen.deeds


def test_one_that_somebody_else_makes_go_on_breaks_the_window(scene: Scene) -> None:
    scene.guest_suspends()
    with pytest.raises(WindowBroken, match="somebody else"), scene.standstill.suspended():
        scene.xen.flags = 0
    assert runs(scene)


def test_one_that_somebody_else_had_suspend_itself_is_left_to_him(scene: Scene) -> None:
    """By `xl save`, which began while memory was copied: the guest ran on while xl wrote it."""
    scene.xen.flags = SUSPENDED
    with pytest.raises(WindowBroken, match="somebody else had it"), scene.standstill.suspended():
        pytest.fail("there is no window")
    assert scene.xen.flags == SUSPENDED
    assert REQUEST not in scene.store.values and NOTE not in scene.store.values


def test_one_that_somebody_else_has_asked_first_is_not_made_to_go_on(scene: Scene) -> None:
    def answer(_path: str, value: str) -> None:
        if value == "suspend":
            scene.xen.flags = SUSPENDED

    scene.store.on_write = answer
    with pytest.raises(WindowBroken, match="somebody else had it"), scene.standstill.suspended():
        pytest.fail("there is no window")
    assert scene.xen.flags == SUSPENDED
    assert scene.store.values[REQUEST] == "" and NOTE not in scene.store.values


def test_one_that_was_only_paused_is_not_made_to_go_on(scene: Scene) -> None:
    with scene.standstill.paused():
        scene.xen.flags = SUSPENDED
    assert (scene.xen.flags, scene.xen.pauses) == (SUSPENDED, 0)


def test_one_that_has_crashed_is_not_asked(scene: Scene) -> None:
    """One that is kept when it crashes (on_crash="preserve") was waited for, for a minute."""
    scene.xen.flags = CRASHED
    with pytest.raises(WindowBroken, match="crashed"), scene.standstill.suspended():
        pytest.fail("there is no window")


@pytest.mark.parametrize("is_asked", [False, True])
def test_one_that_somebody_has_paused_is_said_to_be(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, *, is_asked: bool
) -> None:
    """By `xl pause`, while memory was copied: a minute later it "did not answer"."""

    def pause(_path: str, value: str) -> None:
        if value == "suspend":
            scene.xen.pauses = 1

    if is_asked:
        scene.store.on_write = pause
    else:
        monkeypatch.setattr(xenrequest, "ACKNOWLEDGE_SECONDS", 60)
        scene.xen.pauses = 1
    with pytest.raises(WindowBroken, match="paused it"), scene.standstill.suspended():
        pytest.fail("there is no window")
    assert (scene.xen.pauses, scene.xen.flags) == (1, 0)
    assert NOTE not in scene.store.values
    assert scene.store.values.get(REQUEST, "") == ""


def test_one_that_is_destroyed_breaks_the_window(scene: Scene) -> None:
    scene.guest_suspends()
    with pytest.raises(WindowBroken, match="destroyed"), scene.standstill.suspended():
        scene.xen.gone = True


def test_one_that_is_destroyed_before_it_is_asked_breaks_the_window(scene: Scene) -> None:
    scene.xen.gone = True
    with pytest.raises(WindowBroken, match="destroyed"), scene.standstill.suspended():
        pytest.fail("there is no window")
    assert not scene.xen.deeds and REQUEST not in scene.store.values


@pytest.mark.parametrize("is_listed", [False, True])
def test_one_that_is_destroyed_when_it_has_taken_the_request_breaks_the_window(
    scene: Scene, is_listed: bool
) -> None:
    """Xen may list it for some time yet."""

    def answer(path: str, value: str) -> None:
        if path == REQUEST and value == "suspend":
            scene.store.set(REQUEST, "")
            scene.xen.gone, scene.xen.flags = not is_listed, DYING

    scene.store.on_write = answer
    with pytest.raises(WindowBroken, match="destroyed"), scene.standstill.suspended():
        pytest.fail("there is no window")
    assert not scene.xen.deeds


def test_one_that_takes_a_while_to_suspend_is_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xenrequest, "STOP_SECONDS", 20)

    def suspend() -> None:
        scene.xen.flags = SUSPENDED

    def answer(path: str, value: str) -> None:
        if path == REQUEST and value == "suspend":
            scene.store.set(REQUEST, "")
            threading.Timer(0.1, suspend).start()

    scene.store.on_write = answer
    with scene.standstill.suspended():
        assert (scene.xen.flags, scene.xen.pauses) == (SUSPENDED, 1)
    assert runs(scene)


@pytest.mark.parametrize("flags", [DYING, DYING | SUSPENDED])
def test_a_zombie_is_not_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, flags: int
) -> None:
    """Xen lists it as dying for as long as somebody has a page of it mapped."""
    monkeypatch.setattr(time, "sleep", lambda _seconds: pytest.fail("it waits"))
    scene.store.values |= {NOTE: "", REQUEST: ""}
    scene.xen.flags = flags
    xen: Any = scene.xen
    xenrequest.SuspendRequest(xen, scene.connection, DOMID).take_back()
    lift(xen, DOMID, suspend=True, pause=True)
    assert scene.xen.deeds == []


def test_one_that_is_destroyed_while_it_is_waited_for_is_not_paused_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner had paused it; the repair ended with a failure of Xen's and left its journal."""
    scene.store.values |= {NOTE: "", REQUEST: ""}
    xen: Any = scene.xen
    xen.pause(DOMID)
    monkeypatch.setattr(xen, "unpause", lambda _domid: setattr(xen, "gone", True))
    assert xenrequest.SuspendRequest(xen, scene.connection, DOMID).take_back()


def test_a_request_that_xenstored_does_not_let_be_withdrawn_does_not_count_as_taken(
    scene: Scene,
) -> None:
    scene.store.values |= {NOTE: "", REQUEST: "suspend"}
    scene.store.refused.add(Message.TRANSACTION_START)
    xen: Any = scene.xen
    with pytest.raises(xenstore.StoreRefused):
        xenrequest.SuspendRequest(xen, scene.connection, DOMID).wait_until_taken()
    assert scene.store.values[REQUEST] == "suspend"


def test_a_request_of_somebody_else_is_respected(scene: Scene) -> None:
    scene.store.values[REQUEST] = "poweroff"
    words = rf"asked to poweroff: .* withdraw that with `xenstore-write {REQUEST} \"\"`"
    with pytest.raises(CaptureFailed, match=words), scene.standstill.suspended():
        pytest.fail("there is no window")
    assert scene.store.values[REQUEST] == "poweroff"
    # Where it stands the guest may write what it likes.
    scene.store.values[REQUEST] = "\33[2J" + "x" * 4000
    with pytest.raises(CaptureFailed, match=r"\\x1b\[2Jx{36}'") as told:
        scene.standstill.require_unasked()
    assert len(str(told.value)) < 300


def test_one_that_is_paused_when_it_has_taken_the_request_does_not_stand_still_later(
    scene: Scene,
) -> None:
    """By `xl pause`, in that moment; when its owner let it run it suspended itself for good."""

    def answer(path: str, value: str) -> None:
        if path == REQUEST and value == "suspend":
            scene.store.set(REQUEST, "")
            scene.xen.is_about_to_suspend = True
            scene.xen.pauses = 1

    scene.store.on_write = answer
    with pytest.raises(WindowBroken, match="paused it"), scene.standstill.suspended():
        pytest.fail("there is no window")
    assert (scene.xen.pauses, scene.xen.flags) == (1, 0)
    scene.xen.unpause(DOMID)
    assert runs(scene)


def test_a_domain_is_only_paused_where_its_memory_is_not_wanted(scene: Scene) -> None:
    with scene.standstill.paused():
        assert scene.xen.pauses == 1
    assert scene.xen.deeds == ["pause", "unpause"]
