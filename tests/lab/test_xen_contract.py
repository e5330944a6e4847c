"""The contract of a hypervisor on the lab's own Xen."""

from __future__ import annotations

import re

import pytest

from tests.lab.vm import Lab

pytestmark = [pytest.mark.lab, pytest.mark.long]


def test_xen_keeps_the_contract(xen_lab: Lab) -> None:
    script = (
        "cd /snapvm && SNAPVM_REAL=1 python3 -m pytest -q -p no:cacheprovider"
        # /tmp is memory, of which the images of all its captures would take too much.
        " --basetemp=/var/tmp/contract tests/contract/test_hypervisor_contract.py"
    )
    done = xen_lab.run(script, timeout_seconds=480)
    assert done.status == 0, done.stdout + done.stderr
    assert re.search(r"\b([1-9]\d*) passed\b", done.stdout), done.stdout
