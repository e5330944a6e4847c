"""Read, write and watch xenstore, through which a Xen host and its guests communicate.

The protocol is a header of four words and NUL-terminated texts (xen/include/public/io/xs_wire.h,
docs/misc/xenstore.txt), which is simpler than a binding of libxenstore.  A connection belongs to
one thread.
"""

from __future__ import annotations

import select
import socket
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Self

from snapvm.clock import Deadline
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.interrupt import shielded
from snapvm.refusals import HostLacks

SOCKETS = (Path("/run/xenstored/socket"), Path("/var/run/xenstored/socket"))
_HEADER = struct.Struct("<IIII")
_LIMIT_BYTES = 4096
_ANSWER_SECONDS = 30.0
_CONFLICT_SECONDS = 10.0
_LOOK_WHERE = (
    "run snapvm as root, in the control domain; a xenstored in a domain of its own "
    "(XENSTORETYPE=domain) is not supported"
)
_TRY_LATER = "try again when `xenstore-ls` answers: nothing works on Xen's domains before"
CONFLICT = "EAGAIN"
"""How a transaction ends when somebody else has written what it has read."""


class _Op(IntEnum):
    DIRECTORY = 1
    READ = 2
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    WRITE = 11
    REMOVE = 13
    WATCH_EVENT = 15
    ERROR = 16
    RESUME = 18


class StoreRefused(XenFailed):
    """An error that xenstore returns; ``code`` is its name, such as ENOENT."""

    def __init__(self, code: str, what: str) -> None:
        super().__init__(f"xenstore: {what}: {code}")
        self.code = code


class XenStore:
    """A connection; use as a context manager.  Every failure is ``XenFailed``."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.settimeout(_ANSWER_SECONDS)
        self._pending = bytearray()
        self._events: deque[str] = deque()
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.close()

    def read(self, path: str, *, transaction: int = 0) -> str | None:
        """Return the value at ``path``; None when there is no such path."""
        try:
            return self._ask(_Op.READ, path, transaction=transaction).decode(errors="replace")
        except StoreRefused as refused:
            if refused.code == "ENOENT":
                return None
            raise

    def names(self, path: str) -> tuple[str, ...]:
        """Return the names below ``path``; none when there is no such path."""
        try:
            data = self._ask(_Op.DIRECTORY, path)
        except StoreRefused as refused:
            if refused.code == "ENOENT":
                return ()
            raise
        return tuple(name.decode(errors="replace") for name in data.split(b"\0") if name)

    def tree(self, path: str) -> dict[str, str]:
        """Return the values directly below ``path``, by name."""
        values = {name: self.read(f"{path}/{name}") for name in self.names(path)}
        return {name: value for name, value in values.items() if value is not None}

    def write(self, path: str, value: str, *, transaction: int = 0) -> None:
        """Put ``value`` at ``path``."""
        data = path.encode() + b"\0" + value.encode()
        self._exchange(_Op.WRITE, data, transaction, path)

    def remove(self, path: str) -> None:
        """Remove ``path`` and all below it; harmless when there is no such path."""
        try:
            self._ask(_Op.REMOVE, path)
        except StoreRefused as refused:
            if refused.code != "ENOENT":
                raise

    def replace(self, path: str, expected: str, value: str) -> bool:
        """Replace ``expected`` by ``value`` atomically; return False for any other value.

        Raises ``StoreRefused`` (EAGAIN) when somebody writes there all the time, as a guest can.
        """
        deadline = Deadline(_CONFLICT_SECONDS)
        while True:
            number = int(
                self._exchange(_Op.TRANSACTION_START, b"\0", 0, "transaction").strip(b"\0")
            )
            matches = self.read(path, transaction=number) == expected
            if matches:
                self.write(path, value, transaction=number)
            try:
                word = b"T\0" if matches else b"F\0"
                self._exchange(_Op.TRANSACTION_END, word, number, "transaction")
            except StoreRefused as refused:
                if refused.code != CONFLICT or not deadline.left_seconds:
                    raise
                continue  # somebody else wrote meanwhile: look again
            return matches

    @contextmanager
    def watched(self, path: str) -> Iterator[None]:
        """Watch ``path`` for the block; there is one event at its beginning."""
        data = path.encode() + b"\0snapvm\0"
        self._exchange(_Op.WATCH, data, 0, path)
        try:
            yield
        finally:
            self._exchange(_Op.UNWATCH, data, 0, path)
            self._events.clear()

    def wait(self, seconds: float) -> bool:
        """Wait for an event of a watch; return False when none comes in time."""
        deadline = Deadline(seconds)
        while not self._events:
            left = deadline.left_seconds
            # Bytes that came together with an answer are pending, and select does not see them.
            if not self._pending and not select.select([self._socket], [], [], left)[0]:
                return False
            try:
                with shielded():
                    self._message()
            except OSError as error:
                raise XenFailed(f"xenstore: {error}") from error
        self._events.popleft()
        return True

    def resumed(self, domid: int) -> None:
        """Tell xenstore that a suspended domain goes on; else it never reports its end."""
        self._ask(_Op.RESUME, str(domid))

    # --- inside ---

    def _ask(self, op: _Op, text: str, *, transaction: int = 0) -> bytes:
        return self._exchange(op, text.encode() + b"\0", transaction, text)

    def _exchange(self, op: _Op, data: bytes, transaction: int, what: str) -> bytes:
        if len(data) > _LIMIT_BYTES:
            raise StoreRefused("E2BIG", what)
        self._number += 1
        message = _HEADER.pack(op, self._number, transaction, len(data)) + data
        try:
            # After an interruption here, the next question would get the answer to this one.
            with shielded():
                self._socket.sendall(message)
                kind, body = self._answer()
        except OSError as error:
            raise XenFailed(f"xenstore: {what}: {error}") from error
        if kind == _Op.ERROR:
            raise StoreRefused(body.strip(b"\0").decode(errors="replace"), what)
        return body

    def _answer(self) -> tuple[int, bytes]:
        """Return the kind and body of the answer to the last question.

        A late answer to an earlier question, which had timed out, is skipped.
        """
        while True:
            answer = self._message()
            if answer is not None and answer[0] == self._number:
                return answer[1:]

    def _message(self) -> tuple[int, int, bytes] | None:
        """Receive a message and return its number, kind and body; keep an event and return None."""
        self._await(_HEADER.size)
        kind, number, _, length_bytes = _HEADER.unpack_from(self._pending)
        self._await(_HEADER.size + length_bytes)
        body = bytes(self._pending[_HEADER.size : _HEADER.size + length_bytes])
        del self._pending[: _HEADER.size + length_bytes]
        if kind == _Op.WATCH_EVENT:
            self._events.append(body.split(b"\0")[0].decode(errors="replace"))
            return None
        return number, kind, body

    def _await(self, count: int) -> None:
        """Receive until ``count`` bytes are pending; bytes stay pending when that times out."""
        while len(self._pending) < count:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("xenstored has gone")
            self._pending += data


def open_store() -> XenStore:
    """Connect to the store of this host; raise ``HostLacks``."""
    why, remedy = "", _LOOK_WHERE
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Not settimeout(): a Unix socket that does not block is refused where others are waiting.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(_ANSWER_SECONDS))
    for path in SOCKETS:
        try:
            connection.connect(str(path))
        except BlockingIOError:
            why, remedy = f"it has let nobody in for {_ANSWER_SECONDS:g} s", _TRY_LATER
            break
        except OSError as error:
            why = str(error)
        else:
            return XenStore(connection)
    connection.close()
    raise HostLacks(what=f"a xenstored that answers ({why})", remedy=remedy)


def _timeval(seconds: float) -> bytes:
    """Return a time as socket options have it: seconds and microseconds (socket(7))."""
    return struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
