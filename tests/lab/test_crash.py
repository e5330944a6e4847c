"""A seeded sample of ``make crash-sweep``: snapvm killed in the middle, on the real thing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.lab.crash import Sweep
from tests.lab.host.verbs import Verb
from tests.lab.tally import Tally
from tests.lab.vm import Lab

pytestmark = pytest.mark.lab


def sample(lab: Lab, folder: Path, verbs: Sequence[Verb]) -> None:
    """Die once in each of these commands; on the fakes it is tried at every point."""
    tally = Tally(folder / "crash.json")
    Sweep(tally, verbs=verbs, each=1, seed="snapvm sample").of_kind(lab, "mixed")
    print(tally.table())
    assert len(tally.cases) == len(verbs)
    assert not tally.failures, tally.failures


def test_a_sample_of_deaths_on_kvm(kvm_lab: Lab, tmp_path: Path) -> None:
    sample(kvm_lab, tmp_path, (Verb.TAKE, Verb.ROLLBACK, Verb.DELETE))


def test_a_sample_of_deaths_on_xen(xen_lab: Lab, tmp_path: Path) -> None:
    """One alone: a command takes most of a minute where Xen itself is emulated."""
    sample(xen_lab, tmp_path, (Verb.TAKE,))
