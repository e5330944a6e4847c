"""Capture a libvirt domain by QEMU's background-snapshot: no memory is written in the pause.

snapvm suspends the domain, so that it decides when the domain runs again (QEMU restores the run
state that it found).  In the pause QEMU buffers the state of the devices and write-protects guest
memory.  Afterwards the guest runs, and QEMU copies every page before the guest may change it (QEMU,
migration/migration.c, bg_migration_thread).  The first work of QEMU needs no paused guest, and
begins before the pause (``headstart``).  ``mapped-ram`` must be off: with both, the memory in the
image would be all zero.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from snapvm.capturewords import WAS_STOPPED
from snapvm.clock import Deadline
from snapvm.hypervisor import (
    domainxml,
    headstart,
    hugepages,
    memfd,
    migrationstream,
    qemurun,
    samepages,
    thp,
    userfault,
)
from snapvm.hypervisor.base import Freeze, ImageWriter
from snapvm.hypervisor.capturejob import CaptureJob, Ground
from snapvm.hypervisor.headstart import Experience
from snapvm.hypervisor.libvirtlink import LibvirtFailed
from snapvm.hypervisor.migrationstream import MigrationStream, NotPossible, State
from snapvm.hypervisor.qemusettings import MigrationSettings, Monitor
from snapvm.model import Domain, DomainState, MemoryRecord

SETTINGS = MigrationSettings(capabilities=("background-snapshot",))
PAGES_BYTES = 64 << 10
"""A stream has less than this before its first page: the names of the blocks of memory."""
ASK_SECONDS = 0.1
"""QEMU is asked this often in any case: a stream may be shorter than that, or have failed."""
_RESTORES_STATE_SINCE = (9, 0)
"""Older versions of QEMU let the guest run in the pause, as soon as memory is protected."""
_FAILS_IN_SETUP_SINCE = (9, 1)
"""Older versions of QEMU stop the guest even for a stream that cannot be written."""
_LARGEST_PAGE_KIB = 2048
_STOPPED = "paused"
_RUN_STATES = ("running", _STOPPED)
"""In any other state QEMU aborts when it stops the guest ("invalid runstate transition")."""
_DISK_FAILED = "io-error"
CALM_SECONDS = 0.2
"""Time for QEMU's events of a pause that QEMU made itself to arrive."""


class _Overtaken(Exception):
    """The guest stopped before snapvm suspended it: by QEMU, or by something else."""


class BackgroundCapture:
    """Memory is written while the guest runs after the pause; see ``Capture``."""

    way = "background: QEMU's background-snapshot, memory written behind the running guest"
    is_brief = True

    def __init__(
        self,
        job: CaptureJob,
        image: ImageWriter,
        permission: ExitStack,
        streams: ExitStack,
        why: str,
    ) -> None:
        """``permission`` is what `possible` yields; ``streams`` is where streams are entered.

        Both are closed early when that is of use.  Raises ``NotPossible`` as ``prepared`` does.
        """
        self._job = job
        self._image = image
        self._permission = permission
        self._streams = streams
        self._why = why
        self._pause = job.pause
        self._stream = self._new_stream()
        self._experience = Experience(
            file=job.run_dir / f"{job.domain.uuid}{headstart.FILE_ENDING}", run=job.lender.run
        )
        self._is_ahead = False
        self._overtaken = ""

    def _new_stream(self) -> MigrationStream:
        return self._streams.enter_context(MigrationStream.prepared(self._job, self._image))

    @property
    def method(self) -> str:
        """See ``Capture.method``."""
        return self.way + self._stream.how + self._overtaken + self._why

    @staticmethod
    @contextmanager
    def possible(ground: Ground) -> Iterator[ExitStack]:
        """Set QEMU up for the block; raise ``NotPossible``, and change nothing then.

        Yields the host's permission, which may be closed before the block ends.
        """
        migrationstream.require_possible(ground.lender.monitor)
        _require_stoppable(ground.lender.monitor, ground.domain.name)
        foreign = domainxml.foreign_memory_writer(ground.domain.definition)
        if foreign:
            raise NotPossible(foreign)
        _require_small_pages(ground.domain)
        _require_unmerged(ground)
        with ExitStack() as stack:
            try:
                permission = stack.enter_context(ExitStack())
                allow = partial(permission.enter_context, userfault.allowed(ground.run_dir))
                stack.enter_context(ground.lender.lent(SETTINGS, allow))
                stack.callback(permission.close)  # before the lender removes its note
            except (OSError, LibvirtFailed) as why:
                raise NotPossible(str(why)) from why
            yield permission

    @staticmethod
    @contextmanager
    def prepared(job: CaptureJob, image: ImageWriter, why: str) -> Iterator[BackgroundCapture]:
        """Probe, open the image and the pipe; leaving the block puts QEMU back as it was."""
        with BackgroundCapture.possible(job) as permission, ExitStack() as streams:
            memfd.fill(job.domain, job.progress)
            yield BackgroundCapture(job, image, permission, streams, why)

    @contextmanager
    def window(
        self, *, leave_standing: bool = False, freeze: Freeze | None = None
    ) -> Iterator[None]:
        """See ``Capture.window``."""
        with ExitStack() as standing:
            try:
                self._stand_still_ahead(standing, leave_standing=leave_standing, freeze=freeze)
            except _Overtaken:
                self._start_over()
            if not self._is_ahead:
                pause = self._pause.ended_by_resume(leave_standing=leave_standing, freeze=freeze)
                standing.enter_context(pause)
                self._pause.suspend()
                self._require_paused()
            # In the pause QEMU must not take processors from LVM.
            self._stream.hold()
            try:
                yield
            finally:
                # QEMU answers a resume only when it has copied the pages that its devices change.
                self._stream.release()
        self._permission.close()

    def _stand_still_ahead(
        self, standing: ExitStack, *, leave_standing: bool, freeze: Freeze | None
    ) -> None:
        """Let QEMU begin, then pause the domain, for as long as ``standing`` lasts.

        Does nothing when it is not known how much earlier QEMU may begin.  Raises ``_Overtaken``,
        with the domain running again, when it stopped before; ``PausedMeanwhile`` when its owner
        paused it.
        """
        ahead_seconds = headstart.seconds_ahead(self._experience.taken_seconds())
        if self._job.domain.state is not DomainState.RUNNING or not ahead_seconds:
            return
        if migrationstream.qemu_version(self._job.lender.monitor) < _FAILS_IN_SETUP_SINCE:
            return
        with ExitStack() as stack, self._job.clock.part("ahead"):
            pause = self._pause.ended_by_resume(
                leave_standing=leave_standing, freeze=freeze, when_failed=self._break_off
            )
            stack.enter_context(pause)
            self._stream.begin()
            if self._pause.stops_within(ahead_seconds):
                # If QEMU stopped the guest, nothing more is asked of it: see `_break_off`.
                if self._stream.run_state() == _STOPPED and self._stream.is_setting_up():
                    self._pause.refuse_owners()
                raise _Overtaken
            self._pause.suspend()
            if self._stream.run_state() != _STOPPED or self._pause.came_late():
                raise _Overtaken
            standing.enter_context(stack.pop_all())
            self._is_ahead = True

    def _break_off(self) -> None:
        """End a stream before it stops the guest, by making its writes fail.

        QEMU would abort if it stopped a guest that stands still for another reason.
        """
        if not self._is_ahead:
            self._streams.close()

    def _require_paused(self) -> None:
        """Raise ``CaptureFailed`` when the guest stands still for a reason of its own."""
        run_state = self._stream.run_state()
        if run_state != _STOPPED:
            raise self._job.failed(f"QEMU says that it is {run_state} and not {_STOPPED}")

    def _start_over(self) -> None:
        """Prepare another stream and another pause, in place of those that were overtaken."""
        self._overtaken = f"; the guest stood still twice, as it {WAS_STOPPED} before its time"
        try:
            self._stream = self._new_stream()
        except NotPossible as why:
            raise self._job.failed(str(why)) from why
        time.sleep(CALM_SECONDS)
        self._pause = self._pause.anew()

    def arm(self) -> None:
        """Wait until devices are buffered and memory is protected, so that the guest may run."""
        with self._job.clock.part("memory"):
            if not self._is_ahead:
                self._stream.begin()
            self._wait_until_armed()
            # QEMU restores the guest's run state in scheduled work, which this question awaits.
            run_state = self._stream.run_state()
        if self._is_ahead and run_state != _STOPPED:
            raise self._job.failed(f"QEMU had stopped it itself; it is {run_state} now: try again")

    def _wait_until_armed(self) -> None:
        """Wait for the first pages.

        The status ``active`` comes before them; the page counters grow with them.  As pages are in
        the pipe by then, QEMU is not asked before the pipe holds enough.
        """

        def wait_for_pages(_state: State | None = None) -> None:
            self._stream.wait_for_bytes(PAGES_BYTES, ASK_SECONDS)

        wait_for_pages()
        self._stream.wait_for(
            _is_armed,
            limit_seconds=self._job.window_limit_seconds,
            setting="window_limit_seconds",
            poll_seconds=0,
            tick=wait_for_pages,
        )

    def give_up(self) -> None:
        """See ``Capture.give_up``."""
        self._stream.give_up()

    def drain(self) -> MemoryRecord:
        """See ``Capture.drain``: wait for the end of the stream."""
        begun = time.monotonic()
        record = self._stream.finish()
        self._require_unmerged_since()
        if self._stream.setup_seconds is not None:
            self._experience.note(self._stream.setup_seconds, was_running=self._is_ahead)
        self._join_memory(time.monotonic() - begun)
        return record

    def _require_unmerged_since(self) -> None:
        """Raise ``CaptureFailed`` when the kernel began to merge memory while it was written.

        A daemon may have told it to (ksmtuned), and the owner of a paused guest have let it run.
        """
        if samepages.are_merged(self._job.domain.definition) and (
            _writes_on(self._job) or self._stream.run_state() != _STOPPED
        ):
            raise self._job.failed(
                "the kernel has begun to merge its memory with others' (KSM), and QEMU may have "
                "missed what the guest changed: try again"
            )

    def _join_memory(self, limit_seconds: float) -> None:
        """Give a guest that runs on its huge pages back; they shorten the next pause, too."""
        pid = qemurun.pid_of(self._job.domain.name)
        if pid is not None and not self._job.domain_ends:
            self._job.progress.phase(f"restoring the huge pages of {self._job.domain.name}")
            thp.join(pid, Deadline(limit_seconds))


def _require_stoppable(monitor: Monitor, name: str) -> None:
    """Raise ``NotPossible`` for a guest that QEMU would run too early, or would abort over."""
    try:
        version = migrationstream.qemu_version(monitor)
        run_state = migrationstream.run_state(monitor)
    except LibvirtFailed as why:
        raise NotPossible(str(why)) from why
    if version < _RESTORES_STATE_SINCE:
        told = ".".join(map(str, version))
        raise NotPossible(f"QEMU {told} would let the guest run too early; 9.0 and later do not")
    if run_state == _DISK_FAILED:
        which = f"`virsh domblkerror {shlex.quote(name)}` says which"
        raise NotPossible(f"QEMU stopped it when a disk failed ({which})")
    if run_state not in _RUN_STATES:
        raise NotPossible(f"QEMU says that it is {run_state}")


def _require_small_pages(domain: Domain) -> None:
    """Raise ``NotPossible`` for a running guest whose pages are so large that it would be held up.

    QEMU writes all of a host's page before the guest may change it (QEMU, migration/ram.c,
    ram_save_host_page), and 1 GiB takes about a second.  A paused guest does not write.
    """
    page_kib = hugepages.largest_kib(domain.definition)
    if page_kib > _LARGEST_PAGE_KIB and domain.state is not DomainState.PAUSED:
        raise NotPossible(
            f"its memory has pages of {page_kib >> 10} MiB, and it would wait while each is written"
        )


def _writes_on(ground: Ground) -> bool:
    """Tell whether the guest is going to run while its memory is written."""
    return ground.domain.state is DomainState.RUNNING and not ground.domain_ends


def _require_unmerged(ground: Ground) -> None:
    """Raise ``NotPossible`` for a guest of which QEMU would not see all that it changes."""
    if _writes_on(ground) and samepages.are_merged(ground.domain.definition):
        raise NotPossible(
            "the kernel merges its memory with others' (KSM), and what the guest changes then is "
            "kept from QEMU"
        )


def _is_armed(state: State) -> bool:
    pages = state.get("ram", {})
    has_counted = pages.get("normal", 0) + pages.get("duplicate", 0) > 0
    status = state.get("status")
    return bool(status == "completed" or (status == "active" and has_counted))
