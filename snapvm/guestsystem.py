"""What is asked of the system inside a guest; `take`, `rollback` and `repair` know when to ask it.

Its file systems are frozen for a capture whose disks are to be usable alone.  After a rollback they
are thawed if they were frozen when the memory was captured, and the clock, which stayed behind at
that instant, is set.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial

from snapvm import standing
from snapvm.attention import StillFrozen, StuckPaused
from snapvm.errors import SnapvmError
from snapvm.failures import NotFrozen
from snapvm.host import Host
from snapvm.hypervisor.base import Freeze
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
    """After a block of bookkeeping, raise what the domain itself needs done, if anything.

    A failure of the bookkeeping is only logged then: its journal tells the next command of it, and
    nothing else tells of the domain.
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
def held_still(host: Host, plan: TakePlan, undo: Undo) -> Iterator[Freeze | None]:
    """Yield what freezes the guest's file systems; None where the plan does not want it.

    They are thawed however the block ends, with two exceptions, where ``undo`` thaws them when the
    guest runs again: a domain that is to be stopped, and one that is stuck in its pause, where no
    agent answers.
    Raises ``NotFrozen``, at the end of the block, when they did not stay frozen, as in Windows,
    which goes on after 10 s (VSS); ``StillFrozen`` when they cannot be thawed.  What is yielded
    raises ``NotFrozen`` when they cannot be frozen.
    """
    if not plan.quiesce:
        yield None
        return
    still = _HeldStill(host, plan, undo)
    try:
        yield still.freeze
    except StuckPaused:
        with shielded():
            still.thaw_when_put_back()
            raise
    except BaseException:
        # One that is to be stopped may stand still, where no agent answers: `undo` thaws it later.
        with shielded():
            with suppress(StillFrozen) if plan.stop else nullcontext():
                still.thaw()
            raise
    with shielded():
        was_still = plan.stop or still.thaw()
    if not was_still:
        why = "they were thawed, by themselves or by somebody, before the end of the pause"
        raise NotFrozen(domain=plan.domain.name, why=why)


class _HeldStill:
    """The file systems of a guest that is being captured; nothing is thawed that was not frozen."""

    def __init__(self, host: Host, plan: TakePlan, undo: Undo) -> None:
        self._host = host
        self._plan = plan
        self._undo = undo
        self._is_asked = False
        self._is_left_to_undo = False

    def freeze(self) -> None:
        """See ``Freeze``."""
        if not self._is_asked:
            self._is_asked = True
            if self._plan.stop:
                self.thaw_when_put_back()
            self._host.hypervisor.agent.freeze(self._plan.domain)

    def thaw(self) -> bool:
        """Thaw at once; see ``GuestAgent.thaw`` for what is returned."""
        return not self._is_asked or self._host.hypervisor.agent.thaw(self._plan.domain)

    def thaw_when_put_back(self) -> None:
        """Leave the thawing to ``undo``: steps added later run before this one, and let it run."""
        if self._is_asked and not self._is_left_to_undo:
            self._is_left_to_undo = True
            what = f"the file systems of {self._plan.domain.name}"
            self._undo.add(what, partial(_thaw_if_it_runs, self._host, self._plan.domain))


def _thaw_if_it_runs(host: Host, domain: Domain) -> None:
    now = standing.find(host, domain.name)
    if now is not None and now.state is DomainState.RUNNING:
        host.hypervisor.agent.thaw(domain)
    elif now is not None and now.state in standing.STATES:
        remedy = f"once it runs: virsh domfsthaw {shlex.quote(domain.name)}"
        log.warning("the file systems of %s are frozen; %s", domain.name, remedy)


def release(host: Host, domain: Domain) -> None:
    """Thaw what a killed snapvm may have frozen; a guest started anew since has nothing frozen."""
    try:
        host.hypervisor.agent.thaw(domain)
    except StillFrozen as error:
        log.warning("%s; if it hangs: %s", error, error.hint())


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
