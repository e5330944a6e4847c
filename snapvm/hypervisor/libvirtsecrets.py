"""Check for the secrets that libvirt needs to start a domain: of disks, of a vTPM, of servers.

libvirt forgets the value of an ephemeral secret when it ends, for example at a reboot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from snapvm.hypervisor import domainxml
from snapvm.hypervisor.libvirtlink import denial
from snapvm.refusals import DomainRefused

_NO_SECRET = 66
"""VIR_ERR_NO_SECRET (libvirt/virterror.h): the secret does not exist, or has no value.  For a
private secret, whose value is not told, there is another error."""
_VOLUME = 1
_OF_SERVERS = {"ceph": 2, "iscsi": 3}
"""What a secret is for (libvirt/libvirt-secret.h, virSecretUsageType)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Secret:
    """How a definition names a secret: by its uuid, or by its use."""

    uuid: str
    usage: str = ""
    kind: int = 0


def require(connection: Any, domain: str, definition: str) -> None:
    """Raise ``DomainRefused`` when libvirt lacks a secret, or has lost its value."""
    for secret in dict.fromkeys(_secrets(definition)):
        missing = denial(partial(_value, connection, secret), _NO_SECRET)
        if missing:
            raise DomainRefused(
                domain=domain,
                why=f"it would not start: {missing}",
                remedy="give libvirt the secret back: `virsh secret-define FILE`, then `virsh "
                f"secret-set-value {secret.uuid or 'UUID'} --interactive`",
            ) from missing


def _value(connection: Any, secret: _Secret) -> Any:
    if secret.uuid:
        return connection.secretLookupByUUIDString(secret.uuid).value()
    return connection.secretLookupByUsage(secret.kind, secret.usage).value()


def _secrets(definition: str) -> Iterator[_Secret]:
    root = domainxml.parse(definition)
    for element in root.iterfind("./devices/disk//encryption/secret"):
        yield _Secret(uuid=element.get("uuid", ""), usage=element.get("usage", ""), kind=_VOLUME)
    for element in root.iterfind("./devices/disk//auth/secret"):
        kind = _OF_SERVERS.get(element.get("type", ""))
        if kind is not None:
            yield _Secret(uuid=element.get("uuid", ""), usage=element.get("usage", ""), kind=kind)
    for element in root.iterfind("./devices/tpm/backend/encryption[@secret]"):
        yield _Secret(uuid=element.get("secret", ""))
