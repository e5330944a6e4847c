"""A chain of snapshots of disks of every kind, gone back to in any order, byte for byte."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.guests import COMMAND_SECONDS, FORGET_ALL, Guest, snapvm, volumes
from tests.lab.vm import Lab

pytestmark = pytest.mark.lab

SIZE_MIB = 32
SAVED = "/tmp/chain"
"""What each disk was, as files in memory; they are compared byte for byte."""
WRITE = f"""
import os, random, sys
chance = random.Random(sys.argv[1])
for path in sys.argv[2:]:
    with open(path, "r+b", buffering=0) as disk:
        for _ in range(12):
            disk.seek(chance.randrange(1 << 8, {SIZE_MIB - 1} << 8) * 4096)
            disk.write(chance.randbytes(chance.choice([4096, 4096, 65536])))
        os.fsync(disk)
"""
"""Whole blocks beyond the first MiB, which is all that the guest reads."""
GUEST_SECTORS = 2048
"""What a guest writes by itself, in sectors: within the first MiB."""


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


LAYOUTS = {
    "64k": Layout(groups=("vg0", "vg1", "many"), kinds=("thick", "thin", "raid1"), chunk="64K"),
    "512k": Layout(
        groups=("many", "many", "vg0"), kinds=("striped", "thin", "thick"), chunk="512K"
    ),
}


class Chain:
    """The domain ``chain``, its disks, and what they were when each snapshot was taken."""

    def __init__(self, lab: Lab, layout: Layout) -> None:
        self.lab = lab
        self.layout = layout
        self.guest = Guest(lab, "chain")
        self.taken: list[str] = []
        self.full: set[str] = set()
        """Those that have memory."""

    def run(self, script: str) -> str:
        return self.lab.run(script, timeout_seconds=COMMAND_SECONDS, check=True).stdout

    def scribble(self, seed: str) -> None:
        argv = ["python3", "-c", WRITE, seed, *self.layout.disks]
        self.lab.run(argv, timeout_seconds=120, check=True)

    def take(self, name: str, *, running: bool) -> None:
        """Take a snapshot, of a domain that is off or one that runs, and save what it holds."""
        if running:
            self.run("virsh -q start chain")
            self.guest.wait_until(10)
        snapvm(self.lab, "take", "chain", "--name", name)
        if running:
            self.full.add(name)
        self.save(name, [f"{disk}.{name}" for disk in self.layout.disks])
        if running:
            assert self.guest.look().state == "ok"
            self.run("virsh -q destroy chain")
        else:
            self.require(name)
        self.taken.append(name)

    def save(self, name: str, devices: list[str] | tuple[str, ...]) -> None:
        """Keep what is on the disks, or on the snapshots of them."""
        copies = "; ".join(
            f"dd if={device} of={SAVED}/{name}-{n} bs=4M iflag=direct status=none"
            for n, device in enumerate(devices)
        )
        self.run(f"set -e; mkdir -p {SAVED}; {self._with_thin(devices, copies)}")

    def require(self, name: str) -> None:
        """The disks are, byte for byte, what was saved by this name."""
        self._compare([(disk, f"{name}-{n}") for n, disk in enumerate(self.layout.disks)])

    def require_snapshots(self, *, thin: bool = False) -> None:
        """So are the devices of all snapshots; thin ones have none unless they are activated."""
        numbers = range(len(self.layout.disks)) if thin else self.layout.thick
        self._compare(
            [
                (f"{self.layout.disks[n]}.{name}", f"{name}-{n}")
                for n in numbers
                for name in self.taken
            ]
        )

    def _compare(self, pairs: list[tuple[str, str]]) -> None:
        compare = "; ".join(
            f"dd if={device} bs=4M iflag=direct status=none | cmp - {SAVED}/{saved}"
            f" || echo {device} is not {saved}"
            for device, saved in pairs
        )
        said = self.run(self._with_thin([device for device, _ in pairs], compare))
        assert said == "", said

    def _with_thin(self, devices: list[str] | tuple[str, ...], script: str) -> str:
        """Let the devices of thin snapshots be there meanwhile."""
        thin = [
            device
            for device in devices
            if "." in device and f"{device.partition('.')[0]}" not in self._thick_disks()
        ]
        if not thin:
            return script
        names = " ".join(thin)
        return f"lvchange -qq -ay -K {names}; {script}; lvchange -qq -an {names}"

    def _thick_disks(self) -> set[str]:
        return {self.layout.disks[n] for n in self.layout.thick}

    def status(self, name: str) -> list[str]:
        """Return what the kernel says of each thick snapshot: used/total sectors, and of tables."""
        paths = [f"{self.layout.disks[n]}.{name}" for n in self.layout.thick]
        return self.run(
            f"for path in {' '.join(paths)}; do dmsetup status $path; done"
        ).splitlines()

    def used_sectors(self, name: str) -> list[int]:
        """Return how much each thick snapshot holds."""
        return [int(line.split()[3].split("/")[0]) for line in self.status(name)]

    def roll_back(self, name: str) -> None:
        """Go back: every disk is what it was, and the chosen snapshot has not grown.

        But for what a guest that still runs writes meanwhile, in the first MiB.
        """
        own_sectors = GUEST_SECTORS if self.guest.state() == "running" else 0
        before = self.used_sectors(name)
        stands_still = ["--paused"] if name in self.full else []
        snapvm(self.lab, "rollback", f"chain@{name}", "--yes", *stands_still)
        self.require(name)
        grown = [now - was for was, now in zip(before, self.used_sectors(name), strict=True)]
        assert max(grown) <= own_sectors, f"the chosen snapshot has grown: {grown}"
        assert self.guest.state() == ("paused" if name in self.full else "shut off")

    def undo(self) -> None:
        """Go back to what was current before the last rollback, which was saved."""
        snapvm(self.lab, "undo", "chain", "--yes")
        self.require("before")

    def go_on(self) -> None:
        """The guest, whose memory came back with its disks, finds them of one instant."""
        self.run("virsh -q resume chain")
        now = self.guest.look()
        assert now.state == "ok", now
        assert self.guest.wait_until(now.n + 2).state == "ok"

    def stand_still(self) -> None:
        if self.guest.state() == "running":
            self.run("virsh -q suspend chain")

    def forget_undo(self) -> None:
        listed = json.loads(snapvm(self.lab, "list", "chain", "--json").stdout)
        undo = [record["ref"] for record in listed if record["kind"] == "undo"]
        if undo:
            snapvm(self.lab, "delete", "--yes", *undo)


@pytest.fixture
def chain(kvm_lab: Lab, request: pytest.FixtureRequest) -> Iterator[Chain]:
    """A domain that is shut off, with disks of one of ``LAYOUTS``."""
    layout = LAYOUTS[request.param]
    group = f"lab-group create many 3 700 400 {layout.chunk}"
    kinds = f"--vg {','.join(layout.groups)} --kind {','.join(layout.kinds)}"
    shape = f"--disks 3 --size {SIZE_MIB} --memory 128"
    try:
        make = f"{group} && lab-domain create chain {kinds} {shape}"
        kvm_lab.run(make, timeout_seconds=180, check=True)
        kvm_lab.run(
            "mkdir -p /etc/snapvm && cat > /etc/snapvm/snapvm.toml",
            timeout_seconds=30,
            input=f'cow_chunk = "{layout.chunk}"\n',
            check=True,
        )
        yield Chain(kvm_lab, layout)
    finally:
        tidy = f"virsh -q destroy chain; rm -rf /etc/snapvm/snapvm.toml {SAVED}; {FORGET_ALL}"
        kvm_lab.run(tidy, timeout_seconds=180)
        tidy = "lab-domain destroy chain; lab-group destroy many"
        kvm_lab.run(tidy, timeout_seconds=180, check=True)


@pytest.mark.parametrize(
    ("chain", "snapshots", "steps"),
    [
        ("64k", 3, 3),
        pytest.param("512k", 3, 3, marks=pytest.mark.long),
        pytest.param("64k", 5, 50, marks=pytest.mark.long),
        pytest.param("512k", 5, 50, marks=pytest.mark.long),
    ],
    indirect=["chain"],
    ids=["few", "few-512k", "fifty", "fifty-512k"],
)
def test_any_order_of_rollbacks(
    chain: Chain, snapshots: int, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every disk is what it was, the chosen snapshot does not grow, the others keep theirs."""
    chance = random.Random(f"snapvm chain {chain.layout.chunk}")
    for number in range(snapshots):
        chain.scribble(f"before {number}")
        chain.take(f"s{number}", running=number % 2 == 1)
    for step in range(steps):
        begun = time.monotonic()
        name = chance.choice(chain.taken)
        is_undone = step % 5 == 1
        if is_undone:
            chain.stand_still()
        chain.scribble(f"step {step}")
        if is_undone:
            chain.save("before", chain.layout.disks)
        came_from = chain.guest.state()
        chain.roll_back(name)
        if is_undone:
            chain.undo()
        elif name in chain.full:
            chain.go_on()
        chain.require_snapshots()
        if step % 5 == 4:
            chain.forget_undo()
        with capsys.disabled():
            row = f"{step:4}  {came_from:9} -> {name:3} {'and undo' if is_undone else '':9}"
            stores = "  ".join(line.split()[-2] for line in chain.status(name))
            print(f"{row} used/sectors {stores:24} {time.monotonic() - begun:5.1f} s")
    chain.require_snapshots(thin=True)
    assert "all is in order" in snapvm(chain.lab, "check").stdout
    chain.run("virsh -q destroy chain 2>/dev/null || true")
    chain.forget_undo()
    snapvm(chain.lab, "delete", "--yes", *(f"chain@{name}" for name in chain.taken))
    assert volumes(chain.lab) == set()


@pytest.mark.long
@pytest.mark.parametrize("chain", ["64k"], indirect=True)
def test_disks_that_have_grown(chain: Chain) -> None:
    """A thin one has its former size again, a thick one keeps the new; `undo` brings all back."""
    chain.scribble("before")
    chain.take("small", running=False)
    paths = " ".join(chain.layout.disks)
    # LVM resizes what has thick snapshots only while it is inactive.
    grow = f"lvchange -qq -an {paths} && for p in {paths}; do lvextend -qq -L +16m $p; done"
    chain.run(f"{grow}; lvchange -qq -ay {paths}")
    for path in chain.layout.disks:
        tail = f"dd of={path} bs=1M seek=40 conv=notrunc,fsync status=none"
        chain.run(f"head -c 1M /dev/urandom | {tail}")
    chain.scribble("grown")
    chain.save("before", chain.layout.disks)
    snapvm(chain.lab, "rollback", "chain@small", "--yes")
    thick = chain.layout.thick
    assert sizes(chain) == [48 if n in thick else SIZE_MIB for n in range(3)]
    same = "; ".join(
        f"blockdev --flushbufs {path}; cmp -n {SIZE_MIB << 20} {path} {SAVED}/small-{n}"
        for n, path in enumerate(chain.layout.disks)
    )
    chain.run(f"set -e; {same}")
    chain.undo()
    assert sizes(chain) == [48, 48, 48]


@pytest.mark.long
@pytest.mark.parametrize("chain", ["64k"], indirect=True)
def test_a_thick_disk_that_has_shrunk_is_refused(chain: Chain) -> None:
    """Status 4 before anything is touched, and the command that helps is the one that is told."""
    chain.scribble("before")
    chain.take("large", running=False)
    path = chain.layout.disks[0]
    resize = f"lvchange -qq -an {path}; {{}} {path}; lvchange -qq -ay {path}"
    chain.lab.run(resize.format("lvreduce -y -f --fs ignore -L 16m"), timeout_seconds=120)
    if sizes(chain)[0] == SIZE_MIB:
        pytest.skip("this LVM does not shrink a volume that has snapshots")
    before = volumes(chain.lab)
    done = snapvm(chain.lab, "rollback", "chain@large", "--yes", status=4)
    assert "smaller" in done.stderr and "lvextend" in done.stderr
    assert volumes(chain.lab) == before
    chain.run(resize.format(f"lvextend -qq -L {SIZE_MIB}m"))
    chain.roll_back("large")


def sizes(chain: Chain) -> list[int]:
    """MiB of each disk."""
    said = chain.run(f"for p in {' '.join(chain.layout.disks)}; do blockdev --getsize64 $p; done")
    return [int(line) >> 20 for line in said.split()]
