"""The QEMU of an HVM domain, its device model: a part of what the domain is.

QEMU does the I/O of emulated disks and has the state of the emulated devices.  So in a pause it is
stopped as well: it ends the I/O that it has begun and flushes it.  Then it writes its state, and
Xen's saver the memory.  The memory that QEMU itself writes to is only known to have changed if QEMU
tells Xen, which it does when it is asked to (xen.git tools/libs/light/libxl_dom_save.c,
libxl_dom_suspend.c, libxl_qmp.c; QEMU, migration/savevm.c, hw/i386/xen/xen-hvm.c).
"""

from __future__ import annotations

from contextlib import suppress

from snapvm.hypervisor import memoryfile, xenqmp
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.hypervisor.xenqmp import Version

_ASKED_TWICE = (6, 2)
"""This QEMU ends when it is asked twice in turn to tell what it writes to (QEMU a5c90c61a1)."""
_SNAPSHOTS_SINCE = (2, 11)
"""From this version on, QEMU can save its state and keep its disks."""


def is_there(domid: int) -> bool:
    """Tell whether a domain has a QEMU in the control domain."""
    return xenqmp.socket_of(domid).exists()


class DeviceModel:
    """The QEMU of one HVM domain; every failure is ``XenFailed``."""

    def __init__(self, domid: int) -> None:
        self._domid = domid

    def require_able(self) -> None:
        """Raise ``XenFailed`` for one that does not answer, or cannot be captured."""
        with xenqmp.talking(self._domid) as qemu:
            version = qemu.version
        if not _is_able(version):
            raise XenFailed(
                f"its QEMU is version {version[0]}.{version[1]}, "
                f"and must be {_ASKED_TWICE[0] + 1}.0 or later"
            )

    def tell_writes(self, *, tells: bool) -> None:
        """Have QEMU tell Xen from now on what it writes to, or no longer."""
        with xenqmp.talking(self._domid) as qemu:
            qemu.execute("xen-set-global-dirty-log", {"enable": tells})

    def stop(self) -> None:
        """Have QEMU finish and flush its I/O, and begin none."""
        with xenqmp.talking(self._domid) as qemu:
            qemu.execute("stop")

    def state(self) -> bytes:
        """Return the state of the devices of a QEMU that is stopped."""
        # QEMU may be confined, and can open no file then: so it is given one, which it wants to be
        # open for writing alone.
        with (
            open(memoryfile.made("qemu-state"), "rb", buffering=0) as file,
            open(f"/proc/self/fd/{file.fileno()}", "wb", buffering=0) as sink,
            xenqmp.talking(self._domid) as qemu,
        ):
            given = qemu.execute("add-fd", descriptors=[sink.fileno()])["fdset-id"]
            try:
                where = {"filename": f"/dev/fdset/{given}", "live": False}
                qemu.execute("xen-save-devices-state", where)
            finally:
                # What has failed before tells more than that this fails as well.
                with suppress(XenFailed):
                    qemu.execute("remove-fd", {"fdset-id": given})
            return file.read()


def go_on(domid: int) -> None:
    """Have the QEMU of a domain run, if it has one that does not; raise ``XenFailed``."""
    if not is_there(domid):
        return
    with xenqmp.talking(domid) as qemu:
        if not qemu.execute("query-status")["running"]:
            qemu.execute("cont")


def forget_writes(domid: int) -> None:
    """Have the QEMU of a domain no longer tell what it writes to, whether it does or not.

    One that is told so and does not tell ends; so it is asked to tell before (QEMU,
    system/memory.c, memory_global_dirty_log_do_stop).  Raises ``XenFailed``.
    """
    if not is_there(domid):
        return
    with xenqmp.talking(domid) as qemu:
        if _is_able(qemu.version):
            for tells in (True, False):
                qemu.execute("xen-set-global-dirty-log", {"enable": tells})


def _is_able(version: Version) -> bool:
    return version >= _SNAPSHOTS_SINCE and version != _ASKED_TWICE
