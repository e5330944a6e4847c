"""Check what libvirt would start a domain from: snapvm's image, its disks, or a saved memory."""

from __future__ import annotations

import logging
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from snapvm import retry
from snapvm.hypervisor import (
    hostdevices,
    hostplaces,
    hostports,
    hugepages,
    libvirtabilities,
    libvirtfiles,
    libvirtneeds,
    libvirtprocessor,
    libvirtsecrets,
    libvirtvsock,
    sidexml,
    startfiles,
)
from snapvm.hypervisor.libvirtlink import XML_INACTIVE, LibvirtFailed, Link, spoken
from snapvm.model import Domain
from snapvm.refusals import DomainRefused

log = logging.getLogger(__name__)

_SELINUX = "security.selinux"
_RECORDS = "domains"
"""The folder with all images, in the state folder."""


def check(connection: Any, domain: Domain, image: Path, cookie: str) -> None:
    """Have libvirt read an image's header, and check that the host has all that the image names.

    Raises ``DomainRefused`` when libvirt cannot use the image, or something is missing.
    """
    try:
        definition = _definition(connection, image)
    except LibvirtFailed as failure:
        raise DomainRefused(
            domain=domain.name,
            why=f"libvirt cannot use the memory image: {failure}",
            remedy=_labelling(image),
        ) from failure
    # --no-verify, because the edit changes the checksum of the image.
    edit = f"virsh save-image-edit {shlex.quote(str(image))}"
    remedy = f"name another with `{edit}` and roll back with --no-verify"
    startfiles.require(domain.name, libvirtfiles.opened(definition, boots=False), remedy)
    _require(connection, domain, definition, remedy, of_memory=True)
    libvirtprocessor.require(connection, domain, definition, cookie)


def warn_unreadable(link: Link, domain: Domain, image: Path) -> None:
    """Log that libvirt cannot read an image that was just made: a rollback would be refused.

    A libvirtd that is just restarted is waited for.
    """
    try:
        retry.libvirtd(lambda: link.connection)
        _definition(link.connection, image)
    except LibvirtFailed as failure:
        remedy = _labelling(image)
        log.warning(
            "libvirt cannot use the memory image of %s, and a rollback would be refused: %s%s",
            domain.name,
            failure,
            f"; {remedy}" if remedy else "",
        )


def _definition(connection: Any, image: Path) -> str:
    with spoken():
        return str(connection.saveImageGetXMLDesc(str(image), 0))


def _labelling(image: Path) -> str:
    """Say how SELinux lets libvirt read the images; empty on a host without it.

    A virtqemud with a policy of its own (Fedora, RHEL 10) may read what is labelled as an image.
    """
    try:
        os.getxattr(image, _SELINUX)
    except OSError:
        return ""
    records = (folder for folder in image.parents if folder.name == _RECORDS)
    folder = next((each.parent for each in records), image.parent)
    name = shlex.quote(str(folder))
    rule = shlex.quote(f"{folder}(/.*)?")
    return (
        "if SELinux forbids it (`ausearch -m avc -ts recent`): semanage fcontext -a -t "
        f"virt_image_t {rule}; restorecon -R {name}"
    )


def as_booted(domain: Domain, handle: Any | None) -> Domain:
    """Return a domain with the definition from which it is booted; raise ``DomainRefused``.

    A domain without a handle is booted from its present definition.
    """
    try:
        with spoken():
            definition = domain.definition if handle is None else handle.XMLDesc(XML_INACTIVE)
    except LibvirtFailed as failure:
        raise DomainRefused(domain=domain.name, why=str(failure)) from failure
    return replace(domain, definition=definition)


def check_boot(connection: Any, domain: Domain, handle: Any | None) -> None:
    """Raise ``DomainRefused`` when the host lacks something that the domain needs to boot."""
    booted = as_booted(domain, handle)
    edit = f"`virsh edit {shlex.quote(booted.name)}`"
    remedy = f"take it out of its definition: {edit}"
    startfiles.require(booted.name, libvirtfiles.opened(booted.definition, boots=True), remedy)
    remedy = f"name another in its definition: {edit}"
    _require(connection, domain, booted.definition, remedy, of_memory=False)
    if not libvirtneeds.has_hook():
        hostdevices.require(domain.name, booted.definition, f"take it out: {edit}")


def _require(
    connection: Any, domain: Domain, definition: str, remedy: str, *, of_memory: bool
) -> None:
    capabilities = libvirtneeds.require(connection, domain.name, definition, remedy)
    libvirtabilities.require(
        connection, domain.name, definition, remedy, capabilities, of_memory=of_memory
    )
    libvirtsecrets.require(connection, domain.name, definition)
    libvirtvsock.require(connection, domain, definition, remedy)
    if not libvirtneeds.has_hook():
        hugepages.require_room(domain, definition)
        hostports.require(domain, definition, remedy)
        hostplaces.require(domain.name, definition, remedy)


def refuse_lost_tpm(domain: Domain, handle: Any | None) -> None:
    """Raise ``DomainRefused`` for a vTPM that libvirt will remove together with its domain.

    libvirt does so when a transient domain ends (libvirt, qemu_tpm.c, qemuExtTPMCleanupHost), and
    the domain would boot with a new vTPM.  Restored memory brings the captured vTPM with it.
    """
    if handle is None or not sidexml.has_mortal_tpm(domain.definition):
        return
    with spoken():
        is_kept = bool(handle.isPersistent())
    if not is_kept:
        raise DomainRefused(
            domain=domain.name,
            why="it is transient, and its vTPM would be removed when the domain is ended",
            remedy="make the domain persistent: `virsh dumpxml --security-info "
            f"{shlex.quote(domain.name)} >FILE; virsh define FILE`",
        )


def refuse_saved(domain: Domain, handle: Any, why: str) -> None:
    """Raise ``DomainRefused`` for a domain whose memory libvirt keeps for its next start.

    libvirt-guests saves domains like that when the host goes down.  Such memory fits only the disks
    as they are now: with any others, the guest would damage its file systems.
    """
    try:
        with spoken():
            is_saved = bool(handle.hasManagedSaveImage(0))
    except LibvirtFailed as failure:
        raise DomainRefused(domain=domain.name, why=str(failure)) from failure
    if is_saved:
        name = shlex.quote(domain.name)
        resume = "" if domain.state.has_memory else f"`virsh start {name}` resumes it, "
        raise DomainRefused(
            domain=domain.name,
            why=f"libvirt keeps its memory for its next start (managed save), {why}",
            remedy=f"{resume}`virsh managedsave-remove {name}` discards it",
        )
