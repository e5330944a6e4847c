"""A domain as libvirt's Python module shows it; see ``libvirtd``."""

# ruff: noqa: N802 - the names are libvirt's own

from __future__ import annotations

import json
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from snapvm.errors import SnapvmError
from snapvm.model import DomainState
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.machine import image_bytes
from tests.fakes.qemu import Qemu, QemuMachine, Refused

INVALID, AGENT = 55, 86
"""Of virErrorNumber."""
_NUMBERS = {DomainState.RUNNING: 1, DomainState.PAUSED: 3, DomainState.SHUTOFF: 5}
_START_PAUSED, _OFF = 1, -1


class LibvirtError(Exception):
    """Stands for ``libvirtError``."""

    def __init__(self, said: str, code: int) -> None:
        super().__init__(said)
        self.code = code

    def get_error_message(self) -> str:
        return str(self)

    def get_error_code(self) -> int:
        return self.code


def do(deed: Callable[[], None]) -> None:
    try:
        deed()
    except SnapvmError as error:
        raise LibvirtError(str(error), INVALID) from None


class LibvirtDomain:
    """A handle: it keeps the id that the domain had when it was looked up."""

    def __init__(
        self, hypervisor: FakeHypervisor, connect: Callable[[], Any], machine: QemuMachine
    ) -> None:
        self._hypervisor = hypervisor
        self.connect = connect
        self._machine = machine
        run = machine.domain.run if machine.domain.state.has_memory else None
        self._number = int(run or _OFF)

    def _require_on(self) -> None:
        if not self._machine.domain.state.has_memory:
            raise LibvirtError("Requested operation is not valid: domain is not running", INVALID)

    def ID(self) -> int:
        return self._number

    def name(self) -> str:
        return self._machine.domain.name

    def UUIDString(self) -> str:
        return self._machine.domain.uuid

    def info(self) -> list[int]:
        kib = self._machine.domain.memory_bytes >> 10
        return [_NUMBERS[self._machine.domain.state], kib, kib, 1, 0]

    def state(self) -> list[int]:
        return [_NUMBERS[self._machine.domain.state], 0]

    def XMLDesc(self, _flags: int) -> str:
        return self._machine.domain.definition

    def isActive(self) -> int:
        return int(self._machine.domain.state.has_memory)

    def isPersistent(self) -> int:
        return 1

    def hasManagedSaveImage(self, _flags: int) -> int:
        return 0

    def jobInfo(self) -> list[int]:
        return [0]

    def jobStats(self) -> dict[str, int]:
        return {}

    def abortJob(self) -> None:
        """There is none that lasts."""

    def suspend(self) -> None:
        self._require_on()
        self._machine.set_state(DomainState.PAUSED)

    def resume(self) -> None:
        self._require_on()
        if self._machine.domain.state is DomainState.RUNNING:
            raise LibvirtError("Requested operation is not valid: domain is running", INVALID)
        self._machine.set_state(DomainState.RUNNING)

    def destroy(self) -> None:
        self._require_on()
        self._machine.qemu = Qemu()
        self._hypervisor.stop(self._machine.domain)

    def createWithFlags(self, flags: int) -> None:
        paused = bool(flags & _START_PAUSED)
        do(partial(self._hypervisor.start, self._machine.domain, paused=paused))
        self._machine.qemu = Qemu()

    def snapshotCreateXML(self, text: str, _flags: int) -> None:
        self._require_on()
        memory = ET.fromstring(text).find("memory")
        assert memory is not None
        self._machine.set_state(DomainState.PAUSED)
        self._machine.qemu.run_state = "postmigrate"
        image = image_bytes(self._machine.count, frozen=self._machine.frozen)
        Path(memory.get("file", "")).write_bytes(image)

    def command(self, line: str) -> str:
        self._require_on()
        told = json.loads(line)
        return _answer(partial(self._machine.obey, told["execute"], told["arguments"]))

    def commandWithFiles(self, line: str, files: Sequence[int]) -> tuple[str, list[int]]:
        self._require_on()
        name = json.loads(line)["arguments"]["fdname"]
        return _answer(partial(self._machine.getfd, name, files[0])), []

    def agent(self, line: str) -> str:
        machine = self._machine
        if machine.domain.state is not DomainState.RUNNING:
            raise LibvirtError("Guest agent is not responding", AGENT)
        command = json.loads(line)["execute"]
        was_frozen = machine.frozen
        if command == "guest-fsfreeze-status":
            return json.dumps({"return": "frozen" if was_frozen else "thawed"})
        if command == "guest-get-time":
            return json.dumps({"return": time.time_ns()})
        if command == "guest-set-time":
            machine.clock_behind_seconds = 0.0
            return '{"return": {}}'
        machine.frozen = command == "guest-fsfreeze-freeze"
        return json.dumps({"return": int(was_frozen is not machine.frozen)})


def _answer(obey: Callable[[], Any]) -> str:
    try:
        return json.dumps({"return": obey()})
    except Refused as error:
        return json.dumps({"error": {"class": "GenericError", "desc": str(error)}})
