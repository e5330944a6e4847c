"""The contract suites of both seams, on the lab's own lvm and libvirt: the fakes keep no less."""

from __future__ import annotations

import re

import pytest

from tests.lab.vm import Lab

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("seam", ["lvm", "hypervisor"])
def test_the_real_thing_keeps_the_contract(kvm_lab: Lab, seam: str) -> None:
    script = (
        "cd /snapvm && SNAPVM_REAL=1 "
        f"python3 -m pytest -q -p no:cacheprovider tests/contract/test_{seam}_contract.py"
    )
    done = kvm_lab.run(script, timeout_seconds=480)
    assert done.status == 0, done.stdout + done.stderr
    assert re.search(r"\b([1-9]\d*) passed\b", done.stdout), done.stdout
