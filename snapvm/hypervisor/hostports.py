"""Where a libvirt domain listens on this host: whether it could, before it is ended.

A screen with a port of its own, such as a clone may have taken over, or at an address of another
host; QEMU finds out when it is started.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import suppress

from snapvm.hypervisor import domainxml
from snapvm.model import Domain
from snapvm.refusals import DomainRefused

_PORTS = ("port", "tlsPort", "websocket")
_BY_DEFAULT = "127.0.0.1"
_WHY = {
    errno.EADDRINUSE: "somebody else listens there",
    errno.EADDRNOTAVAIL: "this host has no such address",
}

Place = tuple[str, int]


def require(domain: Domain, definition: str, remedy: str) -> None:
    """Raise ``DomainRefused`` for the first place that is taken, or none of this host.

    Where the domain listens already, it does no more when it is started.
    """
    present = domain.definition if domain.state.has_memory else ""
    own = {port for _, port in _places(present, with_chosen=True)}
    for address, port in _places(definition):
        number = _trouble(address, port)
        why = _WHY.get(number, "")
        # At another address too: it may listen at all of them now.
        if why and not (number == errno.EADDRINUSE and port in own):
            raise DomainRefused(
                domain=domain.name,
                why=f"it would not start: it is to listen at {address} port {port}, and {why}",
                remedy=f"free it (`ss -ltnp` shows who has it, `ip address` what there is), or "
                f"{remedy}",
            )


def _places(definition: str, *, with_chosen: bool = False) -> Iterator[Place]:
    """Yield where a domain listens; ``with_chosen`` also where libvirt has chosen the port."""
    if not definition:
        return
    root = domainxml.parse(definition)
    for screen in root.iterfind("./devices/graphics"):
        listen = screen.find("listen")
        if listen is None or listen.get("type") == "address":
            named = (screen if listen is None else listen).attrib
            address = named.get("address") or named.get("listen") or _BY_DEFAULT
            is_free = screen.get("autoport") == "yes" and not with_chosen
            names = _PORTS[-1:] if is_free else _PORTS
            yield from _fixed(address, [screen.get(name, "") for name in names])
    for source in root.iterfind("./devices/*[@type='tcp']/source[@mode='bind']"):
        yield from _fixed(source.get("host", _BY_DEFAULT), [source.get("service", "")])


def _fixed(address: str, ports: list[str]) -> Iterator[Place]:
    """Yield those that are ports, where the address is not a name."""
    with suppress(ValueError):
        ipaddress.ip_address(address)
        for port in ports:
            if port.isdecimal() and int(port):
                yield address, int(port)


def _trouble(address: str, port: int) -> int:
    """Try it, as QEMU does: what is left of a connection that was closed is not in the way.

    Returns why not, as errno has it.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((address, port))
    except (OSError, OverflowError) as error:
        return getattr(error, "errno", 0) or 0
    return 0
