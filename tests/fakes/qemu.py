"""The QEMU of a domain of the fake: its monitor, its migration settings, its stream into a pipe.

A stream is the domain's number, as in an image of the fake hypervisor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from snapvm.model import DomainState
from tests.fakes.machine import FROZEN, Machine

_ACTIVE = ("setup", "active", "pre-switchover")
_CAPABILITIES = ("events", "xbzrle", "pause-before-switchover", "background-snapshot")
_PARAMETERS = {"downtime-limit": 300, "max-bandwidth": 1 << 27}


class Refused(Exception):
    """What QEMU says to a command that it does not obey."""


@dataclass
class Qemu:
    """One process; a domain that is started has another."""

    capabilities: dict[str, bool] = field(
        default_factory=lambda: {name: name == "events" for name in _CAPABILITIES}
    )
    parameters: dict[str, int] = field(default_factory=_PARAMETERS.copy)
    status: str = "none"
    run_state: str = "paused"
    """Why the guest stands still, when it does."""
    given: dict[str, int] = field(default_factory=dict)
    """Descriptors by their names."""
    pipe: int = -1
    kept: int = 0
    """The domain's number at the instant at which memory was protected."""
    was_running: bool = False
    """When the stream began."""

    def is_as_it_was(self) -> bool:
        """Tell whether nothing of a capture is left in it.

        A descriptor may be: the next one of its name takes its place, and its pipe is broken.
        """
        fresh = Qemu()
        is_set = (self.capabilities, self.parameters) != (fresh.capabilities, fresh.parameters)
        return not is_set and self.status not in _ACTIVE


@dataclass
class QemuMachine(Machine):
    """A domain that is a QEMU."""

    qemu: Qemu = field(default_factory=Qemu)
    tell: Callable[[str], None] = field(default=lambda _event: None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what a dead snapvm, from whom this comes, has heard and held."""
        qemu = replace(self.qemu, given={}, pipe=-1)
        return {**vars(self), "qemu": qemu, "tell": None}

    def set_state(self, state: DomainState) -> None:
        """Let it run or stand still, and tell of it."""
        if state is self.domain.state:
            return
        self.domain = replace(self.domain, state=state)
        self.tell("RESUME" if state is DomainState.RUNNING else "STOP")
        if state is DomainState.RUNNING:
            self.qemu.run_state = "paused"

    def obey(self, command: str, given: Mapping[str, Any]) -> Any:
        """Do what the monitor is told; raise ``Refused``."""
        how = getattr(self, "_" + command.replace("-", "_"))
        return how(**{name.replace("-", "_"): value for name, value in given.items()})

    def _query_migrate(self) -> dict[str, Any]:
        self._go_on()
        ram = {"normal": 1, "total": 8, "remaining": 0, "dirty-sync-count": 2}
        told = {"status": self.qemu.status, "setup-time": 80}
        if self.qemu.status == "none":
            return {}
        return told if self.qemu.status == "setup" else {**told, "ram": ram}

    def _go_on(self) -> None:
        """Let the stream come a step further, which is done between two questions."""
        qemu, is_running = self.qemu, self.domain.state is DomainState.RUNNING
        if qemu.status == "setup":
            if qemu.capabilities["background-snapshot"] and is_running:
                return
            self._keep()
            qemu.status = "active"
        elif qemu.status == "active" and qemu.capabilities["background-snapshot"]:
            self._write()
        elif qemu.status == "active":
            self.set_state(DomainState.PAUSED)
            qemu.run_state = "finish-migrate"
            if qemu.capabilities["pause-before-switchover"] and qemu.was_running:
                qemu.status = "pre-switchover"
            else:
                self._write()

    def _keep(self) -> None:
        self.qemu.kept = self.count | FROZEN * self.frozen

    def _write(self) -> None:
        """Write all of it; where nobody reads it the stream has failed."""
        qemu, is_background = self.qemu, self.qemu.capabilities["background-snapshot"]
        if not is_background:
            self._keep()
        try:
            os.write(qemu.pipe, qemu.kept.to_bytes(8, "little"))
        except OSError:
            self._end("failed")
            return
        self._close()
        qemu.status = "completed"
        if not is_background:
            qemu.run_state = "postmigrate"

    def _end(self, status: str) -> None:
        """Give the stream up; a guest that was stopped for its end runs again."""
        self._close()
        self.qemu.status = status
        if self.qemu.run_state == "finish-migrate" and self.qemu.was_running:
            self.set_state(DomainState.RUNNING)

    def _close(self) -> None:
        with suppress(OSError):
            os.close(self.qemu.pipe)
        self.qemu.pipe = -1

    def _migrate(self, uri: str) -> dict[str, Any]:
        qemu = self.qemu
        if qemu.status in _ACTIVE:
            raise Refused("There's a migration process in progress")
        if uri.removeprefix("fd:") not in qemu.given:
            raise Refused("File descriptor named 'snapvm' has not been found")
        qemu.pipe = qemu.given.pop(uri.removeprefix("fd:"))
        qemu.status, qemu.was_running = "setup", self.domain.state is DomainState.RUNNING
        return {}

    def _migrate_continue(self, state: str) -> dict[str, Any]:
        if self.qemu.status != state:
            raise Refused(f"Migration not in expected state: {self.qemu.status}")
        self._write()
        return {}

    def _migrate_cancel(self) -> dict[str, Any]:
        if self.qemu.status in _ACTIVE:
            self._end("cancelled")
        return {}

    def getfd(self, fdname: str, descriptor: int) -> dict[str, Any]:
        """Take a descriptor."""
        self._closefd(fdname)
        self.qemu.given[fdname] = os.dup(descriptor)
        return {}

    def _closefd(self, fdname: str) -> dict[str, Any]:
        with suppress(KeyError):
            os.close(self.qemu.given.pop(fdname))
        return {}

    def _query_migrate_capabilities(self) -> list[dict[str, Any]]:
        return [{"capability": name, "state": on} for name, on in self.qemu.capabilities.items()]

    def _migrate_set_capabilities(self, capabilities: list[dict[str, Any]]) -> dict[str, Any]:
        if self.qemu.status in _ACTIVE:
            raise Refused("There's a migration process in progress")
        self.qemu.capabilities |= {each["capability"]: each["state"] for each in capabilities}
        return {}

    def _query_migrate_parameters(self) -> dict[str, int]:
        return dict(self.qemu.parameters)

    def _migrate_set_parameters(self, **wanted: int) -> dict[str, Any]:
        self.qemu.parameters |= {name.replace("_", "-"): each for name, each in wanted.items()}
        return {}

    def _query_version(self) -> dict[str, Any]:
        return {"qemu": {"major": 10, "minor": 0, "micro": 0}}

    def _query_status(self) -> dict[str, Any]:
        is_running = self.domain.state is DomainState.RUNNING
        return {"status": "running" if is_running else self.qemu.run_state}

    def _rtc_reset_reinjection(self) -> dict[str, Any]:
        return {}
