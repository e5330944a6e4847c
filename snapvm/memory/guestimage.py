"""An xl image of a running 64-bit Xen PV guest: the steps of ``GuestImage``, in their order.

The work of the steps is in `guestcapture`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from snapvm import durable
from snapvm.memory.framestore import FrameStore
from snapvm.memory.guestcapture import Caught, GuestCapture
from snapvm.memory.guestreader import GuestReader
from snapvm.memory.imagehead import ImageHead
from snapvm.memory.xenimage import ImageWriter
from snapvm.memoryroom import HostMemory
from snapvm.model import Progress
from snapvm.xenguest import GuestFrames, HostFacts, Standing, WrittenImage

T = TypeVar("T")


class PvGuestImage:
    """Makes one image; fulfils ``GuestImage``."""

    def __init__(self, memory: HostMemory, *, domain_ends: bool = False) -> None:
        """``domain_ends`` says that the guest stands still until `write` is done."""
        self._memory = memory
        self._domain_ends = domain_ends
        self._stack = ExitStack()
        self._stack.callback(memory.close)
        self._capture: GuestCapture | None = None
        self._caught: Caught | None = None

    def prepare(
        self,
        path: Path,
        definition: str,
        host: HostFacts,
        frames: GuestFrames,
        shared_info: Callable[[], bytes],
        progress: Progress,
    ) -> str:
        """See ``GuestImage.prepare``."""
        file = self._stack.enter_context(os.fdopen(durable.create(path), "w+b", buffering=0))
        writer = ImageWriter(file, definition, is_sparse=True)
        reader = GuestReader(frames)
        self._stack.callback(reader.close)
        store = FrameStore(frames)
        self._stack.callback(store.give_back)
        self._capture = GuestCapture(
            path=path,
            file=file,
            writer=writer,
            head=ImageHead(file, writer, host),
            reader=reader,
            store=store,
            domain_ends=self._domain_ends,
        )
        return self._capture.prepare(self._memory, shared_info, progress)

    def rehearse(self, shared_info: bytes) -> None:
        """See ``GuestImage.rehearse``."""
        _known(self._capture).rehearse(shared_info)

    def catch(self, standing: Standing) -> None:
        """See ``GuestImage.catch``."""
        self._caught = _known(self._capture).catch(standing)

    def give_up(self) -> None:
        """See ``GuestImage.give_up``."""
        _known(self._capture).give_up()

    def write(self, progress: Progress) -> WrittenImage:
        """See ``GuestImage.write``."""
        return _known(self._capture).write(_known(self._caught), progress)

    def redefine(self, definition: str) -> None:
        """See ``GuestImage.redefine``."""
        _known(self._capture).redefine(definition)

    def close(self) -> None:
        """See ``GuestImage.close``."""
        self._stack.close()


def _known(result: T | None) -> T:
    """Return the result of an earlier step."""
    if result is None:
        raise RuntimeError("a step of the capture was left out")
    return result
