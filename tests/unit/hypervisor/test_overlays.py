"""What images lie on is read out of them, and what is no image harms nobody."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.hypervisor import overlays
from snapvm.model import HypervisorKind
from snapvm.refusals import DomainRefused
from tests.fakes.overlay import disk_xml, make_overlay
from tests.fakes.storage import unanswered
from tests.unit.hypervisor.fakelibvirt import OFF


def below(
    image: Path, *, kind: str = "file", device: str = "disk", format_: str = "qcow2"
) -> list[str]:
    """Return what lies below the one drive of a domain."""
    definition = disk_xml(image, kind=kind, device=device, format_=format_)
    found = list(overlays.bases(replace(OFF, definition=definition)))
    assert all(disk.target == "vda" for disk in found)
    return [str(disk.device) for disk in found]


@pytest.mark.parametrize(
    "name",
    [
        "/dev/vg0/d0",
        "file:/dev/vg0/d0",
        'json:{"driver":"raw","file":{"driver":"host_device","filename":"/dev/vg0/d0"}}',
        'json:{"driver":"raw","file.driver":"host_device","file.filename":"/dev/vg0/d0"}',
    ],
)
def test_the_name_in_its_header(tmp_path: Path, name: str) -> None:
    assert below(make_overlay(tmp_path / "over.qcow2", name)) == ["/dev/vg0/d0"]


def test_a_chain_of_overlays_is_followed_to_its_end(tmp_path: Path) -> None:
    first = make_overlay(tmp_path / "first", "/dev/vg0/d0")
    second = make_overlay(tmp_path / "second", "first")
    assert below(second) == [str(first), "/dev/vg0/d0"]


@pytest.mark.parametrize("kind", ["file", "block"])
def test_what_a_guest_writes_into_a_raw_disk_says_nothing(tmp_path: Path, kind: str) -> None:
    """It could say that it lies on the disk of another guest, which could not go back then."""
    disk = make_overlay(tmp_path / "disk", "/dev/vg0/of-another")
    assert below(disk, kind=kind, format_="raw") == []


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("told", ["raw", "qcow2", ""])
def test_below_a_raw_disk_there_is_nothing(tmp_path: Path, told: str, version: int) -> None:
    """A guest may have written such a header before it got a snapshot above."""
    disk = make_overlay(tmp_path / "disk", "/dev/vg0/of-another")
    over = make_overlay(tmp_path / "over", "disk", format_below=told, version=version)
    assert below(over) == [str(disk)] + ["/dev/vg0/of-another"] * (told != "raw")


def test_what_is_neither_file_nor_disk_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens /dev/watchdog, and lets go of it, has the host reset after a while."""
    over = make_overlay(tmp_path / "over", "/dev/null")
    opened: list[str] = []
    open_ = os.open

    def watched(path: Path, *rest: int) -> int:
        opened.append(str(path))
        return open_(path, *rest)

    monkeypatch.setattr(os, "open", watched)
    assert below(over) == ["/dev/null"]
    assert opened == [str(over)]


def test_a_ring_of_them_ends(tmp_path: Path) -> None:
    assert len(below(make_overlay(tmp_path / "ring", "ring"))) < 1000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"QFI\xfb",
        b"\0" * 512,
        b"QFI\xfb\0\0\0\3" + b"\xff" * 8 + b"\0\0\0\5",
        b"QFI\xfb\0\0\0\3" + b"\0" * 7 + b"\x20" + b"\xff" * 4,
        b"QFI\xfb\0\0\0\3" + b"\0" * 7 + b"\x14" + b"\0\0\0\6json:{",
        b"QFI\xfb\0\0\0\3" + b"\0" * 7 + b"\x14" + b"\0\0\0\7json:[]",
    ],
)
def test_what_says_nothing(tmp_path: Path, content: bytes) -> None:
    image = tmp_path / "image"
    image.write_bytes(content)
    assert below(image) == []


def test_what_is_not_looked_into(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert below(tmp_path / "fifo") == below(tmp_path / "none") == below(tmp_path) == []
    image = make_overlay(tmp_path / "over", "/dev/vg0/d0")
    assert below(image, device="cdrom") == below(image, kind="network") == []
    assert below(image, kind="block") == ["/dev/vg0/d0"]
    off = replace(OFF, definition=disk_xml(image))
    assert [disk.target for disk in overlays.bases(off)] == ["vda"]
    of_xl = replace(off, hypervisor=HypervisorKind.XEN)
    assert [*overlays.bases(of_xl), *overlays.bases(replace(off, definition=""))] == []


def test_a_disk_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    with unanswered(monkeypatch, gone):
        with pytest.raises(DomainRefused, match=rf"disk vda does not answer \({gone}") as refused:
            below(gone)
        assert "findmnt" in refused.value.hint()
        assert below(gone, device="cdrom") == []


def test_an_overlay_is_none_the_less_one_where_too_many_files_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a host with many domains whose disks were slow, most overlays were not seen."""
    refused: list[Path] = []

    def one_more(path: Path, flags: int) -> int:
        if not refused:
            refused.append(path)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return really(path, flags)

    really = os.open
    over = make_overlay(tmp_path / "over.qcow2", "/dev/vg0/d0")
    monkeypatch.setattr(os, "open", one_more)
    assert below(over) == ["/dev/vg0/d0"]
    assert refused == [over]
