"""Have QEMU write a migration stream into a memory image: prepare, begin, watch and end it.

All ways to capture memory by QEMU's own commands use this.  The stream goes through a pipe into an
image that ``virsh restore`` can start (see ``drainpipe`` and ``snapvm.memory.libvirtimage``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from snapvm import retry
from snapvm.clock import Deadline
from snapvm.hypervisor import domainxml, hostports, qmp
from snapvm.hypervisor.base import ImageWriter
from snapvm.hypervisor.capturejob import CaptureJob
from snapvm.hypervisor.drainpipe import (
    PATIENT_LIMIT_SECONDS,
    STALL_LIMIT_SECONDS,
    Drainpipe,
)
from snapvm.hypervisor.libvirtlink import (
    XML_INACTIVE,
    XML_MIGRATABLE,
    XML_SECURE,
    LibvirtFailed,
    spoken,
)
from snapvm.hypervisor.qemusettings import Monitor
from snapvm.hypervisor.qmp import QMP_ERROR, Qmp
from snapvm.model import MemoryRecord

log = logging.getLogger(__name__)

STREAM_NAME = "snapvm"
WINDOW_POLL_SECONDS = 0.002
DRAIN_POLL_SECONDS = 0.1
CANCEL_LIMIT_SECONDS = 60.0
_ENDED = ("completed", "failed", "cancelled")
_NONE = "none"
_UNSAVED_DEVICE = "non-migratable device"
"""So QEMU calls one whose state it does not save (migration/savevm.c); it is no blocker of which it
would tell before."""

State = Mapping[str, Any]
"""What ``query-migrate`` returns."""


class NotPossible(Exception):
    """A way to capture memory is not possible here; the text says why."""


def require_possible(monitor: Monitor) -> None:
    """Raise ``NotPossible`` when QEMU cannot write a stream for snapvm."""
    if not qmp.gives_descriptors():
        raise NotPossible("Python's libvirt module is older than 8.2 and hands QEMU no pipe")
    try:
        require_unblocked(monitor)
    except LibvirtFailed as why:
        raise NotPossible(str(why)) from why


def require_unblocked(monitor: Monitor) -> None:
    """Raise ``NotPossible`` for a domain that cannot be migrated at all.

    It has a device or a processor flag that forbids it.  Raises ``LibvirtFailed`` too.
    """
    blocked = monitor.execute("query-migrate").get("blocked-reasons")
    if blocked:
        raise NotPossible(f"QEMU: {blocked[0]}")


def qemu_version(monitor: Monitor) -> tuple[int, int]:
    """Return the version of the QEMU process, which may be older than the host's QEMU."""
    version = monitor.execute("query-version")["qemu"]
    return version["major"], version["minor"]


def run_state(monitor: Monitor) -> str:
    """Return QEMU's name for what the guest does (QAPI, RunState)."""
    return str(monitor.execute("query-status")["status"])


class MigrationStream:
    """QEMU's stream of one capture; every method raises ``CaptureFailed``."""

    def __init__(self, job: CaptureJob, image: ImageWriter, pipe: Drainpipe) -> None:
        self._job = job
        self._image = image
        self._pipe = pipe
        self._qmp = Qmp(job.handle)
        self._is_begun = False
        self._is_ended = False
        self._is_given_up = threading.Event()
        self.how = ", compressed by zstd" if image.filter_argv else ""
        """A text for the record on how the stream is changed on its way."""
        self.setup_seconds: float | None = None
        """How long QEMU worked before it needed a stopped guest; known at the end."""

    @staticmethod
    @contextmanager
    def prepared(
        job: CaptureJob, image: ImageWriter, *, guest_waits: bool = True
    ) -> Iterator[MigrationStream]:
        """Make the image and the pipe; a stream that still goes on after the block is ended.

        ``guest_waits`` says that a slow file would hold the guest up, as long as it lasts.
        Raises ``NotPossible``, and leaves no file, when QEMU does not take the pipe, and
        ``CaptureFailed`` when there can be none.
        """
        limit_seconds = STALL_LIMIT_SECONDS if guest_waits else PATIENT_LIMIT_SECONDS
        with ExitStack() as stack:
            target = image.begin(job.image, _definition(job), _cookie(job))
            # The stream is ended after the pipe is closed, so that QEMU can write nothing more.
            ending = stack.enter_context(ExitStack())
            try:
                drain = Drainpipe(target, image.filter_argv, stall_limit_seconds=limit_seconds)
                pipe = stack.enter_context(drain)
            except OSError as why:  # too many files are open
                raise job.not_written(why) from why
            _give_pipe(job, pipe)
            pipe.close_writer()
            stream = MigrationStream(job, image, pipe)
            ending.callback(stream.end)
            yield stream

    @property
    def written_bytes(self) -> int:
        """How much of the stream has been written to the file."""
        return self._pipe.drained_bytes

    def begin(self) -> None:
        """Let QEMU write; it refuses when somebody else is just saving the domain."""
        self._is_begun = True
        try:
            self._qmp.execute("migrate", {"uri": f"fd:{STREAM_NAME}"})
        except LibvirtFailed as why:
            # If QEMU itself refused, a stream that goes on is somebody else's.
            self._is_begun = why.code != QMP_ERROR
            helps = "; take the device from it, or its disks alone with --disk-only"
            is_device = _UNSAVED_DEVICE in str(why)
            raise self._job.failed(f"{why}{helps if is_device else ''}") from why

    def go_on(self, status: str) -> None:
        """Let a stream go on that waits in the state ``status``."""
        self._execute("migrate-continue", {"state": status})

    def wait_for(
        self,
        is_there: Callable[[State], bool],
        *,
        limit_seconds: float,
        setting: str = "capture_limit_seconds",
        poll_seconds: float = WINDOW_POLL_SECONDS,
        tick: Callable[[State], None] = lambda _state: None,
        is_patient: bool = False,
    ) -> State:
        """Wait until ``is_there`` accepts the stream's state; call ``tick`` now and then.

        ``setting`` names the setting of the limit.  With ``is_patient`` a libvirtd that is
        restarted meanwhile is waited for: QEMU writes on.
        """
        deadline = Deadline(limit_seconds)
        ask = self._state_after_all if is_patient else self._state
        while not is_there(state := ask()):
            if state.get("status") in ("failed", "cancelled"):
                raise self._job.failed(state.get("error-desc", f"the stream was {state['status']}"))
            if self._pipe.failure is not None:
                raise self._job.not_written(self._pipe.failure)
            if self._is_given_up.is_set():
                raise self._job.failed("it is no longer wanted")
            if not deadline.left_seconds:
                raise self._job.failed(f"it took longer than {limit_seconds:g} s ({setting})")
            tick(state)
            time.sleep(poll_seconds)
        return state

    def set(self, parameters: Mapping[str, int]) -> None:
        """Change parameters that were borrowed (``qemusettings``), also while QEMU writes."""
        self._execute("migrate-set-parameters", parameters)

    def guest_waits(self) -> None:
        """Give a slow file up from now on, since the guest stands still, or is about to."""
        self._pipe.wait_at_most(STALL_LIMIT_SECONDS)

    def give_up(self) -> None:
        """From another thread: make ``wait_for`` end by a failure."""
        self._is_given_up.set()

    def is_setting_up(self) -> bool:
        """Tell whether QEMU is still in the state before the one in which it stops the guest."""
        return bool(self._state().get("status") == "setup")

    def is_before_the_end(self) -> bool:
        """Tell whether QEMU writes memory of a guest that it has not stopped for the end of it."""
        return bool(self._state().get("status") == "active")

    def run_state(self) -> str:
        """Return QEMU's run state of the guest, after QEMU has done its scheduled work."""
        return str(self._execute("query-status")["status"])

    def hold(self) -> None:
        """Keep the stream in the pipe until ``release``."""
        self._pipe.hold()

    def release(self) -> None:
        """Write the stream to the file again after ``hold``."""
        self._pipe.release()

    def wait_for_bytes(self, at_least: int, limit_seconds: float) -> None:
        """Wait until the pipe holds ``at_least`` bytes, or the time is over; QEMU is not asked."""
        deadline = Deadline(limit_seconds)
        while self._pipe.waiting_bytes < at_least and deadline.left_seconds:
            time.sleep(WINDOW_POLL_SECONDS)

    def finish(self) -> MemoryRecord:
        """Wait for the end of the stream, and until the image is whole and on the disk."""
        deadline = Deadline(self._job.limit_seconds)
        state = self.wait_for(
            lambda state: state.get("status") == "completed",
            limit_seconds=deadline.seconds,
            poll_seconds=DRAIN_POLL_SECONDS,
            tick=self.tell,
            is_patient=True,
        )
        self._is_ended = True
        if "setup-time" in state:
            self.setup_seconds = state["setup-time"] / 1000
        try:
            self._pipe.finish(max(1.0, deadline.left_seconds))
            size_bytes = self._image.end(self._job.image)
        except OSError as why:
            raise self._job.not_written(why) from why
        return self._job.record(size_bytes)

    def tell(self, state: State) -> None:
        """Report how far the stream is."""
        ram = state.get("ram", {})
        total_bytes = ram.get("total", self._job.domain.memory_bytes)
        self._job.progress.advance(total_bytes - ram.get("remaining", total_bytes), total_bytes)

    def let_go(self) -> None:
        """End a stream that is not wanted any more; harmless when it has ended.

        A guest that QEMU had stopped for the stream runs again.
        """
        if not self._is_begun:
            # A descriptor that stays with QEMU must not keep the guest waiting.
            with suppress(LibvirtFailed):
                self._qmp.execute("closefd", {"fdname": STREAM_NAME})
        elif not self._is_ended:
            # QEMU is not kept by a full pipe when the rest is thrown away.
            self._pipe.discard()
            cancel(self._qmp)
        self._is_begun = self._is_ended = True

    def end(self) -> None:
        """End the stream for good; it has ended too when QEMU is gone."""
        with suppress(LibvirtFailed):
            self.let_go()

    def _state(self) -> State:
        return dict(self._execute("query-migrate"))

    def _state_after_all(self) -> State:
        try:
            return dict(self._qmp.execute("query-migrate"))
        except LibvirtFailed:
            with suppress(LibvirtFailed), spoken():
                retry.libvirtd(self._reached)
            return self._state()

    def _reached(self) -> object:
        """Look the domain up again; raises ``LibvirtFailed`` while there is no libvirtd."""
        return self._job.handle.connect()

    def _execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        try:
            return self._qmp.execute(command, arguments)
        except LibvirtFailed as why:
            raise self._job.failed(str(why)) from why


def _give_pipe(job: CaptureJob, pipe: Drainpipe) -> None:
    """Give QEMU the writing end; when it cannot be labelled, SELinux may still allow it."""
    label = domainxml.image_label(job.domain.definition)
    try:
        if label:
            pipe.label(label)
    except OSError as why:
        log.info("the pipe to QEMU is not labelled %s: %s", label, why)
    try:
        Qmp(job.handle).give_descriptor(STREAM_NAME, pipe.writer)
    except LibvirtFailed as why:
        job.image.unlink(missing_ok=True)
        raise NotPossible(f"QEMU does not take a pipe for its stream ({why})") from why


def _definition(job: CaptureJob) -> str:
    with spoken():
        live = str(job.handle.XMLDesc(XML_SECURE | XML_MIGRATABLE))
        booted = str(job.handle.XMLDesc(XML_INACTIVE))
    return hostports.freed(live, booted)


def _cookie(job: CaptureJob) -> str:
    """Return libvirt's save cookie: the CPU as QEMU runs it, which a restore must match."""
    cpu = domainxml.cpu_element(job.domain.definition)
    return f"<cookie>{cpu}</cookie>" if cpu else ""


def cancel(monitor: Monitor) -> None:
    """End QEMU's stream, if there is one, and wait until it has ended."""
    deadline = Deadline(CANCEL_LIMIT_SECONDS)
    monitor.execute("migrate_cancel")
    while monitor.execute("query-migrate").get("status", _NONE) not in (*_ENDED, _NONE):
        if not deadline.left_seconds:
            return
        time.sleep(WINDOW_POLL_SECONDS)
