"""Translate network interfaces into xl's language (xl-network-configuration(5))."""

from __future__ import annotations

from collections.abc import Iterable

from snapvm.hypervisor.xencfgdisks import UNTRUSTED
from snapvm.hypervisor.xencfgwords import listed, require_nothing
from snapvm.hypervisor.xenconfig import Config, is_set

_WORDS = {
    "mac": "mac",
    "bridge": "bridge",
    "gatewaydev": "gatewaydev",
    "ip": "ip",
    "script": "script",
    "mtu": "mtu",
    "vlan": "vlan",
    "ifname": "vifname",
    "backend_domname": "backend",
}
_TOLD = {*_WORDS, "model", "nictype", "devid", "rate_bytes_per_interval", "trusted"}
_TYPES = {"vif_ioemu": "ioemu", "vif": "vif"}
"""Whether QEMU emulates a card beside the device of Xen's, as it does where nothing is told."""
_DEFAULT_INTERVAL_USECS = 50_000


def tell(domain: str, nics: Iterable[Config], *, has_cards: bool) -> str:
    """Return the line for all interfaces, or raise ``DomainRefused``.

    A domain that ``has_cards`` has a QEMU that emulates them.
    """
    told = []
    for place, nic in enumerate(nics):
        words = _card(domain, nic) if has_cards else []
        told.append(_nic(domain, nic, [*words, *_number(domain, nic, place)]))
    return listed(domain, "vif", told)


def _nic(domain: str, nic: Config, first: list[str]) -> str:
    rest = {key: value for key, value in nic.items() if key not in _TOLD and is_set(value)}
    interval = rest.pop("rate_interval_usecs", 0) or _DEFAULT_INTERVAL_USECS
    if nic.get("backend_domname"):
        rest.pop("backend_domid", None)  # its number, which may be another by now
    require_nothing(domain, "vif", rest)
    words = [*first, *(f"{word}={nic[key]}" for key, word in _WORDS.items() if nic.get(key))]
    allowed = nic.get("rate_bytes_per_interval")
    if allowed:
        words.append(f"rate={_rate(allowed, interval)}@{interval}us")
    words += [UNTRUSTED] if nic.get("trusted") == "False" else []
    require_nothing(domain, "vif", {word: word for word in words if "," in word})
    return ",".join(words)


def _card(domain: str, nic: Config) -> list[str]:
    """Return what is told of the card that QEMU emulates."""
    kind = str(nic.get("nictype", ""))
    if kind and kind not in _TYPES:
        require_nothing(domain, "vif", {"nictype": kind})
    return [
        *([f"type={_TYPES[kind]}"] if kind else []),
        *([f"model={nic['model']}"] if nic.get("model") else []),
    ]


def _number(domain: str, nic: Config, place: int) -> list[str]:
    """Return what is told of the number by which the guest knows, and may name, an interface.

    xl numbers them in order, and a former one may have been detached.
    """
    number = nic.get("devid", place)
    if type(number) is not int or number < 0:
        require_nothing(domain, "vif", {"devid": number})
    return [] if number == place else [f"devid={number}"]


def _rate(allowed: int, interval: int) -> str:
    """Tell a number of bytes in so many microseconds as bytes a second.

    It is rounded up, because xl rounds down when it converts it back, and takes no number of more
    than 32 bits, but a unit (libxlu_vif.c).
    """
    rate = -(-allowed * 1_000_000 // interval)
    return f"{rate}B/s" if rate < 1 << 32 else f"{-(-rate // 1000)}KB/s"
