"""A person's shell in the lab, typed into by a script on a terminal of its own."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.turn import TURN_SECONDS
from tests.lab.vm import REPOSITORY

BOOT_SECONDS = 300
ANSWER_SECONDS = 120


def read_until(terminal: int, pattern: str, seconds: float) -> str:
    """Return what the terminal shows up to a text matching ``pattern``."""
    shown = ""
    deadline = time.monotonic() + seconds
    while not re.search(pattern, shown):
        left = deadline - time.monotonic()
        assert left > 0, f"no {pattern!r} in time:\n{shown}"
        if select.select([terminal], [], [], left)[0]:
            try:
                data = os.read(terminal, 4096)
            except OSError:
                data = b""  # the other side has closed it
            assert data, f"the shell ended without {pattern!r}:\n{shown}"
            shown += data.decode(errors="replace")
    return shown


@pytest.mark.long
@pytest.mark.usefixtures("no_lab")
def test_person_types_into_the_lab_and_leaves() -> None:
    terminal, inner = pty.openpty()
    argv = [sys.executable, "-m", "tests.lab.shell", "kvm"]
    with subprocess.Popen(argv, cwd=REPOSITORY, stdin=inner, stdout=inner, stderr=inner) as shell:
        os.close(inner)
        try:
            read_until(terminal, "booting the kvm flavour", TURN_SECONDS)  # others may come first
            welcome = read_until(terminal, r"lab-kvm:\S*# ", BOOT_SECONDS)
            assert "virsh list" in welcome
            os.write(terminal, b"sleep 100\r")
            time.sleep(1)
            os.write(terminal, b"\x03")
            read_until(terminal, r"\^C[^#]*lab-kvm:\S*# ", ANSWER_SECONDS)
            os.write(terminal, b"pulse demo\r")
            read_until(terminal, r"PULSE n=\d+ disks=\d+,\d+ state=ok", ANSWER_SECONDS)
            os.write(terminal, b"snapvm --help; exit 5\r")
            read_until(terminal, "Usage", ANSWER_SECONDS)
            status = shell.wait(ANSWER_SECONDS)
        finally:
            shell.kill()
            os.close(terminal)
    assert status == 5
    assert not list(Path(REPOSITORY, "build", "lab").glob(f"kvm-{shell.pid}"))
