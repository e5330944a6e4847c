"""Which of Xen's libraries are loaded: those of the running hypervisor, whatever is installed."""

from __future__ import annotations

import ctypes
import glob
import struct
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm.hypervisor import xencontrol, xenlib
from snapvm.hypervisor.xendomaininfo import DomainInfo
from snapvm.refusals import HostLacks

RELEASES = [(4, 17), (4, 18), (4, 19), (4, 20)]
STABLE = {
    "libxentoollog.so.1",
    "libxenforeignmemory.so.1",
    "libxencall.so.1",
    "libxengnttab.so.1",
}
"""Interfaces that do not change with a release (xen.git tools/libs/*/Makefile, MAJOR, MINOR)."""


class Library:
    """Has every function, or all but one, and answers 1."""

    def __init__(self, lacks: str = "") -> None:
        self._lacks = lacks

    def __getattr__(self, name: str) -> Any:
        if name == self._lacks:
            raise AttributeError(f"undefined symbol: {name}")

        def function(*_arguments: object) -> int:
            return 1

        self.__dict__[name] = function
        return function


class Loader:
    """Stands for the dynamic loader of a host on which some libraries are installed."""

    def __init__(self, installed: set[str], lacks: str = "") -> None:
        self.installed = installed
        self.lacks = lacks
        self.asked: list[str] = []

    def __call__(self, name: str | None, **_options: object) -> Library:
        if name is None:
            return Library()
        self.asked.append(name)
        if name not in self.installed:
            raise OSError(f"{name}: cannot open shared object file")
        return Library(self.lacks)


def of_release(major: int, minor: int) -> set[str]:
    return {f"libxenctrl.so.{major}.{minor}", f"libxenguest.so.{major}.{minor}"}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A function that makes this a host which runs a release and has libraries installed."""

    def runs(major: int, minor: int, installed: set[str], lacks: str = "") -> Loader:
        loader = Loader(installed, lacks)
        (tmp_path / "major").write_text(f"{major}\n")
        (tmp_path / "minor").write_text(f"{minor}\n")
        monkeypatch.setattr(xenlib, "running_version", lambda: REALLY_RUNNING(tmp_path))
        monkeypatch.setattr(ctypes, "CDLL", loader)
        monkeypatch.setattr(glob, "glob", lambda _pattern: [])
        monkeypatch.setattr(ctypes.c_void_p, "in_dll", lambda *_: None, raising=False)
        return loader

    return runs


REALLY_RUNNING = xenlib.running_version


@pytest.mark.parametrize(("major", "minor"), RELEASES)
def test_the_running_release_is_loaded_though_all_are_installed(
    host: Any, major: int, minor: int
) -> None:
    installed = STABLE.union(*(of_release(*release) for release in RELEASES))
    loader = host(major, minor, installed)
    libraries = xenlib.open_libraries()
    assert (libraries.major, libraries.minor) == (major, minor)
    assert set(loader.asked) == STABLE | of_release(major, minor)


def test_another_release_is_no_substitute(host: Any) -> None:
    host(4, 18, STABLE | of_release(4, 20))
    with pytest.raises(HostLacks) as raised:
        xenlib.open_libraries()
    assert "libxenctrl.so.4.18" in raised.value.message()
    assert "boot the Xen that is installed" in raised.value.hint()


def test_a_library_without_a_function_is_named_with_it(host: Any) -> None:
    host(4, 20, STABLE | of_release(4, 20), lacks="xc_get_pfn_type_batch")
    with pytest.raises(HostLacks) as raised:
        xenlib.open_libraries()
    assert "libxenctrl.so.4.20" in raised.value.message()
    assert "xc_get_pfn_type_batch" in raised.value.message()
    assert "Xen 4.17 or later" in raised.value.hint()  # it said to install what was installed


def test_without_a_hypervisor_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(HostLacks, match="Xen hypervisor"):
        xenlib.running_version(tmp_path)


ADDRESSES = {
    "xc_interface_open",
    "xc_interface_xcall_handle",
    "xc_map_m2p",
    "xc_cpu_policy_init",
    "xenforeignmemory_open",
    "xenforeignmemory_map",
    "xencall_alloc_buffer",
    "xengnttab_open",
    "xengnttab_map_grant_ref",
    "xtl_createlogger_stdiostream",
}
"""What returns an address (the headers of these names)."""


def test_addresses_are_not_cut_to_32_bits() -> None:
    """So is the first argument of every function, which another one has returned."""
    declared = {
        **xenlib._CONTROL,
        **xenlib._GUEST,
        **xenlib._MEMORY,
        **xenlib._CALL,
        **xenlib._GRANTS,
        **xenlib._LOG,
    }
    first = {name: arguments[0] for name, (_, arguments) in declared.items() if arguments}
    assert set(first.values()) == {ctypes.c_void_p}, first
    assert {name for name, (result, _) in declared.items() if result is ctypes.c_void_p} == (
        ADDRESSES
    )


def test_what_xen_says_of_a_domain_is_read_where_it_stands() -> None:
    """struct xen_domctl_getdomaininfo, by the offsets that a compiler gives it (4.17 to 4.20)."""
    handle = uuid.uuid4()
    said = bytearray(112)
    struct.pack_into("<H", said, 0, 7)
    struct.pack_into("<I", said, 4, 8 | 4 | 2 << 16)
    struct.pack_into("<Q", said, 8, 0x8000)
    struct.pack_into("<Q", said, 48, 0x12345)
    struct.pack_into("<II", said, 64, 2, 3)
    said[76:92] = handle.bytes
    struct.pack_into("<I", said, 104, 32)
    info = DomainInfo.unpacked(bytes(said))
    assert (info.domid, info.uuid, info.total_pages) == (7, str(handle), 0x8000)
    assert (info.shared_info_mfn, info.max_vcpu_id) == (0x12345, 3)
    assert info.is_paused and info.is_suspended and info.is_pv and not info.is_dying
    assert info.emulated == 32 and not info.is_hvm
    struct.pack_into("<I", said, 4, 2)
    hvm = DomainInfo.unpacked(bytes(said))
    assert hvm.is_hvm and not hvm.is_pv
    struct.pack_into("<I", said, 104, 1)
    pvh = DomainInfo.unpacked(bytes(said))
    assert not pvh.is_hvm and not pvh.is_pv


@pytest.mark.parametrize(
    ("flags", "emulated", "callback", "sleeps", "asked"),
    [
        (0, 0, 0, 0, True),
        (2, 0x3FF, 1, 0, True),
        (2, 0x3FF, 0, 0, False),
        (2, 0x3FF, 1, 3, False),
        # A boot loader's drivers look by themselves whether Xen has something to tell.
        (2, 1, 0, 0, True),
    ],
    ids=["pv", "hvm", "hvm without drivers", "hvm that sleeps", "pvh without a callback"],
)
def test_only_an_hvm_guest_is_suspended_without_being_asked(
    flags: int, emulated: int, callback: int, sleeps: int, *, asked: bool
) -> None:
    """As libxl does; a PVH guest whose devices are connected would never find them again."""

    def param(_handle: int, _domid: int, index: int, place: Any) -> int:
        place._obj.value = {0: callback, 14: sleeps}[index]
        return 0

    said = bytearray(112)
    struct.pack_into("<H", said, 0, 7)
    struct.pack_into("<I", said, 4, flags)
    struct.pack_into("<I", said, 104, emulated)
    control: Any = object.__new__(xencontrol.XenControl)
    control._handle = 1
    control.info = lambda _domid: DomainInfo.unpacked(bytes(said))
    control._library = SimpleNamespace(xc_hvm_param_get=param)
    assert control.suspends_itself(7) is asked


def test_what_xen_owes_a_guest_is_counted() -> None:
    """xc_domain_get_pod_target: all pages, those kept ready, and those that are owed."""

    def get_pod_target(_handle: int, domid: int, *places: Any) -> int:
        for place, count in zip(places, (4096, 100, {5: 130, 6: 100, 7: 0}[domid]), strict=True):
            place._obj.value = count
        return 0

    control: Any = object.__new__(xencontrol.XenControl)
    control._handle = 1
    control._library = SimpleNamespace(xc_domain_get_pod_target=get_pod_target)
    assert [control.lacking_pages(domid) for domid in (5, 6, 7)] == [30, 0, 0]
