"""What a memory image tells of the domain it is of."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from snapvm import imagefacts
from snapvm.model import OmittedDisk
from snapvm.refusals import BadImage
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
