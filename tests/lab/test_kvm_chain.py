"""A chain of snapshots of disks of every kind, gone back to in any order, byte for byte."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.guests import FORGET_ALL, snapvm, volumes
from tests.lab.vm import Lab

pytestmark = pytest.mark.lab

SNAPSHOTS = 3
STEPS = 3
LONG_SNAPSHOTS = 5
LONG_STEPS = 50

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What the disks of the domain are, one after the other."""

    groups: tuple[str, ...]
    kinds: tuple[str, ...]
    chunk: str
    """Of thick snapshots, and of the pool of ``many``."""

    @property
    def disks(self) -> tuple[str, ...]:
        """Their paths."""
        return tuple(f"/dev/{group}/chain-d{n}" for n, group in enumerate(self.groups))

    @property
    def thick(self) -> tuple[int, ...]:
        """Numbers of the disks whose snapshots are thick."""
        return tuple(n for n, kind in enumerate(self.kinds) if kind != "thin")

    def snapshots(self, name: str) -> list[str]:
        """Paths of the devices that thick snapshots of this name have."""
        return [f"{self.disks[n]}.{name}" for n in self.thick]


LAYOUTS = {
    "64k": Layout(groups=("vg0", "vg1", "many"), kinds=("thick", "thin", "raid1"), chunk="64K"),
    "512k": Layout(
        groups=("many", "many", "vg0"), kinds=("striped", "thin", "thick"), chunk="512K"
    ),
}


@pytest.fixture
def layout(request: pytest.FixtureRequest) -> Layout:
    return LAYOUTS[request.param]


@pytest.fixture
def chain(kvm_lab: Lab, layout: Layout) -> Iterator[Lab]:
    """A domain that is shut off: its disks alone matter."""
    group = f"lab-group create many 3 2048 1200 {layout.chunk}"
    kinds = f"--vg {','.join(layout.groups)} --kind {','.join(layout.kinds)} --disks 3"
    try:
        make = f"{group} && lab-domain create chain {kinds} --memory 128"
        kvm_lab.run(make, timeout_seconds=180, check=True)
        kvm_lab.run(
            "mkdir -p /etc/snapvm && cat > /etc/snapvm/snapvm.toml",
            timeout_seconds=30,
            input=f'cow_chunk = "{layout.chunk}"\n',
            check=True,
        )
        yield kvm_lab
    finally:
        kvm_lab.run("lab-domain destroy chain; rm -f /etc/snapvm/snapvm.toml", timeout_seconds=120)
        kvm_lab.run(FORGET_ALL, timeout_seconds=120, check=True)
        kvm_lab.run("lab-group destroy many", timeout_seconds=120, check=True)


def sums(lab: Lab, *paths: str) -> list[str]:
    script = f"blockdev --flushbufs {' '.join(paths)}; sha256sum {' '.join(paths)}"
    done = lab.run(script, timeout_seconds=120, check=True)
    return [line.split()[0] for line in done.stdout.splitlines()]


def scribble(lab: Lab, layout: Layout, seed: str) -> None:
    argv = ["python3", "-c", WRITE, seed, *layout.disks]
    lab.run(argv, timeout_seconds=120, check=True)


def fill(lab: Lab, layout: Layout, name: str) -> list[str]:
    """Return what the kernel says of each thick snapshot: used/total sectors, and of tables."""
    script = f"for path in {' '.join(layout.snapshots(name))}; do dmsetup status $path; done"
    return lab.run(script, timeout_seconds=60, check=True).stdout.splitlines()


@pytest.mark.parametrize(
    ("layout", "snapshots", "steps"),
    [
        ("64k", SNAPSHOTS, STEPS),
        pytest.param("512k", SNAPSHOTS, 2 * STEPS, marks=pytest.mark.long),
        pytest.param("64k", LONG_SNAPSHOTS, LONG_STEPS, marks=pytest.mark.long),
        pytest.param("512k", LONG_SNAPSHOTS, LONG_STEPS, marks=pytest.mark.long),
    ],
    indirect=["layout"],
    ids=["few", "few-512k", "fifty", "fifty-512k"],
)
def test_any_order_of_rollbacks(chain: Lab, layout: Layout, snapshots: int, steps: int) -> None:
    """Every disk is what it was, the chosen snapshot does not grow, the others keep theirs."""
    chance = random.Random("snapvm chain")
    taken: dict[str, list[str]] = {}
    for number in range(snapshots):
        scribble(chain, layout, f"before {number}")
        snapvm(chain, "take", "chain", "--name", f"s{number}")
        taken[f"s{number}"] = sums(chain, *layout.disks)
    for step in range(steps):
        scribble(chain, layout, f"step {step}")
        before = sums(chain, *layout.disks)
        name = chance.choice(list(taken))
        filled = fill(chain, layout, name)
        snapvm(chain, "rollback", f"chain@{name}", "--yes")
        assert sums(chain, *layout.disks) == taken[name], (step, name)
        assert fill(chain, layout, name) == filled, "the chosen snapshot has grown"
        if step % 2:
            snapvm(chain, "undo", "chain", "--yes")
            assert sums(chain, *layout.disks) == before, (step, "undo")
        paths = [path for other in taken for path in layout.snapshots(other)]
        kept = [content[n] for content in taken.values() for n in layout.thick]
        assert sums(chain, *paths) == kept, (step, "another snapshot has changed")
        if step % 6 == 5:
            forget_undo(chain)
    assert "all is in order" in snapvm(chain, "check").stdout
    forget_undo(chain)
    snapvm(chain, "delete", "--yes", *(f"chain@{name}" for name in taken))
    assert volumes(chain) == set()


def forget_undo(lab: Lab) -> None:
    listed = json.loads(snapvm(lab, "list", "chain", "--json").stdout)
    undo = [record["ref"] for record in listed if record["kind"] == "undo"]
    if undo:
        snapvm(lab, "delete", "--yes", *undo)


@pytest.mark.long
@pytest.mark.parametrize("layout", ["64k"], indirect=True)
def test_disks_that_have_grown(chain: Lab, layout: Layout) -> None:
    """A thin one has its former size again, a thick one keeps the new; `undo` brings all back."""
    scribble(chain, layout, "before")
    snapvm(chain, "take", "chain", "--name", "small")
    small = sums(chain, *layout.disks)
    paths = " ".join(layout.disks)
    # LVM resizes what has thick snapshots only while it is inactive.
    grow = f"lvchange -qq -an {paths} && for p in {paths}; do lvextend -qq -L +32m $p; done"
    chain.run(f"{grow}; lvchange -qq -ay {paths}", timeout_seconds=120, check=True)
    for path in layout.disks:
        tail = (
            f"head -c 1M /dev/urandom | dd of={path} bs=1M seek=80 conv=notrunc,fsync status=none"
        )
        chain.run(tail, timeout_seconds=60, check=True)
    scribble(chain, layout, "grown")
    grown = sums(chain, *layout.disks)
    said = snapvm(chain, "rollback", "chain@small", "--yes", "--json").stdout
    assert json.loads(said)["ref"] == "chain@small"
    assert sizes(chain, layout) == [96 if n in layout.thick else 64 for n in range(3)]
    heads = "; ".join(f"head -c 64M {path} | sha256sum" for path in layout.disks)
    back = chain.run(heads, timeout_seconds=120, check=True).stdout.split()[::2]
    assert back == small
    snapvm(chain, "undo", "chain", "--yes")
    assert sums(chain, *layout.disks) == grown
    assert sizes(chain, layout) == [96, 96, 96]


@pytest.mark.long
@pytest.mark.parametrize("layout", ["64k"], indirect=True)
def test_a_thick_disk_that_has_shrunk_is_refused(chain: Lab, layout: Layout) -> None:
    """Status 4 before anything is touched, and the command that helps is the one that is told."""
    snapvm(chain, "take", "chain", "--name", "large")
    large = sums(chain, *layout.disks)
    path = layout.disks[0]
    shrink = f"lvchange -an {path}; lvreduce -y -f --fs ignore -L 32m {path}; lvchange -ay {path}"
    chain.run(shrink, timeout_seconds=120)
    if sizes(chain, layout)[0] == 64:
        pytest.skip("this LVM does not shrink a volume that has snapshots")
    before = volumes(chain)
    done = snapvm(chain, "rollback", "chain@large", "--yes", status=4)
    assert "smaller" in done.stderr and "lvextend" in done.stderr
    assert volumes(chain) == before
    chain.run(
        f"lvchange -an {path}; lvextend -L 64m {path}; lvchange -ay {path}",
        timeout_seconds=120,
        check=True,
    )
    snapvm(chain, "rollback", "chain@large", "--yes")
    assert sums(chain, *layout.disks) == large


def sizes(lab: Lab, layout: Layout) -> list[int]:
    """MiB of each disk."""
    script = f"blockdev --getsize64 {' '.join(layout.disks)}"
    return [int(line) >> 20 for line in lab.run(script, timeout_seconds=60).stdout.split()]
