"""A seeded sample of ``make crash-sweep``: snapvm killed in the middle, on the real thing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.crash import Sweep
from tests.lab.host.verbs import Verb
from tests.lab.tally import Tally
from tests.lab.vm import Lab

pytestmark = pytest.mark.lab

VERBS = (Verb.TAKE, Verb.ROLLBACK, Verb.DELETE)
EACH = 2


def sample(lab: Lab, folder: Path, each: int) -> None:
    tally = Tally(folder / "crash.json")
    Sweep(tally, verbs=VERBS, each=each, seed="snapvm sample").of_kind(lab, "mixed")
    print(tally.table())
    assert len(tally.cases) == each * len(VERBS)
    assert not tally.failures, tally.failures


def test_a_sample_of_deaths_on_kvm(kvm_lab: Lab, tmp_path: Path) -> None:
    sample(kvm_lab, tmp_path, EACH)


def test_a_sample_of_deaths_on_xen(xen_lab: Lab, tmp_path: Path) -> None:
    sample(xen_lab, tmp_path, 1)
