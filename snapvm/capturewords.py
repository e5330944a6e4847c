"""The words in ``Record.capture`` by which a way to capture says that a better one was missed.

They are a part of the text, which records keep; `take` tells its user of a text that has them.
"""

from __future__ import annotations

IS_NOT_POSSIBLE = "is not possible"
"""A better way, or layout of the image, could not be had."""
WAS_STOPPED = "was stopped"
"""The guest stood still longer, or more often, than the way would have it."""


def tells_of_worse(capture: str) -> bool:
    """Tell whether the user should hear at once how memory was captured."""
    return IS_NOT_POSSIBLE in capture or WAS_STOPPED in capture
