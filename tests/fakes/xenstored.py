"""A small xenstored: paths, watches, transactions, over a socket pair and a thread."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from snapvm.hypervisor.xenstore import XenStore

_HEADER = struct.Struct("<IIII")
_PAYLOAD_LIMIT_BYTES = 4096
"""XENSTORE_PAYLOAD_MAX (xen/include/public/io/xs_wire.h)."""


class FakeXenstored:
    """Holds ``values``; ``on_write`` may answer a write as a guest would."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.resumed: list[str] = []
        self.on_write: Callable[[str, str], None] = lambda _path, _value: None
        self.on_request: Callable[[int], None] = lambda _kind: None
        """Called before a request is answered, with what it asks for."""
        self.refused: set[int] = set()
        """Kinds of requests that fail."""
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
                    self._send(15, 0, 0, f"{path}\0{token}\0".encode())

    def _send(self, kind: int, number: int, transaction: int, body: bytes) -> None:
        self._socket.sendall(_HEADER.pack(kind, number, transaction, len(body)) + body)

    def _serve(self) -> None:
        with self._socket.makefile("rb") as stream:
            self._serve_all(stream)

    def _serve_all(self, stream: BinaryIO) -> None:
        while header := stream.read(_HEADER.size):
            kind, number, transaction, length = _HEADER.unpack(header)
            body = stream.read(length)
            self.on_request(kind)
            with self._lock:
                try:
                    if kind in self.refused:
                        raise KeyError("EIO")
                    answer = self._answer(kind, transaction, body)
                    self._send(kind, number, transaction, answer)
                    if kind == 4:
                        self._send(15, 0, 0, body)
                except KeyError as error:
                    self._send(16, number, transaction, f"{error.args[0]}\0".encode())
                else:
                    if kind == 11:
                        path, _, value = body.partition(b"\0")
                        if not transaction:
                            self.set(path.decode(), value.decode())
                        self.on_write(path.decode(), value.decode())

    def _answer(self, kind: int, transaction: int, body: bytes) -> bytes:
        path = body.split(b"\0")[0].decode()
        if kind in (1, 2):
            return self._names(path) if kind == 1 else self._look(path, transaction).encode()
        if kind == 11:
            if transaction:
                self._transactions[transaction][path] = body.split(b"\0", 1)[1].decode()
        elif kind == 4:
            self._watches[path] = body.split(b"\0")[1].decode()
        elif kind == 5:
            del self._watches[path]
        elif kind == 6:
            self._transactions[len(self._transactions) + 1] = {}
            return f"{len(self._transactions)}\0".encode()
        elif kind == 7:
            self._end(transaction, is_commit=path == "T")
        elif kind == 13:
            self._remove(path)
        elif kind == 18:
            self.resumed.append(path)
        return b"OK\0"

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
