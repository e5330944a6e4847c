"""A slow machine gets more time for each step, tries less in all, and is believed later."""

from __future__ import annotations

import re
import socket
import threading
import time

import pytest

from tests.lab import pace
from tests.lab.host import patience, pulse
from tests.lab.machine import Accelerator, Flavour

ANSWER = b"PULSE n=1 disks=0,0,0 state=ok"
"""A guest's, and fd7c was its sum."""


def test_bounds_grow_with_the_boot_but_never_shrink() -> None:
    usual = pace.USUAL_BOOT_SECONDS[Flavour.XEN]
    assert pace.patience(Flavour.XEN, Accelerator.TCG, 4 * usual) == 6
    assert pace.patience(Flavour.XEN, Accelerator.TCG, usual / 2) == 1
    assert pace.patience(Flavour.XEN, Accelerator.KVM, 4 * usual) == 1


def test_inside_they_are_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(patience.VARIABLE, raising=False)
    assert patience.patient(60) == 60
    monkeypatch.setenv(patience.VARIABLE, "2.5")
    assert patience.patient(60) == 150


def test_both_flavours_have_their_share_of_the_time() -> None:
    assert not pace.too_late(59, 100, early=True)
    assert pace.too_late(60, 100, early=True)
    assert not pace.too_late(99, 100, early=False)
    assert pace.too_late(100, 100, early=False)
    assert not pace.too_late(1e9, float("inf"), early=True)


def test_an_answer_that_is_later_than_the_next_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that always needs longer than that is slow, not dead."""
    monkeypatch.setattr(pulse, "TRY_SECONDS", 0.05)
    here, guest = socket.socketpair()

    def answer_late() -> None:
        with guest:
            asked = b""
            while asked.count(b"?") < 3:
                asked += guest.recv(4096)
            first = re.findall(rb"@(\w+) \?", asked)[0]
            guest.sendall(b"@" + first + b" " + ANSWER + b" *fd7c\n")
            while guest.recv(4096):
                pass

    with here:
        threading.Thread(target=answer_late, daemon=True).start()
        assert pulse.ask(here.fileno(), "?", time.monotonic() + 5) == ANSWER.decode()
