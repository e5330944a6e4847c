"""How slow this machine is, by the lab's own boot, and what of the tests there is time for on it.

The same code took four times as long on one machine as on another of the same kind, and neither
its load nor its clock showed why. So it is measured, on work of the lab's own kind.
"""

from __future__ import annotations

from typing import Final

from tests.lab.machine import Accelerator, Flavour

USUAL_BOOT_SECONDS: Final = {Flavour.KVM: 25.0, Flavour.XEN: 35.0}
"""What a boot takes under emulation on two cores."""
SLOWER_YET: Final = 1.5
"""How much slower a slow machine may become after its lab has booted: other work comes and goes."""
EARLY_SHARE: Final = 0.6
"""Of the time for all labs, the first flavour's: the other one shall be tried as well."""


def patience(flavour: Flavour, accelerator: Accelerator, boot_seconds: float) -> float:
    """Return by how much bounds grow on a machine that has booted the lab in this time."""
    if accelerator is Accelerator.KVM:
        return 1.0
    return max(1.0, SLOWER_YET * boot_seconds / USUAL_BOOT_SECONDS[flavour])


def too_late(elapsed_seconds: float, budget_seconds: float, *, early: bool) -> bool:
    """Tell whether a test that would begin now has to be left out; ``early``: a first lab's."""
    return elapsed_seconds >= budget_seconds * (EARLY_SHARE if early else 1)
