"""A domain whose memory libvirt has saved by itself is neither captured nor taken back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from snapvm.hypervisor import libvirtlink
from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.model import Domain, DomainState, DomainUuid, HypervisorKind
from snapvm.refusals import DomainRefused
from snapvm.settings import Settings

OFF = Domain(
    name="my web",
    uuid=DomainUuid("11111111-2222-3333-4444-555555555555"),
    hypervisor=HypervisorKind.LIBVIRT,
    state=DomainState.SHUTOFF,
    memory_bytes=1 << 20,
    vcpus=1,
    definition="<domain><devices/></domain>",
)


class libvirtError(Exception):  # noqa: N801 - libvirt's own name
    def get_error_message(self) -> str:
        return str(self)

    def get_error_code(self) -> int:
        return 42


@dataclass
class Connection:
    """A libvirt with one domain, or none; the one that is there may have been saved."""

    is_saved: bool = False
    is_known: bool = True
    asked: list[str] = field(default_factory=list)

    def lookupByUUIDString(self, uuid: str) -> Connection:  # noqa: N802 - libvirt's own name
        assert uuid == OFF.uuid
        if not self.is_known:
            raise libvirtError("Domain not found")
        return self

    def hasManagedSaveImage(self, flags: int) -> int:  # noqa: N802 - libvirt's own name
        assert flags == 0
        return int(self.is_saved)

    def saveImageGetXMLDesc(self, path: str, _flags: int) -> str:  # noqa: N802 - libvirt's own name
        self.asked.append(path)
        return ""


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Connection:
    monkeypatch.setattr(libvirtlink, "libvirt", type("libvirt", (), {"libvirtError": libvirtError}))
    return Connection()


@pytest.fixture
def driver(connection: Connection) -> LibvirtHypervisor:
    link = type("Link", (), {"connection": connection, "domain": libvirtlink.Link.domain})()
    return LibvirtHypervisor(link, Settings())


@pytest.mark.parametrize("image", [None, Path("/x")])
@pytest.mark.parametrize("state", [DomainState.SHUTOFF, DomainState.RUNNING])
def test_its_disks_do_not_go_back_below_it(
    connection: Connection, driver: LibvirtHypervisor, image: Path | None, state: DomainState
) -> None:
    connection.is_saved = True
    with pytest.raises(DomainRefused, match="managed save") as refused:
        driver.check_restore(replace(OFF, state=state), image)
    assert "`virsh managedsave-remove 'my web'`" in refused.value.hint()
    assert ("virsh start" in refused.value.hint()) is (state is DomainState.SHUTOFF)


@pytest.mark.parametrize("with_memory", [False, True])
def test_nor_is_it_captured_as_if_it_had_none(
    connection: Connection, driver: LibvirtHypervisor, with_memory: bool
) -> None:
    connection.is_saved = True
    with pytest.raises(DomainRefused, match="managed save") as refused:
        driver.check_capture(OFF, with_memory=with_memory)
    assert "`virsh start 'my web'`" in refused.value.hint()


def test_one_that_is_just_off_is_both(connection: Connection, driver: LibvirtHypervisor) -> None:
    driver.check_capture(OFF, with_memory=True)
    driver.check_restore(OFF, None)
    driver.check_restore(OFF, Path("/x"))
    assert connection.asked == ["/x"]


def test_one_that_is_not_known_any_more_has_nothing_saved(
    connection: Connection, driver: LibvirtHypervisor
) -> None:
    connection.is_known = False
    driver.check_restore(OFF, Path("/x"))
    assert connection.asked == ["/x"]
