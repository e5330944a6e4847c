"""An lvm that is started, configured and waiting before the window begins.

Half of a short lvm command is its start: exec, configuration, locking its memory (measured in the
lab).  Fed on standard input, ``lvm`` does that once (lvm(8)); it goes on after an error, and ends
with status 0 whatever happened, so each answer is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from snapvm import crashpoint
from snapvm.clock import Deadline
from snapvm.failures import CommandFailed
from snapvm.lvm import argv
from snapvm.model import LvRef
from snapvm.process import Conversation
from snapvm.refusals import HostLacks

PROGRAM = ("lvm",)
_MARK = "version"
"""A command without effect; its answer ends the answer of the command before it."""
_READY_SECONDS = 60.0
_FAILED_STATUS = 5
"""ECMD_FAILED (lvm2, tools/errors.h): what the command alone would have ended with."""
_MOST_WORDS = 63
"""One less than MAX_ARGS (lvm2, tools/tools.h and lvm_split)."""
_MARK_LINES = ("LVM version:", "Library version:", "Driver version:", "Configuration:")
_PROMPT = "lvm> "
"""Where lvm has GNU readline, as on RHEL, it says each order back behind this."""
_NO_SHELL = "Please supply an LVM command"
"""What lvm says without one where it was built so, as for NixOS and Alpine (lvm2, lvmcmdline.c)."""
_TELLING = "--quiet"
"""Given once, it makes a command say that it is done, whatever log/silent and log/verbose are in
lvm.conf; given twice it does not (lvm(8)).  ``--config log/silent=0`` has no effect: lvm2,
toolcontext.c, "Once set to 1, there is no facility to change it back to 0"."""


def can_be_told(command: argv.Argv) -> bool:
    """Tell whether a waiting lvm reads a command correctly: not too many words, none a comment."""
    order = _order(command)
    return len(order) <= _MOST_WORDS and not any(word.startswith("#") for word in order)


def _order(command: argv.Argv) -> tuple[str, ...]:
    return (command[1], _TELLING, *command[2:])


def _is_end(line: str) -> bool:
    return _MARK_LINES[-1] in line


def _as_said(line: str) -> str:
    # With report/output_format=json in lvm.conf it stands in a log, quoted (lvm2, libdm-report.c).
    return line.replace('\\"', '"')


def _is_answer(line: str) -> bool:
    # Anywhere in it: lvm.conf may put a prefix or the command's name before each line.
    return not line.startswith(_PROMPT) and not any(mark in line for mark in _MARK_LINES)


class WarmLvm:
    """One waiting lvm; it does one command after the other."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._is_behind = False
        """Whether the end of the last answer has not been heard yet."""
        try:
            self._ask(_MARK, _READY_SECONDS)
        except CommandFailed as failure:
            if _NO_SHELL not in failure.stderr:
                raise
            raise HostLacks(
                what="an lvm that takes its orders on standard input: this one was built with "
                "neither readline nor libedit",
                remedy="install an lvm2 that was configured with --enable-readline",
            ) from failure

    def snapshot(
        self, origin: LvRef, name: str, tags: Iterable[str], *, limit_seconds: float
    ) -> None:
        """Make a read-only snapshot of a thin volume; see ``argv.thin_snapshot``."""
        command = argv.thin_snapshot(origin, name, tags)
        self._do(command, f'"{name}" created', limit_seconds, to_the_end=False)

    def attach(self, origin: LvRef, name: str, chunk_bytes: int, *, limit_seconds: float) -> None:
        """Make a store the snapshot of a thick volume; see ``argv.attach_store``."""
        command = argv.attach_store(origin, name, chunk_bytes)
        self._do(command, "converted to snapshot", limit_seconds, to_the_end=False)

    def clone(
        self,
        snapshot: LvRef,
        name: str,
        tags: Iterable[str],
        read_ahead: str,
        *,
        limit_seconds: float,
    ) -> None:
        """Make a writable copy of a snapshot, with a device; as ``Lvm.clone`` does."""
        command = argv.thin_clone(snapshot, name, tags, read_ahead)
        self._do(command, f'"{name}" created', limit_seconds)

    def rename(self, vg: str, old: str, new: str, *, limit_seconds: float) -> None:
        """Give a volume another name; as ``Lvm.rename`` does, but udev may be late with its link.

        Who goes on with the device of that name has to wait for it (``newdisks.require_names``).
        """
        command = argv.rename(vg, old, new, waits_for_udev=False)
        self._do(command, f'Renamed "{old}" to "{new}"', limit_seconds)

    def _do(
        self, command: argv.Argv, success: str, limit_seconds: float, *, to_the_end: bool = True
    ) -> None:
        """Have a command done.

        An lvm says that it has done it once the metadata is committed and the disk goes on (lvm2,
        lv_create_single and _lvconvert_snapshot).  What then is left to it, unlocking and devices
        that udev makes, is waited for ``to_the_end`` or when the next order is given.
        """

        def is_done(line: str) -> bool:
            return _is_end(line) or (not to_the_end and success in _as_said(line))

        with crashpoint.around(" ".join(command[:2])):
            order = " ".join(_order(command))
            answer = self._ask(f"{order}\n{_MARK}", limit_seconds, is_done)
        if not any(success in _as_said(line) for line in answer):
            said = "\n".join(filter(_is_answer, answer))
            raise CommandFailed(argv=command, status=_FAILED_STATUS, stderr=said)

    def _ask(
        self, lines: str, limit_seconds: float, ends: Callable[[str], bool] = _is_end
    ) -> tuple[str, ...]:
        deadline = Deadline(limit_seconds)
        former = _is_end if self._is_behind else ends
        heard = self._conversation.ask(lines, former, limit_seconds=limit_seconds)
        if self._is_behind:
            heard = self._conversation.listen(ends, limit_seconds=deadline.left_seconds)
        self._is_behind = not _is_end(heard[-1])
        return heard
