"""A connection that is lost, because libvirtd is restarted, is made anew by whoever needs it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from snapvm.errors import Interrupted
from snapvm.failures import WindowBroken
from snapvm.hypervisor import libvirtlink, libvirtunit
from snapvm.hypervisor.libvirtlink import LibvirtFailed, Link
from snapvm.hypervisor.runevents import DEVICE_ADDED
from snapvm.interrupt import watched
from snapvm.refusals import HostLacks
from tests.unit.hypervisor.fakelibvirt import libvirtError

UUID = "0d5f9f6e-5d1a-4a6b-9c43-4c9b1b7f3a10"


@dataclass
class Connection:
    number: int
    is_alive: bool = True
    uri: str = "qemu:///system"
    kept_alive_seconds: int | None = None
    hangs: bool = False
    """Whoever asks waits until the connection is lost, should it ever be."""

    def setKeepAlive(self, interval: int, count: int) -> int:  # noqa: N802 - libvirt's own name
        if self.uri.startswith("test:"):
            raise libvirtError("not supported by the connection driver", 3)
        self.kept_alive_seconds = interval * (count + 1)
        return 0

    def getURI(self) -> str:  # noqa: N802 - libvirt's own name
        return self.uri

    def isAlive(self) -> int:  # noqa: N802 - libvirt's own name
        return int(self.is_alive)

    def lookupByUUIDString(self, uuid: str) -> SimpleNamespace:  # noqa: N802 - libvirt's own name
        assert uuid == UUID
        if not self.is_alive:
            raise libvirtError("client socket is closed", 38)
        if self.hangs:
            assert self.kept_alive_seconds is not None, "it is waited for, for ever"
            self.is_alive = False
            raise libvirtError("connection closed due to keepalive timeout", 1)
        return SimpleNamespace(made_by=self.number, connect=lambda: self)

    def domainEventRegisterAny(self, *_: object) -> int:  # noqa: N802 - libvirt's own name
        return 7

    def domainEventDeregisterAny(self, number: int) -> None:  # noqa: N802 - libvirt's own name
        assert number == 7
        if not self.is_alive:
            raise libvirtError("client socket is closed", 38)


@dataclass
class Daemon:
    """A libvirtd; its connections are lost when it is restarted."""

    is_up: bool = True
    uri: str = "qemu:///system"
    opened: list[Connection] = field(default_factory=list)

    def open(self, _uri: str) -> Connection:
        if not self.is_up:
            raise libvirtError("Failed to connect socket", 38)
        self.opened.append(Connection(len(self.opened), uri=self.uri))
        return self.opened[-1]

    def end(self) -> None:
        self.is_up = False
        for connection in self.opened:
            connection.is_alive = False


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    daemon = Daemon()
    module = SimpleNamespace(
        libvirtError=libvirtError,
        open=daemon.open,
        registerErrorHandler=lambda *_: None,
        virEventRegisterDefaultImpl=lambda: None,
        VIR_DOMAIN_EVENT_ID_DEVICE_ADDED=19,
    )
    monkeypatch.setattr(libvirtlink, "libvirt", module)
    monkeypatch.setattr(libvirtlink, "_run_events", lambda: None)
    return daemon


def test_without_a_daemon_there_is_no_link(daemon: Daemon) -> None:
    daemon.end()
    with pytest.raises(HostLacks, match="Failed to connect socket"):
        Link("qemu:///system")


@pytest.mark.parametrize(
    ("there", "unit"),
    [
        ("", "libvirtd"),
        ("virtqemud-sock", "virtqemud.socket"),
        ("virtqemud.socket", "virtqemud.socket"),
        ("virtqemud.socket libvirtd.socket", "libvirtd"),
        ("virtqemud-sock libvirtd.socket", "virtqemud.socket"),
    ],
)
def test_what_is_started_is_the_daemon_that_is_there(
    daemon: Daemon, there: str, unit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starting libvirtd where virtqemud is the daemon ends the one that has the domains.

    Arch Linux and SUSE have the units of both, and its owner may have enabled libvirtd.
    """
    monkeypatch.setattr(libvirtunit, "SYSTEMD", tmp_path)
    monkeypatch.setattr(libvirtunit, "SOCKET_OF_VIRTQEMUD", tmp_path / "virtqemud-sock")
    monkeypatch.setattr(libvirtunit, "UNITS_OF_VIRTQEMUD", (tmp_path / "virtqemud.socket",))
    monkeypatch.setattr(libvirtunit, "LIBVIRTD_ENABLED", (tmp_path / "libvirtd.socket",))
    for name in there.split():
        (tmp_path / name).symlink_to("../unit")
    daemon.end()
    with pytest.raises(HostLacks) as lacks:
        Link("qemu:///system")
    assert f"(systemctl start {unit})" in lacks.value.hint()


def test_a_host_without_systemd_is_not_told_to_use_it(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Alpine, or Gentoo with OpenRC."""
    monkeypatch.setattr(libvirtunit, "SYSTEMD", tmp_path / "none")
    daemon.end()
    with pytest.raises(HostLacks) as lacks:
        Link("qemu:///system")
    assert "start libvirt (its service is libvirtd)" in lacks.value.hint()


def test_a_domain_is_found_again_on_a_new_connection(daemon: Daemon) -> None:
    link = Link("qemu:///system")
    handle = link.domain(UUID)
    assert handle.made_by == handle.made_by == 0 and not link.is_lost
    daemon.end()
    assert link.is_lost
    with pytest.raises(LibvirtFailed, match="Failed to connect socket"):
        _ = handle.made_by
    daemon.is_up = True
    assert handle.made_by == 1 and handle.connect().number == 1
    assert len(daemon.opened) == 2 and not link.is_lost


def test_events_that_cannot_be_given_back_hide_nothing(daemon: Daemon) -> None:
    link = Link("qemu:///system")
    handle = link.domain(UUID)
    with (
        pytest.raises(ZeroDivisionError),
        link.run_events(handle, [DEVICE_ADDED]),
    ):
        daemon.end()
        raise ZeroDivisionError


@pytest.mark.parametrize("uri", ["qemu+ssh://root@b.example/system", "qemu+tls://[fd00::1]/system"])
def test_a_libvirt_of_another_host_is_refused(daemon: Daemon, uri: str) -> None:
    """The names of its disks would be taken for volumes of this one."""
    daemon.uri = uri
    with pytest.raises(HostLacks, match="that one is on") as refused:
        Link(uri)
    assert "on the host where the domain runs" in refused.value.hint()


def test_without_libvirts_module_the_hint_names_no_package_of_this_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is none of ours on PyPI: root was told to install whatever has the name there."""
    monkeypatch.setattr(libvirtlink, "libvirt", None)
    with pytest.raises(HostLacks) as lacking:
        libvirtlink.open_link("qemu:///system")
    assert "install the package python3-libvirt" in lacking.value.hint()
    assert lacking.value.hint().endswith(f"{sys.executable} -m pip install libvirt-python")


def test_one_that_hangs_is_not_waited_for_for_ever(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timer that waited for it never came again, and nobody was told."""
    link = Link("qemu:///system")
    daemon.end()
    is_over = threading.Event()
    monkeypatch.setattr(libvirtlink, "OPEN_SECONDS", 0.1)

    def hang(_uri: str) -> Connection:
        is_over.wait(20)
        return Connection(9)

    monkeypatch.setattr("snapvm.hypervisor.libvirtlink.libvirt.open", hang)
    with pytest.raises(HostLacks, match=r"silent for 0\.1 s"):
        Link("qemu:///system")
    with pytest.raises(LibvirtFailed, match=r"silent for 0\.1 s"):
        link.domain(UUID)
    is_over.set()


def test_one_that_hangs_later_is_not_waited_for_for_ever_either(daemon: Daemon) -> None:
    """A domain stood still meanwhile, and Ctrl-C was not heard."""
    link = Link("qemu:///system")
    daemon.opened[0].hangs = True
    with pytest.raises(LibvirtFailed, match="keepalive timeout"):
        link.domain(UUID)
    assert link.is_lost
    assert link.domain(UUID).made_by == 1, "it is restarted, and asked again"


def test_a_qemu_that_hangs_when_it_is_asked_what_it_can_do_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """QEMU 7.2 does so now and then: a take waited for ever, and Ctrl-C was not heard."""
    monkeypatch.setattr(libvirtlink, "PROBE_SECONDS", 0.1)
    is_over = threading.Event()
    with pytest.raises(HostLacks, match=r"waiting for one for 0\.1 s") as lacking:
        libvirtlink.probed(partial(is_over.wait, 20))
    is_over.set()
    assert "pgrep -a -f /qmp.monitor" in lacking.value.hint()


def test_what_libvirt_answers_of_its_qemus_is_passed_on(daemon: Daemon) -> None:
    def refuse() -> int:
        raise libvirtError("unsupported configuration", 67)

    assert libvirtlink.probed(lambda: 10_000_013) == 10_000_013
    with pytest.raises(LibvirtFailed, match="unsupported configuration"):
        libvirtlink.probed(refuse)


def test_one_that_is_no_daemon_is_not_kept_alive(daemon: Daemon) -> None:
    daemon.uri = "test:///default"
    assert Link(daemon.uri).domain(UUID).made_by == 0


def test_while_it_hangs_ctrl_c_is_heard(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.end()
    is_over = threading.Event()

    def hang(_uri: str) -> Connection:
        os.kill(os.getpid(), signal.SIGINT)
        is_over.wait(20)
        return Connection(9)

    monkeypatch.setattr("snapvm.hypervisor.libvirtlink.libvirt.open", hang)
    with pytest.raises(Interrupted), watched():
        Link("qemu:///system")
    is_over.set()


def test_a_call_that_libvirt_did_not_know_of_yet_is_ended_all_the_same() -> None:
    """An `abortJob` before the job has begun ends nothing."""
    aborts, is_ended = count(1), threading.Event()

    def abort() -> None:
        if next(aborts) == 2:
            is_ended.set()

    def tick() -> None:
        raise WindowBroken(domain="demo", what="somebody ran it")

    with pytest.raises(WindowBroken):
        libvirtlink.wait_for(lambda: is_ended.wait(5), tick=tick, abort=abort)
    assert is_ended.is_set()


def test_a_call_that_runs_out_of_time_of_its_own_has_ended() -> None:
    """It was taken for one that is under way, and asked again and again."""
    ticks = count(1)

    def tick() -> None:
        assert next(ticks) < 100

    def call() -> None:
        raise TimeoutError("Connection timed out")

    with pytest.raises(TimeoutError, match="Connection timed out"):
        libvirtlink.wait_for(call, tick=tick, abort=lambda: None)
