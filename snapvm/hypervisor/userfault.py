"""The host's permission that background-snapshot needs, given only while it is needed.

QEMU opens userfaultfd for faults in kernel mode too, since KVM and vhost write guest memory there;
an unprivileged QEMU may do so only while ``vm.unprivileged_userfaultfd`` is 1 (Linux,
Documentation/admin-guide/sysctl/vm.rst).  It is looked at when the descriptor is opened and not
afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SYSCTL = Path("/proc/sys/vm/unprivileged_userfaultfd")


@contextmanager
def allowed(sysctl: Path = SYSCTL) -> Iterator[None]:
    """Allow it for the block; raise ``OSError`` when this kernel has no userfaultfd."""
    before = sysctl.read_text().strip()
    if before == "1":
        yield
        return
    sysctl.write_text("1")
    try:
        yield
    finally:
        sysctl.write_text(before)
