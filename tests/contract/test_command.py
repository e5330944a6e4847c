"""The command as a process: streams, signals, terminals, bugs."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapvm.errors import ExitStatus
from snapvm.model import RecordKind
from snapvm.version import VERSION
from tests.fakes.records import disks_only, make_record, put_many, put_record
from tests.house.source import ROOT
from tests.unit.memory.xen_builders import L1, Guest

SNAPVM = (sys.executable, "-m", "snapvm")
BROKEN = """
import sys
from snapvm.cli import app, listing
def broken(session, domain, *, as_json):
    raise ZeroDivisionError("a\\nb \\x1b[31m")
listing.print_list = broken
app.main()
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a command with a catalog of its own."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "SNAPVM_STATE_DIR": str(tmp_path),
        "LC_ALL": "C.UTF-8",
        "TERM": "xterm-256color",
        "TMPDIR": str(tmp_path),
    }


def run(*argv: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=20, env=env)


def on_terminal(argv: list[str], environment: dict[str, str], answer: str = "") -> tuple[int, str]:
    """Run a program at a terminal of its own; return its status and all it showed."""
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe(argv[0], argv, environment)
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
        if answer and b"[y/N]" in shown:
            os.write(terminal, answer.encode())
            answer = ""
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown.decode()


def test_a_reader_that_leaves_is_no_failure(environment: dict[str, str], tmp_path: Path) -> None:
    put_many(tmp_path, 400)
    for arguments in ("list", "--help"):
        script = f"{sys.executable} -m snapvm {arguments} | true; echo ${{PIPESTATUS[0]}}"
        done = run("bash", "-c", script, env=environment)
        assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_reader_that_leaves_does_not_make_an_unsound_image_sound(
    environment: dict[str, str], tmp_path: Path
) -> None:
    guest = Guest()
    guest.types[L1] = 0xF
    (tmp_path / "image.xl").write_bytes(guest.encode())
    command = f"{sys.executable} -m snapvm verify {tmp_path}/image.xl"
    done = run("bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}", env=environment)
    assert done.stdout == "4\n"
    assert "is not sound" in done.stderr


@pytest.mark.parametrize("words", ["list", "--help", "take --help", "--version"])
def test_a_full_disk_is_told(environment: dict[str, str], tmp_path: Path, words: str) -> None:
    put_record(tmp_path, make_record())
    done = run("sh", "-c", f"{sys.executable} -m snapvm {words} > /dev/full", env=environment)
    assert done.returncode == 6
    assert done.stderr.startswith("snapvm: stdout: No space left on device")


@pytest.mark.parametrize(
    ("words", "status"),
    [("", 2), ("nope", 2), ("show demo@a", 3), ("list", 0), ("-v list", 0)],
)
def test_a_full_disk_for_errors_changes_no_status(
    environment: dict[str, str], words: str, status: int
) -> None:
    for streams in ("2> /dev/full", "> /dev/full 2>&1"):
        script = f"{sys.executable} -m snapvm {words} {streams}"
        assert run("sh", "-c", script, env=environment).returncode == status


def test_a_completion_that_cannot_be_installed_is_no_bug(environment: dict[str, str]) -> None:
    script = f"HOME=/proc {sys.executable} -m snapvm --install-completion; exit $?"
    done = run("bash", "-c", script, env=environment)
    assert done.returncode == 6
    assert done.stderr.startswith("snapvm: /proc/")


def test_a_relative_state_folder_below_none_is_told(
    environment: dict[str, str], tmp_path: Path
) -> None:
    script = f"mkdir gone; cd gone; rmdir ../gone; {sys.executable} -m snapvm --state-dir x list"
    done = run("sh", "-c", f"cd {tmp_path}; {script}", env=environment)
    assert done.returncode == 2
    assert "'x' is below the current folder, which is gone" in done.stderr


def test_closed_streams_harm_nobody(environment: dict[str, str], tmp_path: Path) -> None:
    put_record(tmp_path, make_record())
    for closing in (">&-", ">&- 2>&- <&-"):
        script = f"{sys.executable} -m snapvm list {closing}"
        assert run("sh", "-c", script, env=environment).returncode == 0


def test_a_bug_is_one_line_and_a_file(environment: dict[str, str], tmp_path: Path) -> None:
    done = run(sys.executable, "-c", BROKEN, "list", "--json", env=environment)
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first == r"snapvm: a bug in snapvm: ZeroDivisionError: a b \x1b[31m"
    report = Path(second.split()[-1])
    assert report.parent == tmp_path
    text = report.read_text()
    assert "Traceback" in text and "arguments: list --json" in text
    python = ".".join(map(str, sys.version_info[:3]))
    assert text.startswith(f"snapvm {VERSION}, Python {python}, Linux ") and "\ntyper 0." in text
    assert report.stat().st_mode & 0o077 == 0
    assert json.loads(done.stdout)["error"]["kind"] == "ZeroDivisionError"


def test_a_bug_is_told_even_without_a_state_folder(environment: dict[str, str]) -> None:
    environment["SNAPVM_STATE_DIR"] = "/nonexistent/there"
    done = run(sys.executable, "-c", BROKEN, "list", env=environment)
    assert done.returncode == 1
    assert Path(done.stderr.split()[-1]).exists()


@contextmanager
def at_work(environment: dict[str, str], *before: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command that has much to do; its work has begun."""
    raising = 'raise ZeroDivisionError("a\\nb \\x1b[31m")'
    script = BROKEN.replace(raising, 'import time; print("begun", flush=True); time.sleep(60)')
    assert "begun" in script
    process = subprocess.Popen(
        [*before, sys.executable, "-c", script, "list"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_130_and_quiet(
    environment: dict[str, str], number: signal.Signals
) -> None:
    with at_work(environment) as process:
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.startswith(f"snapvm: interrupted by {number.name}")
    assert "Traceback" not in err


def test_a_list_that_nobody_reads_can_be_ended(environment: dict[str, str], tmp_path: Path) -> None:
    """It wanted to tell of the signal in the same pipe, deaf to the next one."""
    put_many(tmp_path, 200)
    reading, writing = os.pipe()
    argv = [*SNAPVM, "list", "--json"]
    with open(reading, "rb") as pipe, subprocess.Popen(argv, env=environment, stdout=writing) as it:
        while it.poll() is None and select.select([], [writing], [], 0)[1]:
            time.sleep(0.05)
        os.close(writing)
        it.terminate()
        try:
            assert it.wait(timeout=20) == ExitStatus.INTERRUPTED
        finally:
            it.kill()
        assert b'"error"' not in pipe.read()


def test_a_signal_that_is_to_be_ignored_is(environment: dict[str, str]) -> None:
    """As nohup(1) has it, lest the work end with the terminal; other signals are heeded."""
    with at_work(environment, "sh", "-c", 'trap "" HUP; exec "$@"', "sh") as process:
        process.send_signal(signal.SIGHUP)  # the first of the two to be heard, if it were heard
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err.startswith("snapvm: interrupted by SIGTERM")


def test_a_pipe_gets_no_colour_and_a_terminal_does(
    environment: dict[str, str], tmp_path: Path
) -> None:
    put_record(tmp_path, make_record(note="[b]"))
    put_record(tmp_path, disks_only("undo-1", kind=RecordKind.UNDO))
    environment = {**environment, "COLUMNS": "120"}  # HEALTH is `unknown` where there is no lvm
    assert "\x1b" not in run(*SNAPVM, "list", env=environment).stdout
    status, shown = on_terminal([*SNAPVM, "list"], environment)
    assert status == 0
    assert "\x1b[" in shown
    assert "─" in shown
    assert "[b]" in shown
    _, shown = on_terminal([*SNAPVM, "list"], {**environment, "NO_COLOR": "1"})
    assert "\x1b[3" not in shown


def test_many_rows_are_plain_on_a_terminal_too(environment: dict[str, str], tmp_path: Path) -> None:
    put_many(tmp_path, 201)
    _, shown = on_terminal([*SNAPVM, "list"], environment)
    assert "\x1b" not in shown
    table = shown.partition("note: the state of the volumes")[0]  # where there is no lvm
    assert table.count("\n") == 202


def test_no_is_an_answer(environment: dict[str, str], tmp_path: Path) -> None:
    put_record(tmp_path, make_record("a", note="dear\x1b[31m"))
    status, shown = on_terminal([*SNAPVM, "delete", "demo@a"], environment, "n\n")
    assert status == 4
    assert "1 snapshot will be gone for good:" in shown
    assert r"(dear\x1b[31m)" in shown
    assert "not confirmed, nothing was done" in shown


def test_a_question_that_is_interrupted_ends_its_line(
    environment: dict[str, str], tmp_path: Path
) -> None:
    put_record(tmp_path, make_record("a"))
    status, shown = on_terminal([*SNAPVM, "delete", "demo@a"], environment, "\x03")
    assert status == 130
    assert "snapvm: interrupted by SIGINT" in [line.rstrip() for line in shown.splitlines()][-1]
    assert "[y/N] ^C\r\nsnapvm: " in shown


def test_output_that_is_not_utf8_is_escaped(environment: dict[str, str], tmp_path: Path) -> None:
    put_record(tmp_path, make_record("a", note="größer"))
    ascii_only = {**environment, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    shown = run(*SNAPVM, "show", "demo@a", env=ascii_only)
    assert shown.returncode == 0
    assert r"gr\xf6\xdfer" in shown.stdout
    assert "#####" in shown.stdout
    put_record(tmp_path, make_record("b"))
    _, table = on_terminal([*SNAPVM, "list"], ascii_only)
    assert "\\u" not in table and "------" in table


@pytest.mark.parametrize(
    ("words", "cursor", "answers"),
    [
        ("snapvm\nsh", 1, ["show"]),
        ("snapvm\ntake\nde", 2, ["demo"]),
        ("snapvm\nshow\nde", 2, ["demo@before", "demo@later"]),
        ("snapvm\nshow\ndemo\n@", 3, ["@before", "@later"]),
        ("snapvm\nshow\ndemo\n@\nbe", 4, ["@before"]),
        ("snapvm\ndelete\ndemo\n@\nbefore\ndemo\n@\nl", 7, ["@later"]),
        ("snapvm\nshow\nmy", 2, []),
        ("snapvm\nshow\n", 2, ["demo@before", "demo@later"]),
        ("snapvm\nlist\n", 2, ["demo"]),
        ("snapvm\nshow\n", 9, []),
    ],
)
def test_bash_completes(
    environment: dict[str, str], tmp_path: Path, words: str, cursor: int, answers: list[str]
) -> None:
    put_record(tmp_path, make_record("before"))
    put_record(tmp_path, make_record("later"))
    other = "5c1d2f0e-8a3b-4d6f-9e21-0c7a4b5d6e70"
    put_record(tmp_path, make_record("x", domain="my vm", domain_uuid=other))
    for number, name in enumerate(("demo", "-dash")):
        namesake = f"5c1d2f0e-8a3b-4d6f-9e21-00000000000{number}"
        put_record(tmp_path, make_record("before", domain=name, domain_uuid=namesake))
    asked = {"_SNAPVM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(cursor)}
    done = run(*SNAPVM, env={**environment, **asked})
    assert (done.returncode, done.stderr) == (0, "")
    if cursor != 9:
        assert done.stdout.split() == answers


def test_a_shell_without_completion_is_no_bug_of_ours(environment: dict[str, str]) -> None:
    for option in ("--install-completion", "--show-completion"):
        script = f"{sys.executable} -m snapvm {option}; exit $?"
        done = run("sh", "-c", script, env={**environment, "HOME": environment["TMPDIR"]})
        assert done.returncode == ExitStatus.USAGE
        assert "call it from bash, zsh or fish" in done.stderr


def test_completion_never_complains(environment: dict[str, str]) -> None:
    for asked in (
        {"SNAPVM_STATE_DIR": "relative", "COMP_WORDS": "snapvm\nshow\nx", "COMP_CWORD": "2"},
        {"COMP_WORDS": "snapvm\nshow\n'", "COMP_CWORD": "2"},
        {"COMP_WORDS": "", "COMP_CWORD": "x"},
        {"_SNAPVM_COMPLETE": "rubbish"},
    ):
        done = run(*SNAPVM, env={**environment, "_SNAPVM_COMPLETE": "complete_bash", **asked})
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_an_answer_that_nobody_reads_is_given_up(environment: dict[str, str]) -> None:
    environment |= {"_SNAPVM_COMPLETE": "complete_bash", "COMP_WORDS": "snapvm\nsh"}
    script = f"{sys.executable} -m snapvm > /dev/full"
    done = run("sh", "-c", script, env={**environment, "COMP_CWORD": "1"})
    assert (done.returncode, done.stderr) == (0, "")


def test_help_and_list_load_no_heavy_library(environment: dict[str, str], tmp_path: Path) -> None:
    put_record(tmp_path, make_record("a"))
    script = """
import sys
from snapvm.cli import app
app.run(sys.argv[1:])
print(*sys.modules, file=sys.stderr)
"""
    asks_lvm = {"sh", "tenacity", "asyncio"}  # sh needs the last
    for arguments in (["--help"], ["list"], ["take", "--nope"]):
        done = run(sys.executable, "-c", script, *arguments, env=environment)
        loaded = set(done.stderr.split())
        assert not loaded & {"numpy", "libvirt", "rich"}
        assert arguments == ["list"] or not loaded & asks_lvm
