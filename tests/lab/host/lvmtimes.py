"""Times the LVM part of a window against plain ``lvcreate -s``, in the lab: prints JSON.

``python3 -m tests.lab.host.lvmtimes thin|thick DISKS SIBLINGS RUNS`` makes so many volumes in vg0,
each open and active as a domain's disk is, thick ones with so many snapshots already, and takes
snapshots of all of them in turn: as snapvm does in the window, and with one command a disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from snapvm import cowsize
from snapvm.lvm import argv, crew
from snapvm.lvm.volumes import Lvm
from snapvm.lvm.warm import WarmLvm
from snapvm.model import LvRef, LvUuid, Role
from snapvm.process import ShRunner

VG = "vg0"
SIZE_MIB = 32
SET = "0123456789ab"
CHUNK_BYTES = cowsize.DEFAULT_CHUNK_BYTES
STORE_BYTES = cowsize.store_bytes(SIZE_MIB << 20, 4 << 20, cowsize.FULL, CHUNK_BYTES)
LIMIT_SECONDS = 120.0


def sh(*words: str) -> None:
    """Run a command; its failure ends the measurement."""
    subprocess.run(words, check=True, timeout=300, stdout=subprocess.DEVNULL)


def at_once(orders: Iterable[Sequence[str]]) -> None:
    """Give one lvm many orders: what is not measured need not take long."""
    lines = "\n".join(" ".join(order) for order in orders)
    subprocess.run(["lvm"], input=lines, text=True, check=True, timeout=300, capture_output=True)


@contextmanager
def disks(count: int, siblings: int, *, is_thick: bool) -> Iterator[list[LvRef]]:
    """Make the volumes and hold them open."""
    where = ["-Wn", "-L", f"{SIZE_MIB}m", VG] if is_thick else ["-V", "32m", "-T", f"{VG}/pool"]
    made = [LvRef(vg=VG, lv=f"time-d{number}", uuid=LvUuid("")) for number in range(count)]
    with ExitStack() as stack:
        stack.callback(sh, "lvremove", "-qq", "-y", "-S", "lv_name=~^time-d", VG)
        size = ["-L", f"{STORE_BYTES}b"]
        at_once(
            [
                *(["lvcreate", "-y", "-n", disk.lv, *where] for disk in made),
                *(
                    ["lvcreate", "-s", *size, "-n", f"{disk.lv}.sibling{number}", str(disk)]
                    for disk in made
                    for number in range(siblings)
                ),
            ]
        )
        sh("udevadm", "settle")
        for disk in made:
            stack.callback(os.close, os.open(disk.path, os.O_RDONLY))
        yield made


def plainly(made: list[LvRef], *, is_thick: bool) -> float:
    """One ``lvcreate -s`` after the other, as a script has it."""
    size = ["-L", f"{STORE_BYTES}b"] if is_thick else []
    begun = time.monotonic()
    for disk in made:
        sh("lvcreate", "-qq", "-s", *size, "-n", f"{disk.lv}.plain", str(disk))
    return time.monotonic() - begun


def as_in_the_window(lvm: Lvm, made: list[LvRef], *, is_thick: bool) -> float:
    """What a take does while the domain stands still."""
    names = {disk: f"{disk.lv}.ours" for disk in made}
    tags = {disk: argv.tags(SET, disk, Role.NEW) for disk in made}
    if is_thick:
        stores = [LvRef(vg=VG, lv=names[disk], uuid=LvUuid("")) for disk in made]
        orders = [argv.new_store(VG, names[disk], STORE_BYTES, tags[disk]) for disk in made]
        orders += [argv.deactivate(stores), argv.read_only(stores)]
        at_once(order[1:] for order in orders)

    def snapshot(warm: WarmLvm, disk: LvRef) -> None:
        if is_thick:
            warm.attach(disk, names[disk], CHUNK_BYTES, limit_seconds=LIMIT_SECONDS)
        else:
            warm.snapshot(disk, names[disk], tags[disk], limit_seconds=LIMIT_SECONDS)

    with lvm.warmed(crew.needed(VG for _ in made)) as lvms:
        begun = time.monotonic()
        jobs = crew.shared(lvms, [(VG, disk) for disk in made], snapshot)
        with ThreadPoolExecutor(max_workers=len(jobs)) as pool:
            for done in [*map(pool.submit, jobs)]:
                done.result()
        return time.monotonic() - begun


def main() -> None:
    """Measure in turn, after one round that does not count."""
    is_thick, count, siblings, runs = sys.argv[1] == "thick", *map(int, sys.argv[2:5])
    lvm = Lvm(ShRunner())
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    with disks(count, siblings, is_thick=is_thick) as made:
        for number in range(runs + 1):
            ours = as_in_the_window(lvm, made, is_thick=is_thick)
            plain = plainly(made, is_thick=is_thick)
            sh("udevadm", "settle")
            sh(
                "lvremove",
                "-qq",
                "-y",
                *(f"{disk}.{which}" for disk in made for which in ("ours", "plain")),
            )
            if number:
                seconds["ours"].append(ours)
                seconds["plain"].append(plain)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
