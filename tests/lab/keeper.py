"""Keeps at most one lab running for a test session, and changes flavours when asked to."""

from __future__ import annotations

from tests.lab.vm import Flavour, Lab


class Keeper:
    """Boots a flavour when it is first wanted; the other one is ended before."""

    def __init__(self) -> None:
        self._lab: Lab | None = None

    def get(self, flavour: Flavour) -> Lab:
        """Return the running lab of this flavour, booting it when needed."""
        if self._lab is not None and self._lab.flavour is flavour:
            return self._lab
        self.close()
        lab = Lab(flavour)
        lab.__enter__()
        self._lab = lab
        return lab

    def close(self) -> None:
        """End whatever runs."""
        if self._lab is not None:
            self._lab.close()
            self._lab = None
