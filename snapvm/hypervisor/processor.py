"""What follows when a memory image wants a processor that this host has not."""

from __future__ import annotations

import logging

from snapvm.model import Domain, DomainState
from snapvm.refusals import DomainRefused

log = logging.getLogger(__name__)


def refuse(domain: Domain, why: str, *, software: str, how_to_look: str) -> None:
    """Raise ``DomainRefused``; for a domain that is off, which has no memory to lose, only warn.

    ``software`` is what may have taken features away, besides the microcode and the BIOS;
    ``how_to_look`` is how to see which features there are.
    """
    if domain.state is DomainState.SHUTOFF:
        log.warning("%s: %s", domain.name, why)
        return
    raise DomainRefused(
        domain=domain.name,
        why=why,
        remedy="roll back on the host where it was taken; if it is this one, restore the "
        f"microcode, BIOS, {software} of then ({how_to_look}); or roll back to a snapshot taken "
        "since, or to one without memory; to try all the same, shut the domain off",
    )
