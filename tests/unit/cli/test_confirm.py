"""What is asked before something is lost, in words that fit what is about to happen."""

from __future__ import annotations

import io
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.cli import rollback
from snapvm.errors import ExitStatus
from snapvm.model import DomainState
from snapvm.planning import RollbackPlan
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
    return "\n".join(rollback.explanation(plan, BEGIN, paused=paused))


def test_a_running_domain_loses_its_memory(plan: RollbackPlan) -> None:
    text = asked(plan)
    assert "Back to demo@a: memory and 2 disks" in text
    assert "running now: what it has in memory is discarded" in text
    assert "present disks are kept" in text
    assert "runs on from that instant" in text
    assert "left paused" in asked(plan, paused=True)


def test_one_that_is_off_loses_none(plan: RollbackPlan) -> None:
    off = replace(plan, domain=replace(plan.domain, state=DomainState.SHUTOFF))
    assert "discarded" not in asked(off)
    assert "The domain is shut off now." in asked(off)


def test_disks_alone_start_afresh(plan: RollbackPlan) -> None:
    running = replace(plan, record=disks_only("b", state=DomainState.RUNNING))
    assert "2 disks, no memory" in asked(running)
    assert "starts afresh from these disks, as after a power cut" in asked(running)
    off = replace(plan, record=disks_only("b"))
    assert "was shut off then, and is afterwards" in asked(off)


def test_one_that_was_paused_is_paused_again(plan: RollbackPlan) -> None:
    paused = replace(plan, record=make_record("a", state=DomainState.PAUSED))
    assert "left paused" in asked(paused)


@pytest.mark.parametrize("verb", ["rollback", "delete"])
def test_without_a_terminal_nothing_is_lost(call: Call, scene: Scene, verb: str) -> None:
    call("take", DOMAIN, "--name", "a")
    done = call(verb, "demo@a")
    assert done.status == ExitStatus.REFUSED
    assert "not confirmed, nothing was done" in done.err
    assert "hint: answer yes, or give --yes in a script" in done.err
    assert done.out == ""
    assert scene.ids() == ["a"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_question_that_is_interrupted_ends_its_line(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("take", DOMAIN, "--name", "a")
    keyboard, screen = Terminal(), Terminal()
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(keyboard, "readline", lambda: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(sys, "stdin", keyboard)
    monkeypatch.setattr(sys, "stderr", screen)
    assert call("delete", "demo@a").status == ExitStatus.INTERRUPTED
    assert "\nGo on? [y/N] \nsnapvm: interrupted by SIGINT" in screen.getvalue()
    assert scene.ids() == ["a"]
