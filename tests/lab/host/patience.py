"""How much longer than usual everything may take: this lab's machine may be a slow one.

The bounds in the lab's code and in its tests are for a usual machine, with room. The outside finds
out how slow its own is (``tests/lab/pace.py``) and tells every command that it starts inside.
"""

from __future__ import annotations

import os
from typing import Final

VARIABLE: Final = "LAB_PATIENCE"


def patient(usual_seconds: float) -> float:
    """Return the bound on this machine for what ends in so many seconds on a usual one."""
    return usual_seconds * float(os.environ.get(VARIABLE, "1"))
