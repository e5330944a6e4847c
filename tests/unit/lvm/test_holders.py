"""What lies on a volume, as sysfs tells it."""

from __future__ import annotations

from pathlib import Path

from snapvm.lvm import holders
from snapvm.lvm.holders import Holder
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.volumes import Lvm
from tests.fakes.lvm import FakeLvm

OWN, OTHER = "g" * 32, "h" * 32
DISK = f"LVM-{OWN}{'d' * 32}"


def disk(*, active: bool = True) -> LogicalVolume:
    fake = FakeLvm()
    fake.add_disk("vg0", "demo-d0").active = active
    (volume,) = Lvm(fake).report().volumes
    return volume


def of(volume: LogicalVolume, sys: Path) -> tuple[Holder, ...]:
    return holders.of(volume.ref, volume.device, sys)


def told(sys: Path, *above: tuple[str, str, str]) -> dict[str, str]:
    """Return what lies on a disk, and its remedy, when these do: their kernel's names, uuids."""
    entry = sys / "253:1"
    put(entry, "vg0-demo--d0", DISK)
    (entry / "holders").mkdir()
    for kernel, name, dm_uuid in above:
        put(sys / "devices" / kernel, name, dm_uuid)
        (entry / "holders" / kernel).symlink_to(sys / "devices" / kernel)
    return {str(each.device): each.remedy for each in of(disk(), sys)}


def put(entry: Path, name: str, dm_uuid: str) -> None:
    entry.mkdir(parents=True)
    if name:
        (entry / "dm").mkdir()
        (entry / "dm" / "name").write_text(f"{name}\n")
        (entry / "dm" / "uuid").write_text(f"{dm_uuid}\n")


def test_nothing_lies_on_it(tmp_path: Path) -> None:
    assert told(tmp_path) == {}
    assert of(disk(), tmp_path / "other") == ()
    assert of(disk(active=False), tmp_path) == ()


def test_each_is_named_with_what_takes_it_away(tmp_path: Path) -> None:
    found = told(
        tmp_path,
        ("dm-7", "vg0-demo--d0p1", f"part1-{DISK}"),
        ("dm-8", "my--guest-root", f"LVM-{OTHER}{'r' * 32}"),
        ("dm-9", "secret", f"CRYPT-LUKS2-{'0' * 32}-secret"),
        ("dm-10", "by hand", ""),
        ("md127", "", ""),
        ("bcache0", "", ""),
    )
    assert found == {
        "/dev/mapper/vg0-demo--d0p1": "kpartx -d /dev/vg0/demo-d0",
        "/dev/mapper/my--guest-root": "vgchange -an my-guest",
        "/dev/mapper/secret": "cryptsetup close secret",
        "/dev/mapper/by hand": "dmsetup remove 'by hand'",
        "/dev/md127": "mdadm --stop /dev/md127",
        "/dev/bcache0": "lsblk",
    }


def test_layers_of_its_own_group_do_not_count(tmp_path: Path) -> None:
    layers = ("dm-7", "vg0-demo--d0-real", f"{DISK}-real")
    assert told(tmp_path, layers) == {}


def test_layers_of_a_group_that_was_made_on_it_count(tmp_path: Path) -> None:
    pool = ("dm-7", "guest-pool_tdata", f"LVM-{OTHER}{'t' * 32}-tdata")
    assert told(tmp_path, pool) == {"/dev/mapper/guest-pool_tdata": "vgchange -an guest"}
