"""How QEMU is given the pipe for its stream, and what becomes of a capture when it takes none."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import pytest

from snapvm.failures import CaptureFailed, ImageNotWritten
from snapvm.hypervisor import captureways, hugepages, libvirtlink, qmp, userfault
from snapvm.hypervisor.capturejob import Ground
from snapvm.hypervisor.libvirtbackground import BackgroundCapture
from snapvm.hypervisor.libvirtcapture import ExternalCapture
from snapvm.hypervisor.libvirtprecopy import PrecopyCapture
from snapvm.hypervisor.libvirtstop import StopCapture
from snapvm.hypervisor.migrationstream import MigrationStream, NotPossible
from snapvm.hypervisor.qemusettings import Lender
from snapvm.memory import libvirtimage
from snapvm.model import DomainState
from tests.unit.hypervisor.fakedomain import DOMAIN
from tests.unit.hypervisor.fakelibvirt import LIBVIRT, libvirtError
from tests.unit.hypervisor.fakemonitor import FakeQemu

INACTIVE = 2
"""VIR_DOMAIN_XML_INACTIVE."""
LABEL = "system_u:object_r:svirt_image_t:s0:c1,c2"
LABELLED = DOMAIN.definition.replace(
    "<devices>",
    "<seclabel model='dac'><imagelabel>+1:+1</imagelabel></seclabel>"
    f"<seclabel type='dynamic' model='selinux'><label>system_u:system_r:svirt_t:s0</label>"
    f"<imagelabel>{LABEL}</imagelabel></seclabel><devices>",
)


@dataclass
class FakeLibvirtQemu:
    """Takes a descriptor, or does not; every other command is obeyed."""

    takes: Callable[[int], object]
    said: list[str] = field(default_factory=list)
    answer: str = '{"return": {}}'

    def qemuMonitorCommand(  # noqa: N802 - libvirt's own name
        self, _handle: object, line: str, _flags: int
    ) -> str:
        self.said.append(json.loads(line)["execute"])
        return self.answer

    def qemuMonitorCommandWithFiles(  # noqa: N802 - libvirt's own name
        self, _handle: object, line: str, descriptors: list[int], _flags: int
    ) -> tuple[str, list[int]]:
        self.said.append(json.loads(line)["execute"])
        self.takes(descriptors[0])
        return '{"return": {}}', []


class Handle:
    def connect(self) -> Self:
        return self

    def getLibVersion(self) -> int:  # noqa: N802 - libvirt's own name
        return 11_003_000

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's own name
        return DOMAIN.definition


@dataclass
class Job:
    """A job as far as a stream that is never begun asks it."""

    image: Path
    domain: Any = field(default_factory=lambda: replace(DOMAIN, definition=LABELLED))
    handle: Any = field(default_factory=Handle)


@pytest.fixture
def job(tmp_path: Path) -> Any:
    return Job(tmp_path / "memory.save")


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """The labels that are set; there need be no SELinux."""
    monkeypatch.setattr(libvirtlink, "libvirt", LIBVIRT)
    labels: list[tuple[str, bytes]] = []
    monkeypatch.setattr(os, "setxattr", lambda _fd, name, label: labels.append((name, label)))
    return labels


def prepare(job: Any) -> None:
    with MigrationStream.prepared(job, libvirtimage.Writer()):
        assert job.image.exists()


def test_the_pipe_has_the_label_of_the_domains_images_before_qemu_gets_it(
    job: Any, given: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What libvirt does with its own pipes; SELinux lets QEMU write to no other."""
    seen: list[tuple[str, bytes]] = []
    monkeypatch.setattr(qmp, "libvirt_qemu", FakeLibvirtQemu(lambda _fd: seen.extend(given)))
    prepare(job)
    assert seen == [("security.selinux", LABEL.encode() + b"\0")]


def test_without_selinux_nothing_is_labelled(
    job: Any, given: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qmp, "libvirt_qemu", FakeLibvirtQemu(os.fstat))
    job.domain = DOMAIN
    prepare(job)
    assert given == []


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize("booted", ["-1", "5701"])
def test_an_image_has_no_port_that_libvirt_has_chosen(
    job: Any, monkeypatch: pytest.MonkeyPatch, booted: str
) -> None:
    """Where another domain had the port of its websocket by then, a rollback was refused."""

    def described(flags: int) -> str:
        port = booted if flags & INACTIVE else "5701"
        screen = f"<graphics type='vnc' port='5900' autoport='yes' websocket='{port}'/>"
        return f"<domain><devices>{screen}</devices></domain>"

    monkeypatch.setattr(qmp, "libvirt_qemu", FakeLibvirtQemu(os.fstat))
    job.handle.XMLDesc = described
    with MigrationStream.prepared(job, libvirtimage.Writer()):
        assert f" websocket='{booted}'/>".encode() in job.image.read_bytes()


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize("cpu", ["", "<cpu mode='custom'><model>Nehalem</model></cpu>"])
def test_an_image_says_which_processor_a_restore_has_to_give(
    job: Any, monkeypatch: pytest.MonkeyPatch, cpu: str
) -> None:
    """By it libvirt judges whether a host can go on with the guest, and makes it the same one."""
    monkeypatch.setattr(qmp, "libvirt_qemu", FakeLibvirtQemu(os.fstat))
    job.domain = replace(DOMAIN, definition=f"<domain>{cpu}<devices/></domain>")
    with MigrationStream.prepared(job, libvirtimage.Writer()):
        with job.image.open("r+b") as image:
            image.truncate(1 << 20)  # as if there were a stream
        libvirtimage.Writer().end(job.image)
    cookie = libvirtimage.read_cookie(job.image)
    assert ("<model>Nehalem</model>" in cookie) is bool(cpu) and bool(cookie) is bool(cpu)


@pytest.mark.usefixtures("given")
def test_a_pipe_that_qemu_does_not_give_back_does_not_keep_the_guest_waiting(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was let go before each attempt to resume the guest, which was never tried then."""
    qemu = FakeLibvirtQemu(os.fstat)
    monkeypatch.setattr(qmp, "libvirt_qemu", qemu)
    with MigrationStream.prepared(job, libvirtimage.Writer()) as stream:
        qemu.answer = '{"error": {"desc": "File descriptor named \'snapvm\' not found"}}'
        stream.let_go()
    assert qemu.said.count("closefd") == 1


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize(
    ("said", "helps"),
    [
        ("State blocked by non-migratable device '0000:00:07.0/virtio-crypto'", True),
        ("There's a migration process in progress", False),
    ],
)
def test_a_device_that_qemu_does_not_save_is_told_with_what_helps(
    job: Any, monkeypatch: pytest.MonkeyPatch, said: str, *, helps: bool
) -> None:
    """QEMU tells of it no sooner, and each `take` fails."""
    qemu = FakeLibvirtQemu(os.fstat)
    monkeypatch.setattr(qmp, "libvirt_qemu", qemu)
    job.failed = lambda why: CaptureFailed(domain="demo", why=why)
    with MigrationStream.prepared(job, libvirtimage.Writer()) as stream:
        qemu.answer = json.dumps({"error": {"desc": said}})
        with pytest.raises(CaptureFailed) as failed:
            stream.begin()
    assert f"QEMU: {said}" in str(failed.value)
    assert ("take the device from it, or its disks alone" in str(failed.value)) is helps


@pytest.mark.usefixtures("given")
def test_one_that_cannot_be_labelled_may_do_all_the_same(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise PermissionError("relabelto")

    monkeypatch.setattr(os, "setxattr", refuse)
    libvirt_qemu = FakeLibvirtQemu(os.fstat)
    monkeypatch.setattr(qmp, "libvirt_qemu", libvirt_qemu)
    prepare(job)
    assert libvirt_qemu.said == ["getfd", "closefd"]


@pytest.mark.usefixtures("given")
def test_a_pipe_that_qemu_does_not_take_leaves_the_ways_that_need_none(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int) -> None:
        raise libvirtError("No file descriptor supplied via SCM_RIGHTS", 3)

    monkeypatch.setattr(qmp, "libvirt_qemu", FakeLibvirtQemu(refuse))
    with pytest.raises(NotPossible, match="SCM_RIGHTS"):
        prepare(job)
    assert not job.image.exists()


def test_a_host_on_which_too_many_files_are_open_is_called_so(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was called a bug."""

    def refuse(_flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pipe2", refuse)
    folder = job.image.parent
    job.not_written = lambda why: ImageNotWritten.because(why, "demo", folder)
    with pytest.raises(ImageNotWritten, match="Too many open files") as failed:
        prepare(job)
    assert "LimitNOFILE" in failed.value.hint()


def ground(tmp_path: Path, qemu: FakeQemu) -> Any:
    lender = Lender(
        monitor=qemu, domain="demo", file=tmp_path / "uuid.qemu", run="3", is_over=lambda: False
    )
    return Ground(domain=DOMAIN, handle=Handle(), lender=lender, run_dir=tmp_path)


@pytest.mark.parametrize("way", [BackgroundCapture, PrecopyCapture, StopCapture])
def test_a_libvirt_that_gives_no_descriptors_is_known_before(
    way: captureways.Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`doctor` asks only whether it were possible."""
    monkeypatch.setattr(qmp, "libvirt_qemu", object())
    with ExitStack() as stack, pytest.raises(NotPossible, match=r"older than 8\.2"):
        stack.enter_context(way.possible(ground(tmp_path, FakeQemu())))


@pytest.mark.parametrize("way", captureways.WAYS.values())
def test_a_domain_that_qemu_does_not_migrate_is_not_paused_for_it(
    way: captureways.Way, tmp_path: Path
) -> None:
    """A device of its own (virgl), a processor flag (invtsc): QEMU says so whenever it is asked."""
    qemu = FakeQemu()
    qemu.blocked = ["virgl is not yet migratable"]
    before = dict(qemu.capabilities)
    with ExitStack() as stack, pytest.raises(NotPossible, match="QEMU: virgl is not yet"):
        stack.enter_context(way.possible(ground(tmp_path, qemu)))
    assert qemu.capabilities == before


@pytest.mark.parametrize(
    ("run_state", "said"),
    [
        ("io-error", "a disk failed .`virsh domblkerror demo`"),
        ("prelaunch", "QEMU says that it is prelaunch"),
        ("watchdog", "QEMU says that it is watchdog"),
        ("internal-error", "QEMU says that it is internal-error"),
    ],
)
def test_a_guest_that_stands_still_otherwise_is_not_caught_in_the_background(
    run_state: str, said: str, tmp_path: Path
) -> None:
    """libvirt calls it paused; QEMU ends itself: "invalid runstate transition"."""
    qemu = FakeQemu()
    qemu.run_state = run_state
    with (
        ExitStack() as stack,
        pytest.raises(NotPossible, match=said),
    ):
        stack.enter_context(BackgroundCapture.possible(ground(tmp_path, qemu)))


def test_a_qemu_that_lets_the_guest_run_by_itself_is_not_used_so(tmp_path: Path) -> None:
    qemu = FakeQemu()
    qemu.version = (8, 2)
    with ExitStack() as stack, pytest.raises(NotPossible, match=r"QEMU 8\.2 would let the guest"):
        stack.enter_context(BackgroundCapture.possible(ground(tmp_path, qemu)))


def test_a_monitor_that_does_not_answer_leaves_libvirts_own_way(tmp_path: Path) -> None:
    qemu = FakeQemu()
    qemu.is_gone = True
    with ExitStack() as stack, pytest.raises(NotPossible, match="not running"):
        stack.enter_context(BackgroundCapture.possible(ground(tmp_path, qemu)))
    with ExternalCapture.possible(ground(tmp_path, qemu)):
        pass


HUGE = "<memoryBacking><hugepages>{}</hugepages></memoryBacking><devices>"
GIB_PAGES = HUGE.format(
    "<page size='2048' unit='KiB' nodeset='0'/><page size='1048576' unit='KiB' nodeset='1'/>"
)
GIB_MODULE = (
    "<devices><memory model='dimm'><source><pagesize unit='KiB'>1048576</pagesize></source>"
    "</memory>"
)


@pytest.mark.parametrize(
    ("backing", "default_kib", "waits"),
    [
        (GIB_PAGES, 2048, True),
        (GIB_MODULE, 2048, True),
        (HUGE.format(""), 1 << 20, True),
        (HUGE.format(""), 2048, False),
        (HUGE.format(""), 0, False),
        (HUGE.format("<page size='2048' unit='KiB'/>"), 1 << 20, False),
        ("<devices>", 1 << 20, False),
    ],
)
def test_a_guest_does_not_wait_a_second_for_each_page_it_writes_to(
    backing: str, default_kib: int, waits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU writes a page of the host as a whole; precopy does so while the guest goes on."""
    monkeypatch.setattr(hugepages, "MEMINFO", tmp_path / "meminfo")
    if default_kib:
        text = f"HugePages_Total:       0\nHugepagesize:    {default_kib} kB\nHugetlb: 0 kB\n"
        hugepages.MEMINFO.write_text(text)
    monkeypatch.setattr(userfault, "allowed", lambda _folder: nullcontext())
    on = ground(tmp_path, FakeQemu())
    domain = replace(DOMAIN, definition=DOMAIN.definition.replace("<devices>", backing))
    for state in (DomainState.RUNNING, DomainState.PAUSED):
        with ExitStack() as stack:
            if waits and state is DomainState.RUNNING:
                stack.enter_context(pytest.raises(NotPossible, match="pages of 1024 MiB"))
            way = BackgroundCapture.possible(replace(on, domain=replace(domain, state=state)))
            stack.enter_context(way)
