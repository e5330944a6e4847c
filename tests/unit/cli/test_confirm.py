"""What is asked before something is lost, in words that fit what is about to happen."""

from __future__ import annotations

import os
import pty
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import recordeddomain
from snapvm.cli import output, rollbackwords
from snapvm.cli.confirm import confirm
from snapvm.errors import ExitStatus, Interrupted
from snapvm.interrupt import watched
from snapvm.model import DomainState, HypervisorKind, OmittedDisk
from snapvm.planning import RollbackPlan
from snapvm.refusals import NotConfirmed
from tests.fakes.records import BEGIN, disks_only, make_record
from tests.fakes.scene import DOMAIN, Scene, make_scene
from tests.unit.cli.conftest import Call


@pytest.fixture
def plan(tmp_path: Path) -> RollbackPlan:
    domain = make_scene(tmp_path).machine.domain
    return RollbackPlan(
        record=make_record("a"), domain=domain, set="0" * 12, undo_id=make_record("u").id, disks=()
    )


def asked(plan: RollbackPlan, *, paused: bool = False) -> str:
    return "\n".join(rollbackwords.explanation(plan, BEGIN, paused=paused))


def test_a_running_domain_loses_its_memory(plan: RollbackPlan) -> None:
    text = asked(plan)
    assert "Roll back to demo@a: memory and 2 disks" in text
    assert "running now: the contents of its memory will be lost" in text
    assert "present disks are kept" in text
    assert "resumes from that instant" in text
    assert "left paused" in asked(plan, paused=True)


def test_one_that_is_off_loses_none(plan: RollbackPlan) -> None:
    off = replace(plan, domain=replace(plan.domain, state=DomainState.SHUTOFF))
    assert "will be lost" not in asked(off)
    assert "The domain is shut off now." in asked(off)


def test_one_that_sleeps_loses_its_memory_too(plan: RollbackPlan) -> None:
    asleep = replace(plan, domain=replace(plan.domain, state=DomainState.SUSPENDED))
    assert "suspended by the guest now: the contents of its memory will be lost" in asked(asleep)


def test_one_that_nobody_knows_here_may_run_elsewhere(plan: RollbackPlan) -> None:
    """It was migrated away: libvirt has forgotten it, and its disks are on a SAN."""
    gone = recordeddomain.vanished(plan.record)
    text = asked(replace(plan, domain=gone))
    assert "libvirt does not know the domain now: make sure that it runs on no other host" in text
    assert "- libvirt has no definition of the domain" in text, "that is how it is called"
    assert "virsh define FILE).\n" in text, "what is typed does not end with a full stop"
    of_xl = replace(gone, hypervisor=HypervisorKind.XEN)
    assert "libvirt" not in asked(replace(plan, domain=of_xl)).casefold()


def test_disks_alone_start_afresh(plan: RollbackPlan) -> None:
    running = replace(plan, record=disks_only("b", state=DomainState.RUNNING))
    assert "2 disks, no memory" in asked(running)
    assert "starts afresh from these disks, as after a power cut" in asked(running)
    off = replace(plan, record=disks_only("b"))
    assert "was shut off then, and will be shut off afterwards" in asked(off)


def test_one_that_was_paused_is_paused_again(plan: RollbackPlan) -> None:
    paused = replace(plan, record=make_record("a", state=DomainState.PAUSED))
    assert "left paused" in asked(paused)


def test_what_does_not_come_back_is_told(plan: RollbackPlan) -> None:
    """Before the yes: `take` told of it, days ago, and what was added since was never told of."""
    then = (
        OmittedDisk(target="nvram", why="it is on /dev/vg0/vars, only memory brings it back"),
        OmittedDisk(target="sda", why="a cdrom drive with /old.iso"),
    )
    now = (OmittedDisk(target="sda", why="a cdrom drive, empty"),)
    text = asked(
        replace(plan, record=replace(plan.record, omitted=then), omitted=now, others=("vdc",))
    )
    assert re.findall("- Not in the snapshot: (.*)", text) == [
        "nvram, it is on /dev/vg0/vars, only memory brings it back.",
        "sda, a cdrom drive, empty.",
        "vdc, a disk that stays as it is.",
    ]
    assert "Not in the snapshot" not in asked(replace(plan, record=disks_only("b", omitted=())))


@pytest.mark.parametrize("verb", ["rollback", "delete"])
def test_without_a_terminal_nothing_is_lost(call: Call, scene: Scene, verb: str) -> None:
    call("take", DOMAIN, "--name", "a")
    done = call(verb, "demo@a")
    assert done.status == ExitStatus.REFUSED
    assert "not confirmed, nothing was done" in done.err
    assert "hint: there is no terminal to ask on; use --yes to proceed without asking" in done.err
    assert done.out == ""
    assert scene.ids() == ["a"]


@contextmanager
def terminal() -> Iterator[int]:
    """Ask at a terminal in a block; yield the end at which the user sits."""
    user, ours = pty.openpty()
    # Not in a fixture: pytest puts its own streams back between that and the test.
    with (
        open(ours, closefd=False) as stdin,
        open(ours, "w", closefd=False) as stderr,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "stdin", stdin)
        patch.setattr(sys, "stderr", stderr)
        yield user
    os.close(user)
    os.close(ours)


@pytest.mark.parametrize(("typed", "is_yes"), [(b"y\n", True), (b"Yes\n", True), (b"\n", False)])
def test_an_answer_is_read(typed: bytes, is_yes: bool) -> None:
    with terminal() as user, nullcontext() if is_yes else pytest.raises(NotConfirmed) as refused:
        os.write(user, typed)
        confirm([], "it")
    assert refused is None or refused.value.hint() == "", (
        "whoever has said no wants no way to say yes"
    )


@pytest.mark.parametrize("typed", [b"\xff\n", b"j\xe4\n"])
def test_an_answer_in_another_encoding_is_a_no(typed: bytes) -> None:
    """It was a bug of snapvm's, except in the C locale."""
    with terminal() as user, pytest.raises(NotConfirmed):
        output.prepare_streams()
        os.write(user, typed)
        confirm([], "it")


def test_one_ctrl_c_is_enough_however_early() -> None:
    """The signal goes to another thread: as between prompt and read, no call is cut short by it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    late: list[str] = []

    def press(user: int) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        time.sleep(0.2)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        if not is_over.wait(5):
            late.append("nobody has noticed")
            os.write(user, b"y\n")

    is_over = threading.Event()
    try:
        with terminal() as user:
            thread = threading.Thread(target=press, args=(user,))
            with pytest.raises(Interrupted, match="SIGINT; nothing was done"), watched():
                thread.start()
                confirm([], "it")
            is_over.set()
            thread.join()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert late == []
