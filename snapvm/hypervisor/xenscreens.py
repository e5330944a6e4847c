"""Check that a Xen domain's screen can have its port, before the running domain is ended.

libxl has QEMU look for a free port, unless it is told not to (xl.cfg(5), `vncunused=0`).  libvirt
always tells it so, with a port that was free when the domain was started (libvirt, libxl_conf.c,
libxlMakeVfb).  Those of SPICE are always fixed (libxl_dm.c, dm_spice_options).  Where QEMU does not
get its port the domain is ended.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Final

from snapvm.hypervisor import hostports
from snapvm.hypervisor.hostports import Place
from snapvm.hypervisor.xenconfig import HVM, Config, is_hvm, is_set

_FIRST_PORT: Final = 5900
"""That of display 0 (QEMU, `-vnc`)."""
_BY_DEFAULT: Final = "127.0.0.1"
_ANYWHERE: Final = "0.0.0.0"  # noqa: S104 - where QEMU listens for SPICE if nobody says otherwise


def require(domain: str, config: Config, own: Container[int]) -> None:
    """Raise ``DomainRefused`` when somebody else has a port of the domain's screen.

    ``own`` are those on which the domain itself listens now.
    """
    places = (*_places(config), *spice_places(config))
    hostports.require_free(domain, places, own, "end what has it, such as the other domain")


def spice_places(config: Config) -> Iterator[Place]:
    """Yield where QEMU has to listen for SPICE, which one in a stub domain does not."""
    b_info = config["b_info"]
    spice = b_info.get(HVM, {}).get("spice", {})
    if is_set(spice.get("enable")) and not is_set(b_info.get("device_model_stubdomain")):
        ports = [str(spice.get(key, "")) for key in ("port", "tls_port")]
        yield from hostports.fixed(str(spice.get("host") or _ANYWHERE), ports)


def _places(config: Config) -> Iterator[Place]:
    """Yield where QEMU has to listen for VNC: it has one screen (libxl_dm.c, libxl__dm_vnc)."""
    screens = [config["b_info"].get(HVM, {})] if is_hvm(config) else config.get("vfbs", [])[:1]
    for screen in screens:
        vnc = screen.get("vnc", {})
        address, display = str(vnc.get("listen") or _BY_DEFAULT), str(vnc.get("display", 0))
        if ":" in address:  # it has the display as well
            address, _, display = address.rpartition(":")
        is_on = is_set(vnc.get("enable", "True")) and vnc.get("findunused") == "False"
        if is_on and display.isdecimal():
            yield from hostports.fixed(address.strip("[]"), [str(_FIRST_PORT + int(display))])
