"""Processors and NUMA nodes that a domain is tied to, and that the host has no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapvm.hypervisor import hostplaces, libvirtneeds
from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.fakelibvirt import IMAGE, OFF, Connection


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host of one node with four processors, of which every other was switched off (nosmt)."""
    for name, told in {"CPUS": "0,2,4,6", "NODES": "0"}.items():
        (tmp_path / name).write_text(f"{told}\n")
        monkeypatch.setattr(hostplaces, name, tmp_path / name)
    monkeypatch.setattr(libvirtneeds, "HOOKS", (tmp_path / "hook",))
    return tmp_path


def tied(tune: str = "", vcpu: str = "<vcpu placement='static'>2</vcpu>") -> str:
    return f"<domain>{vcpu}{tune}<devices/></domain>"


def pinned(vcpu: int, cpuset: str) -> str:
    return f"<cputune><vcpupin vcpu='{vcpu}' cpuset='{cpuset}'/></cputune>"


PLUGGED = (
    "<vcpu placement='static' current='1'>2</vcpu>"
    "<vcpus><vcpu id='0' enabled='no'/><vcpu id='1' enabled='yes'/></vcpus>"
)


@pytest.mark.parametrize("image", [IMAGE, None])
@pytest.mark.parametrize(
    ("definition", "why"),
    [
        (tied(pinned(1, "3")), r"vCPU 1 is tied to processors 3, .* \(0,2,4,6\)"),
        (tied(pinned(0, "5,7-9")), "vCPU 0 is tied to processors 5,7-9"),
        (tied(pinned(1, "1"), PLUGGED), "vCPU 1 is tied"),
        (tied("<cputune><emulatorpin cpuset='1'/></cputune>"), "emulator is tied"),
        (tied("<cputune><iothreadpin iothread='4' cpuset='1'/></cputune>"), "I/O thread 4 is tied"),
        (tied(vcpu="<vcpu placement='static' cpuset='8-15'>2</vcpu>"), "processors 8-15"),
        (tied("<numatune><memory mode='strict' nodeset='1'/></numatune>"), "NUMA nodes 1"),
        (
            tied("<numatune><memnode cellid='0' mode='preferred' nodeset='1'/></numatune>"),
            "memory of cell 0 is tied",
        ),
    ],
)
def test_nothing_is_ended_for_a_start_on_what_is_gone(
    connection: Connection,
    driver: LibvirtHypervisor,
    definition: str,
    why: str,
    image: Path | None,
) -> None:
    """libvirt found out when the domain had ended: "cannot set CPU affinity on process"."""
    connection.definition = definition
    with pytest.raises(DomainRefused, match=f"it would not start: .*{why}") as refused:
        driver.check_restore(OFF, image)
    assert "lscpu" in refused.value.hint() and "edit" in refused.value.hint()


@pytest.mark.parametrize(
    "definition",
    [
        tied(),
        tied(pinned(1, "2-3")),
        tied(pinned(2, "3")),
        tied(pinned(0, "1"), PLUGGED),
        tied(pinned(1, "1"), "<vcpu current='1'>2</vcpu>"),
        tied(pinned(0, "^1")),
        tied(pinned(0, ""), "<vcpu>many</vcpu>"),
        tied("<cputune><emulatorpin cpuset='0'/></cputune>", "<vcpu cpuset='1'>2</vcpu>"),
        tied(vcpu="<vcpu placement='auto' cpuset='1'>2</vcpu>"),
        tied("<numatune><memory mode='strict' nodeset='0-1'/></numatune>"),
        tied("<numatune><memory mode='preferred' nodeset='1'/></numatune>"),
        tied("<numatune><memory mode='strict' placement='auto'/></numatune>"),
    ],
)
def test_one_that_libvirt_can_start_is_not_held_up(
    connection: Connection, driver: LibvirtHypervisor, definition: str
) -> None:
    connection.definition = definition
    driver.check_restore(OFF, IMAGE)


def test_nothing_is_missed_where_the_kernel_does_not_tell(
    connection: Connection, driver: LibvirtHypervisor, host: Path
) -> None:
    connection.definition = tied(pinned(0, "1"))
    (host / "CPUS").unlink()
    driver.check_restore(OFF, IMAGE)


def test_a_hook_may_switch_them_on(
    connection: Connection, driver: LibvirtHypervisor, host: Path
) -> None:
    connection.definition = tied(pinned(0, "1"))
    (host / "hook").touch()
    driver.check_restore(OFF, IMAGE)
