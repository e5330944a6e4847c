"""What a Xen domain keeps its data on beside its drives."""

from __future__ import annotations

import pytest

from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.capturedxen import DISK_NUMBER, add_drive
from tests.unit.hypervisor.fakexen import CONFIG, Scene

VIRTIO = ["-drive", "file=/dev/vg0/data,if=virtio,format=raw"]


def tell(monkeypatch: pytest.MonkeyPatch, kind: str, **of_build: object) -> None:
    """Have xl tell such a configuration."""
    monkeypatch.setitem(CONFIG, "c_info", {**CONFIG["c_info"], "type": kind})
    monkeypatch.setitem(CONFIG, "b_info", {"max_vcpus": 1, **of_build})


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("extra", VIRTIO),
        ("extra_hvm", ["-global", "PIIX4_PM.disable_s3=1", *VIRTIO]),
        ("extra_hvm", ["-hdb", "/dev/vg0/data"]),
    ],
)
def test_a_disk_on_the_command_line_of_qemu_is_refused(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, key: str, words: list[str]
) -> None:
    """The others were captured, and nothing was said of it."""
    _, driver = scene
    tell(monkeypatch, "hvm", **{key: words})
    with pytest.raises(DomainRefused, match=r"a disk on QEMU's command line .*data") as refused:
        driver.check_capture(driver.find("web"), with_memory=False)
    assert "device_model_args" in refused.value.hint()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("hvm", []),
        ("hvm", ["-drive", "file=/srv/a.iso,media=cdrom"]),
        ("pv", VIRTIO),  # such a QEMU has nothing of a PC in it
    ],
)
def test_other_arguments_are_no_hindrance(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, kind: str, words: list[str]
) -> None:
    _, driver = scene
    tell(monkeypatch, kind, extra=words)
    driver.check_capture(driver.find("web"), with_memory=False)


@pytest.mark.parametrize("words", [{}, [1], "-hdb"], ids=str)
def test_arguments_that_libxl_does_not_write_are_refused(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, words: object
) -> None:
    _, driver = scene
    tell(monkeypatch, "hvm", extra_hvm=words)
    with pytest.raises(DomainRefused, match="does not tell"):
        driver.check_capture(driver.find("web"), with_memory=False)


def test_what_it_has_of_the_host_is_told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk controller was left out in silence, as a shared folder was."""
    xen, driver = scene
    add_drive(xen.store, DISK_NUMBER)
    assert driver.drives(driver.find("web")).omitted == ()
    monkeypatch.setitem(CONFIG, "pcidevs", [{"bus": 3}, {"bus": 4}])
    monkeypatch.setitem(CONFIG, "usbdevs", [{"ctrl": 0, "port": 1}])
    monkeypatch.setitem(CONFIG, "vtpms", [{"backend_domname": "vtpm"}])
    monkeypatch.setitem(CONFIG, "p9s", [{"tag": "share", "path": "/srv/share"}])
    found = driver.drives(driver.find("web")).omitted
    assert [each.target for each in found] == ["pci0", "pci1", "usb0", "vtpm0", "9pfs0"]
    assert "a device of this host (pci)" in found[0].why and "/srv/share" in found[-1].why
    assert not any(each.read_only for each in found)


def test_disks_are_told_of_one_whose_configuration_is_lost(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    xen, driver = scene
    add_drive(xen.store, DISK_NUMBER)
    monkeypatch.setitem(CONFIG, "p9s", "lost")
    assert len(driver.drives(driver.find("web")).disks) == 1
