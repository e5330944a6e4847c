"""Stands for ``xc_domain_save``: the same order of questions and writes, and a failing write.

What it writes is a stream of pages of which nothing is known but their numbers: XALLOC.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from snapvm.hypervisor.xensaver import Statistics

ABORT, GO_ON = -1, 0
HEAD = struct.pack(">QIIHHI", (1 << 64) - 1, 0x58454E46, 3, 0, 0, 0)
HEAD += struct.pack("<IHHII", 2, 12, 0, 4, 20)
PAGE_DATA, STATIC_DATA_END, END = 1, 0x10, 0
XALLOC = 0xE << 60


class FakeSaver:
    """A guest of ``pages`` pages that changes some of them between two questions."""

    def __init__(self, pages: int = 4, changes: list[int] | None = None) -> None:
        self.pages = pages
        self.changes = changes if changes is not None else []
        """How many pages are found changed each time, the last of them again and again."""
        self.first_pfn = 0
        """The first of the changed pages; the first pass writes those from 0 on."""
        self.passes: list[int] = []
        """How many pages were written in each pass, the one of the suspended guest last."""
        self.is_suspended: Callable[[], bool] = lambda: True
        self.is_ended = False
        self.is_noting = True
        """Whether Xen notes what the guest writes; another saver that ends switches it off."""

    @property
    def libraries(self) -> Any:
        """What stands for ``XenLibraries``."""
        opened = {"xc_interface_open": lambda *_: 1, "xc_interface_close": lambda _handle: 0}
        return SimpleNamespace(
            control=SimpleNamespace(**opened, xc_domctl=self._note),
            guest=SimpleNamespace(xc_domain_save=self.save),
            logger=None,
        )

    def _note(self, _handle: int, _block: object) -> int:
        ctypes.set_errno(errno.EINVAL)
        return -1 if self.is_noting else 0

    def save(self, _handle: int, fd: int, _domid: int, flags: int, told: Any, *_: int) -> int:
        """Write a guest, as xg_sr_save.c does it, live."""
        assert flags == 1
        try:
            return self._save(fd, told._obj)
        except OSError as failure:
            ctypes.set_errno(failure.errno or errno.EIO)
            return -1
        finally:
            self.is_ended = True

    def _save(self, fd: int, callbacks: Any) -> int:
        os.write(fd, HEAD + struct.pack("<II", STATIC_DATA_END, 0))
        seen = Statistics(dirty_count=self.pages)
        if callbacks.switch_qemu_logdirty(5, 1, None):
            return -1
        try:
            status = self._copy(fd, callbacks, seen)
        finally:
            is_failing = callbacks.switch_qemu_logdirty(5, 0, None)
        return -1 if is_failing else status

    def _copy(self, fd: int, callbacks: Any, seen: Statistics) -> int:
        rounds = 0
        while True:
            answer = callbacks.precopy_policy(seen, None)
            rounds += 1
            if answer == ABORT:
                return -1
            self._write(fd, seen.dirty_count)
            if answer != GO_ON:
                break
            seen.iteration, seen.dirty_count = rounds, -1
            answer = callbacks.precopy_policy(seen, None)
            if answer == ABORT:
                return -1
            if answer != GO_ON:
                break
            seen.dirty_count = self._changed()
        if not callbacks.suspend(None) or not self.is_suspended():
            return -1
        self._write(fd, self._changed())
        os.write(fd, struct.pack("<II", END, 0))
        return 0

    def _changed(self) -> int:
        return self.changes.pop(0) if len(self.changes) > 1 else (self.changes or [0])[0]

    def _write(self, fd: int, pages: int) -> None:
        if pages:
            first = self.first_pfn if self.passes else 0
            entries = [XALLOC | pfn for pfn in range(first, first + pages)]
            head = struct.pack("<IIII", PAGE_DATA, 8 + 8 * pages, pages, 0)
            os.write(fd, head + struct.pack(f"<{pages}Q", *entries))
        self.passes.append(pages)
