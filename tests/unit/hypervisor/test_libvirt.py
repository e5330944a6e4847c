"""What libvirt would not do with a domain is told in the words of that deed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from snapvm.errors import UnknownDomain
from snapvm.failures import DomainFailed
from snapvm.hypervisor import libvirtlink
from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.hypervisor.libvirtlink import LibvirtFailed
from snapvm.model import Domain, DomainState, DomainUuid, HypervisorKind
from snapvm.settings import Settings
from tests.fakes.overlay import disk_xml
from tests.unit.hypervisor.fakelibvirt import LIBVIRT, libvirtError

DOMAIN = Domain(
    name="demo",
    uuid=DomainUuid("11111111-2222-3333-4444-555555555555"),
    hypervisor=HypervisorKind.LIBVIRT,
    state=DomainState.RUNNING,
    memory_bytes=1 << 20,
    vcpus=1,
    definition="<domain><devices/></domain>",
)


def no(*_: object) -> NoReturn:
    raise libvirtError("it says no")


PAUSED, RUNNING = 3, 1


def make_driver(
    monkeypatch: pytest.MonkeyPatch,
    deed: Callable[..., Any],
    state: int = PAUSED,
    definition: str = DOMAIN.definition,
    *,
    is_lost: bool = False,
) -> LibvirtHypervisor:
    """Return a driver whose libvirt does ``deed`` for every deed; the domain stays as it is."""
    monkeypatch.setattr(libvirtlink, "libvirt", LIBVIRT)
    handle = SimpleNamespace(
        isActive=lambda: True,
        XMLDesc=lambda _flags: definition,
        state=lambda: [state],
        jobInfo=lambda: [0],
        suspend=deed,
        resume=deed,
        destroy=deed,
        createWithFlags=deed,
    )
    connection: Any = SimpleNamespace(restoreFlags=deed, lookupByUUIDString=lambda _uuid: handle)
    link: Any = SimpleNamespace(connection=connection, domain=lambda _uuid: handle, is_lost=is_lost)
    return LibvirtHypervisor(link, Settings())


def suspend(driver: LibvirtHypervisor) -> None:
    vars(driver)["resume"] = lambda _domain: None
    with driver.frozen(DOMAIN):
        pass


def restore(driver: LibvirtHypervisor) -> None:
    driver.restore(DOMAIN, Path("/image"), paused=False)


def start(driver: LibvirtHypervisor) -> None:
    driver.start(DOMAIN, paused=False)


@pytest.mark.parametrize(
    ("done", "do", "state"),
    [
        ("suspended", suspend, RUNNING),
        ("ended", lambda driver: driver.stop(DOMAIN), PAUSED),
        ("restored", restore, PAUSED),
        ("started", start, PAUSED),
    ],
)
def test_a_deed_that_failed_is_named(
    monkeypatch: pytest.MonkeyPatch, done: str, do: Callable[[LibvirtHypervisor], None], state: int
) -> None:
    with pytest.raises(DomainFailed) as failed:
        do(make_driver(monkeypatch, no, state))
    assert str(failed.value) == f"demo could not be {done}: it says no"


@pytest.mark.parametrize(("done", "do"), [("restored", restore), ("started", start)])
def test_a_domain_that_is_not_as_it_should_be_was_not_started(
    monkeypatch: pytest.MonkeyPatch, done: str, do: Callable[[LibvirtHypervisor], None]
) -> None:
    with pytest.raises(DomainFailed) as failed:
        do(make_driver(monkeypatch, lambda *_: None))
    assert str(failed.value) == f"demo could not be {done}: it is paused and not running"


@pytest.mark.parametrize(("done", "do"), [("restored", restore), ("started", start)])
def test_a_start_whose_end_nobody_told_of_counts_if_the_domain_runs(
    monkeypatch: pytest.MonkeyPatch, done: str, do: Callable[[LibvirtHypervisor], None]
) -> None:
    """libvirtd was restarted by an upgrade: a domain that ran was said to be off, and to be rolled
    back once more."""
    do(make_driver(monkeypatch, no, RUNNING, is_lost=True))
    for state in (PAUSED, 5):
        with pytest.raises(DomainFailed) as failed:
            do(make_driver(monkeypatch, no, state, is_lost=True))
        assert str(failed.value) == f"demo could not be {done}: it says no"


def test_a_qemu_that_libvirt_does_not_find_keeps_nothing_from_working(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One in /opt, which only the domain names: every `take` failed, and so did `doctor`."""
    driver = make_driver(monkeypatch, no)
    connection = SimpleNamespace(getLibVersion=lambda: 11_003_000, getVersion=no)
    vars(driver)["_link"] = SimpleNamespace(connection=connection)
    assert driver.versions(DOMAIN) == {"libvirt": "11.3.0"}
    connection.getVersion = lambda: 10_000_013
    assert driver.versions(DOMAIN) == {"libvirt": "11.3.0", "qemu": "10.0.13"}


OFFERED = """<domain><devices>
  <memory model='virtio-mem'><target>
    <size unit='KiB'>67108864</size><node>0</node><block unit='KiB'>2048</block>
    <requested unit='KiB'>1048576</requested>{}
  </target></memory>
  <memory model='dimm'><target><size unit='KiB'>1048576</size><node>0</node></target></memory>
</devices></domain>"""
"""A guest of 4 GiB, with a DIMM of 1 and up to 64 more, of which it is offered one."""


@pytest.mark.parametrize(("current", "gib"), [("", 6), ("1048576", 6), ("0", 6), ("2097152", 7)])
def test_memory_that_the_guest_is_not_offered_needs_no_room(
    monkeypatch: pytest.MonkeyPatch, current: str, gib: int
) -> None:
    """libvirt counts all that a virtio-mem may ever offer: every `take` wanted room for that.

    A guest may take some time to give back what it is to have no more.
    """
    text = OFFERED.format(f"<current unit='KiB'>{current}</current>" if current else "")
    monkeypatch.setattr(libvirtlink, "libvirt", LIBVIRT)
    handle = SimpleNamespace(
        info=lambda: [RUNNING, 69 << 20, 69 << 20, 2, 0],
        name=lambda: "demo",
        UUIDString=lambda: DOMAIN.uuid,
        XMLDesc=lambda _flags: text,
        ID=lambda: -1,
    )
    driver = make_driver(monkeypatch, no)
    vars(driver)["_link"] = SimpleNamespace(
        connection=SimpleNamespace(lookupByName=lambda _name: handle)
    )
    assert driver.find("demo").memory_bytes == gib << 30


def test_a_name_that_libvirt_cannot_have_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are no UTF-8 ended in a traceback, and status 1."""
    driver = make_driver(monkeypatch, no)
    connection = SimpleNamespace(lookupByName=lambda name: name.encode())
    vars(driver)["_link"] = SimpleNamespace(connection=connection)
    with pytest.raises(UnknownDomain):
        driver.find("web\udcff")


def test_one_that_its_owner_paused_before_a_rollback_stays_so_when_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ran when it was found, and was made to run again."""

    def touched(*_: object) -> NoReturn:
        pytest.fail("it was suspended or resumed")

    driver = make_driver(monkeypatch, touched)
    with pytest.raises(ZeroDivisionError), driver.frozen(DOMAIN):
        raise ZeroDivisionError


def test_one_that_was_started_before_a_rollback_is_not_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was off when its owner was asked, and went with all that it had done since."""
    driver = make_driver(monkeypatch, no, state=RUNNING)
    off = replace(DOMAIN, state=DomainState.SHUTOFF)
    with pytest.raises(DomainFailed, match="it is running by now"), driver.frozen(off):
        pytest.fail("the block ran")


@pytest.mark.parametrize("state", [DomainState.RUNNING, DomainState.SHUTOFF])
def test_one_that_has_got_an_overlay_before_a_rollback_is_not_ended(
    monkeypatch: pytest.MonkeyPatch, state: DomainState
) -> None:
    """By a backup that began while a large image was read: its base became another below it."""
    overlay = disk_xml(Path("/overlays/d0.qcow2"))
    driver = make_driver(
        monkeypatch, no, state=RUNNING if state.has_memory else 5, definition=overlay
    )
    changed = pytest.raises(DomainFailed, match="its devices were changed meanwhile")
    with changed, driver.frozen(replace(DOMAIN, state=state)):
        pytest.fail("the block ran")


def test_one_that_its_owner_resumed_before_a_rollback_stands_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its disks were exchanged below it while it ran."""
    deeds: list[str] = []
    driver = make_driver(monkeypatch, lambda *_: deeds.append("suspended"), state=RUNNING)
    with driver.frozen(replace(DOMAIN, state=DomainState.PAUSED)):
        assert deeds == ["suspended"]


def test_one_that_was_shut_off_before_a_rollback_is_not_resumed_in_vain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It took half a minute, and ended as a domain that needs attention, with status 8."""
    driver = make_driver(monkeypatch, no, state=5)
    with pytest.raises(DomainFailed, match="it is shut off by now"), driver.frozen(DOMAIN):
        pytest.fail("the block ran")


def test_one_is_resumed_though_libvirtd_is_away_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its look-up failed, and was not tried again: it stayed paused by a rollback that failed, and
    that said that all was put back."""
    resumed: list[str] = []
    driver = make_driver(monkeypatch, lambda *_: resumed.append("resumed"))
    handle, absences = vars(driver)["_link"].domain(DOMAIN.uuid), [1, 2]

    def found(_uuid: str) -> object:
        if absences:
            absences.pop()
            raise LibvirtFailed("Failed to connect socket", 38)
        return handle

    vars(driver)["_link"].domain = found
    vars(driver)["_end_stream"] = lambda *_: None
    driver.resume(DOMAIN)
    assert resumed == ["resumed"]


def test_one_that_is_gone_is_not_resumed_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make_driver(monkeypatch, no)

    def gone(_uuid: str) -> NoReturn:
        raise LibvirtFailed("Domain not found", 42)

    vars(driver)["_link"].domain = gone
    with pytest.raises(LibvirtFailed, match="Domain not found"):
        driver.resume(DOMAIN)


@pytest.mark.parametrize(("run", "is_ended"), [("id 3", True), ("id 2", False), (None, True)])
def test_another_libvirtd_ends_the_same_run(
    monkeypatch: pytest.MonkeyPatch, run: str | None, is_ended: bool
) -> None:
    """libvirtd was restarted when a rollback ended the domain: it was off, and that in vain."""
    asked: list[str] = []

    def destroy() -> None:
        asked.append("destroy")
        if len(asked) == 1:
            raise libvirtError("End of file while reading data", 38)

    driver = make_driver(monkeypatch, destroy, is_lost=True)
    handle = vars(driver)["_link"].domain(DOMAIN.uuid)
    handle.ID, handle.name = lambda: 3, lambda: "no such pid file"
    driver.stop(replace(DOMAIN, run=run))
    assert asked == ["destroy"] * (1 + is_ended)


@pytest.mark.parametrize("is_ended", [True, False])
def test_a_qemu_that_was_killed_and_is_long_in_ending_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, is_ended: bool
) -> None:
    """One with hundreds of GiB: its rollback was given up, for nothing could let it run again."""
    asked: list[str] = []

    def destroy() -> None:
        asked.append("destroy")
        if not is_ended or len(asked) < 4:
            raise libvirtError("Failed to terminate process 7 with SIGKILL", 38)

    driver = make_driver(monkeypatch, destroy)
    if is_ended:
        driver.stop(DOMAIN)
        assert len(asked) == 4
    else:
        with pytest.raises(DomainFailed, match="could not be ended: Failed to terminate"):
            driver.stop(DOMAIN)


@pytest.mark.parametrize("do", [restore, start])
def test_a_domain_is_started_when_libvirtd_is_back(
    monkeypatch: pytest.MonkeyPatch, do: Callable[[LibvirtHypervisor], None]
) -> None:
    """It was restarted while thick disks were written back, and the domain stayed off."""
    asked: list[object] = []
    driver = make_driver(monkeypatch, lambda *_: asked.append(1), RUNNING)
    link, absences = vars(driver)["_link"], [1, 2]

    class Returning(SimpleNamespace):
        @property
        def connection(self) -> object:
            if absences:
                absences.pop()
                raise LibvirtFailed("Failed to connect socket", 38)
            return link.connection

    vars(driver)["_link"] = Returning(domain=link.domain, is_lost=True)
    do(driver)
    assert asked == [1] and not absences


def test_one_that_is_off_is_ended_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner shut it off: libvirt destroys no domain that does not run, or knows it no more."""
    driver = make_driver(monkeypatch, no)
    link = vars(driver)["_link"]
    link.domain(DOMAIN.uuid).isActive = lambda: 0
    driver.stop(DOMAIN)

    def gone(_uuid: str) -> Any:
        raise LibvirtFailed("Domain not found", 42)

    link.domain = gone
    driver.stop(DOMAIN)


@pytest.mark.parametrize("state", [RUNNING, PAUSED])
def test_one_that_is_to_stand_still_is_not_started_when_it_runs(
    monkeypatch: pytest.MonkeyPatch, state: int
) -> None:
    driver = make_driver(monkeypatch, lambda *_: None, state)
    with nullcontext() if state == PAUSED else pytest.raises(DomainFailed, match="it is running"):
        driver.restore(DOMAIN, Path("/image"), paused=True)
