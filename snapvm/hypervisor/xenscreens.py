"""Check that a Xen domain's screen can have its port, before the running domain is ended.

libxl has QEMU look for a free port, unless it is told not to (xl.cfg(5), `vncunused=0`).  libvirt
always tells it so, with a port that was free when the domain was started (libvirt, libxl_conf.c,
libxlMakeVfb).  Where QEMU does not get it the domain is ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from snapvm.hypervisor import hostports
from snapvm.hypervisor.hostports import Place
from snapvm.hypervisor.xenconfig import HVM, Config, is_hvm, is_set

_FIRST_PORT: Final = 5900
"""That of display 0 (QEMU, `-vnc`)."""
_BY_DEFAULT: Final = "127.0.0.1"


def require(domain: str, config: Config, own_port: str) -> None:
    """Raise ``DomainRefused`` when somebody else has the port of the domain's screen.

    ``own_port`` is the one on which the domain itself listens now, as xenstore has it, if any.
    """
    own = {int(own_port)} if own_port.isdecimal() else set[int]()
    remedy = "end what has it, such as the other domain"
    hostports.require_free(domain, _places(config), own, remedy)


def _places(config: Config) -> Iterator[Place]:
    """Yield where QEMU has to listen: it has one screen (libxl_dm.c, libxl__dm_vnc)."""
    screens = [config["b_info"].get(HVM, {})] if is_hvm(config) else config.get("vfbs", [])[:1]
    for screen in screens:
        vnc = screen.get("vnc", {})
        address, display = str(vnc.get("listen") or _BY_DEFAULT), str(vnc.get("display", 0))
        if ":" in address:  # it has the display as well
            address, _, display = address.rpartition(":")
        is_on = is_set(vnc.get("enable", "True")) and vnc.get("findunused") == "False"
        if is_on and display.isdecimal():
            yield from hostports.fixed(address.strip("[]"), [str(_FIRST_PORT + int(display))])
