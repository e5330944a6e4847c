"""Memory images as records know them: which layout, made how, and what stays when it fails."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import compression, durable, imageformats, images
from snapvm.errors import BadSetting
from snapvm.failures import StorageFailed
from snapvm.memory import libvirtimage
from snapvm.model import HypervisorKind, ImageFormat, MemoryRecord, Silent
from snapvm.refusals import BadImage, HostLacks
from tests.fakes.machine import image_bytes
from tests.fakes.power import Disk
from tests.fakes.storage import no_room
from tests.unit.memory import qemu_builders as build
from tests.unit.memory.xen_builders import Guest

NEW = {"libvirt": "11.3.0", "qemu": "10.0.13"}
PLENTY = 1 << 40
ZSTD = compression.parse("zstd")
LIBVIRT = HypervisorKind.LIBVIRT


def recorded(path: Path) -> MemoryRecord:
    return MemoryRecord(
        file=path.name, format=imageformats.LIBVIRT_SAVE, size_bytes=path.stat().st_size
    )


@pytest.mark.parametrize(
    ("versions", "wanted", "how", "sparse"),
    [
        (NEW, ImageFormat.AUTO, compression.NONE, False),
        (NEW, ImageFormat.SPARSE, compression.NONE, True),
        (NEW, ImageFormat.PLAIN, compression.NONE, False),
        (NEW, ImageFormat.AUTO, ZSTD, False),
        (NEW, ImageFormat.PLAIN, ZSTD, False),
        ({**NEW, "libvirt": "11.1.9"}, ImageFormat.AUTO, compression.NONE, False),
        ({**NEW, "qemu": "8.2.1"}, ImageFormat.AUTO, compression.NONE, False),
        ({}, ImageFormat.AUTO, compression.NONE, False),
    ],
)
def test_an_image_is_sparse_where_that_was_asked_for_alone(
    versions: dict[str, str], wanted: ImageFormat, how: compression.Compression, *, sparse: bool
) -> None:
    assert images.shall_be_sparse(LIBVIRT, wanted, how, versions) is sparse
    if wanted is not ImageFormat.SPARSE:
        assert not images.shall_be_sparse(HypervisorKind.XEN, wanted, how, versions)


def test_xl_has_no_sparse_images() -> None:
    """It was not heeded, and nobody was told."""
    with pytest.raises(BadSetting, match="xl reads no sparse"):
        images.shall_be_sparse(HypervisorKind.XEN, ImageFormat.SPARSE, compression.NONE, NEW)


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(BadSetting, match="not compressed"):
        images.shall_be_sparse(LIBVIRT, ImageFormat.SPARSE, ZSTD, NEW)
    with pytest.raises(HostLacks, match=r"libvirt 11\.2"):
        images.shall_be_sparse(LIBVIRT, ImageFormat.SPARSE, compression.NONE, {"libvirt": "9.0.0"})


SKEWED = {"libvirt": "11.3.0", "qemu": "11.0.1"}
"""QEMU takes no plain image from a libvirt that old."""


def test_what_could_not_be_restored_is_not_taken() -> None:
    plain, none = ImageFormat.PLAIN, compression.NONE
    with pytest.raises(HostLacks, match=r"libvirt 12\.1, .* QEMU 11\.0\.1") as lacks:
        images.shall_be_sparse(LIBVIRT, plain, none, SKEWED)
    assert "with --image-format sparse or --compress zstd" in lacks.value.hint()
    assert not images.shall_be_sparse(LIBVIRT, plain, ZSTD, SKEWED)
    for versions in ({**SKEWED, "libvirt": "12.1.0"}, {**SKEWED, "qemu": "10.2.0"}):
        assert not images.shall_be_sparse(LIBVIRT, plain, none, versions)


@pytest.mark.parametrize(
    ("libvirt", "told"),
    [
        ("11.1.0", "update libvirt, or take the snapshot with --compress zstd"),
        ("10.0.0", "update libvirt"),
    ],
)
@pytest.mark.parametrize("wanted", [ImageFormat.PLAIN, ImageFormat.AUTO])
def test_what_this_libvirt_would_refuse_is_not_recommended(
    libvirt: str, told: str, wanted: ImageFormat
) -> None:
    """--image-format sparse was, and was refused with the hint to leave it out."""
    with pytest.raises(HostLacks) as lacks:
        images.shall_be_sparse(LIBVIRT, wanted, compression.NONE, {**SKEWED, "libvirt": libvirt})
    assert lacks.value.hint() == told


def test_whoever_asked_for_nothing_gets_what_can_be_restored() -> None:
    auto, none = ImageFormat.AUTO, compression.NONE
    assert images.shall_be_sparse(LIBVIRT, auto, none, SKEWED)
    assert not images.shall_be_sparse(LIBVIRT, auto, ZSTD, SKEWED)
    assert not images.shall_be_sparse(LIBVIRT, auto, none, {**SKEWED, "qemu": "10.2.0"})
    with pytest.raises(HostLacks, match=r"libvirt 12\.1"):
        images.shall_be_sparse(LIBVIRT, auto, none, {**SKEWED, "libvirt": "11.1.0"})


@pytest.mark.parametrize(
    ("format_", "name"),
    [
        (libvirtimage.FORMAT_ZSTD, imageformats.LIBVIRT_SAVE),
        (libvirtimage.FORMAT_SPARSE, imageformats.LIBVIRT_SPARSE),
    ],
)
def test_only_a_plain_image_needs_a_newer_libvirt(tmp_path: Path, format_: int, name: str) -> None:
    path = build.save(tmp_path / "memory.save", build.GOOD.encode())
    memory = recorded(path)
    with pytest.raises(HostLacks, match=r"libvirt 12\.1"):
        images.require_reader(path, memory, SKEWED)
    images.require_reader(path, memory, NEW)
    memory = reformatted(path, format_)
    assert memory.format == name
    images.require_reader(path, memory, SKEWED)


def reformatted(path: Path, format_: int) -> MemoryRecord:
    """Have an image say that its stream has another format."""
    head = libvirtimage.MAGIC + libvirtimage.head_as(path, format_)[len(libvirtimage.MAGIC) :]
    path.write_bytes(head + path.read_bytes()[len(head) :])
    is_sparse = format_ == libvirtimage.FORMAT_SPARSE
    name = imageformats.LIBVIRT_SPARSE if is_sparse else imageformats.LIBVIRT_SAVE
    return replace(recorded(path), format=name)


@pytest.mark.parametrize(
    ("format_", "program"), [(1, "gzip"), (2, "bzip2"), (3, "xz"), (4, "lzop"), (5, "zstd")]
)
def test_a_rollback_is_refused_where_nothing_unpacks_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: int, program: str
) -> None:
    """libvirt found that out when the domain had been ended for it."""
    path = build.save(tmp_path / "memory.save", build.GOOD.encode())
    memory = reformatted(path, format_)
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/usr/bin/{name}")
    images.require_reader(path, memory, NEW)
    monkeypatch.setattr(shutil, "which", lambda name, **_: None if name == program else name)
    with pytest.raises(HostLacks, match=f"program {program}") as lacks:
        images.require_reader(path, memory, NEW)
    assert lacks.value.hint() == f"install {program}"


@pytest.mark.parametrize(
    ("format_", "older", "what"),
    [
        (libvirtimage.FORMAT_ZSTD, {"libvirt": "9.0.0", "qemu": "7.2.19"}, r"libvirt 10\.6"),
        (libvirtimage.FORMAT_SPARSE, {"libvirt": "11.1.0", "qemu": "9.2.0"}, r"libvirt 11\.2"),
        (libvirtimage.FORMAT_SPARSE, {"libvirt": "11.3.0", "qemu": "8.2.2"}, r"QEMU 9\.0"),
    ],
)
def test_a_rollback_is_refused_where_the_image_is_of_a_newer_format(
    tmp_path: Path, format_: int, older: dict[str, str], what: str
) -> None:
    """On a host with an older release; the domain was ended for it too."""
    path = build.save(tmp_path / "memory.save", build.GOOD.encode())
    memory = reformatted(path, format_)
    images.require_reader(path, memory, NEW)
    images.require_reader(path, memory, {})
    with pytest.raises(HostLacks, match=what):
        images.require_reader(path, memory, older)


def test_an_image_is_converted_where_it_is(tmp_path: Path) -> None:
    path = build.save(tmp_path / "memory.save", build.GOOD.encode())
    memory, why_not = images.made_sparse(path, recorded(path), PLENTY, Silent())
    assert (memory.format, why_not) == (imageformats.LIBVIRT_SPARSE, "")
    images.check(path, memory)
    images.seal(path, memory, running=False)
    assert libvirtimage.read_header(path).was_running is False
    assert build.read_sparse(path).pages["pc.ram", 6] == build.filled(6)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("processors", "channels"), [(1, 2), (5, 5), (64, 16)])
def test_a_sparse_image_is_read_by_as_many_threads_as_it_gains_by(
    monkeypatch: pytest.MonkeyPatch, processors: int, channels: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(processors)))
    memory = MemoryRecord(file="m", format=imageformats.LIBVIRT_SPARSE, size_bytes=0)
    assert images.channels(memory) == channels
    assert images.channels(replace(memory, format=imageformats.LIBVIRT_SAVE)) == 1


@pytest.mark.parametrize("format_", [imageformats.LIBVIRT_SAVE, imageformats.XL_SAVE])
def test_one_that_is_deleted_while_it_is_looked_at_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str
) -> None:
    path = tmp_path / "image"
    build.save(path, build.GOOD.encode())
    if format_ == imageformats.XL_SAVE:
        path.write_bytes(Guest().encode())
    memory = replace(recorded(path), format=format_)
    open_file = durable.open_file

    def opened(name: Path | str, access: int = os.O_RDONLY) -> int:
        descriptor = open_file(name, access)
        os.unlink(name)
        return descriptor

    monkeypatch.setattr(durable, "open_file", opened)
    with pytest.raises(StorageFailed, match="No such file"):
        images.check(path, memory)


def test_one_that_goes_while_it_is_converted_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a server that has lost it: the next look ended the `take` as a bug of snapvm."""
    path = build.save(tmp_path / "memory.save", build.GOOD.encode())
    memory, head_as = recorded(path), libvirtimage.head_as

    def gone(source: Path, format_: int) -> bytes:
        head = head_as(source, format_)
        source.unlink()
        return head

    monkeypatch.setattr(libvirtimage, "head_as", gone)
    with pytest.raises(StorageFailed, match="No such file"):
        images.made_sparse(path, memory, PLENTY, Silent())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("free_bytes", "why"), [(10, "no room"), (PLENTY, "migration stream")])
def test_one_that_cannot_be_converted_stays(tmp_path: Path, free_bytes: int, why: str) -> None:
    path = build.save(tmp_path / "memory.save", b"another hypervisor's")
    before, memory = path.read_bytes(), recorded(path)
    kept, why_not = images.made_sparse(path, memory, free_bytes, Silent())
    assert kept == memory and why in why_not
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_where_there_is_no_room_that_is_said(tmp_path: Path) -> None:
    path = build.save(tmp_path / "memory.save", build.GOOD.encode())
    memory = recorded(path)
    with no_room(), pytest.raises(StorageFailed, match=r"memory\.save"):
        images.seal(path, memory, running=True)
    with no_room(), pytest.raises(StorageFailed, match=r"new\.save"):
        libvirtimage.Writer().begin(tmp_path / "new.save", "<domain/>", "")


def test_what_an_image_tells_its_driver(tmp_path: Path) -> None:
    """The cookie of libvirt's; the configuration of xl's, and of what processor it is."""
    path, guest = tmp_path / "memory.xl", Guest(config=b"{}  \0")
    path.write_bytes(guest.encode())
    memory = MemoryRecord(file=path.name, format=imageformats.XL_SAVE, size_bytes=0)
    assert images.cookie(path, memory) == "{}"
    assert images.processor(path, memory) == guest.cpuid != b""
    path = build.save(tmp_path / "memory.save", build.GOOD.encode())
    assert images.cookie(path, recorded(path)) == libvirtimage.read_cookie(path)
    assert images.processor(path, recorded(path)) == b""


def test_an_image_is_called_whole_when_all_of_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut might leave one that libvirt starts, and whose stream ends too early."""
    path, writer = tmp_path / "memory.save", libvirtimage.Writer()
    lost: list[Path] = []
    pwrite = os.pwrite
    with Disk.watched() as disk, monkeypatch.context() as patch:

        def look(descriptor: int, data: bytes, offset_bytes: int) -> int:
            if data == libvirtimage.MAGIC:
                lost.extend(disk.losing(path))
            return pwrite(descriptor, data, offset_bytes)

        patch.setattr(os, "pwrite", look)
        with open(writer.begin(path, "<domain/>", ""), "wb") as file:
            file.write(b"stream")
        writer.end(path)
        lost.extend(disk.losing(path))
        libvirtimage.set_running(path, running=True)
        lost.extend(disk.losing(path))
    assert lost == [] and libvirtimage.read_header(path).was_running


def test_an_image_that_is_being_written_or_has_no_stream_is_none(tmp_path: Path) -> None:
    path = tmp_path / "memory.save"
    path.write_bytes(image_bytes(7))
    head = libvirtimage.head_as(path, libvirtimage.FORMAT_SPARSE)
    path.write_bytes(image_bytes(7)[: len(head)])
    with pytest.raises(BadImage, match="do not fit the file"):
        libvirtimage.read_header(path)
    path.write_bytes(head + b"stream")
    with pytest.raises(BadImage, match="never written to its end"):
        libvirtimage.read_header(path)
