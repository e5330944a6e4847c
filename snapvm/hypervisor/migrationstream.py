"""One migration stream of QEMU's into a memory image: prepared, begun, watched, ended.

What the ways to capture memory by QEMU's own commands share.  The stream goes through a pipe into
an image that ``virsh restore`` starts (see ``drainpipe`` and ``snapvm.memory.libvirtimage``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from snapvm.hypervisor import domainxml, qmp
from snapvm.hypervisor.base import ImageWriter
from snapvm.hypervisor.capturejob import CaptureJob
from snapvm.hypervisor.drainpipe import Drainpipe
from snapvm.hypervisor.libvirtlink import LibvirtFailed, spoken
from snapvm.hypervisor.qemusettings import Monitor
from snapvm.hypervisor.qmp import QMP_ERROR, Qmp
from snapvm.model import MemoryRecord

log = logging.getLogger(__name__)

STREAM_NAME = "snapvm"
WINDOW_POLL_SECONDS = 0.002
DRAIN_POLL_SECONDS = 0.1
CANCEL_LIMIT_SECONDS = 60.0
_XML_SECURE = 1
_XML_MIGRATABLE = 8
_ENDED = ("completed", "failed", "cancelled")
_NONE = "none"

State = Mapping[str, Any]
"""What ``query-migrate`` returns."""


class NotPossible(Exception):
    """This host or domain cannot be captured so; the text says why."""


def require_possible(monitor: Monitor) -> None:
    """Raise ``NotPossible`` where no stream of ours can get out of QEMU."""
    if not qmp.gives_descriptors():
        raise NotPossible("Python's libvirt module is older than 8.2 and hands QEMU no pipe")
    try:
        require_unblocked(monitor)
    except LibvirtFailed as why:
        raise NotPossible(str(why)) from why


def require_unblocked(monitor: Monitor) -> None:
    """Raise ``NotPossible`` for a domain that QEMU writes no stream of, whoever asks.

    It has a device or a processor flag that cannot be migrated.  Raises ``LibvirtFailed`` too.
    """
    blocked = monitor.execute("query-migrate").get("blocked-reasons")
    if blocked:
        raise NotPossible(f"QEMU: {blocked[0]}")


def qemu_version(monitor: Monitor) -> tuple[int, int]:
    """Return the version of the QEMU that runs the domain; the host's may be a later one."""
    version = monitor.execute("query-version")["qemu"]
    return version["major"], version["minor"]


def run_state(monitor: Monitor) -> str:
    """Return QEMU's name for what the guest does (QAPI, RunState)."""
    return str(monitor.execute("query-status")["status"])


class MigrationStream:
    """QEMU's stream of one capture; everything raises ``CaptureFailed``."""

    def __init__(self, job: CaptureJob) -> None:
        self._job = job
        self._qmp = Qmp(job.handle)
        self._is_begun = False
        self._is_ended = False
        self._is_given_up = threading.Event()
        self.how = ""
        """What becomes of the stream on its way, for the record."""
        self.setup_seconds: float | None = None
        """What QEMU took before it stopped the guest or found it stopped; known at the end."""

    @contextmanager
    def prepared(self, image: ImageWriter) -> Iterator[None]:
        """Have the image and the pipe; a stream that goes on at the end of the block is ended.

        Raises ``NotPossible`` when QEMU cannot be given the pipe; no file is left then.
        """
        self._image = image
        with ExitStack() as stack:
            target = image.begin(self._job.image, self._definition(), self._cookie())
            # Ended behind the pipe: what QEMU has not written by then it must not begin with.
            ending = stack.enter_context(ExitStack())
            self._pipe = stack.enter_context(Drainpipe(target, image.filter_argv))
            if image.filter_argv:
                self.how = ", compressed by zstd"
            self._give_pipe()
            self._pipe.close_writer()
            ending.callback(self._end)
            yield

    def _give_pipe(self) -> None:
        """Let QEMU have the writing end; where the label is not to be had, SELinux may be lax."""
        label = domainxml.image_label(self._job.domain.definition)
        try:
            if label:
                self._pipe.label(label)
        except OSError as why:
            log.info("the pipe to QEMU is not labelled %s: %s", label, why)
        try:
            self._qmp.give_descriptor(STREAM_NAME, self._pipe.writer)
        except LibvirtFailed as why:
            self._job.image.unlink(missing_ok=True)
            raise NotPossible(f"QEMU does not take a pipe for its stream ({why})") from why

    @property
    def written_bytes(self) -> int:
        """How much of the stream is in the file."""
        return self._pipe.drained_bytes

    def begin(self) -> None:
        """Let QEMU write; on a domain that somebody else is saving just now it refuses."""
        self._is_begun = True
        try:
            self._qmp.execute("migrate", {"uri": f"fd:{STREAM_NAME}"})
        except LibvirtFailed as why:
            # Whatever stream goes on when QEMU said no is not ours to end.
            self._is_begun = why.code != QMP_ERROR
            raise self._job.failed(str(why)) from why

    def go_on(self, status: str) -> None:
        """Let a stream go on that waits in a state of this name."""
        self._execute("migrate-continue", {"state": status})

    def wait_for(
        self,
        is_there: Callable[[State], bool],
        *,
        limit_seconds: float,
        setting: str = "capture_limit_seconds",
        poll_seconds: float = WINDOW_POLL_SECONDS,
        tick: Callable[[State], None] = lambda _state: None,
    ) -> State:
        """Wait until the stream is where ``is_there`` says, with a ``tick`` now and then.

        ``setting`` is where the limit is from.
        """
        deadline = time.monotonic() + limit_seconds
        while not is_there(state := self._state()):
            if state.get("status") in ("failed", "cancelled"):
                raise self._job.failed(state.get("error-desc", f"the stream was {state['status']}"))
            if self._pipe.failure is not None:
                raise self._job.not_written(self._pipe.failure)
            if self._is_given_up.is_set():
                raise self._job.failed("it is not wanted any more")
            if time.monotonic() > deadline:
                raise self._job.failed(f"it took longer than {limit_seconds:g} s ({setting})")
            tick(state)
            time.sleep(poll_seconds)
        return state

    def give_up(self) -> None:
        """From another thread: let who waits for the stream wait no more."""
        self._is_given_up.set()

    def is_setting_up(self) -> bool:
        """Whether QEMU has not come to stop the guest: it does so only in the state after that."""
        return bool(self._state().get("status") == "setup")

    def run_state(self) -> str:
        """Return what the guest does; QEMU runs first what work it has scheduled."""
        return str(self._execute("query-status")["status"])

    def hold(self) -> None:
        """Let the stream stay in the pipe until ``release``."""
        self._pipe.hold()

    def release(self) -> None:
        """Let a stream that was held be written."""
        self._pipe.release()

    def wait_for_bytes(self, at_least: int, limit_seconds: float) -> None:
        """Wait until so much is in the pipe, or the time is over.  It costs QEMU nothing."""
        deadline = time.monotonic() + limit_seconds
        while self._pipe.waiting_bytes < at_least and time.monotonic() < deadline:
            time.sleep(WINDOW_POLL_SECONDS)

    def finish(self) -> MemoryRecord:
        """Wait for the end of the stream, and until the image is whole and on the disk."""
        begun = time.monotonic()
        limit_seconds = self._job.limit_seconds
        state = self.wait_for(
            lambda state: state.get("status") == "completed",
            limit_seconds=limit_seconds,
            poll_seconds=DRAIN_POLL_SECONDS,
            tick=self.tell,
        )
        self._is_ended = True
        if "setup-time" in state:
            self.setup_seconds = state["setup-time"] / 1000
        try:
            self._pipe.finish(max(1.0, begun + limit_seconds - time.monotonic()))
            size_bytes = self._image.end()
        except OSError as why:
            raise self._job.not_written(why) from why
        return self._job.record(size_bytes)

    def tell(self, state: State) -> None:
        """Show how far the stream is."""
        ram = state.get("ram", {})
        total_bytes = ram.get("total", self._job.domain.memory_bytes)
        self._job.progress.advance(total_bytes - ram.get("remaining", total_bytes), total_bytes)

    def let_go(self) -> None:
        """End a stream that is not wanted any more; harmless once it has ended.

        A guest that QEMU itself had stopped for it runs again then.
        """
        if not self._is_begun:
            self._qmp.execute("closefd", {"fdname": STREAM_NAME})
        elif not self._is_ended:
            # QEMU gets free of a full pipe sooner when nothing more is written.
            self._pipe.discard()
            cancel(self._qmp)
        self._is_begun = self._is_ended = True

    def _end(self) -> None:
        """End it for good; a QEMU that is gone has ended it too."""
        with suppress(LibvirtFailed):
            self.let_go()

    def _state(self) -> State:
        return dict(self._execute("query-migrate"))

    def _execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        try:
            return self._qmp.execute(command, arguments)
        except LibvirtFailed as why:
            raise self._job.failed(str(why)) from why

    def _definition(self) -> str:
        with spoken():
            return str(self._job.handle.XMLDesc(_XML_SECURE | _XML_MIGRATABLE))

    def _cookie(self) -> str:
        """Return libvirt's save cookie: the CPU as QEMU runs it, which a restore must match."""
        cpu = domainxml.cpu_element(self._job.domain.definition)
        return f"<cookie>{cpu}</cookie>" if cpu else ""


def cancel(monitor: Monitor) -> None:
    """End the stream that is going on, if any, and wait until it has ended."""
    deadline = time.monotonic() + CANCEL_LIMIT_SECONDS
    monitor.execute("migrate_cancel")
    while monitor.execute("query-migrate").get("status", _NONE) not in (*_ENDED, _NONE):
        if time.monotonic() > deadline:
            return
        time.sleep(WINDOW_POLL_SECONDS)
