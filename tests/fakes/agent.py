"""The guest's agent of the fake hypervisor: it freezes the writers and sets the clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from snapvm import crashpoint
from snapvm.attention import StillFrozen
from snapvm.failures import ClockNotSet, NotFrozen
from snapvm.model import Domain, DomainState
from snapvm.refusals import DomainRefused
from tests.fakes.machine import Machine


class Asked(Protocol):
    """Whose agent is asked; see ``FakeHypervisor``."""

    machines: dict[str, Machine]
    before: Callable[[str], None]


class FakeAgent:
    """See ``GuestAgent``."""

    def __init__(self, own: Asked) -> None:
        self._own = own

    def is_expected(self, domain: Domain) -> bool:
        """See ``GuestAgent.is_expected``."""
        return self._own.machines[domain.name].agent

    def check(self, domain: Domain) -> None:
        """See ``GuestAgent.check``."""
        if not self._answers(domain):
            raise DomainRefused(domain=domain.name, why="no guest agent answers")
        if self._own.machines[domain.name].frozen:
            raise DomainRefused(domain=domain.name, why="its file systems are frozen already")

    def freeze(self, domain: Domain) -> None:
        """See ``GuestAgent.freeze``."""
        with crashpoint.around("freeze file systems"):
            if not self._answers(domain):
                raise NotFrozen(domain=domain.name, why="nobody answers")
            self._own.machines[domain.name].frozen = True
        self._own.before("frozen file systems")

    def thaw(self, domain: Domain) -> bool:
        """See ``GuestAgent.thaw``."""
        machine = self._own.machines[domain.name]
        with crashpoint.around("thaw file systems"):
            if not machine.domain.state.has_memory:
                return True
            if not self._answers(domain):
                raise StillFrozen(domain=domain.name, why="nobody answers")
            was_frozen, machine.frozen = machine.frozen, False
            return was_frozen

    def set_clock(self, domain: Domain) -> float:
        """See ``GuestAgent.set_clock``."""
        machine = self._own.machines[domain.name]
        if not self._answers(domain) or machine.frozen:
            raise ClockNotSet(domain=domain.name, why="nobody answers")
        moved, machine.clock_behind_seconds = machine.clock_behind_seconds, 0.0
        return moved

    def _answers(self, domain: Domain) -> bool:
        machine = self._own.machines[domain.name]
        self._own.before("ask the agent")
        return machine.agent and machine.domain.state is DomainState.RUNNING
