"""A chain of snapshots of thick and thin disks, gone back to in any order, byte for byte."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from tests.lab.guests import FORGET_ALL, snapvm, volumes
from tests.lab.vm import Lab

pytestmark = pytest.mark.lab

SNAPSHOTS = 2
STEPS = 2
LONG_SNAPSHOTS = 5
LONG_STEPS = 50

DISKS = ("/dev/vg0/chain-d0", "/dev/vg1/chain-d1", "/dev/vg0/chain-d2")
WRITE = """
import os, random, sys
chance = random.Random(sys.argv[1])
for path in sys.argv[2:]:
    with open(path, "r+b", buffering=0) as disk:
        for _ in range(40):
            disk.seek(chance.randrange(64 << 8) * 4096)
            disk.write(chance.randbytes(chance.choice([4096, 4096, 65536])))
        os.fsync(disk)
"""


@pytest.fixture
def chain(kvm_lab: Lab) -> Iterator[Lab]:
    """A domain that is shut off, with two thick disks and a thin one: its disks alone matter."""
    kinds = ["--vg", "vg0,vg1", "--kind", "thick,thin", "--disks", "3", "--memory", "128"]
    kvm_lab.run(["lab-domain", "create", "chain", *kinds], timeout_seconds=120, check=True)
    yield kvm_lab
    kvm_lab.run(["lab-domain", "destroy", "chain"], timeout_seconds=120)
    kvm_lab.run(FORGET_ALL, timeout_seconds=120, check=True)


def sums(lab: Lab, *paths: str) -> list[str]:
    script = f"blockdev --flushbufs {' '.join(paths)}; sha256sum {' '.join(paths)}"
    done = lab.run(script, timeout_seconds=120, check=True)
    return [line.split()[0] for line in done.stdout.splitlines()]


def scribble(lab: Lab, seed: str) -> None:
    argv = ["python3", "-c", WRITE, seed, *DISKS]
    lab.run(argv, timeout_seconds=120, check=True)


def thick_fill(lab: Lab, name: str) -> list[str]:
    script = f"dmsetup status vg0-chain--d0.{name}; dmsetup status vg0-chain--d2.{name}"
    return lab.run(script, timeout_seconds=60, check=True).stdout.splitlines()


@pytest.mark.parametrize(
    ("snapshots", "steps"),
    [
        (SNAPSHOTS, STEPS),
        pytest.param(LONG_SNAPSHOTS, LONG_STEPS, marks=pytest.mark.long),
    ],
    ids=["few", "fifty"],
)
def test_any_order_of_rollbacks(chain: Lab, snapshots: int, steps: int) -> None:
    """Every disk is what it was, the chosen snapshot does not grow, the others keep theirs."""
    chance = random.Random("snapvm chain")
    taken: dict[str, list[str]] = {}
    for number in range(snapshots):
        scribble(chain, f"before {number}")
        snapvm(chain, "take", "chain", "--name", f"s{number}")
        taken[f"s{number}"] = sums(chain, *DISKS)
    for step in range(steps):
        scribble(chain, f"step {step}")
        before = sums(chain, *DISKS)
        name = chance.choice(list(taken))
        filled = thick_fill(chain, name)
        snapvm(chain, "rollback", f"chain@{name}", "--yes")
        assert sums(chain, *DISKS) == taken[name], (step, name)
        assert thick_fill(chain, name) == filled, "the chosen snapshot has grown"
        if step % 2:
            snapvm(chain, "undo", "chain", "--yes")
            assert sums(chain, *DISKS) == before, (step, "undo")
        for other, content in taken.items():
            paths = [f"/dev/vg0/chain-d{disk}.{other}" for disk in (0, 2)]
            assert sums(chain, *paths) == [content[0], content[2]], (step, other)
        if step % 10 == 9:
            forget_undo(chain)
    assert "all is in order" in snapvm(chain, "check").stdout
    forget_undo(chain)
    snapvm(chain, "delete", "--yes", *(f"chain@{name}" for name in taken))
    assert volumes(chain) == set()


def forget_undo(lab: Lab) -> None:
    listed = json.loads(snapvm(lab, "list", "chain", "--json").stdout)
    undo = [record["ref"] for record in listed if record["kind"] == "undo"]
    snapvm(lab, "delete", "--yes", *undo)
