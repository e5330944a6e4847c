"""What can go wrong with the lab itself, apart from a command that fails inside it."""

from __future__ import annotations


class LabError(Exception):
    """The lab could not do its work; the text says why."""


class HostNotReady(LabError):
    """This machine lacks something; the text names it and how to get it."""


class ImageBuildFailed(LabError):
    """The base image could not be built."""


class LabDied(LabError):
    """The lab's machine is gone or does not answer; no statement about any command."""

    def __init__(self, cause: str, console_tail: str = "") -> None:
        self.cause = cause
        self.console_tail = console_tail
        super().__init__(
            cause + (f"\n--- end of the console ---\n{console_tail}" if console_tail else "")
        )


class CommandFailed(LabError):
    """A command run with ``check=True`` did not exit with status 0."""
