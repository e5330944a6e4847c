"""``lab-domain``: makes and removes the lab's domains, each a ``pulse`` guest on volumes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.lab.host.places import BOOT_FOLDER, SOCKET_FOLDER, XL_FOLDER, on_xen
from tests.lab.host.shape import HOW, DomainShape, libvirt_xml, xl_config

FIRST_MIB: Final = bytes(1 << 20)


def sh(*argv: str, check: bool = True) -> str:
    """Run a command and return its output; what it says in failing is passed on."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=300, check=False)
    if check and done.returncode:
        sys.exit(f"lab-domain: {' '.join(argv)}: exit status {done.returncode}")
    return done.stdout


def create(shape: DomainShape, *, start: bool) -> None:
    """Make the volumes and define the domain; with ``start`` also run it."""
    _copy_boot_files()
    make = [
        "lvcreate -y -q -q " + HOW[kind].format(size=f"{shape.size_mib}m", group=group, name=name)
        for group, name, kind in shape.volumes
    ]
    subprocess.run(["lvm"], input="\n".join(make), text=True, check=True, timeout=300)
    for path, (_, _, kind) in zip(shape.paths, shape.volumes, strict=True):
        if kind != "thin":  # extents of an earlier domain hold its numbers
            Path(path).write_bytes(FIRST_MIB) if _exists(path) else sys.exit(f"no {path}")
    if on_xen():
        XL_FOLDER.mkdir(parents=True, exist_ok=True)
        (XL_FOLDER / f"{shape.name}.cfg").write_text(xl_config(shape))
        if start:
            sh("xl", "create", "-q", str(XL_FOLDER / f"{shape.name}.cfg"))
        return
    SOCKET_FOLDER.mkdir(mode=0o1777, exist_ok=True)
    definition = Path(f"/run/lab-{shape.name}.xml")
    definition.write_text(libvirt_xml(shape, kvm=os.path.exists("/dev/kvm")))
    sh("virsh", "-q", "define", str(definition))
    if start:
        sh("virsh", "-q", "start", shape.name)


def destroy(name: str) -> None:
    """Stop and undefine the domain and remove its volumes; parts that are missing are no error."""
    if on_xen():
        subprocess.run(["xl", "destroy", name], stderr=subprocess.DEVNULL, timeout=120, check=False)
        (XL_FOLDER / f"{name}.cfg").unlink(missing_ok=True)
    else:
        for verb in (["destroy"], ["managedsave-remove"], ["undefine"]):
            argv = ["virsh", "-q", *verb, name]
            subprocess.run(argv, stderr=subprocess.DEVNULL, timeout=120, check=False)
    listed = sh("lvs", "--noheadings", "-o", "vg_name,lv_name").splitlines()
    mine = [
        f"{group}/{volume}"
        for group, volume in (line.split() for line in listed)
        if volume.startswith(f"{name}-d") and volume[len(name) + 2 :].isdigit()
    ]
    if mine:
        sh("lvremove", "-q", "-q", "-y", *mine)


def _exists(path: str) -> bool:
    sh("udevadm", "settle", f"--exit-if-exists={path}", "--timeout=30", check=False)
    return os.path.exists(path)


def _copy_boot_files() -> None:
    BOOT_FOLDER.mkdir(parents=True, exist_ok=True)
    for name in ("vmlinuz", "pulse.initrd"):
        target = BOOT_FOLDER / name
        if not target.exists():
            target.write_bytes(Path("/share", name).read_bytes())


def main() -> None:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(prog="lab-domain", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    new = verbs.add_parser("create", help="make volumes NAME-d0, NAME-d1 … and the domain")
    new.add_argument("name")
    new.add_argument("--disks", type=int, default=1)
    new.add_argument("--size", type=int, default=64, help="MiB of each disk")
    new.add_argument("--memory", type=int, default=160, help="MiB")
    new.add_argument("--vcpus", type=int, default=1)
    new.add_argument("--bus", choices=("virtio", "scsi"), default="virtio")
    new.add_argument("--cache", choices=("none", "writeback"), default="none")
    new.add_argument("--kind", default="thin", help=f"of {', '.join(HOW)}, taken in turn")
    new.add_argument("--type", choices=("pv", "pvh", "hvm"), default="pv", help="Xen: of guest")
    new.add_argument("--backend", default="phy", help="Xen: phy or qdisk, taken in turn")
    new.add_argument("--vg", default="vg0", help="groups, taken in turn for the disks: vg0,vg1")
    new.add_argument("--agent", action="store_true", help="libvirt: a channel for a guest agent")
    new.add_argument("--start", action="store_true")
    for verb in ("destroy", "xml"):
        verbs.add_parser(verb).add_argument("name")
    asked = parser.parse_args()
    if asked.verb == "destroy":
        destroy(asked.name)
    elif asked.verb == "xml":
        text = (XL_FOLDER / f"{asked.name}.cfg").read_text() if on_xen() else ""
        print(text or sh("virsh", "dumpxml", asked.name), end="")
    else:
        shape = DomainShape(
            name=asked.name,
            disks=asked.disks,
            size_mib=asked.size,
            memory_mib=asked.memory,
            vcpus=asked.vcpus,
            bus=asked.bus,
            cache=asked.cache,
            kinds=tuple(asked.kind.split(",")),
            guest_type=asked.type,
            backends=tuple(asked.backend.split(",")),
            groups=tuple(asked.vg.split(",")),
            agent=asked.agent,
        )
        create(shape, start=asked.start)


if __name__ == "__main__":
    main()
