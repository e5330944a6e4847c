"""Check that a domain will be able to listen on its ports, before it is ended.

Its screen may have a fixed port that a clone uses by now, or an address of another host.  QEMU
would notice only when it is started.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress

from snapvm.hypervisor import domainxml
from snapvm.model import Domain, DomainState
from snapvm.refusals import DomainRefused

_PORTS = ("port", "tlsPort", "websocket")
_BY_DEFAULT = "127.0.0.1"
_WHY = {
    errno.EADDRINUSE: "something else is listening there",
    errno.EADDRNOTAVAIL: "this host has no such address",
}

_WEBSOCKET = re.compile(r"(<graphics type='vnc'[^>]* websocket=)'\d+'")
_FREE = "-1"
"""A port that libvirt chooses at each start (docs/formatdomain, `graphics`)."""

Place = tuple[str, int]


def require(domain: Domain, definition: str, remedy: str) -> None:
    """Raise ``DomainRefused`` for what a libvirt domain's definition has it listen on in vain.

    Ports on which the domain itself listens now will be free when it has ended.
    """
    present = "" if domain.state is DomainState.SHUTOFF else domain.definition
    own = {port for _, port in _places(present, with_chosen=True)}
    require_free(domain.name, _places(definition), own, remedy)


def require_free(domain: str, places: Iterable[Place], own: Container[int], remedy: str) -> None:
    """Raise ``DomainRefused`` for the first place at which the domain could not listen.

    It listens on its ``own`` ports now, and at which address of them does not matter: it may be at
    all of them.
    """
    for address, port in places:
        number = _trouble(address, port)
        why = _WHY.get(number, "")
        if why and not (number == errno.EADDRINUSE and port in own):
            raise DomainRefused(
                domain=domain,
                why=f"it would not start: it has to listen on {address} port {port}, and {why}",
                remedy=f"free it (`ss -ltnp` shows who has it, `ip address` the addresses), or "
                f"{remedy}",
            )


def freed(definition: str, booted: str) -> str:
    """Return a live definition for an image, with a port for websockets left to libvirt again.

    ``booted`` is that of the next start, which tells whether libvirt had chosen the port: a live
    one has the number alone (libvirt, domain_conf.c, virDomainGraphicsDefFormat), and from that the
    domain could be restored only while nobody else has the port.
    """
    screens = domainxml.parse(booted).iterfind("./devices/graphics[@type='vnc']")
    if any(screen.get("websocket") == _FREE for screen in screens):
        return _WEBSOCKET.sub(rf"\g<1>'{_FREE}'", definition)
    return definition


def _places(definition: str, *, with_chosen: bool = False) -> Iterator[Place]:
    """Yield where a domain listens; ``with_chosen`` includes ports that libvirt has chosen."""
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
            yield from fixed(address, [screen.get(name, "") for name in names])
    for source in root.iterfind("./devices/*[@type='tcp']/source[@mode='bind']"):
        yield from fixed(source.get("host", _BY_DEFAULT), [source.get("service", "")])


def fixed(address: str, ports: list[str]) -> Iterator[Place]:
    """Yield the valid ports of an address; nothing when it is a name."""
    with suppress(ValueError):
        ipaddress.ip_address(address)
        for port in ports:
            if port.isdecimal() and int(port):
                yield address, int(port)


def _trouble(address: str, port: int) -> int:
    """Try to listen, as QEMU does, for which closed connections are no obstacle.

    Returns the errno of the failure, or 0.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((address, port))
    except (OSError, OverflowError) as error:
        return getattr(error, "errno", 0) or 0
    return 0
