"""The QEMU command line of a lab, and its process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from tests.lab.image import BaseImage

END_SECONDS: Final = 20
"""How long a killed QEMU may take to be gone."""


class Flavour(StrEnum):
    """Which hypervisor the lab runs."""

    KVM = "kvm"
    XEN = "xen"


class Accelerator(StrEnum):
    """How QEMU runs the lab itself."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True)
class Shape:
    """Size of the machine that is the lab."""

    memory_mib: int = 4096
    """With Xen half of it is dom0's."""
    cpus: int = 2
    """So many are known to work."""
    disks_gib: tuple[int, int] = (12, 4)


@dataclass(frozen=True)
class Boot:
    """Everything that one start of QEMU needs; paths may hold commas, they are escaped."""

    flavour: Flavour
    accelerator: Accelerator
    image: BaseImage
    shape: Shape
    initrd: Path
    overlay: Path
    disks: tuple[Path, ...]
    repository: Path
    share: Path
    console: Path
    channel_fd: int


def command_line(boot: Boot) -> list[str]:
    """Return QEMU's arguments."""
    return [
        *boot.image.qemu,
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        *_processor(boot),
        *_kernel(boot),
        "-serial",
        f"file:{boot.console}",
        *_disks(boot),
        *_folder("repo", boot.repository, "readonly=on"),
        *_folder("share", boot.share, "readonly=off"),
        "-device",
        "virtio-rng-pci",
        "-device",
        "virtio-serial-pci",
        "-chardev",
        f"socket,id=agent,fd={boot.channel_fd}",
        "-device",
        "virtserialport,chardev=agent,name=snapvm.agent",
    ]


def _processor(boot: Boot) -> list[str]:
    # What was seen to work under emulation: EPYC shows SVM, so KVM runs inside; Xen boots dom0 on
    # qemu64 and crashes early on "max". A PVH guest needs nested paging, and dies of the RDTSCP
    # that EPYC has.
    emulated = {Flavour.KVM: "EPYC", Flavour.XEN: "qemu64,+npt"}[boot.flavour]
    hardware = boot.accelerator is Accelerator.KVM
    return [
        "-machine",
        "pc",
        "-accel",
        "kvm" if hardware else "tcg,thread=multi,tb-size=1024",
        "-cpu",
        "host" if hardware else emulated,
        "-smp",
        str(boot.shape.cpus),
        "-m",
        str(boot.shape.memory_mib),
    ]


def _kernel(boot: Boot) -> list[str]:
    common = f"snapvm-lab={boot.flavour} panic=-1 loglevel=4 mitigations=off apparmor=0"
    if boot.flavour is Flavour.KVM:
        # Nested guests that move between two emulated processors reset themselves: of twenty
        # rounds of take and rollback five went well. The second processor is theirs alone.
        isolated = "isolcpus=1 " if boot.accelerator is Accelerator.TCG else ""
        words = f"console=ttyS0 {isolated}{common}"
        return ["-kernel", f"{boot.image.kernel}", "-initrd", f"{boot.initrd}", "-append", words]
    half = boot.shape.memory_mib // 2
    xen_words = f"console=com1 com1=115200 dom0_mem={half}M,max:{half}M loglvl=warning"
    dom0_words = f"console=hvc0 clocksource=xen tsc=unstable {common}"
    modules = f"{_commas(f'{boot.image.kernel} {dom0_words}')},{_commas(str(boot.initrd))}"
    return ["-kernel", f"{boot.image.xen}", "-initrd", modules, "-append", xen_words]


def _disks(boot: Boot) -> list[str]:
    # Flushes of the data disks end in the host's page cache: it survives a SIGKILL of QEMU, which
    # is the only power cut there is. The overlay has metadata of its own in QEMU and is flushed.
    drives = [f"file={_commas(str(boot.overlay))},format=qcow2,cache=writeback"]
    drives += [
        f"file={_commas(str(path))},format=raw,cache=unsafe,discard=unmap" for path in boot.disks
    ]
    arguments: list[str] = []
    for number, drive in enumerate(drives):
        arguments += ["-drive", f"if=none,id=disk{number},{drive}"]
        arguments += ["-device", f"virtio-blk-pci,drive=disk{number}"]
    return arguments


def _folder(tag: str, path: Path, options: str) -> list[str]:
    escaped = _commas(str(path))
    return [
        "-virtfs",
        f"local,path={escaped},mount_tag={tag},security_model=none,multidevs=remap,{options}",
    ]


def _commas(text: str) -> str:
    return text.replace(",", ",,")


class Machine:
    """A running QEMU, which the kernel kills when the thread that started it ends."""

    def __init__(self, argv: Sequence[str], *, log: Path, pass_fds: Sequence[int]) -> None:
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=tuple(pass_fds),
                start_new_session=True,
                env={**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/bin:/bin"},
            )

    @property
    def exit_status(self) -> int | None:
        """QEMU's exit status; ``None`` while it runs."""
        return self._process.poll()

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for QEMU to end by itself; tell whether it did."""
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End QEMU at once, as a power cut ends a host, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(END_SECONDS)
