"""UEFI variables on real libvirt: the file's bytes of the instant come back with the disks."""

from __future__ import annotations

import pytest

from tests.lab.guests import Guest, snapvm
from tests.lab.vm import Lab

pytestmark = [pytest.mark.lab, pytest.mark.long]

FOLDER = "/var/lib/libvirt/qemu/nvram"
VARS = f"{FOLDER}/vars_VARS.fd"
FLASH = f"""
set -e
virsh -q destroy vars
install -m 644 /usr/share/seabios/bios-256k.bin {FOLDER}/bios.fd
head -c 65536 /dev/urandom > {VARS}
virsh dumpxml --inactive vars | sed "s|hvm</type>|hvm</type>\\
<loader readonly='yes' type='pflash'>{FOLDER}/bios.fd</loader><nvram>{VARS}</nvram>|" \\
  > /tmp/vars.xml
virsh -q define /tmp/vars.xml
virsh -q start vars
"""
"""SeaBIOS as the firmware in a flash, and a second flash with nothing but chance in it."""


def sum_of_variables(lab: Lab) -> str:
    return lab.run(["sha256sum", VARS], timeout_seconds=60, check=True).stdout.split()[0]


def owner(lab: Lab) -> str:
    return lab.run(["stat", "-c", "%U %a", VARS], timeout_seconds=60, check=True).stdout.strip()


def scribble(lab: Lab) -> None:
    argv = f"dd if=/dev/urandom of={VARS} bs=4k count=4 conv=notrunc status=none"
    lab.run(argv, timeout_seconds=60, check=True)


def test_the_variables_of_the_instant_come_back(kvm_lab: Lab) -> None:
    """Cold by the record's copy, with memory by that; what was there before is in the undo."""
    with Guest(kvm_lab, "vars", "--disks", "1", "--memory", "128") as guest:
        kvm_lab.run(FLASH, timeout_seconds=120, check=True)
        guest.wait_until(guest.look().n + 5)
        then, owned = sum_of_variables(kvm_lab), owner(kvm_lab)
        cold = guest.take("--disk-only", "--name", "cold")
        guest.take("--name", "warm")
        (side,) = cold["side_files"]
        assert (side["kind"], side["size_bytes"]) == ("nvram", 65536)
        assert "vars_VARS.fd, 64" in snapvm(kvm_lab, "show", "vars@cold").stdout
        scribble(kvm_lab)
        scribbled = sum_of_variables(kvm_lab)
        assert scribbled != then
        guest.roll_back("cold")
        assert (sum_of_variables(kvm_lab), owner(kvm_lab)) == (then, owned)
        assert guest.wait_until(5).state == "ok"
        snapvm(kvm_lab, "undo", "vars", "--yes")
        assert sum_of_variables(kvm_lab) == scribbled
        guest.roll_back("warm")
        assert sum_of_variables(kvm_lab) == then
        after = guest.look()
        assert guest.wait_until(after.n + 5).state == "ok"
        assert snapvm(kvm_lab, "check", "--deep").stdout == "all is in order\n"
