"""A small xenstored: paths, watches, transactions, over a socket pair and a thread."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import BinaryIO

from snapvm.hypervisor.xenstore import XenStore

_HEADER = struct.Struct("<IIII")
_PAYLOAD_LIMIT_BYTES = 4096
"""XENSTORE_PAYLOAD_MAX (xen/include/public/io/xs_wire.h)."""


class Message(IntEnum):
    """The kinds of messages that are understood (xs_wire.h, enum xsd_sockmsg_type)."""

    DIRECTORY = 1
    READ = 2
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    WRITE = 11
    RM = 13
    WATCH_EVENT = 15
    ERROR = 16
    RESUME = 18


class FakeXenstored:
    """Holds ``values``; ``on_write`` may answer a write as a guest would."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.resumed: list[str] = []
        self.on_write: Callable[[str, str], None] = lambda _path, _value: None
        self.on_request: Callable[[Message], None] = lambda _kind: None
        """Called before a request is answered, with what it asks for."""
        self.refused: set[Message] = set()
        """Requests that fail."""
        self.conflicts = 0
        """So many transactions end with EAGAIN first."""
        self._watches: dict[str, str] = {}
        self._transactions: dict[int, dict[str, str]] = {}
        self._lock = threading.RLock()

    @contextmanager
    def connected(self) -> Iterator[XenStore]:
        """Serve one connection for the block."""
        mine, theirs = socket.socketpair()
        self._socket = mine
        server = threading.Thread(target=self._serve, daemon=True)
        server.start()
        try:
            with XenStore(theirs) as store:
                yield store
        finally:
            server.join(5)
            mine.close()

    def set(self, path: str, value: str) -> None:
        """Write as somebody else; whoever watches is told."""
        with self._lock:
            self.values[path] = value
            for watched, token in self._watches.items():
                if path.startswith(watched):
                    self._send(Message.WATCH_EVENT, 0, 0, f"{path}\0{token}\0".encode())

    def _send(self, kind: Message, number: int, transaction: int, body: bytes) -> None:
        self._socket.sendall(_HEADER.pack(kind, number, transaction, len(body)) + body)

    def _serve(self) -> None:
        with self._socket.makefile("rb") as stream:
            self._serve_all(stream)

    def _serve_all(self, stream: BinaryIO) -> None:
        while header := stream.read(_HEADER.size):
            number_of_kind, number, transaction, length = _HEADER.unpack(header)
            body = stream.read(length)
            kind = Message(number_of_kind)
            self.on_request(kind)
            with self._lock:
                self._serve_one(kind, number, transaction, body)

    def _serve_one(self, kind: Message, number: int, transaction: int, body: bytes) -> None:
        try:
            if kind in self.refused:
                raise KeyError("EIO")
            self._send(kind, number, transaction, self._answer(kind, transaction, body))
        except KeyError as error:
            self._send(Message.ERROR, number, transaction, f"{error.args[0]}\0".encode())
            return
        if kind is Message.WATCH:  # a new watch fires at once
            self._send(Message.WATCH_EVENT, 0, 0, body)
        elif kind is Message.WRITE:
            path, _, value = body.partition(b"\0")
            if not transaction:
                self.set(path.decode(), value.decode())
            self.on_write(path.decode(), value.decode())

    def _answer(self, kind: Message, transaction: int, body: bytes) -> bytes:
        """Do what is asked, and return the answer; raise ``KeyError`` with the name of an error."""
        path, _, rest = (part.decode() for part in body.partition(b"\0"))
        if kind is Message.DIRECTORY:
            return self._names(path)
        if kind is Message.READ:
            return self._look(path, transaction).encode()
        if kind is Message.TRANSACTION_START:
            self._transactions[len(self._transactions) + 1] = {}
            return f"{len(self._transactions)}\0".encode()
        self._obey(kind, transaction, path, rest)
        return b"OK\0"

    def _obey(self, kind: Message, transaction: int, path: str, rest: str) -> None:
        match kind:
            case Message.WRITE if transaction:
                self._transactions[transaction][path] = rest
            case Message.WATCH:
                self._watches[path] = rest.removesuffix("\0")
            case Message.UNWATCH:
                del self._watches[path]
            case Message.TRANSACTION_END:
                self._end(transaction, is_commit=path == "T")
            case Message.RM:
                self._remove(path)
            case Message.RESUME:
                self.resumed.append(path)

    def _remove(self, path: str) -> None:
        if self.values.pop(path, None) is None:
            raise KeyError("ENOENT")

    def _look(self, path: str, transaction: int) -> str:
        seen = self.values | self._transactions.get(transaction, {})
        if path not in seen:
            raise KeyError("ENOENT")
        return seen[path]

    def _names(self, path: str) -> bytes:
        below = {
            key[len(path) + 1 :].split("/")[0] for key in self.values if key.startswith(f"{path}/")
        }
        if not below:
            raise KeyError("ENOENT")
        listed = b"".join(name.encode() + b"\0" for name in sorted(below))
        if len(listed) > _PAYLOAD_LIMIT_BYTES:
            raise KeyError("E2BIG")
        return listed

    def _end(self, transaction: int, *, is_commit: bool) -> None:
        changes = self._transactions[transaction]
        if is_commit and self.conflicts:
            self.conflicts -= 1
            raise KeyError("EAGAIN")
        if is_commit:
            for path, value in changes.items():
                self.set(path, value)
