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
from snapvm.model import Domain, LvRef
from snapvm.process import ShRunner
from snapvm.settings import Settings
from tests.fakes.lvm import FakeLvm
from tests.fakes.scene import DOMAIN, make_scene
from tests.lab.host.patience import patient

REAL = os.environ.get("SNAPVM_REAL") == "1"
VG = "vg0"
DISK = "contract-disk"
_WRITTEN_BYTES = 1 << 20


@dataclass(frozen=True)
class LvmWorld:
    """An lvm with one active volume ``vg0/contract-disk``."""

    lvm: Lvm
    disk: LvRef
    fake: FakeLvm | None = None

    def write(self, text: str) -> None:
        """Put a text onto the disk, as its domain would."""
        if self.fake is not None:
            self.fake.named(VG, DISK).data = text
        else:
            self.disk.path.write_bytes(text.encode().ljust(_WRITTEN_BYTES, b"\0"))
            _sh("blockdev", "--flushbufs", str(self.disk.path))

    def read(self, name: str) -> str:
        """Return the text on a volume that has a device."""
        if self.fake is not None:
            return self.fake.named(VG, name).data
        path = Path("/dev", VG, name)
        wait_until(path.exists)  # a snapshot is attached without waiting for udev
        _sh("blockdev", "--flushbufs", str(path))
        with path.open("rb") as file:
            return file.read(_WRITTEN_BYTES).rstrip(b"\0").decode()


@dataclass(frozen=True)
class HypervisorWorld:
    """A hypervisor with one running domain, and how to boot it when a test has stopped it."""

    hypervisor: Hypervisor
    name: str
    folder: Path
    last_seen: list[Domain] = field(default_factory=list)
    """The domain as it was last found."""


@contextmanager
def lvm_world(*, thick: bool = False) -> Iterator[LvmWorld]:
    """Make the volume, thin unless told, and remove all that the test made."""
    if not REAL:
        fake = FakeLvm()
        fake.add_pool(VG)
        fake.add_disk(VG, DISK, pool="" if thick else "pool")
        lvm = Lvm(fake, copy_back=fake.copy_back)
        yield LvmWorld(lvm, _disk_of(lvm), fake)
        return
    lvm = Lvm(ShRunner())
    where = ["-Wn", "-L", "64m", VG] if thick else ["-V", "64m", "-T", f"{VG}/pool"]
    _sh("lvcreate", "-qq", "-y", "-n", DISK, *where)
    try:
        yield LvmWorld(lvm, _disk_of(lvm))
    finally:
        _sh("lvremove", "-qq", "-y", "-S", f"lv_name=~^{DISK}", VG)


def _disk_of(lvm: Lvm) -> LvRef:
    made = lvm.report().lv_from_name(VG, DISK)
    assert made is not None
    return made.ref


@contextmanager
def hypervisor_world(folder: Path) -> Iterator[HypervisorWorld]:
    """Start the domain, and destroy it afterwards."""
    if not REAL:
        scene = make_scene(folder)
        yield HypervisorWorld(scene.hypervisor, DOMAIN, folder)
        return
    from snapvm.hypervisor import detect  # heavy: the real one, only where it is

    name = "contract"
    _sh("lab-domain", "create", name, "--memory", "128", "--agent", "--start")
    try:
        time.sleep(1)
        yield HypervisorWorld(detect.open_driver(Settings(), ShRunner()), name, folder)
    finally:
        _sh("lab-domain", "destroy", name)


def wait_until(is_true: Callable[[], bool], limit_seconds: float = 10) -> None:
    """Wait for something that the real thing does a moment later."""
    deadline = time.monotonic() + patient(limit_seconds)
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _sh(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=240)
