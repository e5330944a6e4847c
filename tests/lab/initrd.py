"""Packs the two initramfs archives: the lab's own, and that of the guest ``pulse``."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.lab import cpio, kmods
from tests.lab.errors import LabError
from tests.lab.image import BaseImage

LAB_MODULES: Final = ("virtio_pci", "virtio_blk", "ext4", "9p", "9pnet_virtio")
OLDER_MODULES: Final = ("crc32c_generic",)
"""What ext4 asks for by name; Linux 7 has it elsewhere."""
PULSE_MODULES: Final = (
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "virtio_balloon",
    "virtio_console",  # a guest agent's channel; built in since Debian 13
    "xen-blkfront",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
)
PULSE_SOURCE: Final = Path(__file__).resolve().parent / "pulse" / "pulse.c"
AGENT_SOURCE: Final = PULSE_SOURCE.with_name("agent.c")
HOLDER_SOURCE: Final = PULSE_SOURCE.with_name("holder.c")

LAB_INIT: Final = """#!/bin/busybox sh
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
echo "snapvm-lab: kernel runs"
for module in /modules/*; do busybox insmod "$module"; done
if busybox grep -q snapvm-lab=probe /proc/cmdline; then busybox poweroff -f; fi
tries=0
while [ ! -b /dev/vda ] && [ "$tries" -lt 600 ]; do busybox sleep 0.1; tries=$((tries + 1)); done
busybox mount -t ext4 -o noatime /dev/vda /root || echo "snapvm-lab: no root file system"
busybox umount /proc
busybox mount --move /dev /root/dev
exec busybox switch_root /root /sbin/lab-init
"""


def lab_initrd(image: BaseImage) -> bytes:
    """Return the initramfs that finds the lab's root file system and hands over to it.

    Debian's own one takes half a minute to build and long to unpack under emulation.
    """
    entries = [
        *_skeleton(),
        cpio.file("bin/busybox", image.busybox.read_bytes(), executable=True),
        cpio.file("init", LAB_INIT.encode(), executable=True),
        *_module_entries(image.modules, LAB_MODULES, OLDER_MODULES),
    ]
    return cpio.pack(entries)


def pulse_initrd(image: BaseImage, source: Path = PULSE_SOURCE) -> bytes:
    """Return the initramfs whose /init is the guest ``pulse``; compiles it first (about 1 s).

    With ``HOLDER_SOURCE`` it is the guest that holds another domain's page.
    """
    entries = [
        *_skeleton(),
        cpio.file("init", _compiled(source), executable=True),
        cpio.link("sbin/poweroff", "/init"),
        *_module_entries(image.modules, PULSE_MODULES),
    ]
    return cpio.pack(entries)


def _skeleton() -> list[cpio.Entry]:
    return [
        *(cpio.folder(name) for name in ("bin", "dev", "modules", "proc", "root", "sbin", "sys")),
        cpio.character_device("dev/console", 5, 1),
    ]


def _module_entries(
    folder: Path, wanted: tuple[str, ...], if_there: tuple[str, ...] = ()
) -> list[cpio.Entry]:
    order = kmods.load_order(folder, wanted, if_there)
    return [
        cpio.file(f"modules/{number:03}-{kmods.plain_name(path)}", kmods.content(path))
        for number, path in enumerate(order)
    ]


def _compiled(source: Path) -> bytes:
    with tempfile.TemporaryDirectory(prefix="snapvm-pulse-") as folder:
        program = Path(folder) / "pulse"
        argv = ["gcc", "-static", "-O2", "-pthread", "-Wall", "-Wextra", "-s", "-o"]
        argv += [str(program), str(source)]
        if source == PULSE_SOURCE:
            argv.append(str(AGENT_SOURCE))
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise LabError(f"{source.name} does not compile:\n{done.stderr}")
        return program.read_bytes()
