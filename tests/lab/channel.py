"""The outside's end of the lab's command channel (the other end is ``host/agent.py``)."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

INPUT_CHUNK: Final = 32768


class ChannelClosed(Exception):
    """The other side is gone."""


class NoAnswer(Exception):
    """The other side lives but did not answer in time."""


@dataclass(frozen=True)
class Completed:
    """How a command in the lab ended.

    ``status`` is the exit status, or minus the signal's number; ``seconds`` is measured inside.
    """

    status: int
    stdout_bytes: bytes
    stderr_bytes: bytes
    seconds: float
    timed_out: bool = False

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are not UTF-8 survive as surrogates."""
        return self.stdout_bytes.decode(errors="surrogateescape")

    @property
    def stderr(self) -> str:
        """Standard error as text, likewise."""
        return self.stderr_bytes.decode(errors="surrogateescape")


@dataclass
class _Progress:
    """What is known so far about one command; guarded by the channel's condition."""

    pid: int | None = None
    output: dict[int, list[bytes]] = field(default_factory=lambda: {1: [], 2: []})
    exit: dict[str, Any] | None = None
    sink: Callable[[bytes], None] | None = None


class Remote:
    """A command that was started in the lab and may still run."""

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel = channel
        self._number = number

    def wait(self, timeout_seconds: float) -> Completed:
        """Wait for its end; raises ``NoAnswer`` when there is none in time."""
        return self._channel.wait(self._number, timeout_seconds)

    def wait_started(self, timeout_seconds: float = 30) -> int:
        """Wait until it runs and return its process id inside the lab."""
        return self._channel.wait_started(self._number, timeout_seconds)

    @property
    def running(self) -> bool:
        """Whether it still runs, as far as is known here."""
        return not self._channel.ended(self._number)

    def signal(self, number: int) -> None:
        """Send a signal to its whole process group."""
        self._channel.send(op="signal", id=self._number, signal=number)

    def write(self, data: bytes) -> None:
        """Give it bytes on standard input."""
        for start in range(0, len(data), INPUT_CHUNK):
            text = base64.b64encode(data[start : start + INPUT_CHUNK]).decode()
            self._channel.send(op="stdin", id=self._number, data=text)

    def close_input(self) -> None:
        """End its standard input."""
        self._channel.send(op="stdin", id=self._number, eof=True)

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal, when it has one."""
        self._channel.send(op="resize", id=self._number, rows=rows, columns=columns)


class Channel:
    """Carries any number of commands at once over one socket; safe to use from many threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._commands: dict[int, _Progress] = {}
        self._hello: dict[str, Any] | None = None
        self._closed = False
        self._reader = threading.Thread(target=self._read, name="lab-channel", daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Hang up; whoever waits gets ``ChannelClosed``."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._reader.join(10)
        self._connection.close()

    def send(self, **message: Any) -> None:
        """Write one message; raises ``ChannelClosed``."""
        try:
            with self._sending:
                self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise ChannelClosed from error

    def hello(self, timeout_seconds: float) -> dict[str, Any]:
        """Wait for the agent's first message."""
        self._wait_until(lambda: self._hello is not None, timeout_seconds)
        assert self._hello is not None
        return self._hello

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
        terminal: tuple[int, int] | None = None,
        sink: Callable[[bytes], None] | None = None,
    ) -> Remote:
        """Start a command; the lab kills it after ``timeout_seconds``.

        ``terminal`` (rows, columns) gives it a terminal. ``sink`` gets its output as it comes.
        """
        with self._changed:
            number = len(self._commands) + 1
            self._commands[number] = _Progress(sink=sink)
        self.send(
            op="start",
            id=number,
            argv=list(argv),
            env=dict(env or {}),
            timeout=timeout_seconds,
            pty=terminal,
        )
        return Remote(self, number)

    def ended(self, number: int) -> bool:
        """Tell whether a command's end was reported, or never will be."""
        with self._changed:
            return self._closed or self._commands[number].exit is not None

    def wait_started(self, number: int, timeout_seconds: float) -> int:
        """Wait until a command runs; return its process id (0 when it could not be started)."""
        progress = self._commands[number]
        self._wait_until(
            lambda: progress.pid is not None or progress.exit is not None, timeout_seconds
        )
        return progress.pid or 0

    def wait(self, number: int, timeout_seconds: float) -> Completed:
        """Wait for a command's end."""
        progress = self._commands[number]
        self._wait_until(lambda: progress.exit is not None, timeout_seconds)
        assert progress.exit is not None
        return Completed(
            status=progress.exit["status"],
            stdout_bytes=b"".join(progress.output[1]),
            stderr_bytes=b"".join(progress.output[2]),
            seconds=progress.exit["seconds"],
            timed_out=progress.exit["timed_out"],
        )

    def _wait_until(self, done: Callable[[], bool], timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while not done():
                if self._closed:
                    raise ChannelClosed
                left = deadline - time.monotonic()
                if left <= 0:
                    raise NoAnswer
                self._changed.wait(left)

    def _read(self) -> None:
        pending: list[bytes] = []
        try:
            while data := self._connection.recv(1 << 20):
                head, *tail = data.split(b"\n")
                pending.append(head)
                for part in tail:
                    self._take(json.loads(b"".join(pending)))
                    pending = [part]
        except OSError:
            pass  # the same as an orderly end: the machine is gone
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()

    def _take(self, message: dict[str, Any]) -> None:
        operation = message["op"]
        with self._changed:
            if operation == "hello":
                self._hello = message
                self._changed.notify_all()
                return
            progress = self._commands[message["id"]]
            if operation == "out":
                data = base64.b64decode(message["data"])
                if progress.sink:
                    progress.sink(data)
                else:
                    progress.output[message["stream"]].append(data)
                return
            if operation == "started":
                progress.pid = message["pid"]
            elif operation == "exit":
                progress.exit = message
            self._changed.notify_all()
