"""An image of a processor that has more than this host: Xen restores it, and the guest dies."""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm.hypervisor import xenpolicy
from snapvm.hypervisor.xen import XenHypervisor
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.model import DomainState
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.fakexen import STORED, Scene

NO_SUBLEAF = 0xFFFFFFFF
PV_MAX, HVM_MAX, WEB = 2, 3, 5
AVX2, RTM, FDP_EXCP_ONLY, AVX = 1 << 5, 1 << 11, 1 << 6, 1 << 28


def leaves(*, ecx1: int = 0, ebx7: int = 0, xsave: int = 0) -> bytes:
    return (
        struct.pack("<6I", 1, NO_SUBLEAF, 0x306C3, 0, ecx1, 0)
        + struct.pack("<6I", 7, 0, 1, ebx7, 0, 0)
        + struct.pack("<6I", 7, 1, 0, 0, 0, 0)
        + struct.pack("<6I", 0xD, 1, xsave, 0, 0, 0)
    )


HERE = leaves(ecx1=AVX, ebx7=AVX2, xsave=1)


class FakeGuestLibrary:
    """The calls of libxenguest that read a policy; Xen has some for kinds, and one for a domain."""

    def __init__(self, of_kind: dict[int, bytes]) -> None:
        self._of_kind = of_kind
        self._read = b""
        self.kept = 0
        """How many policies there are that nobody has given back."""

    def xc_cpu_policy_get_size(self, _handle: int, leaves: Any, msrs: Any) -> int:
        leaves._obj.value, msrs._obj.value = 100, 10
        return 0

    def xc_cpu_policy_init(self) -> int:
        self.kept += 1
        return 77

    def xc_cpu_policy_destroy(self, policy: int) -> None:
        assert policy == 77
        self.kept -= 1

    def xc_cpu_policy_get_domain(self, _handle: int, domid: int, policy: int) -> int:
        return self.xc_cpu_policy_get_system(0, domid, policy)

    def xc_cpu_policy_get_system(self, _handle: int, kind: int, policy: int) -> int:
        assert policy == 77
        if kind not in self._of_kind:
            ctypes.set_errno(errno.EOPNOTSUPP)
            return -1
        self._read = self._of_kind[kind]
        return 0

    def xc_cpu_policy_serialise(
        self, _handle: int, _policy: int, leaves: Any, count: Any, _msrs: Any, msr_count: Any
    ) -> int:
        ctypes.memmove(leaves, self._read, len(self._read))
        count._obj.value, msr_count._obj.value = len(self._read) // 24, 0
        return 0


def with_policies(scene: Scene, of_kind: dict[int, bytes]) -> XenHypervisor:
    xen, driver = scene
    xen.libraries = SimpleNamespace(guest=FakeGuestLibrary(of_kind))
    vars(xen)["handle"] = 1
    return driver


@pytest.fixture
def driver(scene: Scene) -> Iterator[XenHypervisor]:
    yield with_policies(scene, {PV_MAX: HERE, HVM_MAX: leaves(), WEB: leaves()})
    assert scene[0].libraries.guest.kept == 0


@pytest.mark.parametrize(
    "wanted",
    [
        b"",
        HERE,
        leaves(ecx1=AVX),
        leaves(ecx1=AVX, ebx7=AVX2 | FDP_EXCP_ONLY),
        HERE + struct.pack("<6I", 0x80000007, NO_SUBLEAF, 0, 0, 0, 1 << 8),
        HERE + struct.pack("<6I", 0x80000001, NO_SUBLEAF, 0, 0, 0, 0x0183C1F5),  # AMD's
    ],
)
def test_what_this_host_has_is_no_hindrance(driver: XenHypervisor, wanted: bytes) -> None:
    driver.check_processor(driver.find("web"), STORED, wanted, {})


@pytest.mark.parametrize(
    ("wanted", "lacking"),
    [
        (leaves(ebx7=AVX2 | RTM), "rtm"),
        (leaves(ecx1=AVX | 1 << 30, xsave=1 | 8), r"rdrand, CPUID 0xd.1 eax bit 3"),
        (
            struct.pack("<6I", 0x80000008, NO_SUBLEAF, 0, 1 << 12, 0, 0),
            "CPUID 0x80000008.0 ebx bit 12",
        ),
    ],
)
def test_what_xen_would_take_away_in_silence_is_told_before(
    driver: XenHypervisor, wanted: bytes, lacking: str
) -> None:
    """A new microcode or Xen has less: the guest that ran was ended, and this one dies of it."""
    domain = driver.find("web")
    with pytest.raises(DomainRefused, match=f"without {lacking}"):
        driver.check_processor(domain, STORED, wanted, {})


def test_one_that_is_off_has_nothing_to_lose(
    driver: XenHypervisor, caplog: pytest.LogCaptureFixture
) -> None:
    off = replace(driver.find("web"), state=DomainState.SHUTOFF)
    driver.check_processor(off, STORED, leaves(ebx7=RTM), {})
    assert "rtm" in caplog.text


def test_pvh_can_have_something_else_than_pv(driver: XenHypervisor) -> None:
    with pytest.raises(DomainRefused, match="avx"):
        driver.check_processor(driver.find("web"), STORED.replace('"pv"', '"pvh"'), HERE, {})


def test_what_a_domain_has_goes_into_its_image() -> None:
    libraries: Any = SimpleNamespace(guest=FakeGuestLibrary({WEB: HERE}))
    assert xenpolicy.of_domain(libraries, 1, WEB) == (HERE, b"")
    with pytest.raises(XenFailed, match="reading the CPU policy"):
        xenpolicy.of_domain(libraries, 1, WEB + 1)


def test_what_the_domain_has_now_is_no_hindrance(scene: Scene) -> None:
    driver = with_policies(scene, {PV_MAX: HERE, WEB: leaves(ebx7=RTM)})
    driver.check_processor(driver.find("web"), STORED, leaves(ecx1=AVX, ebx7=AVX2 | RTM), {})


def test_a_xen_that_does_not_tell_is_no_hindrance(scene: Scene) -> None:
    """One built without PV has nothing to tell of it."""
    driver = with_policies(scene, {})
    driver.check_processor(driver.find("web"), STORED, leaves(ebx7=RTM), {})
