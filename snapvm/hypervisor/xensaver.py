"""Have Xen's own saver write a guest's memory while the guest runs, and end when it stands still.

``xc_domain_save`` (tools/include/xenguest.h; tools/libs/guest/xg_sr_save.c) writes all of memory,
then again what has changed, and asks after each pass whether to go on.  Here it waits when little
is left, until the pause is near; then it writes what has changed since, and the last of it while
the guest is suspended.  It runs in a thread of this process, and so ends when snapvm does.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from ctypes import CFUNCTYPE, Structure, byref, c_int, c_long, c_uint, c_ulong, c_void_p
from functools import partial
from typing import Protocol

from snapvm.hypervisor import xenothers, xenqemu
from snapvm.hypervisor.xencontrol import XenControl
from snapvm.hypervisor.xendomaininfo import DomainInfo
from snapvm.hypervisor.xenlib import XenFailed, XenLibraries, failed
from snapvm.interrupt import shielded
from snapvm.workers import workers

log = logging.getLogger(__name__)

_LIVE = 1
"""XCFLAGS_LIVE."""
_PLAIN_STREAM = 0
"""XC_STREAM_PLAIN."""
_NO_ANSWERS = -1
_ABORT, _GO_ON, _SUSPEND = -1, 0, 1
"""XGS_POLICY_ABORT, XGS_POLICY_CONTINUE_PRECOPY, XGS_POLICY_STOP_AND_COPY."""
_LITTLE_PAGES = 1024
"""4 MiB; to write that takes less time than an LVM snapshot."""
_MOST_PASSES = 6
"""After so many the saver waits, however much is left: a guest may change memory faster than it is
written."""
_LAST_PASSES = 3
_LOOK_SECONDS = 0.2


class Statistics(Structure):
    """struct precopy_stats."""

    _fields_ = (("iteration", c_uint), ("total_written", c_ulong), ("dirty_count", c_long))


_Suspend = CFUNCTYPE(c_int, c_void_p)
_Policy = CFUNCTYPE(c_int, Statistics, c_void_p)
_LogWrites = CFUNCTYPE(c_int, c_uint, c_uint, c_void_p)


class _Callbacks(Structure):
    """struct save_callbacks; the three that are unused are for replication."""

    _fields_ = (
        ("suspend", _Suspend),
        ("precopy_policy", _Policy),
        ("unused", c_void_p * 3),
        ("switch_qemu_logdirty", _LogWrites),
        ("data", c_void_p),
    )


class TellWrites(Protocol):
    """Has the guest's QEMU tell Xen what it writes to, or no longer; may raise ``XenFailed``."""

    def __call__(self, *, tells: bool) -> None: ...


def nobody_tells(*, tells: bool) -> None:
    """Stand for the QEMU of a guest that has none."""


class LiveSaver:
    """One run of the saver: `copying`, then `come_to_suspend`, then `finish`."""

    def __init__(
        self,
        libraries: XenLibraries,
        domid: int,
        fd: int,
        may_go_on: Callable[[], bool] = lambda: True,
        tell_writes: TellWrites = nobody_tells,
    ) -> None:
        """Write to ``fd``, of which nothing can be expected after ``give_up``.

        ``may_go_on`` tells after each pass whether there is room for another.  ``tell_writes`` is
        called when the saver begins and when it ends.
        """
        self._libraries = libraries
        self._domid = domid
        self._fd = fd
        self._may_go_on = may_go_on
        self._tell_writes = tell_writes
        self._end: Future[None] = Future()
        """How its thread ends."""
        self._waits = threading.Event()
        """Set when most of memory is written, and it waits; or when it has ended."""
        self._is_wanted = threading.Event()
        """Set when the pause is near, and when the saver is to end."""
        self._at_suspend = threading.Event()
        """Set when it needs a guest that is suspended; or when it has ended."""
        self._is_suspended = threading.Event()
        self._is_given_up = False
        self._last_passes = 0
        self._failure: XenFailed | None = None
        """Why a callback ended the saver: through libxenguest nothing can be raised."""

    @contextmanager
    def copying(self, tick: Callable[[], None]) -> Iterator[None]:
        """Write what can be written before the pause; leaving the block ends the saver.

        ``tick`` is called now and then.  Raises ``XenFailed``.
        """
        # The file is closed after this: were it closed below a thread that writes, what is opened
        # next would get the guest's memory.
        with workers(1) as pool:
            try:
                self._end = pool.submit(self._run)
                self._end.add_done_callback(self._wake)
                while not self._waits.wait(_LOOK_SECONDS):
                    tick()
                self._require_well()
                yield
            finally:
                with shielded():
                    self.give_up()

    def come_to_suspend(self) -> None:
        """Write what has changed, and return when the guest has to suspend; raise ``XenFailed``."""
        self._is_wanted.set()
        self._at_suspend.wait()
        self._require_well()

    def finish(self) -> None:
        """Write the rest of a guest that is suspended; raise ``XenFailed``."""
        self._is_suspended.set()
        self._end.result()

    def give_up(self) -> None:
        """Make the saver end soon, from any thread; harmless when it has ended."""
        self._is_given_up = True
        self._is_wanted.set()
        self._is_suspended.set()
        # It asks only after each pass, which may take long: so its next write fails.  Where no
        # descriptor is left for that, the pass comes to its end.
        if not self._end.done():
            with suppress(OSError), open("/dev/full", "wb", buffering=0) as full:
                os.dup2(full.fileno(), self._fd, inheritable=False)

    def _require_well(self) -> None:
        if self._end.done():
            self._end.result()

    def _wake(self, _end: Future[None]) -> None:
        """Have nobody wait for a saver that has ended."""
        self._waits.set()
        self._at_suspend.set()

    def _run(self) -> None:
        # libxc keeps the reason of a failure with its handle, so this one is not shared.
        with XenControl(self._libraries) as own:
            try:
                self._save(own)
            except XenFailed as failure:
                raise self._failure or failure from None

    def _save(self, own: XenControl) -> None:
        callbacks = _Callbacks(
            suspend=_Suspend(partial(self._suspend, own)),
            precopy_policy=_Policy(self._policy),
            switch_qemu_logdirty=_LogWrites(self._log_writes),
        )
        ctypes.set_errno(0)
        save = self._libraries.guest.xc_domain_save
        reference = byref(callbacks)
        if save(own.handle, self._fd, self._domid, _LIVE, reference, _PLAIN_STREAM, _NO_ANSWERS):
            raise failed("writing its memory by Xen's own saver")

    def _log_writes(self, _domid: int, is_on: int, _data: object) -> int:
        """Have QEMU tell what it writes to, or no longer; return 1 to end the saver."""
        try:
            self._tell_writes(tells=bool(is_on))
        except XenFailed as failure:
            self._failure = failure
            return 1
        return 0

    def _policy(self, seen: Statistics, _data: object) -> int:
        """Decide what comes next; ``dirty_count`` is negative when nobody has counted yet."""
        if self._is_wanted.is_set():
            return self._last_of_it(seen)
        if seen.iteration == 0 or seen.dirty_count < 0:
            return _GO_ON
        is_little = seen.dirty_count <= _LITTLE_PAGES
        if is_little or seen.iteration >= _MOST_PASSES or not self._may_go_on():
            self._waits.set()
            self._is_wanted.wait()
        return _ABORT if self._is_given_up else _GO_ON

    def _last_of_it(self, seen: Statistics) -> int:
        if self._is_given_up:
            return _ABORT
        if seen.dirty_count < 0:
            return _GO_ON
        self._last_passes += 1
        is_little = seen.dirty_count <= _LITTLE_PAGES
        is_enough = is_little or self._last_passes >= _LAST_PASSES or not self._may_go_on()
        return _SUSPEND if is_enough else _GO_ON

    def _suspend(self, own: XenControl, _data: object) -> int:
        """Wait until the guest is suspended; return 0 to end the saver."""
        self._at_suspend.set()
        self._is_suspended.wait()
        if not self._is_given_up:
            try:
                _require_noted(own, self._domid)
            except XenFailed as failure:
                self._failure = failure
        return int(not self._is_given_up and self._failure is None)


def forget(control: XenControl, info: DomainInfo) -> None:
    """Undo what a saver of a killed snapvm has left, unless somebody else saves the guest.

    Xen and QEMU then no longer note what an HVM or PVH guest writes, and QEMU runs if the guest
    does.  A failure of QEMU is only logged: it may have ended, and to go on noting does no harm.
    """
    if info.is_pv or xenothers.are_saving(info.domid):
        return
    control.stop_noting_writes(info.domid)
    if not info.is_hvm:
        return
    try:
        xenqemu.forget_writes(info.domid)
        if not (info.is_paused or info.is_shut_down):
            xenqemu.go_on(info.domid)
    except XenFailed as failure:
        log.warning("%s: what snapvm had asked of it is not taken back", failure)


def _require_noted(own: XenControl, domid: int) -> None:
    """Raise ``XenFailed`` when the saver would be told that nothing has changed; see `xenothers`.

    To count what has changed succeeds even so (xen.git xen/arch/x86/mm/paging.c).
    """
    if not own.note_writes(domid):
        raise XenFailed(
            "what it has written is not known, as somebody else saved or destroyed it meanwhile"
        )
