"""``python -m tests.lab.shell kvm|xen``: a shell in a booted lab, for a person."""

from __future__ import annotations

import argparse
import os
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tests.lab.channel import ChannelClosed
from tests.lab.errors import LabError
from tests.lab.image import say
from tests.lab.vm import Flavour, Lab

DAY_SECONDS: Final = 86400
DEMO_SECONDS: Final = 180
END_OF_INPUT: Final = b"\x04"

WELCOME: Final = """
This is a {flavour} host of its own; nothing you do here outlives it. The checkout is /snapvm
(read-only, edits on the host show at once), /share is build/lab/…/share on the host.
A domain "demo" with two disks runs:   pulse demo      snapvm take demo      {list}
More of them:   lab-domain create NAME --disks 3 --start        Leave with: exit
"""


def main() -> int:
    """Boot the flavour named on the command line and relay a shell; return its exit status."""
    parser = argparse.ArgumentParser(prog="lab-shell", description=__doc__)
    parser.add_argument("flavour", choices=[flavour.value for flavour in Flavour])
    flavour = Flavour(parser.parse_args().flavour)
    try:
        with Lab(flavour) as lab:
            say("starting the domain demo")
            lab.run(
                "lab-domain create demo --disks 2 --start", timeout_seconds=DEMO_SECONDS, check=True
            )
            listing = {Flavour.KVM: "virsh list", Flavour.XEN: "xl list"}[flavour]
            print(WELCOME.format(flavour=flavour.upper(), list=listing), flush=True)
            return _relay(lab)
    except LabError as error:
        say(str(error))
        return 1


def _relay(lab: Lab) -> int:
    size = shutil.get_terminal_size()
    env = {"PS1": f"lab-{lab.flavour}:\\w# ", "TERM": os.environ.get("TERM", "dumb")}
    shell = lab.start(
        ["bash", "--norc"],
        timeout_seconds=DAY_SECONDS,
        env=env,
        terminal=(size.lines, size.columns),
        sink=_show,
    )
    fd = sys.stdin.fileno()
    ended = False
    with _raw_terminal(fd) as window:
        while shell.running:
            if window.changed:
                window.changed = False
                size = shutil.get_terminal_size()
                shell.resize(size.lines, size.columns)
            ready = [] if ended else [fd]
            if not select.select(ready, [], [], 0.1)[0]:
                continue
            data = os.read(fd, 4096)
            ended = not data
            try:
                shell.write(data or END_OF_INPUT)
            except ChannelClosed:
                break
    status = lab.finish(shell, timeout_seconds=30).status
    print()
    return status if status >= 0 else 128 - status


def _show(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


@dataclass
class _Window:
    changed: bool = False


@contextmanager
def _raw_terminal(fd: int) -> Iterator[_Window]:
    """Give every key to the shell, Ctrl-C too; note when the window changes size."""
    window = _Window()
    if not os.isatty(fd):
        yield window
        return

    def resized(*_: object) -> None:
        # Only a note: a handler that wrote to the channel could meet its own lock held.
        window.changed = True

    before = termios.tcgetattr(fd)
    previous = signal.signal(signal.SIGWINCH, resized)
    tty.setraw(fd)
    try:
        yield window
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, previous)


if __name__ == "__main__":
    sys.exit(main())
