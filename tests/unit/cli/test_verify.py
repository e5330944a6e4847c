"""``snapvm verify`` and ``snapvm inspect`` on images made by hand."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from snapvm import images
from snapvm.cli.app import run
from snapvm.errors import ExitStatus
from snapvm.memory import libvirtimage
from snapvm.model import MemoryRecord, Progress, Record, SideKind, SidePlace, SnapshotId
from tests.fakes.machine import image_bytes
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.cli.conftest import Call
from tests.unit.deeds import delete, take
from tests.unit.memory import qemu_builders
from tests.unit.memory.xen_builders import L1, Guest, hvm_image

ZSTD = ["zstd", "--quiet", "-1", "--stdout"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.xl"
    path.write_bytes(Guest().encode())
    return path


def test_a_sound_image_is_called_sound(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(image)]) == 0
    assert "sound, 590 pages, 6 page tables, 1 vCPU\n" in capsys.readouterr().out


def test_a_lost_table_is_told_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guest = Guest()
    guest.types[L1] = 0xF
    path = tmp_path / "image.xl"
    path.write_bytes(guest.encode())
    assert run(["verify", str(path)]) == 4
    told = capsys.readouterr()
    assert "lost: an entry leads to a page table that is not in the image" in told.out
    assert "is not sound: 2 problems, the first: the domain owns a page" in told.err
    assert run(["verify", str(path), "--json"]) == 4
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["TABLE_LOST"] == 1 and not report["sound"]
    assert report["error"]["exit_status"] == 4


def test_what_is_only_odd_is_not_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guest = Guest()
    guest.types[L1] = 0xF
    path = tmp_path / "image.xl"
    path.write_bytes(guest.encode() + b"more")
    assert run(["verify", str(path)]) == 4
    told = capsys.readouterr()
    assert "odd: bytes after the end" in told.out
    assert "2 problems, the first: the domain owns a page" in told.err


def test_where_the_tables_of_a_pvh_domain_are_has_to_be_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "image.xl"
    path.write_bytes(hvm_image())
    assert run(["inspect", str(path), "--va", "0"]) == 4
    assert "--cr3" in capsys.readouterr().err
    assert run(["inspect", str(path), "--va", "0", "--cr3", "0x1000"]) == 0


def test_an_address_is_translated(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(image), "--va", "0xffff888000014abc"]) == 0
    assert capsys.readouterr().out.startswith("0xffff888000014abc is frame 0x14, rwux")
    assert run(["inspect", str(image), "--va", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["mapped"] is False


def test_who_maps_a_frame_is_told(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(image), "--frame", "20"]) == 0
    assert "0xffff888000014000" in capsys.readouterr().out
    assert run(["inspect", str(image), "--frame", "0x999999"]) == 0
    assert "nothing maps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([], "--va --frame: one of them is needed"),
        (["--va", "x"], "--va: 'x' is not a number of 64 bits"),
        (["--va", "1", "--frame", "1"], "--va --frame: only one of them can be given"),
    ],
)
def test_options_that_are_not_understood_are_a_wrong_use(
    image: Path, options: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(image), *options]) == 2
    assert f"snapvm: invalid value for {why}" in capsys.readouterr().err


def test_what_is_no_image_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other"
    path.write_text("hello " * 100)
    for command in (["verify"], ["inspect", "--va", "0"]):
        assert run([*command, str(path)]) == 4
        assert "neither an image of libvirt nor one of `xl" in capsys.readouterr().err
    assert run(["verify", str(tmp_path / "missing")]) == 4
    told = capsys.readouterr().err
    assert (
        "missing: No such file or directory\nhint: name a snapshot" in told and "Errno" not in told
    )


@pytest.mark.parametrize("verb", [["verify"], ["inspect", "--va", "0"]])
def test_a_name_that_no_file_can_have(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--state-dir", str(tmp_path), *verb]
    assert run([*command, "x" * 300]) == 4
    assert "File name too long\nhint: name a snapshot" in capsys.readouterr().err
    assert run([*command, f"{'x' * 300}@a"]) == 3
    assert "there is no snapshot x" in capsys.readouterr().err
    assert run([*command, ""]) == 4
    assert "'': No such file" in capsys.readouterr().err


def test_a_file_with_a_snapshots_name_is_not_looked_into_in_its_place(
    call: Call, scene: Scene, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may put a sound one into a folder in which root types that name."""
    assert call("take", DOMAIN, "--name", "a").status == 0
    record = scene.host.catalog.get(UUID, SnapshotId("a"))
    assert record.memory is not None
    scene.host.catalog.path(record, record.memory.file).unlink()
    monkeypatch.chdir(image.parent)
    for name in (f"{DOMAIN}@a", f"{DOMAIN}@b", "my_image@home.xl"):
        (image.parent / name).write_bytes(image.read_bytes())
    found = call("verify", f"{DOMAIN}@a")
    assert found.status == 4 and "the memory image is gone" in found.err
    assert call("verify", f"{DOMAIN}@b").status == call("verify", "my_image@home.xl").status == 0


def test_an_image_is_not_called_a_record(call: Call, scene: Scene) -> None:
    """What is wrong was said of "the record /.../memory.save", and the record is whole."""
    image = scene.host.catalog.path(take(scene, "a"), "memory.save")
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    told = call("verify", f"{DOMAIN}@a").err
    assert told.startswith(f"snapvm: {image} cannot be used: it has changed since it was taken")
    (image.parent / "snapshot.json").write_text("{")
    assert "snapvm: the record /" in call("verify", f"{DOMAIN}@a").err


def test_a_folder_that_cannot_be_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(path: object, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", denied)
        status = run(["verify", str(tmp_path / "image")])
    assert status == 4
    assert "image: Permission denied\nhint: name a snapshot" in capsys.readouterr().err


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert run(["verify", str(tmp_path / "pipe")]) == 4


def test_of_libvirts_image_the_header_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its header is what can be checked of a file whose length nobody wrote down."""
    path = tmp_path / "memory.save"
    path.write_bytes(image_bytes(7))
    assert run(["verify", str(path)]) == 0
    assert "a libvirt image: its header alone" in capsys.readouterr().out
    assert run(["inspect", str(path), "--va", "0"]) == 4
    assert "its image is libvirt's, and `inspect` walks" in capsys.readouterr().err
    path.write_bytes(b"\0" + image_bytes(7)[1:])
    assert run(["verify", str(path)]) == 4
    told = capsys.readouterr().err
    assert "it is neither an image of libvirt nor one of `xl save`" in told
    path.write_bytes(b"LibvirtQemudPart" + image_bytes(7)[16:])
    assert run(["verify", str(path), "--json"]) == 4
    assert "it was never written to its end" in capsys.readouterr().err


@pytest.mark.parametrize("lost_bytes", [1, 3000])
@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "zstd"])
def test_an_image_of_libvirts_that_was_cut_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lost_bytes: int, *, is_packed: bool
) -> None:
    """Half a copy of one was called whole."""
    stream = qemu_builders.GOOD.encode()
    if is_packed:
        stream = subprocess.run(ZSTD, input=stream, capture_output=True, check=True).stdout
    format_ = libvirtimage.FORMAT_ZSTD if is_packed else libvirtimage.FORMAT_RAW
    path = qemu_builders.save(tmp_path / "memory.save", stream, format_)
    assert run(["verify", str(path)]) == 0
    assert "whole (a libvirt image: its header and its end)" in capsys.readouterr().out
    os.truncate(path, path.stat().st_size - min(lost_bytes, len(stream) // 2))
    assert run(["verify", str(path)]) == 4
    assert "memory.save" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recorded", "why"),
    [
        ("", "its record has no checksum"),
        ("newer-pieces:00", "its checksum cannot be computed here"),
    ],
)
def test_one_whose_checksum_says_nothing_is_read_to_its_end(
    call: Call, scene: Scene, recorded: str, why: str
) -> None:
    """Of one whose end was overwritten it was said that header and length are right."""
    assert call("take", DOMAIN, "--name", "a").status == 0
    folder = scene.host.catalog.folder(UUID, SnapshotId("a"))
    path = qemu_builders.save(folder / "memory.save", qemu_builders.GOOD.encode())
    record = json.loads((folder / "snapshot.json").read_text())
    size_bytes = path.stat().st_size
    record["memory"] |= {"checksum": recorded, "size_bytes": size_bytes}
    (folder / "snapshot.json").write_text(json.dumps(record))
    told = call("verify", "demo@a")
    assert f"its header and its end, {why}" in told.out
    os.truncate(path, size_bytes - 1)
    os.truncate(path, size_bytes)
    assert call("verify", "demo@a").status == 4


def test_a_flipped_bit_in_what_zstd_has_packed_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = qemu_builders.GOOD.encode()
    packed = subprocess.run(ZSTD, input=stream, capture_output=True, check=True).stdout
    path = qemu_builders.save(tmp_path / "memory.save", packed, libvirtimage.FORMAT_ZSTD)
    data = bytearray(path.read_bytes())
    data[-len(packed) // 2] ^= 1
    path.write_bytes(data)
    assert run(["verify", str(path)]) == 4
    assert "unpacking it" in capsys.readouterr().err


def test_where_zstd_is_not_installed_the_header_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = qemu_builders.save(tmp_path / "memory.save", b"packed", libvirtimage.FORMAT_ZSTD)
    monkeypatch.setattr(shutil, "which", lambda *_args, **_kwargs: None)
    assert run(["verify", str(path)]) == 0
    assert "its header alone" in capsys.readouterr().out


def test_a_link_that_the_user_names_is_followed(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    links = [tmp_path / "link.xl", tmp_path / "link.save"]
    (tmp_path / "image.save").write_bytes(image_bytes(3))
    for link in links:
        link.symlink_to(tmp_path / link.name.replace("link", "image"))
        assert run(["verify", str(link)]) == 0, capsys.readouterr().err


def test_a_pipe_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    """An image straight from a backup was "/proc/123/fd/pipe:[456]: No such file or directory"."""
    reading, writing = os.pipe()
    try:
        assert run(["verify", f"/dev/fd/{reading}"]) == ExitStatus.REFUSED
    finally:
        os.close(reading)
        os.close(writing)
    assert f"/dev/fd/{reading}: it is not a regular file" in capsys.readouterr().err


def test_what_is_deleted_meanwhile_is_not_called_damaged(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A nightly `verify` of all that `list` has shown met a `prune`, and told of lost memory."""
    record = take(scene, "a")
    check = images.check

    def late(path: Path, memory: MemoryRecord) -> None:
        delete(scene, record)
        check(path, memory)

    monkeypatch.setattr(images, "check", late)
    done = call("verify", "demo@a", "--json")
    assert done.status == ExitStatus.NOT_FOUND
    assert "there is no snapshot demo@a\n" in done.err


def delete_once_it_was_read(scene: Scene, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have another snapvm delete a snapshot when its memory has been read."""
    check = images.check_contents

    def late(path: Path, memory: MemoryRecord, progress: Progress) -> None:
        check(path, memory, progress)
        delete(scene, record)

    monkeypatch.setattr(images, "check_contents", late)


def test_an_image_without_a_checksum_that_is_deleted_meanwhile_is_no_failure_of_the_disk(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = take(scene, "a")
    path = scene.host.catalog.folder(record.domain_uuid, record.id) / "snapshot.json"
    said = json.loads(path.read_text())
    said["memory"]["checksum"] = ""
    path.write_text(json.dumps(said))
    delete_once_it_was_read(scene, record, monkeypatch)
    assert call("verify", "demo@a").status == ExitStatus.NOT_FOUND


def test_uefi_variables_that_are_deleted_meanwhile_are_not_called_damaged(
    call: Call, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvram = SidePlace(kind=SideKind.NVRAM, path=tmp_path / "demo_VARS.fd")
    scene.machine.places = (nvram,)
    scene.count(1)
    record = take(scene, "a")
    delete_once_it_was_read(scene, record, monkeypatch)
    assert call("verify", "demo@a").status == ExitStatus.NOT_FOUND
