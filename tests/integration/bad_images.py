"""Run beside the test: ``snapvm`` on each damaged image, one forked process an image.

``python3 -m tests.integration.bad_images FOLDER`` runs ``verify`` and ``inspect`` on every file
in the folder and prints a line of JSON for each run: the file, the verb, the exit status
(negative: the signal that ended it), the peak of its resident memory in KiB, and what it said. A
fork begins with all modules read, so that the peaks differ by what an image makes snapvm use.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snapvm.cli.app import run

PATIENCE_SECONDS = 60
"""An image of less than a megabyte keeps nobody so long; then it hangs."""
VERBS = {
    "verify": ("verify", "--json"),
    "inspect --va": ("inspect", "--va", "0xffff888000014abc"),
    "inspect --frame": ("inspect", "--frame", "0x14"),
}


def main() -> None:
    """Run everything; the first run reads what is imported late."""
    folder = Path(sys.argv[1])
    files = sorted(folder.iterdir())
    for arguments in VERBS.values():
        measured(files[0], arguments, is_forked=False)
    for path in files:
        for name, arguments in VERBS.items():
            print(json.dumps({"file": path.name, "verb": name, **measured(path, arguments)}))


def measured(path: Path, arguments: Sequence[str], *, is_forked: bool = True) -> dict[str, Any]:
    """Run a verb on an image, and return how it ended, what it needed and what it said."""
    verb, *options = arguments
    argv = [verb, str(path), *options]
    with tempfile.TemporaryFile() as said:
        if not is_forked:
            keep = [os.dup(1), os.dup(2)]
            for number in (1, 2):
                os.dup2(said.fileno(), number)
            run(argv)
            sys.stdout.flush()
            for number, old in zip((1, 2), keep, strict=True):
                os.dup2(old, number)
            return {}
        child = os.fork()
        if child == 0:
            _be_the_command(argv, said.fileno())
        _, status, usage = os.wait4(child, 0)
        said.seek(0)
        return {
            "status": os.waitstatus_to_exitcode(status),
            "peak_kib": usage.ru_maxrss,
            "said": said.read().decode(errors="replace"),
        }


def _be_the_command(argv: list[str], said: int) -> None:
    """Run in the child, and end it."""
    signal.alarm(PATIENCE_SECONDS)
    os.dup2(said, 1)
    os.dup2(said, 2)
    status = 70
    try:
        status = run(argv)
        sys.stdout.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
