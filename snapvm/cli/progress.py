"""Show progress at a terminal, and nowhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from snapvm.cli import aside, output
from snapvm.model import Progress, Silent


@contextmanager
def shown(*, quiet: bool) -> Iterator[Progress]:
    """Yield a progress that is drawn on standard error, when that is a terminal.

    With ``quiet`` it is not drawn, because a log goes to the same terminal.  In the block nobody
    waits for whoever reads standard error.
    """
    with aside.writing(sys.stderr) as write, output.told_by(write):
        if quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            yield Silent()
            return
        # heavy: rich is a seventh of what a command imports, and a script watches nothing
        from snapvm.cli import render

        with render.progress() as drawn:
            yield drawn
