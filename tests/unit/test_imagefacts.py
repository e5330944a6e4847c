"""What a memory image tells of the domain it is of."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from snapvm import imagefacts
from snapvm.memory import libvirtimage, sparseimage
from snapvm.model import OmittedDisk, Silent
from snapvm.refusals import BadImage
from tests.unit.memory import qemu_builders as build
from tests.unit.memory.xen_builders import Guest


def test_drives_that_cannot_change_are_known(tmp_path: Path) -> None:
    """libxl leaves ``readwrite`` out of its JSON where it is false."""
    config = {
        "c_info": {"type": "pv", "name": "demo", "uuid": "u-u"},
        "b_info": {"max_vcpus": 2, "target_memkb": 4096},
        "disks": [
            {"vdev": "xvda", "readwrite": 1, "pdev_path": "/dev/vg0/a"},
            {"vdev": "xvdb"},
            {"vdev": "xvdc", "is_cdrom": 1},
        ],
    }
    guest = Guest(config=json.dumps(config).encode() + b"\0")
    (tmp_path / "memory.xl").write_bytes(guest.encode())
    facts = imagefacts.look(tmp_path)
    assert facts is not None
    assert (facts.domain, facts.vcpus, facts.memory_bytes) == ("demo", 2, 4 << 20)
    assert facts.targets == {"xvda"} and imagefacts.devices(tmp_path) == facts.devices
    assert facts.devices == {"xvda": Path("/dev/vg0/a")}
    assert facts.omitted == (
        OmittedDisk(target="xvdb", why="read-only", read_only=True),
        OmittedDisk(target="xvdc", why="a cdrom drive", read_only=True),
    )


@pytest.mark.parametrize(
    "config",
    [
        '{"c_info": {"name": "demo"}, "b_info": {"target_memkb": 1e999}}',
        '{"c_info": ' + "[" * 100_000,
    ],
)
def test_a_configuration_that_is_no_sense_is_refused(tmp_path: Path, config: str) -> None:
    (tmp_path / "memory.xl").write_bytes(Guest(config=config.encode() + b"\0").encode())
    with pytest.raises(BadImage, match="its configuration cannot be read"):
        imagefacts.look(tmp_path)
    assert imagefacts.devices(tmp_path) == {}


DISK = "<disk type='block' device='disk'><source dev='/d'/><target dev='a'/></disk>"
XML = f"<domain><devices>{DISK}</devices></domain>\0".encode()


def saved(folder: Path, stream: bytes, format_: int = libvirtimage.FORMAT_RAW) -> Path:
    """Write an image of libvirt's around a stream."""
    path = folder / "memory.save"
    head = struct.pack("<16s5I56x", libvirtimage.MAGIC, 2, len(XML), 1, format_, 0)
    path.write_bytes(head + XML + stream)
    return path


CONFIG = b'{"c_info": {"type": "pv", "name": "demo"}, "b_info": {}}\0'


@pytest.mark.parametrize("lost_bytes", [1, 8, 5000, 2_000_000])
def test_an_xl_image_that_was_cut_short_is_not_whole(tmp_path: Path, lost_bytes: int) -> None:
    """A record was made anew of it; the domain was ended for a rollback that could only fail."""
    path = tmp_path / "memory.xl"
    path.write_bytes(Guest(config=CONFIG).encode())
    assert imagefacts.look(tmp_path) is not None
    os.truncate(path, path.stat().st_size - lost_bytes)
    with pytest.raises(BadImage, match="before the end of"):
        imagefacts.look(tmp_path)


@pytest.mark.parametrize("lost_bytes", [1, 200, 5000])
@pytest.mark.parametrize("is_sparse", [False, True], ids=["plain", "sparse"])
def test_a_libvirt_image_that_was_cut_short_is_not_whole(
    tmp_path: Path, lost_bytes: int, *, is_sparse: bool
) -> None:
    path = saved(tmp_path, build.GOOD.encode())
    if is_sparse:
        sparseimage.convert(path, tmp_path / "new", Silent())
        (tmp_path / "new").rename(path)
    assert imagefacts.look(tmp_path) is not None
    os.truncate(path, path.stat().st_size - lost_bytes)
    with pytest.raises(BadImage, match="before the description of its devices"):
        imagefacts.look(tmp_path)


def test_a_stream_of_which_the_end_is_not_known_is_not_judged(tmp_path: Path) -> None:
    """Old kinds of machine tell neither their name nor their devices; zstd hides them."""
    old = b"QEVM\0\0\0\3\1" + bytes(100)
    saved(tmp_path, old)
    assert imagefacts.look(tmp_path) is not None
    saved(tmp_path, b"packed", libvirtimage.FORMAT_ZSTD)
    assert imagefacts.look(tmp_path) is not None


def test_a_number_without_end_is_none(tmp_path: Path) -> None:
    path = tmp_path / "memory.save"
    disk = (
        "<disk type='block' device='disk'><driver type='raw'/><source dev='/d'/><target dev='a'/>"
    )
    xml = f"<domain><memory>{'9' * 5000}</memory><devices>{disk}</disk></devices></domain>\0"
    head = struct.pack("<16s5I56x", b"LibvirtQemudSave", 2, len(xml), 1, 0, 0)
    path.write_bytes(head + xml.encode() + b".")
    facts = imagefacts.look(tmp_path)
    assert facts is not None and facts.memory_bytes == 0


def test_an_image_that_goes_while_it_is_looked_at_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted meanwhile, or lost by its server: a rollback ended as a bug of snapvm."""
    path, read = saved(tmp_path, b"stream"), libvirtimage.read_definition

    def gone(image: Path) -> str:
        definition = read(image)
        image.unlink()
        return definition

    monkeypatch.setattr(libvirtimage, "read_definition", gone)
    assert imagefacts.devices(tmp_path) == {}
    assert not path.exists()
