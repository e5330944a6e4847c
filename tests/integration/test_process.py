"""The one way out: statuses, both outputs, time limits, and programs that take orders."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from snapvm import process
from snapvm.errors import Interrupted
from snapvm.failures import CommandFailed, CommandTimedOut
from snapvm.interrupt import watched
from snapvm.process import ShRunner, clean_environment
from snapvm.refusals import HostLacks
from tests.contract.worlds import wait_until
from tests.fakes.records import make_record, put_record
from tests.fakes.threads import start_fewer_than
from tests.house.source import ROOT
from tests.unit.cli.signals import ctrl_c

ECHO = ("sh", "-c", 'while read -r line; do echo "got $line" >&2; echo done; done')


def is_done(line: str) -> bool:
    return line == "done"


def test_both_outputs_and_the_status_are_told_apart() -> None:
    done = ShRunner().run(["sh", "-c", "echo out; echo err >&2"])
    assert (done.status, done.stdout, done.stderr) == (0, "out\n", "err\n")
    with pytest.raises(CommandFailed) as failed:
        ShRunner().run(["sh", "-c", "echo why >&2; exit 5"])
    assert (failed.value.status, failed.value.stderr) == (5, "why\n")


def test_all_of_a_long_output_is_there_each_time() -> None:
    """sh's own wait with a time limit returned before the last lines were collected."""
    for _ in range(5):
        assert len(ShRunner().run(["seq", "100000"]).stdout) == 588895


def test_nothing_is_read_from_our_terminal_and_nothing_of_our_environment_is_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LVM_SUPPRESS_LOCKING_FAILURE_MESSAGES", "1")
    monkeypatch.setenv("LD_PRELOAD", "")
    done = ShRunner().run(["sh", "-c", "cat; env"])
    names = {line.partition("=")[0] for line in done.stdout.splitlines()}
    made = {"HOME", "LC_ALL", "LVM_SUPPRESS_FD_WARNINGS", "PATH"}
    assert names <= made | {"PWD", "SHLVL", "_", "OLDPWD"}
    assert clean_environment()["PATH"].startswith(os.environ["PATH"])


def test_what_is_no_utf8_is_a_line_like_any_other() -> None:
    """sh handed over bytes, and whoever looked for an answer in them failed as a bug."""
    script = "read -r _; printf 'gr\\366n\\n'; echo done; cat"
    with ShRunner().converse(["sh", "-c", script]) as talk:
        assert talk.ask("go", is_done, limit_seconds=10) == ("gr\ufffdn", "done")


def test_in_a_container_lvm_is_told_not_to_wait_for_udev(monkeypatch: pytest.MonkeyPatch) -> None:
    """The udev of the host cannot answer there, and lvm waited for it with no end."""
    monkeypatch.setenv("DM_DISABLE_UDEV", "1")
    assert "DM_DISABLE_UDEV=1\n" in ShRunner().run(["env"]).stdout


def test_a_history_is_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As lvm2's shell writes one since 2.03.24: without HOME it is beside whoever calls snapvm."""
    monkeypatch.chdir(tmp_path)
    script = (
        'echo x 2>/dev/null >"${HOME:+$HOME/}.lvm_history"; while read -r _; do echo done; done'
    )
    with ShRunner().converse(["sh", "-c", script]) as talk:
        talk.ask("version", is_done, limit_seconds=10)
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_takes_too_long_is_ended_or_left(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    script = ["sh", "-c", f"sleep 1; touch {mark}"]
    with pytest.raises(CommandTimedOut):
        ShRunner().run(script, timeout_seconds=0.2, kill=False)
    deadline = time.monotonic() + 10
    while not mark.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    mark.unlink()
    with pytest.raises(CommandTimedOut):
        ShRunner().run(script, timeout_seconds=0.2)
    time.sleep(1.2)
    assert not mark.exists()


def test_what_is_not_killed_has_ended_when_the_interruption_is_raised(tmp_path: Path) -> None:
    """What an lvm makes is removed next: it must not be made after that."""
    mark = tmp_path / "mark"
    threading.Timer(0.2, ctrl_c).start()
    with pytest.raises(Interrupted), watched():
        ShRunner().run(["sh", "-c", f"sleep 1; touch {mark}"], kill=False)
    assert mark.exists()


def test_what_is_not_killed_is_not_waited_for_endlessly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GOODBYE_SECONDS", 0.2)
    threading.Timer(0.2, ctrl_c).start()
    with pytest.raises(CommandTimedOut) as failed, watched():
        ShRunner().run(["sleep", "2"], kill=False)
    assert failed.value.signal_put_off == "SIGINT"


def test_a_program_goes_on_when_we_are_killed_and_nobody_hears_it(tmp_path: Path) -> None:
    """Of its next words `xl restore` died, in the middle, and left half a domain."""
    began, ended = tmp_path / "began", tmp_path / "ended"
    words = f"touch {began}; sleep 0.5; echo said; echo said >&2; touch {ended}"
    call = f"from snapvm.process import ShRunner; ShRunner().run(['sh', '-c', {words!r}])"
    with subprocess.Popen([sys.executable, "-c", call]) as ours:
        wait_until(began.exists)
        ours.kill()
    wait_until(ended.exists)


@pytest.mark.parametrize("name", ["TERM", "HUP"])
def test_a_signal_for_all_of_a_unit_does_not_end_a_program_in_the_middle(name: str) -> None:
    """systemd sends SIGTERM to every process of a unit that it stops (systemd.kill(5))."""
    done = ShRunner().run(["bash", "-c", f"kill -{name} $$; echo went on"])
    assert done.stdout == "went on\n"


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(HostLacks, match="no-such-program"):
        ShRunner().run(["no-such-program"])


@pytest.mark.parametrize(
    ("text", "why"), [("no program", "Exec format error"), ("#!/none/sh\n", "No such file or dir")]
)
def test_one_that_the_kernel_does_not_run_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, why: str
) -> None:
    """Nor one that SELinux denies.  sh tells of it by an exception of its own, with a traceback."""
    (tmp_path / "lvm").write_text(text)
    (tmp_path / "lvm").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostLacks, match=rf"a working lvm \({tmp_path}/lvm: {why}"):
        ShRunner().run(["lvm", "lvs"])
    with pytest.raises(HostLacks, match=why), ShRunner().converse(["lvm"]):
        pytest.fail("it was begun")


def test_that_there_is_no_room_for_one_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of memory, or of what a unit of systemd may have: the guard ended of it, and a rollback
    said nothing of the domain that was off.
    """

    def no_fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", no_fork)
    with pytest.raises(HostLacks, match=r"room for sh to run in \(Resource temporarily"):
        ShRunner().run(["sh", "-c", "true"])
    with pytest.raises(HostLacks, match="room"), ShRunner().converse(ECHO):
        pytest.fail("it was begun")


def test_the_last_commands_are_remembered() -> None:
    runner = ShRunner()
    for number in range(20):
        runner.run(["echo", str(number)])
    assert len(runner.recorder) == 16
    assert runner.recorder[-1].startswith("echo 19 -> 0")


def test_a_program_that_did_not_end_is_remembered_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report of a bug is to name the lvm that hung."""
    runner = ShRunner()
    with pytest.raises(CommandTimedOut):
        runner.run(["sleep", "60"], timeout_seconds=0.1)
    assert runner.recorder[-1].startswith("sleep 60 -> no end (CommandTimedOut) in 0.")

    def interrupt(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        runner.run(["sleep", "61"])
    assert runner.recorder[-1].startswith("sleep 61 -> no end (KeyboardInterrupt)")


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_a_program_that_ends_while_it_is_given_up_needs_no_killing(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | None
) -> None:
    def too_late(running: Any, _limit_seconds: float) -> bool:
        running.wait()
        if error is not None:
            raise error
        return False

    monkeypatch.setattr(process, "_wait", too_late)
    with pytest.raises(error or CommandTimedOut):
        ShRunner().run(["true"])


def test_an_order_without_an_answer_is_remembered() -> None:
    runner = ShRunner()
    with pytest.raises(CommandTimedOut), runner.converse(("cat",)) as talk:
        talk.ask("hang now", is_done, limit_seconds=0.1)
    assert "> hang now" in runner.recorder


def test_what_is_asked_in_a_conversation_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """`--verbose` did not show the one command that a window is about: lvcreate."""
    with caplog.at_level("DEBUG", "snapvm"), ShRunner().converse(ECHO) as talk:
        talk.ask("lvcreate -s", is_done, limit_seconds=10)
    assert caplog.messages == ["sh: > lvcreate -s", "sh: got lvcreate -s", "sh: done"]


def test_a_conversation_answers_each_order_at_once() -> None:
    with ShRunner().converse(ECHO) as talk:
        for number in range(20):
            answer = talk.ask(f"order {number}", is_done, limit_seconds=10)
            assert answer == (f"got order {number}", "done")
        begun = time.monotonic()
        talk.ask("again", is_done, limit_seconds=10)
        assert time.monotonic() - begun < 5


def test_what_is_said_after_an_answer_can_still_be_heard() -> None:
    with ShRunner().converse(ECHO) as talk:
        first = talk.ask("one", lambda line: line == "got one", limit_seconds=10)
        assert (first, talk.listen(is_done, limit_seconds=10)) == (("got one",), ("done",))


def test_a_program_that_is_talked_to_is_served_before_others() -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with ShRunner().converse(("sh", "-c", "read line; nice")) as talk:
        (niceness,) = talk.ask("", lambda _line: True, limit_seconds=10)
    assert int(niceness) == (-10 if os.geteuid() == 0 else own)


def test_a_conversation_that_gets_no_answer_is_given_up() -> None:
    with ShRunner().converse(("cat",)) as talk, pytest.raises(CommandTimedOut):
        talk.ask("hello", is_done, limit_seconds=0.3)


def test_a_program_that_does_not_end_with_the_conversation_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapvm.process.GOODBYE_SECONDS", 0.1)
    held = tmp_path / "held"
    os.mkfifo(held)
    with (
        ShRunner().converse(("cat", str(held))) as slow,
        ShRunner().converse(("cat",)) as quick,
    ):
        assert not slow.ended(0) and not quick.ended(0)
    assert quick.ended(10) and not slow.ended(0)
    held.write_bytes(b"")
    assert slow.ended(10)


def test_a_conversation_whose_program_ends_says_so() -> None:
    with ShRunner().converse(("sh", "-c", "read line; echo bye; exit 3")) as talk:
        with pytest.raises(CommandFailed) as failed:
            talk.ask("hello", is_done, limit_seconds=10)
        assert failed.value.status == 3
        with pytest.raises(CommandFailed):
            talk.ask("still there", is_done, limit_seconds=10)


def test_a_caller_that_ignores_its_children_harms_nobody(tmp_path: Path) -> None:
    """A daemon's ``SIG_IGN`` of SIGCHLD is inherited, and the kernel told no status of an lvm."""
    put_record(tmp_path, make_record())
    (tmp_path / "lvm").write_text("#!/bin/sh\necho no such thing >&2\nexit 5\n")
    (tmp_path / "lvm").chmod(0o700)
    script = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
        "os.execv(sys.executable, [sys.executable, '-m', 'snapvm', 'list'])"
    )
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SNAPVM_STATE_DIR": str(tmp_path),
    }
    argv = [sys.executable, "-c", script]
    done = subprocess.run(
        argv, check=False, capture_output=True, text=True, timeout=20, env=environment
    )
    assert done.returncode == 0
    assert "ended with status 5: no such thing" in done.stderr


@pytest.mark.parametrize("nth", [1, 2])
def test_a_host_without_room_for_a_thread_is_called_so(
    monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """It was called a bug: sh listens to a program in threads."""
    start_fewer_than(nth, monkeypatch)
    with pytest.raises(HostLacks, match="one more thread, for true"):
        ShRunner().run(["true"])
