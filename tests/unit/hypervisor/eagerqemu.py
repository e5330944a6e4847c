"""A QEMU that may be through with the memory before anybody else stops the guest."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from snapvm.hypervisor.capturejob import CaptureJob
from snapvm.hypervisor.pause import WatchedPause
from snapvm.model import DomainState
from tests.unit.hypervisor.fakedomain import DOMAIN, PAUSED, RUNNING, FakeDomain, happened

PAGES = b"pages"
RUN = "process 4711 since 5000"


@dataclass
class EagerQemu(FakeDomain):
    """A domain whose QEMU makes background snapshots, once it has read all of the memory."""

    is_quick: bool = False
    """It has done so before anybody else stops the guest, once, and stops it itself."""
    is_told_at_once: bool = True
    untold: list[tuple[str, float]] = field(default_factory=list)
    is_as_quick: bool = False
    """It has done so in the instant in which it is told to stop the guest."""
    is_slow_to_flush: bool = False
    """It has read all of the memory by the time it has stopped the guest as it was told."""
    fails: bool = False
    """A disk of the guest fails as soon as QEMU has begun, and the guest stands still for it."""
    is_paused_by_owner: bool = False
    """As soon as QEMU has begun."""
    run_state: str = "paused"
    """Why it stands still, when it does."""
    said: list[str] = field(default_factory=list)
    status: str = "none"
    is_large: bool = False
    """It does not get through all of the memory as long as anybody waits."""
    pipe: int = -1

    def suspend(self) -> None:
        self.said.append("suspend")
        self.tell()
        if self.is_as_quick:
            happened(self.events, "STOP")
            self.protect()
            happened(self.events, "RESUME")
        elif self.state_now == RUNNING:
            super().suspend()
        if self.is_slow_to_flush and self.status == "setup":
            self.protect()

    def resume(self) -> None:
        self.said.append("resume")
        super().resume()
        self.run_state = "paused"
        if self.status == "active":
            self.end("completed")

    def qemuMonitorCommandWithFiles(  # noqa: N802 - libvirt's own name
        self, _handle: object, _line: str, descriptors: list[int], _flags: int
    ) -> tuple[str, list[int]]:
        self.pipe = os.dup(descriptors[0])
        return '{"return": {}}', []

    def qemuMonitorCommand(  # noqa: N802 - libvirt's own name
        self, _handle: object, line: str, _flags: int
    ) -> str:
        command = json.loads(line)["execute"]
        if command == "query-migrate":
            answer = self.look()
            is_through = self.status == "setup" and not self.is_large
            if is_through and self.state_now == PAUSED:
                self.protect()
            return json.dumps({"return": answer})
        if command == "query-status":
            now = "running" if self.state_now == RUNNING else self.run_state
            return json.dumps({"return": {"status": now}})
        self.said.append(command)
        if command == "migrate":
            self.status = "setup"
            if self.fails:
                self.fails = False
                self.run_state, self.state_now = "io-error", PAUSED
                happened(self.events, "STOP")
            if self.is_paused_by_owner:
                super().suspend()
            if self.is_quick:
                self.protect()
                self.untold += [(name, time.time()) for name in ("STOP", "RESUME")]
                self.tell(None if self.is_told_at_once else 0)
        if command == "migrate_cancel":
            self.is_quick = False
            self.end("cancelled")
        return '{"return": {}}'

    def tell(self, count: int | None = None) -> None:
        """Let what has happened be heard."""
        for name, at in self.untold[:count]:
            self.events.on_event(None, None, name, int(at), int(at % 1 * 1e6), None, None)
        del self.untold[:count]

    def look(self) -> dict[str, Any]:
        pages = int(self.status == "active")
        return {"status": self.status, "ram": {"normal": pages}, "setup-time": 80}

    def protect(self) -> None:
        assert self.run_state == "paused", "invalid runstate transition"
        self.status = "active"
        os.write(self.pipe, PAGES)

    def end(self, status: str) -> None:
        if status == "cancelled":
            with pytest.raises(BrokenPipeError):
                os.write(self.pipe, PAGES)
        self.status = status
        os.close(self.pipe)


def owners(job: CaptureJob, qemu: EagerQemu) -> CaptureJob:
    """Return the job of a guest that its owner has paused."""
    qemu.state_now = PAUSED
    paused = replace(DOMAIN, state=DomainState.PAUSED)
    return replace(job, domain=paused, pause=WatchedPause(paused, qemu, qemu.events, job.clock))
