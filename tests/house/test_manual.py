"""The man page is what the command line is, and renders."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import fields

import pytest

from man import generate, prose
from snapvm.cli import commands
from snapvm.errors import ExitStatus
from snapvm.settings import Settings
from tests.house.source import ROOT

PAGE = ROOT / "man" / "snapvm.1"


def test_the_page_is_that_of_this_command_line() -> None:
    assert PAGE.read_text() == generate.page(), "run `make man`"


def test_every_exit_status_is_in_the_page() -> None:
    text = PAGE.read_text()
    for status in ExitStatus:
        assert f"\\fB{int(status)}\\fR" in text


def test_every_setting_and_verb_is_in_the_page() -> None:
    text = PAGE.read_text()
    for field in fields(Settings):
        assert f"SNAPVM_{field.name.upper()}" in text
    for verb in commands.VERBS:
        assert f".SS {verb}\n" in text


def test_every_verb_has_its_json_in_the_page() -> None:
    _, shapes = prose.JSON
    verbs = [verb for verbs, _ in shapes for verb in verbs.split(", ")]
    assert sorted(verbs) == sorted(commands.VERBS)


def test_check_fails_for_another_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate.main(["--check"]) == 0
    monkeypatch.setattr(generate, "VERSION", "9.9.9")
    assert generate.main(["--check"]) == 1
    assert "make man" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_has_no_warning() -> None:
    argv = ["groff", "-man", "-Tutf8", "-ww", "-rLL=78n", str(PAGE)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    # Whatever marks bold here, overstriking or escapes, leaves the words of plain paragraphs.
    assert "as often as you like" in " ".join(done.stdout.replace("\u2010\n", "").split())


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
def test_man_has_no_warning() -> None:
    argv = ["man", "--warnings=w", "--local-file", str(PAGE)]
    environment = {"PATH": "/usr/bin:/bin", "MANWIDTH": "80", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""
    assert "snapvm take" in done.stdout
