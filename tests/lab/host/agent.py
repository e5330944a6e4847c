"""Runs commands inside the lab for the outside, over a virtio-serial port.

Both directions carry one JSON object per line, bytes in base64. From outside:
``start`` (id, argv, env, timeout, pty), ``stdin`` (id, data, eof), ``signal`` (id, signal),
``resize`` (id, rows, columns). From here: ``hello``, ``started`` (id, pid), ``out`` (id, stream,
data), ``exit`` (id, status, seconds, timed_out). Each command is a session of its own; its whole
process group is killed when its time is over.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import pty
import queue
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

CHUNK = 32768
AFTER_EXIT_SECONDS = 1.0
"""How long to read on when a command has ended but left its output open to a daemon."""


class Port:
    """The channel; whole messages only, from any thread."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115 - open as long as we run
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        """Write one message, in full, before anybody else's."""
        view = memoryview(json.dumps(message).encode() + b"\n")
        with self._lock:
            while view:
                view = view[self._file.write(view) or 0 :]

    def lines(self) -> Any:
        """Yield messages until the outside goes away."""
        pending = bytearray()
        while data := os.read(self._file.fileno(), 1 << 16):
            pending += data
            *whole, rest = pending.split(b"\n")
            pending = bytearray(rest)
            yield from (json.loads(line) for line in whole)


class Command:
    """One running command and the threads that carry its streams."""

    def __init__(self, port: Port, request: dict[str, Any]) -> None:
        self._port = port
        self._id = request["id"]
        self._timeout = request.get("timeout")
        self._window = request.get("pty")
        self._input: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._started = time.monotonic()
        env = {**os.environ, **(request.get("env") or {})}
        self._terminal = -1
        self._process = self._spawn(request["argv"], env)

    def _spawn(self, argv: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        if not self._window:
            pipe = subprocess.PIPE
            return subprocess.Popen(
                argv,
                env=env,
                cwd="/root",
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                start_new_session=True,
            )
        self._terminal, inner = pty.openpty()
        self.resize(*self._window)
        # setsid --ctty makes the terminal the controlling one, so that Ctrl-C reaches the shell.
        argv = ["setsid", "--ctty", "--wait", *argv]
        process = subprocess.Popen(
            argv, env=env, cwd="/root", stdin=inner, stdout=inner, stderr=inner
        )
        os.close(inner)
        return process

    @property
    def pid(self) -> int:
        """Process id, which is also that of its group."""
        return self._process.pid

    def give(self, data: bytes | None) -> None:
        """Queue bytes for standard input; ``None`` ends it."""
        self._input.put(data)

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size."""
        if self._terminal >= 0:
            fcntl.ioctl(
                self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0)
            )

    def kill(self, number: int) -> None:
        """Send a signal to the whole group; no matter when it has already ended."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def serve(self) -> None:
        """Carry the streams until the end and report it; runs in the command's own thread."""
        if self._terminal >= 0:
            readers = [self._thread(self._read, self._terminal, 1)]
            self._thread(self._write, self._terminal)
        else:
            process = self._process
            assert process.stdin
            assert process.stdout
            assert process.stderr
            readers = [
                self._thread(self._read, process.stdout.fileno(), 1),
                self._thread(self._read, process.stderr.fileno(), 2),
            ]
            self._thread(self._write_pipe, process.stdin)
        timed_out = self._wait()
        deadline = time.monotonic() + AFTER_EXIT_SECONDS
        for reader in readers:
            reader.join(max(0.0, deadline - time.monotonic()))
        self._input.put(None)
        self._port.send(
            op="exit",
            id=self._id,
            status=self._process.returncode,
            seconds=time.monotonic() - self._started,
            timed_out=timed_out,
        )

    def _thread(self, work: Any, *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        thread.start()
        return thread

    def _wait(self) -> bool:
        try:
            self._process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            self.kill(signal.SIGKILL)
            self._process.wait()
            return True
        return False

    def _read(self, fd: int, stream: int) -> None:
        with contextlib.suppress(OSError):  # a terminal gives EIO when its last user is gone
            while data := os.read(fd, CHUNK):
                text = base64.b64encode(data).decode()
                self._port.send(op="out", id=self._id, stream=stream, data=text)

    def _write(self, fd: int) -> None:
        with contextlib.suppress(OSError):  # the command need not read all, or at all
            while (data := self._input.get()) is not None:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]

    def _write_pipe(self, pipe: BinaryIO) -> None:
        self._write(pipe.fileno())
        with contextlib.suppress(OSError):
            pipe.close()


class Agent:
    """Hands the outside's messages to the commands they are for."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._commands: dict[int, Command] = {}

    def handle(self, message: dict[str, Any]) -> None:
        """Act on one message; a command that is already gone is no error."""
        operation = message["op"]
        if operation == "start":
            self._start(message)
            return
        command = self._commands.get(message["id"])
        if command is None:
            return
        if operation == "stdin":
            if message.get("data"):
                command.give(base64.b64decode(message["data"]))
            if message.get("eof"):
                command.give(None)
        elif operation == "signal":
            command.kill(message["signal"])
        elif operation == "resize":
            command.resize(message["rows"], message["columns"])

    def _start(self, message: dict[str, Any]) -> None:
        number = message["id"]
        try:
            command = Command(self._port, message)
        except OSError as error:
            # What a shell says and returns for a command that it cannot start.
            text = base64.b64encode(f"{message['argv'][0]}: {error.strerror}\n".encode()).decode()
            self._port.send(op="out", id=number, stream=2, data=text)
            self._port.send(op="exit", id=number, status=127, seconds=0.0, timed_out=False)
            return
        self._commands[number] = command
        self._port.send(op="started", id=number, pid=command.pid)
        threading.Thread(target=self._serve, args=(number, command), daemon=True).start()

    def _serve(self, number: int, command: Command) -> None:
        command.serve()
        del self._commands[number]


def main() -> None:
    """Serve the port named first; the file named second lists what failed during start."""
    port = Port(sys.argv[1])
    agent = Agent(port)
    failures = Path(sys.argv[2]).read_text()
    port.send(op="hello", kernel=os.uname().release, failures=failures)
    for message in port.lines():
        agent.handle(message)


if __name__ == "__main__":
    main()
