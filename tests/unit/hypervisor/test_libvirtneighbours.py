"""What other domains have upon a disk: an overlay, or memory that libvirt keeps for a start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from snapvm.hypervisor import libvirtlink
from snapvm.hypervisor.base import Reliance
from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.refusals import DomainRefused
from snapvm.settings import Settings
from tests.fakes.overlay import disk_xml, make_overlay
from tests.fakes.storage import unanswered
from tests.unit.hypervisor.fakelibvirt import LIBVIRT, OFF, libvirtError

OTHER_UUID = "99999999-2222-3333-4444-555555555555"
LV = Path("/dev/vg0/golden")


@dataclass
class Neighbour:
    """A domain that libvirt lists."""

    definition: str
    uuid: str = OTHER_UUID
    booted: str = ""
    """What it is defined as, if that is another; it runs then."""
    is_saved: bool = False
    is_gone: bool = False
    is_busy: bool = False
    """Libvirt waits in vain for an answer of its QEMU."""

    def UUIDString(self) -> str:  # noqa: N802 - libvirt's own name
        return self.uuid

    def name(self) -> str:
        return "a clone"

    def isActive(self) -> int:  # noqa: N802 - libvirt's own name
        return int(bool(self.booted))

    def isPersistent(self) -> int:  # noqa: N802 - libvirt's own name
        return 1

    def hasManagedSaveImage(self, flags: int) -> int:  # noqa: N802 - libvirt's own name
        assert flags == 0
        return int(self.is_saved)

    def XMLDesc(self, flags: int) -> str:  # noqa: N802 - libvirt's own name
        if self.is_gone:
            raise libvirtError("Domain not found", 42)
        if self.is_busy:
            raise libvirtError("cannot acquire state change lock", 68)
        return self.booted if flags == 2 else self.definition


@dataclass
class Neighbourhood:
    """A connection, and the one pool it knows."""

    domains: list[Neighbour]
    volumes: dict[str, Path] = field(default_factory=dict)
    is_mute: bool = False
    _asked: str = ""

    def listAllDomains(self) -> list[Neighbour]:  # noqa: N802 - libvirt's own name
        if self.is_mute:
            raise libvirtError("access denied", 88)
        return self.domains

    def storagePoolLookupByName(self, name: str) -> Neighbourhood:  # noqa: N802 - libvirt's own name
        if name != "images":
            raise libvirtError("no storage pool", 49)
        return self

    def storageVolLookupByName(self, name: str) -> Neighbourhood:  # noqa: N802 - libvirt's own name
        self._asked = name
        return self

    def path(self) -> str:
        return str(self.volumes[self._asked])


@pytest.fixture(autouse=True)
def _libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirtlink, "libvirt", LIBVIRT)


def relied_on(*domains: Neighbour, **volumes: Path) -> list[Reliance]:
    link = type("Link", (), {"connection": Neighbourhood(list(domains), volumes)})()
    return list(LibvirtHypervisor(link, Settings()).relying(OFF))


def of_pool(pool: str, volume: str) -> str:
    return (
        f"<domain><devices><disk type='volume'><driver name='qemu' type='qcow2'/>"
        f"<source pool='{pool}' volume='{volume}'/>"
        "<target dev='vda'/></disk></devices></domain>"
    )


def test_an_overlay_of_another_domain_is_found(tmp_path: Path) -> None:
    clone = Neighbour(disk_xml(make_overlay(tmp_path / "clone", str(LV))))
    (found,) = relied_on(clone)
    assert (found.domain, found.target, found.device) == ("a clone", "vda", LV)
    assert found.tie == "is an overlay on"
    assert "virsh blockpull 'a clone' vda" in found.remedy


def test_an_overlay_that_is_a_volume_of_a_pool_is_found(tmp_path: Path) -> None:
    overlay = make_overlay(tmp_path / "clone", str(LV))
    domains = [Neighbour(of_pool("images", "clone")), Neighbour(of_pool("none", "clone"))]
    assert [each.device for each in relied_on(*domains, clone=overlay)] == [LV]


def test_an_overlay_of_its_own_that_is_a_volume_of_a_pool_is_found(tmp_path: Path) -> None:
    """Its definition does not tell where that is; any other overlay of its own is seen in it."""
    overlay = make_overlay(tmp_path / "clone", str(LV))
    (found,) = relied_on(Neighbour(of_pool("images", "clone"), uuid=OFF.uuid), clone=overlay)
    assert found.device == LV
    assert relied_on(Neighbour(of_pool("images", "d0"), uuid=OFF.uuid, is_saved=True), d0=LV) == []


def test_what_another_guest_writes_into_its_disk_is_believed_by_nobody(tmp_path: Path) -> None:
    """That it is an overlay on the disk of this one: no rollback was possible any more."""
    disk = make_overlay(tmp_path / "disk", str(LV))
    assert relied_on(Neighbour(disk_xml(disk, kind="block", format_="raw"))) == []
    saved = Neighbour(disk_xml(disk, kind="block", format_="raw"), is_saved=True)
    assert [each.device for each in relied_on(saved)] == [disk]


def test_an_overlay_that_another_is_booted_with_is_found(tmp_path: Path) -> None:
    overlay = disk_xml(make_overlay(tmp_path / "clone", str(LV)))
    plain = disk_xml(Path("/dev/vg0/d7"), kind="block")
    found = relied_on(Neighbour(plain, booted=overlay))
    assert [each.device for each in found if each.tie != "is"] == [LV]
    twice = relied_on(Neighbour(overlay, booted=overlay))
    assert [each.tie for each in twice] == ["is an overlay on", "is"]


def test_memory_that_libvirt_keeps_goes_with_the_disk_as_it_is() -> None:
    upon = disk_xml(LV, kind="block")
    (found,) = relied_on(Neighbour(upon, is_saved=True))
    assert (found.device, found.tie) == (LV, "is")
    assert "`virsh managedsave-remove 'a clone'`" in found.remedy
    assert relied_on(Neighbour(upon)) == [], "it is booted from whatever is there"


def test_another_that_runs_with_the_disk_is_found() -> None:
    """It was defined as a copy of the other.  Its disk went back below it, or it kept the former
    one open, and every later command on the domain that had gone back failed."""
    upon, besides = disk_xml(LV, kind="block"), disk_xml(Path("/dev/vg0/d7"), kind="block")
    (found,) = (each for each in relied_on(Neighbour(upon, booted=besides)))
    assert (found.domain, found.target, found.device, found.tie) == ("a clone", "vda", LV, "is")
    assert "virsh detach-disk 'a clone' vda" in found.remedy
    assert relied_on(Neighbour(besides, booted=upon))[0].device == Path("/dev/vg0/d7")
    assert relied_on(Neighbour(upon, booted=upon, uuid=OFF.uuid)) == [], "it is its own"


def test_a_domain_that_is_on_does_not_stand_in_its_own_way() -> None:
    own = of_pool("images", "d0")
    assert relied_on(Neighbour(own, uuid=OFF.uuid, booted=own), d0=LV) == []
    (found,) = relied_on(Neighbour(own, booted=own), d0=LV)
    assert found.device == LV


def test_one_that_does_not_say_what_it_has_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Since libvirt 11.0 who asks for its XML waits for its turn; it was taken for one that is
    gone."""
    assert relied_on(Neighbour(disk_xml(LV, kind="block"), is_busy=True)) == []
    assert "what disks 'a clone' has (cannot acquire state change lock)" in caplog.text
    caplog.clear()
    assert relied_on(Neighbour("<domain/>", is_gone=True)) == [] and not caplog.text


def test_who_relies_on_nothing_is_not_named(tmp_path: Path) -> None:
    overlay = disk_xml(make_overlay(tmp_path / "clone", str(LV)))
    itself, gone = Neighbour(overlay, uuid=OFF.uuid), Neighbour(overlay, is_gone=True)
    on_the_net = Neighbour(disk_xml(LV, kind="network"), is_saved=True)
    assert relied_on(itself, gone, on_the_net, Neighbour("<domain/>")) == []


def test_an_image_that_does_not_answer_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a server that is down: a rollback of any domain waited for it, deaf to Ctrl-C."""
    overlay = Neighbour(disk_xml(make_overlay(tmp_path / "clone", str(LV))))
    gone = tmp_path / "gone.qcow2"
    lost = [Neighbour(disk_xml(gone)), Neighbour(disk_xml(gone, kind="block"), is_saved=True)]
    with unanswered(monkeypatch, gone):
        assert [each.device for each in relied_on(*lost, overlay)] == [LV]
    assert f"{gone}, disk vda of a clone, does not answer" in caplog.text


def test_a_libvirt_that_does_not_tell_of_other_domains_is_refused() -> None:
    link = type("Link", (), {"connection": Neighbourhood([], is_mute=True)})()
    with pytest.raises(DomainRefused, match="which other domains there are"):
        list(LibvirtHypervisor(link, Settings()).relying(OFF))
