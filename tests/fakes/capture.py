"""A capture by the fake hypervisor: the window, and the image written in it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from snapvm import durable
from snapvm.clock import WindowClock
from snapvm.failures import CaptureFailed, PausedMeanwhile
from snapvm.hypervisor.base import Freeze
from snapvm.imageformats import LIBVIRT_FILE, LIBVIRT_SAVE
from snapvm.interrupt import shielded
from snapvm.model import Domain, DomainState, MemoryRecord
from tests.fakes.machine import Machine, image_bytes


class Capturing(Protocol):
    """Who captures; see ``FakeHypervisor``."""

    before: Callable[[str], None]
    arming: Callable[[threading.Event], object]

    def state_of(self, name: str) -> DomainState: ...

    def suspend(self, name: str) -> None: ...

    def resume(self, domain: Domain) -> None: ...


class FakeCapture:
    """See ``Capture``."""

    method = "fake"
    is_brief = True

    def __init__(
        self,
        own: Capturing,
        machine: Machine,
        folder: Path | None,
        clock: WindowClock,
        *,
        was_running: bool,
    ) -> None:
        self._own = own
        self._machine = machine
        self._folder = folder
        self._clock = clock
        self._given_up = threading.Event()
        self._was_running = was_running

    @contextmanager
    def window(
        self, *, leave_standing: bool = False, freeze: Freeze | None = None
    ) -> Iterator[None]:
        name = self._machine.domain.name
        was_running = self._was_running
        if was_running and self._own.state_of(name) is DomainState.PAUSED:
            raise PausedMeanwhile(domain=name)
        stays = False
        if freeze is not None:
            freeze()
        try:
            self._own.before("window")
            if was_running:
                self._own.suspend(name)
                self._clock.stopped()
            if self._folder is not None:
                self._write(self._folder / LIBVIRT_FILE)
            yield
            stays = leave_standing
        finally:
            if was_running and not stays:
                with shielded():  # as the drivers do
                    self._own.resume(self._machine.domain)
                self._clock.resumed()

    def _write(self, image: Path) -> None:
        with (
            durable.failing_as_storage(image),
            os.fdopen(durable.create(image), "wb") as file,
        ):
            file.write(image_bytes(self._machine.count, frozen=self._machine.frozen))

    def arm(self) -> None:
        self._own.before("arm")
        self._own.arming(self._given_up)

    def give_up(self) -> None:
        self._given_up.set()

    def drain(self) -> MemoryRecord | None:
        self._own.before("drain")
        if self._given_up.is_set():
            raise CaptureFailed(domain=self._machine.domain.name, why="it was given up")
        if self._folder is None:
            return None
        size_bytes = (self._folder / LIBVIRT_FILE).stat().st_size
        return MemoryRecord(file=LIBVIRT_FILE, format=LIBVIRT_SAVE, size_bytes=size_bytes)
