"""A domain that is in no state to be captured is refused, with what gets it out of that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.model import DomainState
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.fakelibvirt import OFF


@pytest.mark.parametrize(
    ("state", "hint"),
    [
        (DomainState.SUSPENDED, "virsh dompmwakeup 'my web'"),
        (DomainState.CRASHED, "virsh reset 'my web'; virsh resume 'my web'"),
        (DomainState.OTHER, "while it runs, is paused or is shut off"),
    ],
)
@pytest.mark.parametrize("with_memory", [False, True])
def test_what_to_do_first(
    driver: LibvirtHypervisor, state: DomainState, hint: str, *, with_memory: bool
) -> None:
    """One that had crashed was to be woken."""
    with pytest.raises(DomainRefused, match=f"it is {state}") as refused:
        driver.check_capture(replace(OFF, state=state), with_memory=with_memory)
    assert hint in refused.value.hint()
    assert ("dompmwakeup" in refused.value.hint()) == (state is DomainState.SUSPENDED)
