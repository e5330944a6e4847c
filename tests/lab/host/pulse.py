"""``pulse``: sends one line to a pulse guest's console and prints its answer."""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import select
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from tests.lab.host.patience import patient
from tests.lab.host.places import SOCKET_FOLDER, on_xen

TRY_SECONDS: Final = 3.0
"""After this long without an answer the question is put again: consoles lose characters."""


@contextmanager
def console(name: str) -> Iterator[int]:
    """Open a domain's console, alone, as a file descriptor; ``OSError`` when there is none."""
    with (SOCKET_FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _xen_console(name) if on_xen() else _libvirt_console(name) as fd:
            yield fd


# Each flavour imports only what it needs: starting Python is most of what a question costs.


@contextmanager
def _libvirt_console(name: str) -> Iterator[int]:
    import socket

    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(SOCKET_FOLDER / f"{name}.sock"))
        yield connection.fileno()


@contextmanager
def _xen_console(name: str) -> Iterator[int]:
    import subprocess
    import termios
    import tty

    def output(*argv: str) -> str:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise OSError(done.stderr.strip() or f"{argv[0]} failed")
        return done.stdout.strip()

    domid = output("xl", "domid", name)
    fd = os.open(
        output("xenstore-read", f"/local/domain/{domid}/console/tty"), os.O_RDWR | os.O_NOCTTY
    )
    try:
        tty.setraw(fd)
        termios.tcflush(fd, termios.TCIFLUSH)
        yield fd
    finally:
        os.close(fd)


def ask(fd: int, line: str, deadline: float) -> str | None:
    """Return the guest's answer to a line, or ``None`` when there is none before ``deadline``.

    The question carries a token and the answer a sum, so that neither an old answer nor one with
    characters missing is taken. It is put again after a while; a late answer to an earlier one will
    do, since a guest may always need that long.
    """
    received = b""
    tokens: list[str] = []
    while (now := time.monotonic()) < deadline:
        tokens.append(os.urandom(3).hex())
        os.write(fd, f"\n@{tokens[-1]} {line}\n".encode())
        until = min(deadline, now + TRY_SECONDS)
        while (left := until - time.monotonic()) > 0:
            if not select.select([fd], [], [], left)[0]:
                break
            data = os.read(fd, 4096)
            if not data:
                return None
            received = (received + data)[-65536:]
            if (answer := _answer_in(received, tokens)) is not None:
                return answer
    return None


def _answer_in(received: bytes, tokens: Sequence[str]) -> str | None:
    pattern = rf"@(?:{'|'.join(tokens)}) (.*) \*([0-9a-f]{{4}})\r*\n"
    for found in re.finditer(pattern.encode(), received):
        total = 0
        for byte in found[1]:
            total = (total * 31 + byte) & 0xFFFF
        if total == int(found[2], 16):
            return found[1].decode(errors="replace")
    return None


def main() -> None:
    """Parse the command line, ask, print; status 1 when there is no answer."""
    parser = argparse.ArgumentParser(prog="pulse", description=__doc__)
    parser.add_argument("name", help="the domain")
    parser.add_argument(
        "line", nargs="?", default="?", help="? | who | damage | dirty MIB | pace MS"
    )
    parser.add_argument("--timeout", type=float, default=15, help="seconds, for a usual machine")
    asked = parser.parse_args()
    deadline = time.monotonic() + patient(asked.timeout)
    problem = "no answer"
    while time.monotonic() < deadline:
        try:
            with console(asked.name) as fd:
                answer = ask(fd, asked.line, deadline)
        except OSError as error:  # not started yet, or between two lives: try again until the end
            problem = str(error)
            answer = None
        if answer is not None:
            print(answer)
            return
        time.sleep(0.2)
    sys.exit(f"pulse: {asked.name}: {problem}")


if __name__ == "__main__":
    main()
