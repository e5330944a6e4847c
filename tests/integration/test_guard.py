"""The guard's own process, as it is really started, beside a snapvm that lives or is killed."""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from snapvm import crashpoint
from snapvm.catalog import Catalog
from snapvm.cli import guard as cli_guard
from snapvm.guard import NAME, Guard, Post, standing_by
from snapvm.model import Domain, DomainState, HypervisorKind
from snapvm.refusals import HostLacks
from snapvm.settings import Settings
from tests.fakes.scene import DOMAIN, UUID

SECONDS = 20
ODD_NAME = "a name\nwith 'everything' \u2713 done"


def domain(name: str = DOMAIN) -> Domain:
    return Domain(
        name=name,
        uuid=UUID,
        hypervisor=HypervisorKind.LIBVIRT,
        state=DomainState.RUNNING,
        memory_bytes=1 << 20,
        vcpus=1,
        definition="<domain/>",
    )


class Told:
    """A guard's work that writes into a file what it is told."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "told"

    def __call__(self, post: Post) -> None:
        watched = post.domain()
        self.note(f"watch {watched}")
        self.note(Path("/proc/self/comm").read_text().strip())
        self.note(f"pid {os.getpid()}")
        post.ready()
        self.note("dismissed" if post.is_dismissed() else "acts")

    def note(self, line: str) -> None:
        with self.file.open("a") as file:
            file.write(f"{line}\n")

    def lines(self) -> list[str]:
        return self.file.read_text().splitlines() if self.file.exists() else []

    def pid(self) -> int:
        return next(int(line.split()[1]) for line in self.lines() if line.startswith("pid"))


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def die_watched(told: Told, *, by: Callable[[int, int], None]) -> None:
    """Let a process that is watched die, and wait for its end."""

    def be_snapvm(guard: Guard) -> None:
        with guard.watching(domain()):
            guard.wait_until_ready()
            by(os.getpid(), told.pid())
            signal.pause()

    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            with standing_by(told) as guard:
                be_snapvm(guard)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_it_learns_its_domain_and_is_dismissed(tmp_path: Path) -> None:
    told = Told(tmp_path)
    with standing_by(told) as guard, guard.watching(domain(ODD_NAME)):
        guard.wait_until_ready()
    assert told.lines()[:2] == [f"watch {(UUID, ODD_NAME)}".replace("\n", "\\n"), NAME]
    assert told.lines()[-1] == "dismissed"
    with pytest.raises(ProcessLookupError):  # not even a zombie is left
        os.kill(told.pid(), 0)


def test_it_goes_home_when_there_is_no_domain_to_watch(tmp_path: Path) -> None:
    told = Told(tmp_path)
    with pytest.raises(RuntimeError), standing_by(told):
        raise RuntimeError
    assert told.lines()[0] == "watch None"


def test_it_acts_when_snapvm_is_killed(tmp_path: Path) -> None:
    told = Told(tmp_path)
    die_watched(told, by=lambda snapvm, _: os.kill(snapvm, signal.SIGKILL))
    until(lambda: told.lines()[-1] == "acts")


def test_what_a_terminal_sends_to_snapvm_does_not_end_it(tmp_path: Path) -> None:
    def by(snapvm: int, guard: int) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(guard, number)
        os.killpg(snapvm, signal.SIGKILL)

    told = Told(tmp_path)
    die_watched(told, by=by)
    until(lambda: told.lines()[-1] == "acts")


def test_it_holds_nothing_that_whoever_reads_snapvms_output_waits_for(tmp_path: Path) -> None:
    ours, inherited = os.pipe()
    with standing_by(Told(tmp_path)) as guard, guard.watching(domain()):
        guard.wait_until_ready()
        os.close(inherited)
        has_ended, _, _ = select.select([ours], [], [], SECONDS)
        assert has_ended and os.read(ours, 1) == b""
    os.close(ours)


def test_its_standard_streams_are_not_snapvms(tmp_path: Path) -> None:
    def stand(post: Post) -> None:
        post.domain()
        links = {os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in range(3)}
        (tmp_path / "links").write_text(" ".join(links))
        post.ready()

    with standing_by(stand) as guard, guard.watching(domain()):
        guard.wait_until_ready()
    assert (tmp_path / "links").read_text() == os.devnull


def test_one_that_dies_is_no_guard() -> None:
    with (
        pytest.raises(HostLacks, match="a guard process that works"),
        standing_by(lambda _: os.kill(os.getpid(), signal.SIGKILL)) as guard,
        guard.watching(domain()),
    ):
        guard.wait_until_ready()


def test_one_that_fails_is_no_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why it failed is in the system's log: nobody listens to a guard."""

    def log(_priority: int, line: str) -> None:
        with (tmp_path / "log").open("a") as file:
            file.write(f"{line}\n")

    def stand(_: Post) -> None:
        raise RuntimeError("the guard has a bug")

    monkeypatch.setattr("syslog.syslog", log)
    with (
        pytest.raises(HostLacks, match="a guard process that works"),
        standing_by(stand) as guard,
        guard.watching(domain()),
    ):
        guard.wait_until_ready()
    assert "RuntimeError: the guard has a bug" in (tmp_path / "log").read_text()


def test_one_that_hangs_is_no_guard_and_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose libvirtd hangs: the command that it was to guard hung with it."""
    for limit in ("READY_SECONDS", "GOODBYE_SECONDS"):
        monkeypatch.setattr(f"snapvm.guard.{limit}", 0.1)

    def stand(_: Post) -> None:
        (tmp_path / "pid").write_text(f"{os.getpid()}")
        time.sleep(SECONDS)

    begun = time.monotonic()
    with (
        pytest.raises(HostLacks, match="it does not answer") as told,
        standing_by(stand) as guard,
        guard.watching(domain()),
    ):
        until((tmp_path / "pid").exists)
        guard.wait_until_ready()
    assert time.monotonic() - begun < SECONDS
    assert f"`journalctl -t {NAME}`" in told.value.hint()
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_it_says_why_it_cannot_watch() -> None:
    """Of a host without a hypervisor: the reason goes to the user in one line."""

    def stand(post: Post) -> None:
        post.domain()
        post.cannot("no hypervisor\nanswers")

    with (
        pytest.raises(HostLacks, match=r"cannot: no hypervisor answers"),
        standing_by(stand) as guard,
        guard.watching(domain()),
    ):
        guard.wait_until_ready()


def test_crash_points_are_not_its(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crashpoint, "_wanted", "before deed 1")

    def stand(post: Post) -> None:
        post.domain()
        with crashpoint.around("deed"):
            post.ready()

    with standing_by(stand) as guard, guard.watching(domain()):
        guard.wait_until_ready()


def test_the_real_one_on_a_host_without_a_hypervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_driver(*_: object) -> None:
        raise HostLacks(what="a hypervisor", remedy="install one")

    monkeypatch.setattr("snapvm.cli.wiring.open_driver", no_driver)
    settings = Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    with (
        pytest.raises(HostLacks, match="cannot: this host lacks a hypervisor"),
        standing_by(lambda post: cli_guard.stand(settings, post)) as guard,
        guard.watching(domain()),
    ):
        guard.wait_until_ready()


@pytest.mark.parametrize("dies", [False, True])
def test_the_real_one_repairs_only_when_snapvm_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    settings = Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    host = SimpleNamespace(catalog=Catalog(settings.state_dir, settings.run_dir))
    repaired = tmp_path / "repaired"

    def repair(*_: object) -> tuple[str, ...]:
        repaired.touch()
        return ()

    monkeypatch.setattr("snapvm.cli.wiring.open_host", lambda _settings: host)
    monkeypatch.setattr("snapvm.repair.finish_pending", repair)
    monkeypatch.setattr("snapvm.guard.READY_SECONDS", SECONDS)
    child = os.fork()
    if child == 0:
        with (
            standing_by(lambda post: cli_guard.stand(settings, post)) as guard,
            guard.watching(domain()),
        ):
            guard.wait_until_ready()
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    os.waitpid(child, 0)
    if dies:
        until(repaired.exists)
    assert repaired.exists() is dies


@pytest.mark.parametrize("name", ["pipe", "fork"])
def test_a_host_without_room_for_one_is_told_and_nothing_stays_open(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a descriptor for its second pipe, it was called a bug."""
    real, asked = getattr(os, name), 0

    def full() -> object:
        nonlocal asked
        asked += 1
        if name == "fork" or asked > 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real()

    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        with (
            pytest.raises(HostLacks, match=r"room for a guard process \(Too many open files\)"),
            standing_by(lambda _post: None),
        ):
            pass
    assert os.listdir("/proc/self/fd") == before
