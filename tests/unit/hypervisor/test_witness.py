"""What somebody else did to a domain while it was captured is seen, and nothing else is."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from snapvm.failures import WindowBroken
from snapvm.hypervisor.runevents import RunEvents
from snapvm.hypervisor.witness import WATCHED, Witness, devices, processors
from tests.unit.hypervisor.fakedomain import DEFINITION, DOMAIN, FakeHandle, happened

PLUGGED = DEFINITION.replace(
    "</devices>", "<disk type='block'><target dev='vdb'/></disk></devices>"
)
OTHER_PROCESSOR = DEFINITION.replace(
    "<vcpu id='2' enabled='no' hotpluggable='yes'/>",
    "<vcpu id='2' enabled='yes' hotpluggable='yes' order='3'/>",
).replace("id='1' enabled='yes' hotpluggable='yes' order='2'", "id='1' enabled='no'")
"""As many as before, but not the same."""


@pytest.fixture
def events() -> RunEvents:
    return RunEvents()


def test_what_happened_before_it_watched_breaks_nothing(events: RunEvents) -> None:
    happened(events, "RESET")
    Witness(DOMAIN, FakeHandle(), events).check(stopped_at=0.0)


@pytest.mark.parametrize("name", WATCHED)
def test_an_event_in_the_window_breaks_it(events: RunEvents, name: str) -> None:
    witness = Witness(DOMAIN, FakeHandle(), events)
    stopped_at = time.monotonic() - 1
    happened(events, name)
    with pytest.raises(WindowBroken, match="demo did not stand still"):
        witness.check(stopped_at=stopped_at)


def test_a_guest_that_reset_itself_before_the_window_is_well(events: RunEvents) -> None:
    witness = Witness(DOMAIN, FakeHandle(), events)
    happened(events, "RESET")
    witness.check(stopped_at=time.monotonic() + 1)


@pytest.mark.parametrize(
    ("now", "what"),
    [
        (FakeHandle(number=4), "restarted it"),
        (FakeHandle(job=1), "save or migrate"),
        (FakeHandle(definition=PLUGGED), "devices were changed"),
        (FakeHandle(definition=DEFINITION.replace(" current='2'", "")), "processors were changed"),
        (FakeHandle(definition=DEFINITION.replace("'2'>4", "'3'>4")), "processors were changed"),
        (FakeHandle(definition=OTHER_PROCESSOR), "processors were changed"),
    ],
)
def test_what_is_not_as_it_was(events: RunEvents, now: FakeHandle, what: str) -> None:
    handle = FakeHandle()
    witness = Witness(DOMAIN, handle, events)
    handle.now.append(now)
    with pytest.raises(WindowBroken, match=what):
        witness.check(stopped_at=None)


def test_what_the_guest_does_by_itself_is_no_change() -> None:
    """Its agent opens and closes its channel; its balloon moves; the host places it elsewhere.

    It takes memory that it was offered, piece by piece (virtio-mem).  It gives its interface
    another address, as a bond does (libvirt 11.2).
    """
    later = DEFINITION.replace("state='connected'", "state='disconnected'")
    later = later.replace("524288", "262144").replace("placement=", "cpuset='0-1' placement=")
    assert devices(later) == devices(DEFINITION) != devices(PLUGGED)
    assert devices(later.replace("2097152", "4194304")) != devices(DEFINITION)
    moved = DEFINITION.replace(
        "'/></interface>", "' currentAddress='52:54:00:00:00:02'/></interface>"
    )
    assert moved != DEFINITION and devices(moved) == devices(DEFINITION)
    assert processors(later) == processors(DEFINITION)
    assert devices(replace(DOMAIN, definition=PLUGGED).definition) == devices(PLUGGED)


def test_a_guest_may_eject_what_is_in_its_drive() -> None:
    """A take of an installer that had just ended was thrown away."""
    drive = "<domain><devices><disk device='cdrom'><target dev='sda'{}/></disk></devices></domain>"
    assert devices(drive.format(" tray='open'")) == devices(drive.format(""))


def test_whoever_begins_to_watch_a_guest_changes_nothing() -> None:
    """virt-manager was opened during a long take, which was thrown away."""
    balloon = "<memballoon model='virtio'><stats period='5'/><alias name='balloon0'/></memballoon>"
    watched = DEFINITION.replace("</devices>", f"{balloon}</devices>")
    for other in ("", "<stats period='10'/>"):
        now = watched.replace("<stats period='5'/>", other)
        assert now != watched and devices(now) == devices(watched) != devices(DEFINITION)
