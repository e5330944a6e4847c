"""What snapvm says of itself: the help, its version, its steps with ``-v``."""

from __future__ import annotations

import logging

from snapvm.cli import commands
from tests.fakes.scene import DOMAIN, Scene
from tests.unit.cli.conftest import Call


def test_no_verb_shows_the_help_and_is_a_wrong_use(call: Call) -> None:
    done = call()
    assert done.status == 2
    assert done.out == ""
    assert "Commands:" in done.err


def test_help_and_version(call: Call) -> None:
    assert call("--version").out == "snapvm 0.1.0\n"
    for arguments in (["--help"], ["-h"], ["take", "--help"], ["delete", "-h"]):
        done = call(*arguments)
        assert done.status == 0
        assert done.out.startswith("Usage: snapvm")
    assert "Usage: snapvm delete [OPTIONS] DOM@ID...\n" in call("delete", "--help").out
    assert "Usage: snapvm list [OPTIONS] [DOM]\n" in call("list", "--help").out


def test_the_help_of_a_verb_ends_with_an_example_as_it_is_typed(call: Call) -> None:
    for verb, (_, manual) in commands.VERBS.items():
        told = call(*verb.split(), "--help").out
        assert told.endswith(f"Example:\n  {manual.example}\n"), verb
    assert "`man snapvm`" in call("--help").out


def test_verbose_tells_the_steps(call: Call, scene: Scene) -> None:
    log = logging.getLogger("snapvm.process")  # the fake runs nothing that would say so
    scene.lvm.before = lambda argv: log.debug("%s", " ".join(argv[:2]))
    plain, told = call("take", DOMAIN), call("-v", "take", DOMAIN)
    assert told.status == 0 and "debug: lvm lvcreate" in told.err and plain.err == ""
    assert "debug: snapvm 0.1.0, Python 3." in told.err.splitlines()[0], "a maintainer asks"
