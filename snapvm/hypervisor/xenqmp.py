"""Send QEMU its own commands where Xen runs it, over the socket that libxl has made for itself.

A command, and its answer, is one JSON object in a line (QEMU, docs/interop/qmp-spec).  QEMU listens
to one client of a socket at a time, and the next one waits: so one stays no longer than needed, as
libxl does (xen.git tools/libs/light/libxl_qmp.c).
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from snapvm.hypervisor.xenlib import XenFailed

FOLDER = Path("/var/run/xen")
ANSWER_SECONDS = 30.0
"""QEMU stops when the I/O that it has begun is done; the guest stands still meanwhile."""
_MAX_LINE_BYTES = 1 << 20

Version = tuple[int, int]


def socket_of(domid: int) -> Path:
    """Return the path of the socket; a domain without a QEMU has none."""
    return FOLDER / f"qmp-libxl-{domid}"


class XenQmp:
    """A conversation with one QEMU."""

    def __init__(self, connection: socket.socket, lines: IO[bytes], domid: int) -> None:
        self._connection = connection
        self._lines = lines
        self._domid = domid
        self.version = _version(self._answer("QMP"))
        self.execute("qmp_capabilities")

    def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        descriptors: Sequence[int] = (),
    ) -> Any:
        """Run a command and return what it returns; raise ``XenFailed`` when QEMU refuses."""
        line = json.dumps({"execute": command, "arguments": dict(arguments or {})}) + "\n"
        try:
            socket.send_fds(self._connection, [line.encode()], descriptors)
        except OSError as failure:
            raise _failed(self._domid, failure) from failure
        return self._answer("return")

    def _answer(self, key: str) -> Any:
        """Return what is next said under a key; events are for others."""
        while True:
            try:
                line = self._lines.readline(_MAX_LINE_BYTES)
                said = json.loads(line) if line else {}
            except (OSError, ValueError) as failure:
                raise _failed(self._domid, failure) from failure
            if not line or not isinstance(said, dict):
                raise _failed(self._domid, "it has closed the connection, or says what is no QMP")
            if "error" in said:
                raise _failed(self._domid, _reason(said["error"]))
            if key in said:
                return said[key]


@contextmanager
def talking(domid: int) -> Iterator[XenQmp]:
    """Talk to the QEMU of a domain in the block; raise ``XenFailed`` when it does not answer."""
    with _connected(domid) as connection, connection.makefile("rb") as lines:
        yield XenQmp(connection, lines, domid)


def _connected(domid: int) -> socket.socket:
    with ExitStack() as undo:
        try:
            connection = undo.enter_context(socket.socket(socket.AF_UNIX))
            connection.settimeout(ANSWER_SECONDS)
            connection.connect(str(socket_of(domid)))
        except OSError as failure:
            raise _failed(domid, failure) from failure
        undo.pop_all()
        return connection


def _version(greeting: Any) -> Version:
    """Return the first two numbers of QEMU's version."""
    try:
        told = greeting["version"]["qemu"]
        return int(told["major"]), int(told["minor"])
    except (LookupError, TypeError, ValueError) as failure:
        raise XenFailed(f"QEMU does not tell its version ({failure!r})") from failure


def _reason(error: Any) -> object:
    """Return what an error says, also one that is none of QMP's."""
    return error.get("desc", "it gives no reason") if isinstance(error, dict) else error


def _failed(domid: int, why: object) -> XenFailed:
    return XenFailed(f"QEMU of domain {domid} (`{socket_of(domid)}`): {why}")
