"""Which run of a domain a journal is about: since then it may have ended, and another begun.

What tells one run from another does so only until the host is booted (``Domain.run``), so a journal
names the boot as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from snapvm import hostid
from snapvm.jsonvalues import Wrong, optional
from snapvm.model import Domain

_BOOT, _RUN = "boot_id", "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainRun:
    """One run of a domain, as a journal names it; either part is empty where it is not known."""

    boot: str
    run: str

    @classmethod
    def of(cls, domain: Domain) -> DomainRun:
        """Return the run that a domain is in now."""
        return cls(boot=hostid.boot(), run=domain.run or "")

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> DomainRun:
        """Return the run that a journal names; an older snapvm wrote a number, or nothing.

        Raises ``Wrong``.
        """
        run = said.get(_RUN)
        if run is not None and type(run) not in (str, int):
            raise Wrong(f"{_RUN!r} is {run!r}, which names no run of a domain")
        return cls(boot=optional(said, _BOOT, default=""), run=str(run or ""))

    def as_dict(self) -> dict[str, str | None]:
        """Return it as journals name it."""
        return {_BOOT: self.boot, _RUN: self.run or None}

    @property
    def is_before_boot(self) -> bool:
        """Whether the host is known to have been booted since, which has ended the run."""
        return hostid.is_rebooted(self.boot)

    def is_of(self, domain: Domain) -> bool:
        """Tell whether a domain is known to be in this run still."""
        return not self.is_before_boot and bool(self.run) and domain.run == self.run

    def is_over(self, domain: Domain) -> bool:
        """Tell whether a domain that is on is known to be in a later run, which is its owner's.

        No when it is not known: a domain that may be in this run still must not be left paused.
        """
        return self.is_before_boot or bool(self.run and domain.run and domain.run != self.run)
