"""Decide whether a Xen domain could be restored, or booted, while its present one still runs."""

from __future__ import annotations

from pathlib import Path

from snapvm.hypervisor import startfiles, xenbridges, xencfg, xenconfig, xenroom, xensaved
from snapvm.hypervisor.xencontrol import XenControl
from snapvm.hypervisor.xendomains import XenDomains
from snapvm.model import Domain, DomainState
from snapvm.process import Runner


def require(
    domain: Domain,
    image: Path | None,
    runner: Runner,
    control: XenControl,
    domains: XenDomains,
    *,
    memory_bytes: int,
    starts: bool,
) -> None:
    """Raise ``Refused`` when it could not; see ``Hypervisor.check_restore``.

    Raises ``XenFailed`` too.
    """
    domains.require_unique(domain)
    if domain.state is DomainState.SHUTOFF:
        xensaved.require_none(domain.name)
    if image is not None:
        info = domains.known(domain)
        xenroom.require(
            runner,
            control,
            domain.name,
            needed_bytes=memory_bytes,
            given_back_bytes=0 if info is None else info.memory_bytes,
        )
    elif starts:
        config = xenconfig.parse(domain.name, domain.definition)
        xencfg.tell(domain.name, config)
        startfiles.require(domain.name, xenconfig.start_files(config, boots=True))
        xenbridges.require(domain.name, config)
