"""The xl that looks after a domain: found, held while the domain stands still, and let go."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm.failures import CommandFailed, DomainFailed, WindowBroken
from snapvm.hypervisor import xenkeeper
from snapvm.hypervisor.xen import XenHypervisor
from snapvm.hypervisor.xenrequest import SuspendRequest
from snapvm.hypervisor.xenstandstill import lift, unwatch
from snapvm.settings import Settings
from tests.fakes.xenstored import FakeXenstored, Message
from tests.unit.hypervisor import standingxen as standing
from tests.unit.hypervisor.fakexen import FakeXen

scene = standing.scene
OLD = SimpleNamespace(major=4, minor=17)


def start(folder: Path, log: str) -> int:
    """Start what passes for an xl that writes to a log."""
    xl = folder / "xl"
    if not xl.exists():
        xl.symlink_to("/bin/sleep")
    with open(folder / log, "w") as output:
        actions = [(os.POSIX_SPAWN_DUP2, output.fileno(), 1)]
        return os.posix_spawn(xl, ["xl", "60"], os.environ, file_actions=actions)


@pytest.mark.parametrize(
    ("words", "text", "is_its"),
    [
        (["create", "-F", "web.cfg"], "memory = 1\nname = 'web'\n", True),
        (["-v", "create", "web.cfg", "-F"], '  name="web"', True),
        (["create", "-F", "web.cfg", "name = 'web'"], 'name = "base"', True),
        (["create", "-F", "web.cfg", "name = 'other'"], 'name = "web"', False),
        (["create", "-F", "web.cfg"], "#name = 'web'\nname = 'web2'\n", False),
        (["create", "-F", "none.cfg"], "name = 'web'", False),
        (["console", "web"], "name = 'web'", False),
    ],
)
def test_one_that_stays_in_the_foreground_is_found(
    tmp_path: Path, words: list[str], text: str, is_its: bool
) -> None:
    """It ended with the first take, and systemd, whose unit it was, shut the guest down."""
    (tmp_path / "web.cfg").write_text(text)
    of_process(tmp_path, words)
    assert xenkeeper.keepers("web", tmp_path / "proc") == ((77,) if is_its else ())


def of_process(folder: Path, words: list[str], *, uid: int | None = None) -> Path:
    """Make what /proc has of an xl with these arguments."""
    process = folder / "proc" / "77"
    process.mkdir(parents=True)
    (process / "comm").write_text("xl\n")
    (process / "status").write_text(f"Name:\txl\nUid:\t{os.getuid() if uid is None else uid}\t0\n")
    (process / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in ["xl", *words]))
    (process / "cwd").symlink_to(folder)
    (process / "fd").mkdir()
    (process / "fd/1").symlink_to("socket:[5]")
    return process


def test_what_somebody_else_calls_an_xl_is_none(tmp_path: Path) -> None:
    """Any user could have root read any file, and hold up every take by a long one of blanks."""
    (tmp_path / "web.cfg").write_text("\n" * 300_000 + "name = 'web'\n")
    process = of_process(tmp_path, ["create", "web.cfg"], uid=os.getuid() + 1)
    assert xenkeeper.keepers("web", tmp_path / "proc") == ()
    (process / "fd/1").unlink()
    (process / "fd/1").symlink_to("/var/log/xen/xl-web.log")
    assert xenkeeper.keepers("web", tmp_path / "proc") == ()


def test_blanks_before_a_name_take_no_time(tmp_path: Path) -> None:
    (tmp_path / "web.cfg").write_text("\n" * 300_000 + "name = 'web'\n")
    of_process(tmp_path, ["create", "web.cfg"])
    begun = time.monotonic()
    assert xenkeeper.keepers("web", tmp_path / "proc") == (77,)
    assert time.monotonic() - begun < 5


def test_a_setting_may_be_longer_than_a_files_name(tmp_path: Path) -> None:
    of_process(tmp_path, ["create", "/none.cfg", f"extra = '{'x' * 300}'", "name = 'web'"])
    assert xenkeeper.keepers("web", tmp_path / "proc") == (77,)


@pytest.mark.parametrize("gone", ["status", "cmdline", "fd/1"])
def test_one_that_ends_while_it_is_looked_at_is_none(tmp_path: Path, gone: str) -> None:
    """An `xl list` of a monitor that ended just then ended the take, as a bug of snapvm's."""
    (of_process(tmp_path, ["list"]) / gone).unlink()
    assert xenkeeper.keepers("web", tmp_path / "proc") == ()


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[int]:
    pid = start(tmp_path, "xl-web.log")
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def comes_to_be_held(pid: int) -> bool:
    """Tell whether a process stops: it does so when it has its turn."""
    until = time.monotonic() + 5
    while not is_held(pid) and time.monotonic() < until:
        time.sleep(0.001)
    return is_held(pid)


def is_held(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] == "T"


def old_xen(scene: standing.Scene) -> None:
    scene.xen.libraries = OLD
    scene.store.values[f"/local/domain/{standing.DOMID}/name"] = "web"
    scene.guest_suspends()


def test_it_does_not_see_its_domain_suspended(scene: standing.Scene, keeper: int) -> None:
    """It ended, and a guest that rebooted after its nightly take stayed down."""
    old_xen(scene)
    with scene.standstill.suspended():
        assert comes_to_be_held(keeper)
        assert scene.store.values[standing.NOTE] == str(keeper)
    assert not is_held(keeper)
    assert standing.runs(scene)


def test_who_is_held_is_written_down_before(scene: standing.Scene, keeper: int) -> None:
    """Whoever comes after a snapvm that was killed in between lets all go that are noted."""
    old_xen(scene)
    were_held: list[bool] = []

    def ask(kind: Message) -> None:
        if kind is Message.WRITE and not were_held:
            time.sleep(0.1)  # to stop takes a moment
            were_held.append(is_held(keeper))

    scene.store.on_request = ask
    with scene.standstill.suspended():
        assert comes_to_be_held(keeper)
    assert were_held == [False]


def test_one_that_stays_by_itself_is_let_alone(scene: standing.Scene, keeper: int) -> None:
    old_xen(scene)
    scene.xen.libraries = SimpleNamespace(major=4, minor=20)
    with scene.standstill.suspended():
        assert not is_held(keeper)


def test_it_sees_the_end_of_one_that_is_destroyed(scene: standing.Scene, keeper: int) -> None:
    old_xen(scene)
    with pytest.raises(WindowBroken), scene.standstill.suspended():
        scene.xen.gone = True
    assert not is_held(keeper)


def test_it_is_there_when_one_that_was_left_standing_runs_on(
    scene: standing.Scene, keeper: int
) -> None:
    """A disk that was full ended `take --stop`, and nobody looked after the domain any more."""
    old_xen(scene)
    with scene.standstill.suspended(leave_standing=True):
        assert comes_to_be_held(keeper)
    assert is_held(keeper)
    xen: Any = scene.xen
    lift(xen, standing.DOMID, suspend=True, pause=True)
    SuspendRequest(xen, scene.connection, standing.DOMID).end()
    assert not is_held(keeper)
    assert standing.runs(scene)


def test_it_sees_the_end_of_one_that_is_left_standing(scene: standing.Scene, keeper: int) -> None:
    """Not that it has suspended itself: were it not ended then, nobody looked after it."""
    old_xen(scene)
    with scene.standstill.suspended(leave_standing=True):
        assert comes_to_be_held(keeper)
    xen: Any = scene.xen
    unwatch(xen, scene.connection, standing.DOMID)
    assert not is_held(keeper)
    assert (scene.xen.flags, scene.xen.pauses) == (0, 1)
    assert standing.NOTE not in scene.store.values


def held(server: FakeXenstored, keeper: int, flags: int) -> FakeXen:
    """Have a domain that was left standing, and who looks after it is held."""
    xen = FakeXen(server, libraries=OLD)
    xen.come(flags=flags)
    server.values["/libxl/5/snapvm-suspend"] = str(keeper)
    os.kill(keeper, signal.SIGSTOP)
    return xen


@pytest.mark.parametrize("is_ended", [False, True], ids=["by us", "by somebody else"])
def test_it_goes_on_when_its_domain_is_ended(keeper: int, is_ended: bool) -> None:
    server = FakeXenstored()
    xen: Any = held(server, keeper, standing.SUSPENDED | 8)
    with server.connected() as store:
        driver = XenHypervisor(xen, store, xen, Settings())
        domain = driver.find("web")
        if is_ended:
            xen.gone()
        driver.stop(domain)
    assert not xen.info_of
    assert not is_held(keeper)


def test_it_is_there_when_its_domain_is_not_ended(
    keeper: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = FakeXenstored()
    xen: Any = held(server, keeper, standing.SUSPENDED | 8)

    def fail() -> None:
        raise CommandFailed(argv=("xl", "destroy", "5"), status=1, stderr="")

    with server.connected() as store:
        driver = XenHypervisor(xen, store, xen, Settings())
        domain = driver.find("web")
        monkeypatch.setattr(xen, "gone", fail)
        with pytest.raises(DomainFailed, match="could not be ended"):
            driver.stop(domain)
        assert not xen.info_of[5].is_suspended
        driver.resume(domain)
    assert (is_held(keeper), xen.info_of[5].flags) == (False, 0)


def test_it_goes_on_though_nobody_answers(scene: standing.Scene, keeper: int) -> None:
    old_xen(scene)
    scene.store.on_write = lambda _path, _value: None
    with pytest.raises(Exception, match="did not answer"), scene.standstill.suspended():
        pytest.fail("there is no window")
    assert not is_held(keeper)


@pytest.mark.parametrize("request_", ["", "suspend"])
def test_one_that_a_killed_snapvm_held_goes_on(keeper: int, request_: str) -> None:
    server = FakeXenstored()
    xen: Any = FakeXen(server, libraries=OLD)
    xen.come(flags=0 if request_ else standing.SUSPENDED)
    server.values |= {
        "/libxl/5/snapvm-suspend": str(keeper),
        "/local/domain/5/control/shutdown": request_,
    }
    os.kill(keeper, signal.SIGSTOP)
    with server.connected() as store:
        driver = XenHypervisor(xen, store, xen, Settings())
        driver.abandon(driver.find("web"))
    assert (is_held(keeper), xen.info_of[5].flags) == (False, 0)
    assert "/libxl/5/snapvm-suspend" not in server.values


def test_where_nobody_is_found_that_is_told(
    scene: standing.Scene, caplog: pytest.LogCaptureFixture
) -> None:
    old_xen(scene)
    with scene.standstill.suspended():
        assert "no xl process was found that watches web" in caplog.text


@pytest.mark.parametrize("minor", [17, 20])
def test_one_that_libvirt_looks_after_is_told_of(
    scene: standing.Scene,
    keeper: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    minor: int,
) -> None:
    """libvirtd did not notice any more that its guest had shut down, and nobody had said so."""
    monkeypatch.setattr(xenkeeper, "USERDATA", tmp_path)
    old_xen(scene)
    scene.xen.libraries = SimpleNamespace(major=4, minor=minor)
    with scene.standstill.suspended():
        assert "libvirt" not in caplog.text
    (tmp_path / f"userdata-d.{standing.DOMID}.u.libvirt-xml").touch()
    with scene.standstill.suspended():
        assert not is_held(keeper)
    assert "web was started by libvirt" in caplog.text
    assert "no xl process was found" not in caplog.text
    assert standing.runs(scene)


@pytest.mark.parametrize(
    ("log", "is_it"),
    [
        ("xl-web.log", True),
        ("xl-web.log.3", True),
        ("xl-web--incoming.log", True),
        ("xl-web2.log", False),
        ("xl-web.log1.log", False),
        ("qemu-dm-web.log", False),
    ],
)
def test_whose_it_is_tells_its_log(tmp_path: Path, log: str, is_it: bool) -> None:
    folder = tmp_path / "7"
    (folder / "fd").mkdir(parents=True)
    (folder / "comm").write_text("xl\n")
    (folder / "status").write_text(f"Name:\txl\nUid:\t{os.getuid()}\t0\n")
    (folder / "cmdline").write_bytes(b"xl\0restore\0image\0")
    (folder / "fd/1").symlink_to(f"/var/log/xen/{log}")
    for other in ("8", "9", "self"):
        (tmp_path / other).mkdir()
    (tmp_path / "9/comm").write_bytes("Datensicherungü".encode()[:15] + b"\n")
    assert xenkeeper.keepers("web", tmp_path) == ((7,) if is_it else ())


@pytest.mark.parametrize("has_ended_before", ["comm", "fd/1", "cmdline"])
def test_an_xl_that_ends_meanwhile_is_none(tmp_path: Path, has_ended_before: str) -> None:
    """An `xl list` of a monitor's: that it was gone by then ended the take as a bug."""
    folder = tmp_path / "7"
    (folder / "fd").mkdir(parents=True)
    (folder / "comm").write_text("xl\n")
    (folder / "fd/1").symlink_to("/dev/null")
    (folder / "cmdline").write_bytes(b"xl\0list\0")
    (folder / has_ended_before).unlink()
    assert xenkeeper.keepers("web", tmp_path) == ()
