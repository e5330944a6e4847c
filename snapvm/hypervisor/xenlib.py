"""Load Xen's libraries by ctypes: those of the running hypervisor, with declared prototypes.

libxenctrl and libxenguest work only with the hypervisor of their own release, so the release is
read from the running hypervisor (tools/include/xenctrl.h, xenguest.h, xenforeignmemory.h,
xencall.h, xengnttab.h; the prototypes are the same in Xen 4.17 to 4.22).
"""

from __future__ import annotations

import ctypes
import glob
import os
from ctypes import c_int, c_long, c_size_t, c_uint, c_uint32, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapvm.refusals import HostLacks

VERSION_FOLDER = Path("/sys/hypervisor/version")
_PLACES = (
    "/usr/lib/*-linux-gnu",
    "/usr/lib/xen-*/lib*",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
)
_LOG_CRITICAL = 9
"""XTL_CRITICAL (xentoollog.h): the libraries' own messages are not shown; snapvm words errors."""

Prototypes = dict[str, tuple[Any, tuple[Any, ...]]]

_CONTROL: Prototypes = {
    "xc_interface_open": (c_void_p, (c_void_p, c_void_p, c_uint)),
    "xc_interface_close": (c_int, (c_void_p,)),
    "xc_interface_xcall_handle": (c_void_p, (c_void_p,)),
    "xc_version": (c_int, (c_void_p, c_int, c_void_p)),
    "xc_domain_getinfolist": (c_int, (c_void_p, c_uint32, c_uint, c_void_p)),
    "xc_domain_pause": (c_int, (c_void_p, c_uint32)),
    "xc_domain_unpause": (c_int, (c_void_p, c_uint32)),
    "xc_domain_shutdown": (c_int, (c_void_p, c_uint32, c_int)),
    "xc_hvm_param_get": (c_int, (c_void_p, c_uint32, c_uint32, c_void_p)),
    "xc_domain_get_guest_width": (c_int, (c_void_p, c_uint32, c_void_p)),
    "xc_domain_get_tsc_info": (
        c_int,
        (c_void_p, c_uint32, c_void_p, c_void_p, c_void_p, c_void_p),
    ),
    "xc_domain_get_pod_target": (c_int, (c_void_p, c_uint32, c_void_p, c_void_p, c_void_p)),
    "xc_maximum_ram_page": (c_int, (c_void_p, c_void_p)),
    "xc_get_pfn_type_batch": (c_int, (c_void_p, c_uint32, c_uint, c_void_p)),
    "xc_vcpu_getinfo": (c_int, (c_void_p, c_uint32, c_uint32, c_void_p)),
    "xc_vcpu_getcontext": (c_int, (c_void_p, c_uint32, c_uint32, c_void_p)),
    "xc_domctl": (c_int, (c_void_p, c_void_p)),
}
_GUEST: Prototypes = {
    "xc_domain_resume": (c_int, (c_void_p, c_uint32, c_int)),
    "xc_domain_save": (
        c_int,
        (c_void_p, c_int, c_uint32, c_uint32, c_void_p, c_int, c_int),
    ),
    "xc_map_m2p": (c_void_p, (c_void_p, ctypes.c_ulong, c_int, c_void_p)),
    "xc_cpu_policy_init": (c_void_p, ()),
    "xc_cpu_policy_destroy": (None, (c_void_p,)),
    "xc_cpu_policy_get_size": (c_int, (c_void_p, c_void_p, c_void_p)),
    "xc_cpu_policy_get_domain": (c_int, (c_void_p, c_uint32, c_void_p)),
    "xc_cpu_policy_get_system": (c_int, (c_void_p, c_uint, c_void_p)),
    "xc_cpu_policy_serialise": (
        c_int,
        (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
    ),
}
_MEMORY: Prototypes = {
    "xenforeignmemory_open": (c_void_p, (c_void_p, c_uint)),
    "xenforeignmemory_close": (c_int, (c_void_p,)),
    "xenforeignmemory_map": (c_void_p, (c_void_p, c_uint32, c_int, c_size_t, c_void_p, c_void_p)),
    "xenforeignmemory_unmap": (c_int, (c_void_p, c_void_p, c_size_t)),
}
_CALL: Prototypes = {
    "xencall_alloc_buffer": (c_void_p, (c_void_p, c_size_t)),
    "xencall_free_buffer": (None, (c_void_p, c_void_p)),
}
_GRANTS: Prototypes = {
    "xengnttab_open": (c_void_p, (c_void_p, c_uint)),
    "xengnttab_close": (c_int, (c_void_p,)),
    "xengnttab_map_grant_ref": (c_void_p, (c_void_p, c_uint32, c_uint32, c_int)),
    "xengnttab_unmap": (c_int, (c_void_p, c_void_p, c_uint32)),
}
_LOG: Prototypes = {
    "xtl_createlogger_stdiostream": (c_void_p, (c_void_p, c_int, c_uint)),
}
_LIBC: Prototypes = {"munmap": (c_int, (c_void_p, c_size_t)), "getpagesize": (c_long, ())}


class XenFailed(Exception):
    """A call that Xen refused; the text says which, and why."""

    def __init__(self, text: str, number: int = 0) -> None:
        super().__init__(text)
        self.number = number
        """The errno of the call; 0 where it had none, or there was no call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class XenLibraries:
    """The libraries of the running hypervisor."""

    major: int
    minor: int
    control: Any
    guest: Any
    memory: Any
    call: Any
    grants: Any
    libc: Any
    logger: int
    """A logger for critical messages only."""


def running_version(folder: Path = VERSION_FOLDER) -> tuple[int, int]:
    """Return the release of the running hypervisor; raise ``HostLacks``."""
    try:
        return int((folder / "major").read_text()), int((folder / "minor").read_text())
    except (OSError, ValueError) as error:
        raise HostLacks(
            what=f"a Xen hypervisor that tells its version ({error})",
            remedy="snapvm captures Xen domains from the control domain (dom0)",
        ) from None


def open_libraries() -> XenLibraries:
    """Load the libraries of the running hypervisor; raise ``HostLacks``."""
    major, minor = running_version()
    libc = _declared(ctypes.CDLL(None, use_errno=True), _LIBC)
    log = _load("libxentoollog.so.1", _LOG)
    stderr = c_void_p.in_dll(ctypes.CDLL(None), "stderr")
    return XenLibraries(
        major=major,
        minor=minor,
        control=_load(f"libxenctrl.so.{major}.{minor}", _CONTROL),
        guest=_load(f"libxenguest.so.{major}.{minor}", _GUEST),
        memory=_load("libxenforeignmemory.so.1", _MEMORY),
        call=_load("libxencall.so.1", _CALL),
        grants=_load("libxengnttab.so.1", _GRANTS),
        libc=libc,
        logger=log.xtl_createlogger_stdiostream(stderr, _LOG_CRITICAL, 0),
    )


def _load(name: str, prototypes: Prototypes) -> Any:
    """Load a library by its soname, from the loader's path or the folders of Xen packages."""
    found = [
        os.path.join(place, name) for pattern in _PLACES for place in sorted(glob.glob(pattern))
    ]
    for path in (name, *filter(os.path.exists, found)):
        try:
            library = ctypes.CDLL(path, use_errno=True)
        except OSError:
            continue
        try:
            return _declared(library, prototypes)
        except AttributeError as error:
            remedy = "snapvm needs Xen 4.17 or later, on x86-64"
            raise HostLacks(what=f"a usable {path} ({error})", remedy=remedy) from None
    raise HostLacks(what=f"{name}, of the Xen that runs here", remedy=_REMEDY)


_REMEDY = (
    "boot the Xen that is installed, if its packages have been upgraded since the host was booted; "
    "or install the libraries of the one that runs (Debian: xen-utils-N, libxenmiscN)"
)


def _declared(library: Any, prototypes: Prototypes) -> Any:
    """Declare the prototypes of functions: without them ctypes cuts pointers to 32 bits."""
    for name, (result, arguments) in prototypes.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def failed(what: str) -> XenFailed:
    """Return the failure of a call that has just failed, with the text of its errno."""
    number = ctypes.get_errno()
    return XenFailed(f"{what}: {os.strerror(number) if number else 'no reason given'}", number)
