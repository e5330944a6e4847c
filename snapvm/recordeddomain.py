"""Find the domain of a record, as it is now."""

from __future__ import annotations

import shlex
from contextlib import suppress

from snapvm import planning
from snapvm.errors import UnknownDomain, quoted
from snapvm.host import Host
from snapvm.model import Domain, DomainState, HypervisorKind, Record
from snapvm.refusals import DomainRefused


def find(host: Host, record: Record) -> Domain:
    """Return the domain as it is now; it is off when the hypervisor does not know it any more.

    Raises ``DomainRefused`` for

    * a domain of libvirt's that is not known any more, where the record has no memory image to
      start it from.  xl never knows a domain that is off: without an image its owner starts it;
    * a domain that has another name now: the image would make a second domain of its uuid;
    * another domain that has the name now.
    """
    domain = None
    with suppress(UnknownDomain):
        domain = host.hypervisor.find(record.domain)
    if domain is None:
        _require_not_renamed(host, record)
        _require_startable(record)
        return vanished(record)
    if domain.uuid != record.domain_uuid and not _has_its_disks(host, domain, record):
        _require_not_renamed(host, record, "rename the other domain, and ")
        raise DomainRefused(
            domain=domain.name,
            why=f"it is not the domain that {record.ref} was taken of (its uuid is {domain.uuid})",
            remedy=_way_past_another(record),
        )
    return domain


def _require_not_renamed(host: Host, record: Record, first: str = "") -> None:
    """Raise ``DomainRefused`` when a record's domain is there and has another name now.

    ``first`` is what has to be done before it can have its former name back, which its image has.
    """
    now = host.hypervisor.name_of(record.domain_uuid)
    if now:
        back = f"give it that name back for the rollback{_renaming(record, now, record.domain)}"
        raise DomainRefused(
            domain=record.domain,
            why=f"its name is {quoted(now)} now, and was different in {record.ref}",
            remedy=first + back,
        )


def _renaming(record: Record, now: str, new: str) -> str:
    """Say how to rename a domain; libvirt refuses that while it is on (virsh(1), domrename)."""
    if record.hypervisor is HypervisorKind.XEN:
        return f": {shlex.join(['xl', 'rename', now, new])}"
    return f", while it is off: {shlex.join(['virsh', 'domrename', now, new])}"


def _require_startable(record: Record) -> None:
    """Raise ``DomainRefused`` when nothing can start a domain that is not known any more."""
    if record.memory is None and record.hypervisor is not HypervisorKind.XEN:
        raise DomainRefused(
            domain=record.domain,
            why=f"libvirt does not know it, and {record.ref} has no memory to start it from",
            remedy="make it known to libvirt first: `virsh define FILE`, or `virsh create FILE "
            "--paused` for one that is transient",
        )


def _way_past_another(record: Record) -> str:
    """Say what to do about another domain that has the record's name."""
    rename = f"rename this one{_renaming(record, record.domain, 'NEWNAME')}"
    if record.hypervisor is HypervisorKind.XEN:
        disks = "it needs all the disks that it had then, or no others"
        return f"{rename}; if it was merely created anew, {disks}"
    again = (
        "if it is the same machine, shut it off and define it with the uuid "
        f"{record.domain_uuid} again (virsh dumpxml --security-info, virsh undefine --keep-nvram "
        "--keep-tpm, virsh define)"
    )
    # Where there is no memory to start it from, libvirt has to know the domain.
    return again if record.memory is None else f"{again}; if not, {rename}"


def _has_its_disks(host: Host, domain: Domain, record: Record) -> bool:
    """Tell whether a domain of xl's is the record's machine, created anew with another uuid.

    It may have got more disks since, or have fewer again, as after a rollback to a time before it
    had them all.  libvirt keeps the uuid of a domain as long as that is defined: another uuid means
    another domain.
    """
    if record.hypervisor is not HypervisorKind.XEN:
        return False
    disks = host.hypervisor.drives(domain).disks
    volumes = planning.resolve(domain, disks, host.lvm.report(), host.lvm.uuid_of_device)
    used = {str(volume.ref) for volume in volumes.values()}
    recorded = {str(disk.volume) for disk in record.disks}
    return used >= recorded or (bool(used) and used <= recorded)


def vanished(record: Record, definition: str = "") -> Domain:
    """Return the domain of a record that its hypervisor does not know any more: it is off.

    ``definition`` is the one it had when it was last seen; without it only an image can start it.
    """
    return Domain(
        name=record.domain,
        uuid=record.domain_uuid,
        hypervisor=record.hypervisor,
        state=DomainState.SHUTOFF,
        memory_bytes=record.memory_bytes,
        vcpus=record.vcpus,
        definition=definition,
    )
