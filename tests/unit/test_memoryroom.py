"""Captures that run at once do not each count on all of the memory of their host."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from snapvm import memoryroom
from snapvm.hypervisor import xenways
from snapvm.memory import precopy
from snapvm.memory.guestcapture import GuestCapture
from snapvm.memoryroom import HostMemory, Room
from snapvm.model import Domain, DomainState, DomainUuid, HypervisorKind, Silent
from tests.fakes.xenmachine import HOST, Machine
from tests.unit.memory.xen_builders import CONFIG, OWNED

REALLY_AVAILABLE = memoryroom.available_bytes
GIB = 1 << 30
GUEST_BYTES = OWNED * 4096
_DYING = """
import os, pathlib, signal, sys
from snapvm import memoryroom
memoryroom.available_bytes = lambda: 8 << 30
memory = memoryroom.HostMemory(pathlib.Path(sys.argv[1]))
memory.room(2 << 30)
os.kill(os.getpid(), signal.SIGKILL)
"""


class Host:
    """A host that tells each who asks of the same free memory."""

    def __init__(self) -> None:
        self.spare_bytes = 8 * GIB


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    found = Host()
    monkeypatch.setattr(memoryroom, "available_bytes", lambda: found.spare_bytes)
    monkeypatch.setattr(memoryroom, "GUEST_TYPE", tmp_path / "none")
    return found


@pytest.mark.parametrize("spare_gib", [1, 3, 5, 8, 9, 12, 100])
def test_no_two_count_on_the_same_memory(tmp_path: Path, host: Host, spare_gib: int) -> None:
    """Both kept what had changed, and the kernel ended one of the two, or something else."""
    host.spare_bytes = spare_gib * GIB
    memories = [HostMemory(tmp_path) for _ in range(4)]
    rooms = [memory.room(4 * GIB) for memory in memories]
    assert sum(room.claimed_bytes for room in rooms) <= spare_gib * GIB
    assert rooms[0] == Room(needed_bytes=4 * GIB, spare_bytes=spare_gib * GIB)
    assert all(room.holds_digests is not room.is_to_come for room in rooms[1:])
    for memory in memories:
        memory.close()
    assert HostMemory(tmp_path).room(4 * GIB) == rooms[0]


@pytest.mark.parametrize(
    ("spare_mib", "claimed_mib"),
    [
        (100 << 10, 64 + 4096 + 4096),  # the page cache has the image, and all of it may change
        (5 << 10, 5 << 10),
        (3 << 10, 64 + 1504),  # digests; changed pages take half of the rest
        (700, 64 + 512),
        (128, 64 + 64),
        (127, 0),
    ],
)
def test_what_a_capture_may_come_to_take_it_claims(spare_mib: int, claimed_mib: int) -> None:
    room = Room(needed_bytes=4 * GIB, spare_bytes=spare_mib << 20)
    assert room.claimed_bytes == claimed_mib << 20


@pytest.mark.parametrize(
    ("said", "spare_mib"),
    [
        ("MemAvailable:    1048576 kB\n", 1024 - 128),
        ("MemAvailable:      65536 kB\n", 0),
        ("", 0),
    ],
)
def test_the_host_keeps_some_of_what_it_could_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, spare_mib: int
) -> None:
    monkeypatch.setattr(memoryroom, "MEMINFO", tmp_path / "meminfo")
    others = "MemTotal:       4194304 kB\nMemFree:        2097152 kB\n"
    memoryroom.MEMINFO.write_text(f"{others}{said}Buffers:        3145728 kB\n")
    assert REALLY_AVAILABLE() == spare_mib << 20


def test_a_capture_may_ask_again(tmp_path: Path) -> None:
    memory = HostMemory(tmp_path)
    assert memory.room(2 * GIB) == memory.room(2 * GIB)
    memory.close()
    memory.close()


def test_what_a_killed_one_counted_on_is_free(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _DYING, str(tmp_path)], check=False)
    (left,) = tmp_path.glob("*.memory")
    memory = HostMemory(tmp_path)
    assert memory.room(2 * GIB).others_bytes == 0
    assert not left.exists()
    memory.close()


def test_a_folder_that_cannot_be_written_to_keeps_nobody_from_being_captured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = HostMemory(tmp_path / "none")
    assert memory.room(2 * GIB) == Room(needed_bytes=2 * GIB, spare_bytes=8 * GIB)
    memory.close()
    assert "are not reckoned with" in caplog.text


class Waited(Silent):
    """Progress that lets another capture end, or not, when it is waited for."""

    def __init__(self, other: HostMemory | None) -> None:
        self.phases: list[str] = []
        self._other = other

    def phase(self, text: str) -> None:
        self.phases.append(text)
        if self._other is not None:
            self._other.close()


@pytest.mark.parametrize("ends", [True, False])
def test_the_memory_of_another_is_waited_for_while_the_guest_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    host: Host,
    ends: bool,
) -> None:
    """Else it would stand still until all of it is written, because another is captured too."""
    monkeypatch.setattr(precopy, "_LOOK_SECONDS", 0)
    monkeypatch.setattr(precopy, "WAIT_SECONDS", 60 if ends else 0.05)
    host.spare_bytes = GUEST_BYTES * 3
    other = HostMemory(tmp_path)
    assert other.room(GUEST_BYTES * 2).claimed_bytes > GUEST_BYTES * 2
    # What the other has kept by now is there no more, besides.
    host.spare_bytes -= GUEST_BYTES // 2
    progress, machine = Waited(other if ends else None), Machine()
    image = GuestCapture(tmp_path / "i", CONFIG, HOST, machine, HostMemory(tmp_path))
    with caplog.at_level(logging.WARNING):
        method = image.prepare(machine.shared_info, progress)
    image.close()
    assert progress.phases[0] == "waiting for memory that another capture has"
    assert progress.phases.count(progress.phases[0]) == 1
    assert method.startswith("precopy while it ran" if ends else "one pass into the file")
    assert ("that other captures count on" in method) == (not ends)
    assert ("stand still until all its memory is written" in caplog.text) == (not ends)
    other.close()
    assert list(tmp_path.glob("*.memory")) == []


@pytest.mark.parametrize(
    ("spare_gib", "told"),
    [
        (100, "precopy while it runs, then what has changed while it stands still"),
        (3, "precopy while it runs, told apart by digests"),
        (0, "in one pass, while it stands still until all of it is written: its 4096 MiB"),
    ],
)
def test_doctor_tells_how_long_a_guest_would_stand_still(
    host: Host, spare_gib: int, told: str
) -> None:
    """It said the same of all; that a guest stood still for all of its writing only `take` told."""
    host.spare_bytes = spare_gib * GIB
    found = Domain(
        name="web",
        uuid=DomainUuid("u"),
        hypervisor=HypervisorKind.XEN,
        state=DomainState.RUNNING,
        memory_bytes=4 * GIB,
        vcpus=1,
        definition='[{"config": {"c_info": {"type": "pv"}, "b_info": {}}}]',
    )
    assert xenways.foreseen(found).startswith(told)


@pytest.mark.parametrize(("guest_type", "least_mib"), [("PV\n", 2176), ("PVH\n", 4224)])
def test_a_control_domain_that_is_not_pv_keeps_more_of_each_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: Host, guest_type: str, least_mib: int
) -> None:
    """In it the kernel ran out of memory when it mapped a large guest, and each take failed."""
    file = tmp_path / "guest_type"
    file.write_text(guest_type)
    monkeypatch.setattr(memoryroom, "GUEST_TYPE", file)
    host.spare_bytes = least_mib << 20
    assert memoryroom.room_now(128 * GIB).holds_digests
    host.spare_bytes -= 1 << 20
    assert not memoryroom.room_now(128 * GIB).holds_digests
