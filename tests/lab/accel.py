"""Finds out whether hardware virtualisation really works here.

A /dev/kvm that opens proves little: some hosts offer one that cannot boot a stock kernel. So the
lab's own kernel is booted with it, and must get as far as its first program.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.lab.image import BaseImage, cache_folder, say
from tests.lab.machine import Accelerator

PROBE_SECONDS: Final = 15
PROOF: Final = "snapvm-lab: kernel runs"


def best_accelerator(image: BaseImage, initrd: Path) -> Accelerator:
    """Return what to boot labs with; the answer is kept until the host boots again."""
    if not Path("/dev/kvm").exists():
        return Accelerator.TCG
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = cache_folder() / f"accelerator-{boot}"
    if known.exists():
        return Accelerator(known.read_text())
    for stale in cache_folder().glob("accelerator-*"):
        stale.unlink(missing_ok=True)
    say("trying whether hardware virtualisation works on this host")
    found = Accelerator.KVM if _boots(image, initrd) else Accelerator.TCG
    say(f"labs will run with {found}")
    known.write_text(found)
    return found


def _boots(image: BaseImage, initrd: Path) -> bool:
    with tempfile.TemporaryDirectory(prefix="snapvm-probe-") as folder:
        console = Path(folder) / "console.log"
        argv = [*image.qemu, "-nodefaults", "-no-reboot", "-display", "none"]
        argv += ["-machine", "pc", "-accel", "kvm", "-cpu", "host", "-smp", "2", "-m", "1024"]
        argv += ["-kernel", str(image.kernel), "-initrd", str(initrd)]
        argv += ["-append", "console=ttyS0 panic=-1 snapvm-lab=probe"]
        argv += ["-serial", f"file:{console}"]
        try:
            subprocess.run(argv, capture_output=True, timeout=PROBE_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            pass  # run() has killed it; the console tells how far it came
        return console.exists() and PROOF in console.read_text(errors="replace")
