"""What holds for every unit test: it is over at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.fakes.scene import Scene, make_scene

settings.register_profile("unit", max_examples=30, deadline=None)  # no test is timed
settings.load_profile("unit")


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Nobody cuts the power of a unit test, and thirteen thousand fsyncs take seconds.

    Whether what has to be on the disk is there, the lab tries, by cutting its power.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


KINDS = {"thin": (), "thick": ("vg0", "vg1"), "mixed": ("vg1",)}
"""The groups in which disks are thick."""


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Scene:
    """A host of fakes with a running domain, its disks of each kind in turn."""
    return make_scene(tmp_path, thick=request.param)
