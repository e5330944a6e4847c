"""Print the output of a command: results to standard output, all else to standard error."""

from __future__ import annotations

import io
import json
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from snapvm.cli.words import plain
from snapvm.errors import Interrupted
from snapvm.failures import StorageFailed

_TOLD_CHARACTERS = 300
"""How much of an unwritable result is told on standard error: it begins with the snapshot."""


class ReaderLeft(Exception):
    """Whoever read standard output has gone, as ``head`` does; this is not a failure."""


class _Stdout:
    """What is known of standard output."""

    has_value = False
    """A JSON value has been begun there; after a second one a program could read neither."""


class _Aside:
    """What writes to standard error while a command works; None at any other time."""

    write: Callable[[str], None] | None = None


def prepare_streams() -> None:
    """Make standard input, output and error usable, whatever the caller handed over.

    A closed one is opened on /dev/null: the next file opened would get its number, and a child's
    output would land in it.  What a stream cannot encode or decode becomes escapes.
    """
    _Stdout.has_value = False
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is taken, which is this one: the lower ones are open by now.
            os.open(os.devnull, os.O_RDWR)
            stream = os.fdopen(descriptor, mode, closefd=False)
            setattr(sys, name, stream)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def is_unicode(stream: TextIO) -> bool:
    """Tell whether the stream can show more than ASCII."""
    return (getattr(stream, "encoding", None) or "ascii").casefold().startswith("utf")


def out(text: str, *, is_deed: bool = False) -> None:
    """Write a result to standard output and flush it; ``is_deed`` if it says what was done.

    Raises ``ReaderLeft`` when nobody reads any more and ``StorageFailed`` for a full disk.
    """
    result = text if is_deed else ""
    try:
        _write_all(text, sys.stdout)
    except BrokenPipeError:
        _drop(sys.stdout)
        raise ReaderLeft from None
    except OSError as error:
        raise stdout_failed(error, result) from error
    except Interrupted:
        _drop(sys.stdout)  # the end of Python would wait, as this did, for whoever reads
        raise


def _write_all(text: str, stream: TextIO) -> None:
    """Write all of a text, or raise ``OSError``.

    Python drops what the kernel does not take at once where the caller wants it unbuffered
    (PYTHONUNBUFFERED), or where the descriptor does not wait.
    """
    stream.flush()
    try:
        descriptor = stream.fileno()
    except OSError:  # it is no file, as in a test
        stream.write(text)
        return
    write_whole(descriptor, text.encode(stream.encoding, stream.errors or "strict"))


def write_whole(descriptor: int, rest: bytes) -> None:
    """Write all of it, or raise ``OSError``.

    Wait where the descriptor does not: one that is shared with an event loop, as Node's.
    """
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            select.select([], [descriptor], [])


def stdout_failed(error: OSError, result: str = "") -> StorageFailed:
    """Return the failure of standard output, and drop what is still buffered for it."""
    _drop(sys.stdout)
    told = f": {' '.join(result[:_TOLD_CHARACTERS].split())}" if result else ""
    return StorageFailed(path="stdout", why=f"{error.strerror}; the work itself is done{told}")


def _drop(stream: TextIO) -> None:
    """Send what is still buffered to /dev/null, so that Python's flush at exit cannot fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def finish() -> None:
    """Flush standard error: where that fails, Python would end with status 120."""
    try:
        sys.stderr.flush()
    except OSError:
        _drop(sys.stderr)


def err(text: str) -> None:
    """Write a line for people to standard error; it does not matter when that fails."""
    draw(f"{text}\n", sys.stderr)


def draw(text: str, stream: TextIO) -> None:
    """Write to ``stream`` as ``err`` does: standard error, or what rich has put in its place."""
    if _Aside.write is not None:
        _Aside.write(text)
        return
    with suppress(OSError):
        if isinstance(stream, io.TextIOWrapper):
            _write_all(text, stream)
        else:  # rich's, which moves its drawing out of the way
            stream.write(text)
            stream.flush()


@contextmanager
def told_by(write: Callable[[str], None] | None) -> Iterator[None]:
    """Have something else write to standard error in the block; see ``snapvm.cli.aside``."""
    _Aside.write = write
    try:
        yield
    finally:
        _Aside.write = None


def say(text: str) -> None:
    """Write one line of result, without anything that a terminal would obey."""
    out(f"{plain(text)}\n", is_deed=True)


def say_findings(lines: Iterable[str]) -> None:
    """Write lines that the exit status sums up; a reader that leaves early does not change it."""
    with suppress(ReaderLeft):
        for line in lines:
            say(line)


def say_what_is_done(lines: Iterable[str]) -> None:
    """Write lines of what a command did that ends with a failure, which stays how it ends."""
    with suppress(StorageFailed):
        say_findings(lines)


def note(text: str) -> None:
    """Write a remark beside the result."""
    err(f"note: {plain(text)}")


def warn(text: str) -> None:
    """Write a warning."""
    err(f"warning: {plain(text)}")


def out_json(value: Any) -> None:
    """Write one JSON value, in ASCII, which is the same in every locale; nothing behind another."""
    text = f"{json.dumps(value, indent=1)}\n"
    if not _Stdout.has_value:
        _Stdout.has_value = True
        out(text, is_deed=True)


def out_json_rows(values: Iterable[Any]) -> None:
    """Write a JSON array, one element a line.

    Nothing is written before the last element is there: what fails until then can still be told.
    """
    rows = [json.dumps(value) for value in values]
    _Stdout.has_value = True
    out("[\n{}\n]\n".format(",\n".join(rows)) if rows else "[]\n")
