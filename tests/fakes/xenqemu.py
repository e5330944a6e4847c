"""A QEMU that answers on a socket of its own, as one that libxl has started for an HVM domain."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATE = b"the state of its devices" * 1000


class Refused(Exception):
    """What QEMU says to a command that it does not obey."""


@dataclass
class XenQemu:
    """One process; ``asked`` is what it was told to do."""

    version: tuple[int, int] = (10, 0)
    is_running: bool = True
    tells_writes: bool = False
    """Whether Xen hears of what it writes to."""
    has_died: bool = False
    asked: list[str] = field(default_factory=list)
    refuses: str = ""
    """The command that it does not obey."""
    error: str = ""
    """What it says then in the place of an error of QMP."""
    on_command: Callable[[str], None] = field(default=lambda _command: None, repr=False)
    descriptors: list[int] = field(default_factory=list)

    def obey(self, command: str, arguments: dict[str, Any], given: list[int]) -> Any:
        """Do what is asked; raise ``Refused``."""
        self.on_command(command)
        self.asked.append(command)
        if command == self.refuses:
            raise Refused(f"{command} is refused")
        if command == "query-status":
            return {"running": self.is_running}
        if command in ("stop", "cont"):
            self.is_running = command == "cont"
        elif command == "xen-set-global-dirty-log":
            self._tell_writes(arguments["enable"])
        elif command == "add-fd":
            self.descriptors += given
            return {"fdset-id": 3, "fd": given[0]}
        elif command == "xen-save-devices-state":
            self._save(arguments)
        elif command == "remove-fd":
            os.close(self.descriptors.pop())
        elif command == "query-fdsets":
            return [{"fdset-id": 3, "fds": [{"fd": fd}]} for fd in self.descriptors]
        return {}

    def _tell_writes(self, tells: bool) -> None:
        # QEMU 10.0, system/memory.c: memory_global_dirty_log_do_stop asserts that it was begun, and
        # is called by QEMU that runs; 6.2 asserts that what is begun was not.
        is_wrong = tells == self.tells_writes
        if is_wrong and (self.version == (6, 2) if tells else self.is_running):
            self.has_died = True
        self.tells_writes = tells

    def _save(self, arguments: dict[str, Any]) -> None:
        assert arguments == {"filename": "/dev/fdset/3", "live": False}
        flags = os.O_ACCMODE & _flags_of(self.descriptors[-1])
        if flags != os.O_WRONLY:
            raise Refused("no descriptor of the wanted access mode")
        os.write(self.descriptors[-1], STATE)

    @contextmanager
    def listening(self, path: Path) -> Iterator[None]:
        """Answer whoever connects to a socket, one after the other."""
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen()
            thread = threading.Thread(target=self._serve, args=(server,))
            thread.start()
            try:
                yield
            finally:
                server.shutdown(socket.SHUT_RDWR)
                thread.join(10)
                path.unlink()

    def _serve(self, server: socket.socket) -> None:
        with suppress(OSError):  # it is shut down at the end
            while not self.has_died:
                client, _ = server.accept()
                with client:
                    self._talk(client)

    def _talk(self, client: socket.socket) -> None:
        major, minor = self.version
        _say(client, {"QMP": {"version": {"qemu": {"major": major, "minor": minor, "micro": 0}}}})
        while not self.has_died:
            data, given, _, _ = socket.recv_fds(client, 1 << 16, 4)
            if not data:
                return
            asked = json.loads(data)
            _say(client, {"event": "RTC_CHANGE", "data": {}})
            try:
                answer = self.obey(asked["execute"], asked["arguments"], given)
            except Refused as refused:
                error = {"class": "GenericError", "desc": str(refused)}
                _say(client, {"error": self.error or error})
            else:
                if not self.has_died:
                    _say(client, {"return": answer})


def _say(client: socket.socket, what: object) -> None:
    client.sendall(json.dumps(what).encode() + b"\r\n")


def _flags_of(descriptor: int) -> int:
    told = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    return int(told.split("flags:")[1].split()[0], 8)
