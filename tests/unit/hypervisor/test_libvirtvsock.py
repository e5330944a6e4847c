"""A vsock address that another domain has by now is missed before anything is ended."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.fakelibvirt import IMAGE, OFF, Connection, libvirtError


def having(address: int, auto: str = "no") -> str:
    cid = f"<cid auto='{auto}' address='{address}'/>"
    return f"<domain><devices><vsock model='virtio'>{cid}</vsock></devices></domain>"


def let_run(connection: Connection, *definitions: str, uuid: str = "another") -> None:
    def domain(definition: str) -> Any:
        def describe(_flags: int) -> str:
            if not definition:
                raise libvirtError("Domain not found", 42)
            return definition

        return SimpleNamespace(UUIDString=lambda: uuid, name=lambda: "a clone", XMLDesc=describe)

    vars(connection)["listAllDomains"] = lambda _flags: [domain(each) for each in definitions]


@pytest.mark.parametrize("image", [IMAGE, None])
def test_a_clone_runs_with_its_address(
    connection: Connection, driver: LibvirtHypervisor, image: Path | None
) -> None:
    connection.definition = having(3)
    let_run(connection, "", having(3, auto="yes"))
    with pytest.raises(
        DomainRefused, match=r"clone' runs with the vsock address \(CID\) 3"
    ) as told:
        driver.check_restore(OFF, image)
    assert "end that domain, or name another" in told.value.hint()


@pytest.mark.parametrize("definition", [having(4), having(3, auto="yes"), "<domain/>"])
def test_one_that_nobody_has_or_libvirt_chooses_is_not_in_the_way(
    connection: Connection, driver: LibvirtHypervisor, definition: str
) -> None:
    connection.definition = definition
    let_run(connection, having(3))
    driver.check_restore(OFF, IMAGE)


def test_an_address_of_its_own_is_not_in_the_way(
    connection: Connection, driver: LibvirtHypervisor
) -> None:
    connection.definition = having(3)
    let_run(connection, having(3), uuid=OFF.uuid)
    driver.check_restore(OFF, IMAGE)
