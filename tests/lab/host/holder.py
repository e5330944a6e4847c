"""Asks the guest ``holder`` over its console: ``python3 -m tests.lab.host.holder NAME [LINE]``."""

from __future__ import annotations

import os
import re
import select
import sys
import time

from tests.lab.host.patience import patient
from tests.lab.host.pulse import console

LIMIT_SECONDS = 30.0


def main() -> None:
    """Send a line, print the answer; status 1 when there is none."""
    line = sys.argv[2] if len(sys.argv) > 2 else "?"
    deadline = time.monotonic() + patient(LIMIT_SECONDS)
    with console(sys.argv[1]) as fd:
        os.write(fd, f"{line}\n".encode())
        received = b""
        while time.monotonic() < deadline:
            if not select.select([fd], [], [], 3)[0]:
                os.write(fd, b"?\n")  # consoles lose characters
                continue
            received += os.read(fd, 4096)
            found = re.search(rb"HOLD [^\r\n]*\.\r*\n", received)
            if found:
                print(found[0].decode().strip())
                return
    sys.exit(f"holder: no answer: {received!r}")


if __name__ == "__main__":
    main()
