"""A volume of the fake lvm: what there is to know of it, and its ``lv_attr``."""

from __future__ import annotations

from dataclasses import dataclass, field

from snapvm.lvm.holders import Holder

_HEALTH_LETTERS = {"failed": "F", "out_of_data": "D", "metadata_read_only": "M"}
"""What the ninth letter of ``lv_attr`` says of a thin pool; see lvs(8)."""


@dataclass
class FakeVolume:
    """A thin volume, a snapshot of one, a pool; or a thick volume, a store, a thick snapshot."""

    vg: str
    name: str
    uuid: str
    size_bytes: int
    pool: str = ""
    is_pool: bool = False
    origin: str = ""
    origin_bytes: int = 0
    chunk_bytes: int = 0
    invalid: bool = False
    """A thick snapshot that the kernel has given up."""
    merging: bool = False
    """Somebody has said `lvconvert --merge` of this snapshot."""
    moving: bool = False
    """It, or what it is made of, is in a pvmove."""
    namesake: str = ""
    """The uuid of the group that it is in, when that is another one of the same name."""
    health: str = ""
    """As LVM tells it of one that lacks a part, and of a pool (`lv_health_status`)."""
    tags: set[str] = field(default_factory=set)
    writable: bool = True
    active: bool = True
    is_layered: bool = False
    """Of a pool: the kernel has it, for volumes of it are active, whether it is or not."""
    suspended: bool = False
    """Nothing that is written to it comes through, as where an lvm was killed."""
    opened: bool = False
    lies_on: list[Holder] = field(default_factory=list)
    """What of the host lies on it; such a volume is open, whoever else has it."""
    skipped: bool = False
    minor: int = 0
    data_percent: float = 10.0
    metadata_percent: float = 10.0
    """Of a pool."""
    profile: str = ""
    read_ahead: str = "auto"
    """As lvs tells it, in bytes."""
    autoactivated: bool = True
    has_fixed_minor: bool = False
    metadata_bytes: int = 64 << 20
    """Of a pool."""
    written: int = 0
    """How much, as the kernel counts it while there is a device."""
    data: str = ""
    """What is on it; a snapshot and a clone begin with the same."""

    @property
    def attr(self) -> str:
        kind = "t" if self.is_pool else "V" if self.pool else "s" if self.origin else "-"
        kind = "S" if self.merging else kind
        return "".join(
            (
                kind,
                "w" if self.writable else "r",
                "I" if self.moving else "i",
                "m" if self.has_fixed_minor else "-",
                "I" if self.invalid else "-" if not self.active else "s" if self.suspended else "a",
                "o" if self.opened else "-",
                "tz",
                _HEALTH_LETTERS.get(self.health, "-"),
                "k" if self.skipped else "-",
            )
        )
