"""What captures without memory have in common: there is nothing to do about memory."""

from __future__ import annotations


class Memoryless:
    """The part of a ``Capture`` that is about memory, for one that captures none."""

    def arm(self) -> None:
        """There is no memory to arm for."""

    def give_up(self) -> None:
        """There is nothing to end."""

    def drain(self) -> None:
        """There is no memory."""
