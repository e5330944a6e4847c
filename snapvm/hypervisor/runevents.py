"""The events of one libvirt domain that tell when it ran, and what was done to it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

DEVICE_ADDED = "DEVICE_ADDED"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """An event of a domain, with QEMU's name and its time by ``time.monotonic()``."""

    name: str
    at: float


class RunEvents:
    """The events of one domain, in the order in which they arrived."""

    def __init__(self) -> None:
        self._events: list[RunEvent] = []
        self._changed = threading.Condition()

    def on_event(
        self, _link: Any, _dom: Any, name: str, seconds: int, micros: int, _details: Any, _own: Any
    ) -> None:
        """Add an event that libvirt delivers; its time is QEMU's, not that of the delivery."""
        age_seconds = time.time() - (seconds + micros / 1e6)
        self._add(RunEvent(name=name, at=time.monotonic() - age_seconds))

    def on_device_added(self, _link: Any, _dom: Any, _alias: str, _own: Any) -> None:
        """Add libvirt's own event for a new device, for which QEMU has none."""
        self._add(RunEvent(name=DEVICE_ADDED, at=time.monotonic()))

    def _add(self, event: RunEvent) -> None:
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def seen(self) -> tuple[RunEvent, ...]:
        """Return the events that have arrived so far."""
        with self._changed:
            return tuple(self._events)

    def wait_for(self, name: str, since: int, limit_seconds: float) -> tuple[RunEvent, ...]:
        """Wait for an event ``name`` behind the first ``since`` events; return all behind those."""
        with self._changed:
            self._changed.wait_for(
                lambda: any(event.name == name for event in self._events[since:]),
                timeout=limit_seconds,
            )
            return tuple(self._events[since:])
