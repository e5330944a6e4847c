"""What captures without memory have in common: there is nothing to do about memory."""

from __future__ import annotations


class Memoryless:
    """The part of a ``Capture`` that is about memory, for one that captures none."""

    is_brief = True

    def arm(self) -> None:
        """Do nothing: there is no memory to write."""

    def give_up(self) -> None:
        """Do nothing: ``arm`` does not wait for anything."""

    def drain(self) -> None:
        """Return None: there is no image."""
