"""The guest agent of Xen domains, which does not exist."""

from __future__ import annotations

from snapvm.failures import ClockNotSet
from snapvm.model import Domain
from snapvm.refusals import DomainRefused


class NoAgent:
    """See ``GuestAgent``: nobody answers."""

    def is_expected(self, domain: Domain) -> bool:  # noqa: ARG002 - as the protocol has it
        """See ``GuestAgent.is_expected``."""
        return False

    def check(self, domain: Domain) -> None:
        """See ``GuestAgent.check``."""
        raise DomainRefused(
            domain=domain.name,
            why="there is no agent in Xen guests that could freeze their file systems",
            remedy="leave --quiesce out: memory and disks fit together without it",
        )

    def freeze(self, domain: Domain) -> None:
        """See ``GuestAgent.freeze``."""
        self.check(domain)

    def thaw(self, domain: Domain) -> bool:  # noqa: ARG002 - as the protocol has it
        """See ``GuestAgent.thaw``: nothing is ever frozen."""
        return False

    def set_clock(self, domain: Domain) -> float:
        """See ``GuestAgent.set_clock``."""
        raise ClockNotSet(domain=domain.name, why="Xen guests have no agent that could set it")
