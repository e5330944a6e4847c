"""A seeded sample of ``make crash-sweep``: snapvm killed in the middle, on the real thing."""

from __future__ import annotations

import random

import pytest

from tests.lab.deaths import Way
from tests.lab.patient import Verb, patient
from tests.lab.vm import Lab

pytestmark = pytest.mark.lab

SAMPLES = {Verb.ROLLBACK: 1}
"""One in the middle of a take is in test_kvm_failures; on the fakes all are tried."""


def test_a_sample_of_deaths(kvm_lab: Lab) -> None:
    chance = random.Random("snapvm crash")
    with patient(kvm_lab, "mixed") as subject:
        for verb, count in SAMPLES.items():
            for point in chance.sample(subject.points(verb), count):
                assert not subject.die(verb, point, Way.SNAPVM), (verb, point)
