"""Where a contract suite runs: on the fakes always, on the real thing inside the lab.

``SNAPVM_REAL=1`` says that this is a lab whose groups vg0 and vg1 have a thin pool each.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from snapvm.hypervisor.base import Hypervisor
from snapvm.lvm.volumes import Lvm
from snapvm.model import Domain, LvRef, LvUuid
from snapvm.process import ShRunner
from snapvm.settings import Settings
from tests.fakes.lvm import FakeLvm
from tests.fakes.scene import DOMAIN, make_scene

REAL = os.environ.get("SNAPVM_REAL") == "1"
VG = "vg0"
DISK = "contract-disk"


@dataclass(frozen=True)
class LvmWorld:
    """An lvm with one thin, active volume ``vg0/contract-disk``."""

    lvm: Lvm
    disk: LvRef


@dataclass(frozen=True)
class HypervisorWorld:
    """A hypervisor with one running domain, and how to boot it when a test has stopped it."""

    hypervisor: Hypervisor
    name: str
    folder: Path
    last_seen: list[Domain] = field(default_factory=list)
    """The domain as it was last found."""


@contextmanager
def lvm_world() -> Iterator[LvmWorld]:
    """Make the volume, and remove all that the test made."""
    if not REAL:
        fake = FakeLvm()
        fake.add_pool(VG)
        volume = fake.add_disk(VG, DISK)
        yield LvmWorld(Lvm(fake), LvRef(vg=VG, lv=DISK, uuid=LvUuid(volume.uuid)))
        return
    lvm = Lvm(ShRunner())
    _sh("lvcreate", "-qq", "-V", "64m", "-T", f"{VG}/pool", "-n", DISK)
    try:
        made = lvm.report().lv_from_name(VG, DISK)
        assert made is not None
        yield LvmWorld(lvm, made.ref)
    finally:
        _sh("lvremove", "-qq", "-y", "-S", f"lv_name=~^{DISK}", VG)


@contextmanager
def hypervisor_world(folder: Path) -> Iterator[HypervisorWorld]:
    """Start the domain, and destroy it afterwards."""
    if not REAL:
        scene = make_scene(folder)
        yield HypervisorWorld(scene.hypervisor, DOMAIN, folder)
        return
    from snapvm.hypervisor import detect  # heavy: the real one, only where it is

    name = "contract"
    _sh("lab-domain", "create", name, "--memory", "128", "--start")
    try:
        time.sleep(1)
        yield HypervisorWorld(detect.open_driver(Settings(), ShRunner()), name, folder)
    finally:
        _sh("lab-domain", "destroy", name)


def wait_until(is_true: Callable[[], bool]) -> None:
    """Wait for something that the real thing does a moment later; ten seconds at the most."""
    deadline = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _sh(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=240)
