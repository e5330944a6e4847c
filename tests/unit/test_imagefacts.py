"""What a memory image tells of the domain it is of."""

from __future__ import annotations

import json
from pathlib import Path

from snapvm import imagefacts
from snapvm.model import OmittedDisk
from tests.unit.memory.xen_builders import Guest


def test_drives_that_cannot_change_are_known(tmp_path: Path) -> None:
    """libxl leaves ``readwrite`` out of its JSON where it is false."""
    config = {
        "c_info": {"type": "pv", "name": "demo", "uuid": "u-u"},
        "b_info": {"max_vcpus": 2, "target_memkb": 4096},
        "disks": [
            {"vdev": "xvda", "readwrite": 1},
            {"vdev": "xvdb"},
            {"vdev": "xvdc", "is_cdrom": 1},
        ],
    }
    guest = Guest(config=json.dumps(config).encode() + b"\0")
    (tmp_path / "memory.xl").write_bytes(guest.encode())
    facts = imagefacts.look(tmp_path)
    assert facts is not None
    assert (facts.domain, facts.vcpus, facts.memory_bytes) == ("demo", 2, 4 << 20)
    assert facts.targets == {"xvda"}
    assert facts.omitted == (
        OmittedDisk(target="xvdb", why="read-only", read_only=True),
        OmittedDisk(target="xvdc", why="a cdrom drive", read_only=True),
    )
