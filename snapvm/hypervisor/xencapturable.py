"""Decide from its configuration and from Xen whether a Xen domain can be captured."""

from __future__ import annotations

import shlex

from snapvm import compression
from snapvm.errors import quoted
from snapvm.hypervisor import qemuarguments, xenconfig, xenothers
from snapvm.hypervisor.xenconfig import Config
from snapvm.hypervisor.xencontrol import XenControl
from snapvm.hypervisor.xendomains import XenDomains
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.hypervisor.xenqemu import DeviceModel
from snapvm.model import CaptureMethod, Domain, DomainState
from snapvm.refusals import DomainRefused
from snapvm.settings import Settings
from snapvm.xenguest import FRAME_BYTES

_CONTROL_DOMAIN = "0"
"""When it suspends, Xen reboots the machine (xen.git common/shutdown.c, hwdom_shutdown)."""
_WIDTH_BYTES = 8
_SUSPEND = "suspend"
_DISKS_ALONE = "take the disks alone with --disk-only"


def require_state(domain: Domain) -> None:
    """Raise ``DomainRefused`` for a domain whose disks cannot be captured now."""
    if domain.run == _CONTROL_DOMAIN:
        why = "it is the control domain, in which snapvm itself runs"
        raise DomainRefused(domain=domain.name, why=why)
    if domain.state not in (DomainState.RUNNING, DomainState.PAUSED):
        remedy = "a domain is captured while it runs, or is paused"
        raise _refused(domain, f"it is {domain.state}", remedy)


def require_known_disks(domain: Domain, config: Config) -> None:
    """Raise ``DomainRefused`` for a disk that libxl does not know."""
    hidden = qemuarguments.writable_disk(xenconfig.qemu_arguments(config))
    if hidden:
        raise _refused(
            domain,
            f"a disk on QEMU's command line ({hidden}) cannot be captured",
            "name it in `disk`, as a logical volume, or remove it from `device_model_args`",
        )


def require(domain: Domain, settings: Settings, control: XenControl, domains: XenDomains) -> None:
    """Raise ``DomainRefused`` when memory cannot be captured now, or not as asked for.

    Raises ``XenFailed`` too.
    """
    _require_settings(domain, settings)
    config = xenconfig.parse(domain.name, domain.definition)
    device = xenconfig.passthrough(config)
    if device:
        why = f"it has {device}, whose state cannot be captured"
        raise _refused(domain, why, f"detach it, or start without it, or {_DISKS_ALONE}")
    if domain.state is DomainState.PAUSED:
        raise _refused(
            domain,
            "it is paused, and a guest must suspend itself for its memory to be saved",
            f"let it run with `xl unpause {shlex.quote(domain.name)}`, or {_DISKS_ALONE}",
        )
    info = domains.get(domain)
    if info.is_hvm:
        _require_device_model(domain, config, info.domid)
    lacking_bytes = 0 if info.is_pv else control.lacking_pages(info.domid) * FRAME_BYTES
    if lacking_bytes:
        raise _refused(
            domain,
            f"it lacks {lacking_bytes >> 10} KiB of the memory that its kernel counts on (populate "
            "on demand), and Xen would crash it when that is read",
            "let its balloon driver give that back first, as it does at the end of a boot; or give "
            f"the guest all of its `maxmem` (xl mem-set); or {_DISKS_ALONE}",
        )
    if info.is_pv and control.guest_width(info.domid) != _WIDTH_BYTES:
        raise _refused(domain, "it is a 32-bit PV guest", _DISKS_ALONE)
    xenothers.require_none(domain.name, info.domid)
    client = domains.served_by(info.domid)
    if client:
        raise _refused(
            domain,
            f"it serves a device of {quoted(client)}, whose pages it has mapped: its memory would "
            "be restored without them, and its kernel needs them",
            _DISKS_ALONE,
        )
    if domains.has_no_word_for(info.domid, _SUSPEND):
        raise _refused(
            domain,
            "its kernel can be asked to shut down or reboot, but not to suspend itself",
            f"a Linux with CONFIG_XEN_SAVE_RESTORE can; or {_DISKS_ALONE}",
        )


def _require_device_model(domain: Domain, config: Config, domid: int) -> None:
    """Raise ``DomainRefused`` for an HVM domain whose QEMU cannot be captured with its memory."""
    require_known_disks(domain, config)
    if xenconfig.is_set(config["b_info"].get("device_model_stubdomain")):
        why = "its QEMU runs in a domain of its own (a stub domain)"
        raise _refused(domain, why, _DISKS_ALONE)
    try:
        DeviceModel(domid).require_able()
    except XenFailed as failure:
        raise _refused(domain, str(failure), _DISKS_ALONE) from failure


def _require_settings(domain: Domain, settings: Settings) -> None:
    if settings.capture is not CaptureMethod.AUTO:
        why = f"capturing memory by {settings.capture} is for libvirt domains"
        raise _refused(domain, why, "leave --capture out, and `capture` in the settings")
    if settings.compress != compression.NONE:
        why = f"xl reads no compressed images ({settings.compress} was asked for)"
        raise _refused(domain, why, "leave --compress out, and `compress` in the settings")


def _refused(domain: Domain, why: str, remedy: str) -> DomainRefused:
    return DomainRefused(domain=domain.name, why=why, remedy=remedy)
