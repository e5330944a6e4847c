"""What is asked of the system inside a guest; when, those know who take, roll back and repair.

Its file systems are held still for a capture whose disks shall be usable alone.  After a rollback
they go on, should they have been still when the memory was captured, and its clock, which was
left behind at that instant, is set.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from snapvm.attention import StillFrozen, StuckPaused
from snapvm.errors import SnapvmError
from snapvm.host import Host
from snapvm.interrupt import shielded
from snapvm.model import Domain, DomainState, Record
from snapvm.planning import TakePlan
from snapvm.undo import Undo

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Awakened:
    """What became of the system in a guest that runs on from a captured instant."""

    moved_seconds: float | None = None
    """How far its clock was set on; None when it was not set."""
    notes: tuple[str, ...] = ()
    """What its owner should know."""
    stuck: StillFrozen | None = None
    """It could not be made to go on."""


@contextmanager
def standing_above(need: SnapvmError | None) -> Iterator[None]:
    """Raise what a domain needs, if anything, behind a block: also where bookkeeping fails in it.

    That is logged, and its journal tells the next command of it; of the domain nothing else does.
    """
    try:
        yield
    except SnapvmError as error:
        if need is None:
            raise
        log.warning("%s; `snapvm repair` tries again", error)
    if need is not None:
        raise need


@contextmanager
def held_still(host: Host, plan: TakePlan, undo: Undo) -> Iterator[None]:
    """Have the guest's file systems frozen for the block, where the plan says so.

    They are thawed however the block ends; but one that is to be stopped stays as it is, with the
    thaw left to ``undo``.  Raises ``NotFrozen`` when they cannot be frozen and ``StillFrozen``
    when they cannot be thawed.
    """
    if not plan.quiesce:
        yield
        return
    agent, domain = host.hypervisor.agent, plan.domain
    if plan.stop:
        undo.add(f"the file systems of {domain.name}", partial(agent.thaw, domain))
    try:
        agent.freeze(domain)
        yield
    except StuckPaused:
        remedy = f"once it runs: virsh domfsthaw {shlex.quote(domain.name)}"
        log.warning("the file systems of %s are frozen; %s", domain.name, remedy)
        raise
    except BaseException:
        with shielded():
            agent.thaw(domain)
        raise
    if not plan.stop:
        with shielded():
            agent.thaw(domain)


def release(host: Host, domain: Domain) -> None:
    """Thaw what a killed snapvm may have frozen; a guest started anew since has nothing frozen."""
    try:
        host.hypervisor.agent.thaw(domain)
    except StillFrozen as error:
        log.warning("%s; should it hang: %s", error, error.hint())


def awaken(host: Host, record: Record, *, set_time: bool) -> Awakened:
    """Let the system in a guest whose memory was just restored go on in the present."""
    if record.memory is None:
        return Awakened()
    try:
        return _awaken(host, record, set_time=set_time)
    except StillFrozen as error:
        return Awakened(stuck=error)
    except SnapvmError as error:
        hint = error.hint()
        return Awakened(notes=(f"{error} ({hint})" if hint else str(error),))


def _awaken(host: Host, record: Record, *, set_time: bool) -> Awakened:
    agent, domain = host.hypervisor.agent, host.hypervisor.find(record.domain)
    if domain.state is not DomainState.RUNNING:
        remedy = f"when it runs again: virsh domfsthaw {shlex.quote(domain.name)}"
        note = f"its file systems are frozen; {remedy}"
        return Awakened(notes=(note,) if record.quiesced else ())
    if record.quiesced:
        agent.thaw(domain)
    if not set_time or not agent.is_expected(domain):
        return Awakened()
    return Awakened(moved_seconds=agent.set_clock(domain))
