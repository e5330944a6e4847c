"""Measures how long a Xen domain stands still while a command runs, and what the command needs.

``python3 -m tests.lab.host.standing NAME COMMAND...`` prints a line of JSON: milliseconds in which
the domain was paused or suspended, as Xen says, seconds of the command, its peak memory, and what
it said, which must be less than a pipe holds.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

from snapvm.hypervisor.xencontrol import open_control

LOOK_SECONDS = 0.004


def main() -> None:
    """Run the command and watch the domain beside it."""
    name, command = sys.argv[1], sys.argv[2:]
    listed = subprocess.run(["xl", "domid", name], capture_output=True, text=True, check=True)
    domid = int(listed.stdout)
    standing_seconds = 0.0
    with open_control() as control:
        begun = since = time.monotonic()
        was_standing = False
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        while process.poll() is None:
            info = control.info(domid)
            is_standing = info is not None and (info.is_paused or info.is_shut_down)
            now = time.monotonic()
            if was_standing:
                standing_seconds += now - since
            since, was_standing = now, is_standing
            time.sleep(LOOK_SECONDS)
        seconds = time.monotonic() - begun
        said, _ = process.communicate()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        json.dumps(
            {
                "standing_ms": standing_seconds * 1000,
                "seconds": seconds,
                "peak_mb": used.ru_maxrss * 1024 / 1e6,
                "status": process.returncode,
                "said": said,
            }
        )
    )
    sys.exit(process.returncode)


if __name__ == "__main__":
    main()
