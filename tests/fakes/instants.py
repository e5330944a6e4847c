"""The instants at which Python may run a signal handler, and Ctrl-C at one of them.

That is between two instructions of the main thread: where a function begins, where a call of what
is not written in Python has come back, and where a loop begins again.
"""

from __future__ import annotations

import dis
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache
from itertools import pairwise
from types import CodeType, FrameType
from typing import Any, NamedTuple

from snapvm.errors import Interrupted, SnapvmError
from snapvm.interrupt import watched
from tests.fakes.mortal import in_child

_FAKES = "tests.fakes."
_HARNESS = ("tests.fakes.mortal", "tests.fakes.scene", __name__)
_CACHE = dis.opmap.get("CACHE", 0)
"""Not an instruction, but room for the one before it."""


def _opcodes(*beginnings: str) -> frozenset[int]:
    return frozenset(dis.opmap[name] for name in dis.opmap if name.startswith(beginnings))


_LOOKS_BEHIND = _opcodes("CALL", "RESUME")
_LOOKS_BEFORE = _opcodes("JUMP_BACKWARD")


class Instant(NamedTuple):
    """An instruction that is about to be done, for which time."""

    file: str
    function: str
    line: int
    offset: int
    time: int


Work = Callable[[], object]
Pass = Callable[[Instant, FrameType], None]


@cache
def _checked(code: CodeType) -> frozenset[int]:
    """Return before which instructions of a function Python looks for signals.

    Every child asks anew, so it reads the bytes itself: ``dis.get_instructions`` takes 20 times as
    long, which was most of the time of a test.
    """
    words = [(2 * at, opcode) for at, opcode in enumerate(code.co_code[::2]) if opcode != _CACHE]
    behind = {at for (_, before), (at, _) in pairwise(words) if before in _LOOKS_BEHIND}
    return frozenset(behind | {at for at, opcode in words if opcode in _LOOKS_BEFORE})


def _is_in_fake(frame: FrameType | None) -> bool:
    """Tell whether a fake is at work, which is a program or a daemon that nobody interrupts."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if name.startswith(_FAKES) and name not in _HARNESS:
            return True
        frame = frame.f_back
    return False


def _traced(work: Work, modules: Collection[str], pass_: Pass) -> None:
    """Do the work; ``pass_`` is called at every instant in those modules and packages."""
    seen: Counter[tuple[str, str, int, int]] = Counter()
    called_from: set[int] = set()
    """The frames that a function has been called from since their last instruction."""

    def is_wanted(frame: FrameType) -> bool:
        name = str(frame.f_globals.get("__name__"))
        return any(name == each or name.startswith(f"{each}.") for each in modules)

    def local(frame: FrameType, event: str, _of: object) -> Any:
        code, comes_back = frame.f_code, id(frame) in called_from
        called_from.discard(id(frame))
        if event == "opcode" and frame.f_lasti in _checked(code) and not comes_back:
            place = (code.co_filename, code.co_qualname, frame.f_lineno, frame.f_lasti)
            seen[place] += 1
            pass_(Instant(*place, seen[place]), frame)
        return local

    def begun(frame: FrameType, _event: str, _of: object) -> Any:
        if frame.f_code.co_name != "__init__":  # which is called by what is not written in Python
            called_from.add(id(frame.f_back))
        called_from.discard(id(frame))
        if not is_wanted(frame) or _is_in_fake(frame):
            return None
        frame.f_trace = local  # Python 3.13 wants it first
        frame.f_trace_opcodes = True
        return local

    sys._getframe().f_trace_opcodes = True  # without any Python 3.12 tells of no opcodes
    sys.settrace(begun)
    try:
        work()
    finally:
        sys.settrace(None)


def instants_of(work: Work, modules: Collection[str]) -> list[Instant]:
    """Do the work in a child; return the instants in these modules and packages, in order."""

    def child(report: Callable[[object], None]) -> None:
        passed: list[Instant] = []
        with suppress(SnapvmError), watched():
            _traced(work, modules, lambda instant, _frame: passed.append(instant))
        report([tuple(each) for each in passed])

    return [Instant(*each) for each in in_child(child)]


def interrupted_at(
    work: Work, modules: Collection[str], instant: Instant, left: Callable[[], Any]
) -> tuple[str, Any]:
    """Do the work in a child, with Ctrl-C at an instant; return how it ended, and what is left.

    It is ``"done"``, ``"interrupted"``, or another failure in words.  ``left`` is called behind it.
    """

    def child(report: Callable[[object], None]) -> None:
        def strike(now: Instant, frame: FrameType) -> None:
            if now == instant:
                sys.settrace(None)
                handler: Any = signal.getsignal(signal.SIGINT)
                handler(signal.SIGINT, frame)

        how = "done"
        try:
            with watched():
                _traced(work, modules, strike)
        except Interrupted:
            how = "interrupted"
        except SnapvmError as error:
            how = f"{type(error).__name__}: {error}"
        threads = [each for each in threading.enumerate()[1:] if not each.daemon]
        if threads:
            how += f", with {threads}"
        report((how, left()))

    how, state = in_child(child)
    return str(how), state
