"""Which run of a domain it is: told apart also where libvirt's ids begin anew."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm.hypervisor import qemurun, userfault
from snapvm.hypervisor.capturejob import Ground
from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.hypervisor.libvirtbackground import BackgroundCapture
from snapvm.hypervisor.libvirtlink import spoken
from snapvm.hypervisor.qemusettings import MigrationSettings, lender
from snapvm.settings import Settings
from tests.unit.hypervisor.fakelibvirt import OFF, Connection
from tests.unit.hypervisor.fakemonitor import FakeQemu, killed

# As proc(5) has it; the name of a program may have anything in it, and half a letter at its end.
STAT = "{pid} (qemu) 1 (x\udcc3) S 1 {pid} {pid} 0 -1 4194560 9 0 0 0 1 2 0 0 20 0 4 0 {began} 77\n"


@dataclass
class Domain(Connection):
    """One that runs, its QEMU being a process of this host."""

    number: int = 1

    def name(self) -> str:
        return OFF.name

    def ID(self) -> int:  # noqa: N802 - libvirt's own name
        return self.number

    def info(self) -> list[int]:
        return [3, 1024, 1024, 1]

    def UUIDString(self) -> str:  # noqa: N802 - libvirt's own name
        return OFF.uuid

    def lookupByName(self, _name: str) -> Domain:  # noqa: N802 - libvirt's own name
        return self

    def connect(self) -> Domain:
        return self

    def isActive(self) -> bool:  # noqa: N802 - libvirt's own name
        return self.number != -1

    def jobInfo(self) -> list[int]:  # noqa: N802 - libvirt's own name
        return [0]

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's own name
        return self.definition


class Processes:
    """What the host tells of QEMU's process."""

    def __init__(self, folder: Path) -> None:
        self.pid_files = folder / "pids"
        self.proc = folder / "proc"
        self.pid_files.mkdir()

    def begin(self, pid: int, began: int) -> None:
        """Have QEMU begin as this process, at a time in clock ticks since the boot."""
        (self.proc / f"{pid}").mkdir(parents=True, exist_ok=True)
        stat = STAT.format(pid=pid, began=began)
        (self.proc / f"{pid}/stat").write_text(stat, errors="surrogateescape")
        (self.pid_files / f"{OFF.name}.pid").write_text(f"{pid}\n")


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Processes:
    found = Processes(tmp_path)
    monkeypatch.setattr(qemurun, "PID_FILES", found.pid_files)
    monkeypatch.setattr(qemurun, "PROC", found.proc)
    return found


@pytest.fixture
def connection(connection: Connection) -> Domain:
    return Domain()


@pytest.mark.parametrize("other", [(4711, 5001), (4712, 5000)], ids=["pid given again", "another"])
def test_a_later_run_with_the_same_id_is_another(
    driver: LibvirtHypervisor, processes: Processes, other: tuple[int, int]
) -> None:
    """An idle virtqemud has ended meanwhile, and counts from 1 again."""
    processes.begin(4711, 5000)
    run = driver.find(OFF.name).run
    assert driver.find(OFF.name).run == run is not None
    processes.begin(*other)
    assert driver.find(OFF.name).run not in (run, None)


def test_one_that_is_off_has_none(
    driver: LibvirtHypervisor, connection: Domain, processes: Processes
) -> None:
    processes.begin(4711, 5000)
    connection.number = -1
    assert driver.find(OFF.name).run is None


@pytest.mark.usefixtures("processes")
def test_without_a_pid_file_the_id_must_do(driver: LibvirtHypervisor, connection: Domain) -> None:
    run = driver.find(OFF.name).run
    assert driver.find(OFF.name).run == run is not None
    connection.number = 2
    assert driver.find(OFF.name).run not in (run, None)


def test_a_process_of_this_host_has_begun_at_some_time(
    connection: Domain, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemurun, "PROC", Path("/proc"))
    processes.begin(pid := 1, began=0)
    began = Path("/proc/1/stat").read_text().rpartition(") ")[2].split()[19]
    assert qemurun.of(connection) == f"process {pid} since {began}"


def test_what_another_qemu_was_set_to_is_not_this_ones(
    connection: Domain, processes: Processes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("snapvm.hypervisor.qemusettings.Qmp", lambda _handle: FakeQemu())
    processes.begin(4711, 5000)
    first = lender(OFF, connection, tmp_path)
    with first.lent(MigrationSettings(capabilities=())):
        assert lender(OFF, connection, tmp_path).is_lent()
        assert not first.is_over()
        processes.begin(4712, 9000)
        assert not lender(OFF, connection, tmp_path).is_lent()
        assert first.is_over()


@pytest.mark.parametrize("now", ["runs", "is off", "is unknown"])
def test_what_a_dead_snapvm_has_set_is_found_and_set_back(
    connection: Domain,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    now: str,
) -> None:
    qemu = FakeQemu()
    before = copy.deepcopy(vars(qemu))
    for module in ("qemusettings", "libvirt"):
        monkeypatch.setattr(f"snapvm.hypervisor.{module}.Qmp", lambda _handle: qemu)
    processes.begin(4711, 5000)
    killed(qemu, lender(OFF, connection, tmp_path))
    lookup = spoken()(connection.lookupByUUIDString)
    link: Any = SimpleNamespace(connection=connection, domain=lookup)
    driver = LibvirtHypervisor(link, Settings(run_dir=tmp_path))
    assert driver.touched() == (OFF.uuid,)
    connection.is_known = now != "is unknown"
    connection.number = 1 if now == "runs" else -1
    driver.abandon(OFF)
    assert driver.touched() == ()
    assert now != "runs" or vars(qemu) == before
    driver.abandon(OFF)


def test_what_the_host_allows_is_noted_for_as_long(
    processes: Processes, connection: Domain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A snapvm that dies has then left nothing that no domain tells of."""
    noted: list[bool] = []

    @contextmanager
    def allowed(_folder: Path) -> Iterator[None]:
        noted.append(lent.is_lent())
        yield
        noted.append(lent.is_lent())

    monkeypatch.setattr("snapvm.hypervisor.qemusettings.Qmp", lambda _handle: FakeQemu())
    monkeypatch.setattr(userfault, "allowed", allowed)
    processes.begin(4711, 5000)
    lent = lender(OFF, connection, tmp_path)
    ground = Ground(domain=OFF, handle=connection, lender=lent, run_dir=tmp_path)
    with BackgroundCapture.possible(ground):
        pass
    assert noted == [True, True] and not lent.is_lent()
