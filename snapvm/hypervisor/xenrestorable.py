"""Decide whether a Xen domain could be restored, or booted, while its present one still runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from snapvm.clock import Deadline
from snapvm.errors import quoted
from snapvm.hypervisor import (
    startfiles,
    xenbridges,
    xencfg,
    xenconfig,
    xendisks,
    xenkeeper,
    xenothers,
    xenpins,
    xenroom,
    xensaved,
    xenscreens,
)
from snapvm.hypervisor.xenconfig import Config
from snapvm.hypervisor.xencontrol import XenControl
from snapvm.hypervisor.xendisks import Attached, Vbd
from snapvm.hypervisor.xendomaininfo import DomainInfo
from snapvm.hypervisor.xendomains import XenDomains, state_of
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.hypervisor.xenstore import XenStore
from snapvm.model import Domain, DomainState, DomainUuid
from snapvm.process import Runner
from snapvm.refusals import DomainRefused

START_SECONDS = 10.0
"""An xl sleeps for two between two runs of a domain; to clear away may take longer than that."""
_LOOK_SECONDS = 0.1


def require(
    domain: Domain,
    image: Path | None,
    runner: Runner,
    domains: XenDomains,
    *,
    memory_bytes: int,
    stored: str,
    starts: bool,
) -> None:
    """Raise ``Refused`` when it could not; see ``Hypervisor.check_restore``.

    ``stored`` is the configuration in the image.  Raises ``XenFailed`` too.
    """
    domains.require_unique(domain)
    info = domains.known(domain)
    if info is not None:
        xenothers.require_none(domain.name, info.domid)
    if domain.state is DomainState.SHUTOFF:
        xensaved.require_none(domain.name)
    if image is not None:
        xenroom.require(
            runner,
            domains.control,
            domain.name,
            needed_bytes=memory_bytes,
            given_back_bytes=0 if info is None else info.memory_bytes,
        )
        config = xenconfig.parse_stored(domain.name, stored)
    elif starts:
        config = xenconfig.parse(domain.name, domain.definition)
        xencfg.tell(domain.name, config)
    else:
        return
    files = xenconfig.start_files(config, boots=image is None)
    startfiles.require(domain.name, files)
    xenbridges.require(domain.name, config)
    own_ports = set[int]() if info is None else _own_ports(domain, domains, info)
    xenscreens.require(domain.name, config, own_ports)
    _require_pool(domain.name, config, domains)
    xenpins.require(runner, domain.name, config)
    _require_backends(domain.name, config, domains)


def _own_ports(domain: Domain, domains: XenDomains, info: DomainInfo) -> set[int]:
    """Return where the present domain listens: for VNC as xenstore has it."""
    vnc = domains.screen_port(info.domid)
    ports = {int(vnc)} if vnc.isdecimal() else set[int]()
    with suppress(DomainRefused):  # one that xl does not know well can still be restored
        present = xenconfig.parse(domain.name, domain.definition)
        ports |= {port for _, port in xenscreens.spice_places(present)}
    return ports


def as_found(
    domains: XenDomains, store: XenStore, domain: Domain, attached: Mapping[DomainUuid, Attached]
) -> DomainInfo | None:
    """Return a domain that is about to be ended as Xen has it now; None for one that is off.

    ``attached`` is what domains had when their drives were asked for.  Raises ``XenFailed`` when
    it has ended, has rebooted, was started or has got other disks since it was found, or somebody
    else has begun to save or migrate it.
    """
    info = domains.known(domain)
    # One that was created anew has another uuid, unless its configuration names one.
    if info is None and domains.named(domain.name) is not None:
        raise XenFailed("it was created anew meanwhile")
    now = DomainState.SHUTOFF if info is None else state_of(info)
    if now is not domain.state and not (now.has_memory and domain.state.has_memory):
        raise XenFailed(f"it is {now} by now")
    if info is None:
        _require_no_starter(domains, domain.name)
    else:
        info = domains.in_its_run(domain)
        then = attached.get(domain.uuid)
        if then and _disks(xendisks.read_vbds(store, info.domid)) != _disks(then.vbds):
            raise XenFailed("its disks were changed meanwhile")
        if xenothers.are_saving(info.domid):
            raise XenFailed("somebody else saves or migrates it")
    return info


def _require_no_starter(domains: XenDomains, name: str) -> None:
    """Raise ``XenFailed`` for a domain that is off when an xl is about to make it.

    An xl that only clears away what its domain has left is waited for.
    """
    deadline = Deadline(START_SECONDS)
    while starters := xenkeeper.starters(name, domains.numbers()):
        if domains.named(name) is not None:
            raise XenFailed("it was started meanwhile")
        if not deadline.left_seconds:
            raise XenFailed(f"it is off, and xl (process {starters[0]}) may be about to start it")
        time.sleep(_LOOK_SECONDS)


def hold(control: XenControl, domid: int) -> None:
    """Pause a domain that is about to be ended; raise ``XenFailed`` when it has just shut down.

    One that did so to reboot is made anew by its xl, though it is paused.  Once it is paused it
    cannot shut down any more.
    """
    control.pause(domid)
    info = control.info(domid)
    if info is None or info.is_shut_down:
        raise XenFailed("it shut down or crashed just then")


def _disks(vbds: Iterable[Vbd]) -> tuple[Vbd, ...]:
    return tuple(vbd for vbd in vbds if vbd.is_captured)


def _require_pool(name: str, config: Config, domains: XenDomains) -> None:
    """Raise ``DomainRefused`` when the domain's CPU pool is gone: a boot of the host ends all."""
    pool = str(config["c_info"].get("pool_name") or "")
    if pool and pool not in domains.pools():
        raise DomainRefused(
            domain=name,
            why=f"it would not start: its CPU pool {quoted(pool)} is not there",
            remedy="make it (xl cpupool-create), or give another that name (xl cpupool-rename); "
            "`xl cpupool-list` shows the existing ones",
        )


def _require_backends(name: str, config: Config, domains: XenDomains) -> None:
    """Raise ``DomainRefused`` when a domain does not run that is to serve a device.

    One that was restarted since has another number, by which the configuration may know it.
    """
    numbers = set(map(str, domains.numbers()))
    for server in xenconfig.servers(config):
        is_there = server in numbers if server.isdecimal() else domains.named(server) is not None
        if not is_there:
            raise DomainRefused(
                domain=name,
                why=f"it would not start: domain {quoted(server)}, which serves a device of it, "
                "does not run",
                remedy="start that domain first",
            )
