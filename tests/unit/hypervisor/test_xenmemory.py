"""A domain's memory as Xen maps it: whether the domain is there at all."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm.failures import CaptureFailed, WindowBroken
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.hypervisor.xenmemory import XenFrames
from tests.unit.hypervisor.fakexen import DYING, RUNNING

SHUT_DOWN, SUSPEND, REBOOT, CRASH, PAUSED = 4, 2 << 16, 1 << 16, 3 << 16, 8


def frames_of(info: object) -> XenFrames:
    memory = SimpleNamespace(xenforeignmemory_open=lambda *_: 1)
    control: Any = SimpleNamespace(
        libraries=SimpleNamespace(memory=memory, logger=None), max_mfn=lambda: 1, info=info
    )
    return XenFrames(control, RUNNING.domid, "web")


@pytest.mark.parametrize("flags", [0x20, PAUSED, SHUT_DOWN | SUSPEND, SHUT_DOWN | SUSPEND | PAUSED])
def test_one_that_runs_or_stands_still_is_there(flags: int) -> None:
    frames_of(lambda _: replace(RUNNING, flags=flags)).require_there()


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (None, "destroyed it, or it rebooted"),
        (DYING, "destroyed it"),
        (DYING | SHUT_DOWN | SUSPEND, "destroyed it"),
        (SHUT_DOWN, "shut down or crashed"),
        (SHUT_DOWN | REBOOT, "shut down"),
        (SHUT_DOWN | CRASH, "crashed"),
    ],
)
def test_one_that_has_ended_is_not_there(flags: int | None, what: str) -> None:
    info = None if flags is None else replace(RUNNING, flags=flags)
    with pytest.raises(WindowBroken, match=what):
        frames_of(lambda _: info).require_there()


def test_how_many_frames_it_has_xen_says() -> None:
    assert frames_of(lambda _: RUNNING).frame_count() == RUNNING.total_pages
    with pytest.raises(WindowBroken):
        frames_of(lambda _: None).frame_count()


def test_a_xen_that_does_not_say_is_a_failure_of_the_capture() -> None:
    def refuse(_: int) -> None:
        raise XenFailed("asking about domain 5: no")

    with pytest.raises(CaptureFailed, match="asking about domain 5"):
        frames_of(refuse).require_there()
