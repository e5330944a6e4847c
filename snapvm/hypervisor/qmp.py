"""Send QEMU its own commands through libvirt (QEMU, docs/interop/qmp-spec; virDomainQemuMonitor…).

libvirt holds the monitor; a second connection would need another socket on QEMU's command line.
Such commands taint the domain (``custom-monitor``), which is only a word in a log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

try:
    import libvirt_qemu
except ImportError:  # said by libvirtlink.open_link before anything gets here
    libvirt_qemu = None

from snapvm.hypervisor.libvirtlink import LibvirtFailed, spoken

QMP_ERROR = -1
"""The code of a ``LibvirtFailed`` when QEMU, and not libvirt, has refused."""


def gives_descriptors() -> bool:
    """Tell whether libvirt's Python module can give QEMU a file descriptor, as since 8.2.

    A missing module is reported by ``libvirtlink.open_link``.
    """
    return libvirt_qemu is None or hasattr(libvirt_qemu, "qemuMonitorCommandWithFiles")


class Qmp:
    """QEMU's monitor of one domain."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a command and return what it returns; raise ``LibvirtFailed`` when QEMU refuses."""
        with spoken():
            reply = libvirt_qemu.qemuMonitorCommand(self._handle, _line(command, arguments), 0)
        return _returned(reply)

    def give_descriptor(self, name: str, descriptor: int) -> None:
        """Give QEMU a file descriptor under a name (``getfd``); raise ``LibvirtFailed``."""
        with spoken():
            reply, _ = libvirt_qemu.qemuMonitorCommandWithFiles(
                self._handle, _line("getfd", {"fdname": name}), [descriptor], 0
            )
        _returned(reply)


def _line(command: str, arguments: Mapping[str, Any] | None) -> str:
    return json.dumps({"execute": command, "arguments": dict(arguments or {})})


def _returned(reply: str) -> Any:
    answer = json.loads(reply)
    if "error" in answer:
        raise LibvirtFailed(f"QEMU: {answer['error'].get('desc', 'no reason given')}", QMP_ERROR)
    if "return" not in answer:
        raise LibvirtFailed("QEMU says neither what it returns nor what is wrong", QMP_ERROR)
    return answer["return"]
