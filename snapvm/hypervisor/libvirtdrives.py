"""Find the drives of a libvirt domain, and ask libvirt where the volumes of its pools are."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from snapvm.hypervisor import domainxml, sidexml
from snapvm.hypervisor.base import Drives
from snapvm.hypervisor.libvirtlink import LibvirtFailed, Link, spoken
from snapvm.model import Domain
from snapvm.refusals import DomainRefused


def of(link: Link, domain: Domain) -> Drives:
    """Return the drives of a domain, and the UEFI or TPM state that is not captured.

    Raises ``DiskRefused`` for a drive that cannot be captured.
    """

    def volume_path(pool: str, volume: str) -> Path:
        try:
            return path_of_volume(link, pool, volume)
        except LibvirtFailed as failure:
            raise DomainRefused(
                domain=domain.name,
                why=f"its volume {volume} of pool {pool} cannot be found: {failure}",
                remedy=f"start the pool (virsh pool-start {shlex.quote(pool)}), or have libvirt "
                f"look into it again: virsh pool-refresh {shlex.quote(pool)}",
            ) from failure

    drives = domainxml.classify(domain.name, domain.definition, volume_path)
    return replace(drives, omitted=(*drives.omitted, *sidexml.left_out(domain.definition)))


def path_of_volume(link: Link, pool: str, volume: str) -> Path:
    """Return the path of a volume of a storage pool; raise ``LibvirtFailed``."""
    with spoken():
        found = link.connection.storagePoolLookupByName(pool)
        return Path(found.storageVolLookupByName(volume).path())
