"""A guest that is given all of the host's processor is met by what this has lost since."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.hypervisor import hostprocessor
from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.model import Domain, DomainState
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.fakelibvirt import OFF

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Some Processor: the 2nd
flags\t\t: fpu sse sse4_1 avx2 rtm hle pti rep_good
bugs\t\t: taa

processor\t: 1
vendor_id\t: GenuineIntel
flags\t\t: fpu sse sse4_1 avx2 rtm hle pti rep_good avx512f
"""
ARM = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd sve
CPU implementer\t: 0x41

"""
ALL = "<cpu mode='host-passthrough' check='none' migratable='on'/>"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """A function that gives the host another processor."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(hostprocessor, "CPUINFO", path)

    def put(told: str) -> None:
        path.write_text(told)

    put(X86)
    return put


def domain(cpu: str = ALL, kind: str = "kvm", state: DomainState = DomainState.RUNNING) -> Domain:
    definition = (
        f"<domain type='{kind}'><os><type arch='x86_64' machine='pc'>hvm</type></os>{cpu}</domain>"
    )
    return replace(OFF, state=state, definition=definition)


@pytest.mark.parametrize("part", ["rtm", "avx2", "GenuineIntel"])
def test_what_the_processor_has_lost_ends_nobody(
    host: Callable[[str], None], driver: LibvirtHypervisor, part: str
) -> None:
    """A microcode took transactions away, and nobody noticed but the guest that used them."""
    versions = {"processor": hostprocessor.of_guest(domain())}
    driver.check_processor(domain(), "", b"", versions)
    host(X86.replace(part, "another"))
    with pytest.raises(DomainRefused, match=f"lacks: {part}$") as refused:
        driver.check_processor(domain(), "", b"", versions)
    assert "microcode" in refused.value.hint() and "without memory" in refused.value.hint()


def test_one_that_is_off_has_nothing_to_lose(
    host: Callable[[str], None], driver: LibvirtHypervisor, caplog: pytest.LogCaptureFixture
) -> None:
    versions = {"processor": hostprocessor.of_guest(domain())}
    host(X86.replace("rtm", ""))
    driver.check_processor(domain(state=DomainState.SHUTOFF), "", b"", versions)
    assert "rtm" in caplog.text


@pytest.mark.usefixtures("host")
def test_only_what_a_guest_uses_of_the_first_processor_is_kept() -> None:
    seen = "GenuineIntel avx2 hle rtm sse sse4_1"
    assert hostprocessor.of_guest(domain()) == seen
    maximum = "<cpu mode='maximum' check='none' migratable='on'/>"
    assert hostprocessor.of_guest(domain(maximum)) == seen, "with KVM that is the same"


@pytest.mark.usefixtures("host")
def test_what_the_definition_takes_away_the_guest_has_not_seen() -> None:
    off = "<feature policy='disable' name='rtm'/><feature policy='forbid' name='sse4.1'/>"
    on = "<feature policy='require' name='hle'/>"
    cpu = f"<cpu mode='host-passthrough'>{off}{on}</cpu>"
    assert hostprocessor.of_guest(domain(cpu)) == "GenuineIntel avx2 hle sse"


@pytest.mark.parametrize(
    ("kernels", "libvirts"),
    [
        ("avx512_vnni", "avx512vnni"),
        ("avx512_vp2intersect", "avx512-vp2intersect"),
        ("pclmulqdq", "pclmuldq"),
    ],
)
def test_it_is_taken_away_whatever_libvirt_calls_it(
    host: Callable[[str], None], kernels: str, libvirts: str
) -> None:
    """Its guest was kept from a host without it: "its guest uses what the processor lacks"."""
    host(X86.replace("rtm", kernels))
    cpu = f"<cpu mode='maximum'><feature policy='disable' name='{libvirts}'/></cpu>"
    assert hostprocessor.of_guest(domain(cpu)) == "GenuineIntel avx2 hle sse sse4_1"


def test_arm_has_names_of_its_own(host: Callable[[str], None]) -> None:
    host(ARM)
    kept = hostprocessor.of_guest(domain())
    assert kept == "0x41 asimd fp sve"
    host(ARM.replace(" sve", ""))
    with pytest.raises(DomainRefused, match=r"lacks: sve$"):
        hostprocessor.require(domain(), kept)


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("cpu", "kind"),
    [
        (ALL, "qemu"),
        ("<cpu mode='maximum'/>", "qemu"),
        ("<cpu mode='host-model'/>", "kvm"),
        ("", "kvm"),
    ],
)
def test_any_other_does_not_see_the_processor_of_the_host(cpu: str, kind: str) -> None:
    assert not hostprocessor.of_guest(domain(cpu, kind))


def test_of_one_that_libvirt_has_forgotten_nothing_is_told() -> None:
    """Undefined and shut off it could not be rolled back, though its image has all of it."""
    assert not hostprocessor.of_guest(replace(OFF, definition=""))


@pytest.mark.parametrize("told", ["", "processor : 0\nisa : rv64\n"])
def test_a_kernel_that_does_not_tell_is_no_hindrance(
    host: Callable[[str], None], driver: LibvirtHypervisor, told: str
) -> None:
    host(told)
    assert not hostprocessor.of_guest(domain())
    driver.check_processor(domain(), "", b"", {"processor": "GenuineIntel rtm"})
    hostprocessor.CPUINFO.unlink()
    driver.check_processor(domain(), "", b"", {"processor": "GenuineIntel rtm"})


@pytest.mark.usefixtures("host")
def test_an_older_record_tells_nothing(driver: LibvirtHypervisor) -> None:
    driver.check_processor(domain(), "", b"", {"qemu": "10.0.0"})
