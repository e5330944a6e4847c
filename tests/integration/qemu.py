"""A QEMU of the lab's image, emulating, without a lab: for tests against QEMU itself."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.lab.image import ensure_image

START_SECONDS = 60.0


class Machine:
    """A QEMU that runs; asked over QMP."""

    def __init__(self, connection: socket.socket) -> None:
        self._stream = connection.makefile("rw")
        self._stream.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its result."""
        print(json.dumps({"execute": command, "arguments": arguments}), file=self._stream)
        self._stream.flush()
        while True:
            answer = json.loads(self._stream.readline())
            assert "error" not in answer, answer
            if "return" in answer:
                return answer["return"]

    def ask(self, line: str) -> str:
        """Type a line into the human monitor."""
        return str(self.execute("human-monitor-command", **{"command-line": line}))


@contextmanager
def running(folder: Path, *options: str) -> Iterator[Machine]:
    """Start a QEMU with these options more, its socket in ``folder``."""
    path = folder / "qmp.sock"
    path.unlink(missing_ok=True)
    argv = [*ensure_image().qemu, "-nodefaults", "-display", "none", "-machine", "pc"]
    argv += ["-accel", "tcg", "-qmp", f"unix:{path},server=on,wait=off", *options]
    process = subprocess.Popen(argv)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(START_SECONDS)
            _connect(connection, path, process)
            yield Machine(connection)
    finally:
        process.kill()
        process.wait()


def _connect(connection: socket.socket, path: Path, process: subprocess.Popen[bytes]) -> None:
    """Connect to a QEMU that has just been started: its socket is there before it listens to it."""
    deadline = time.monotonic() + START_SECONDS
    while connection.connect_ex(str(path)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
