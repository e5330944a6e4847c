"""Shares a page of dom0 with a domain, prints the number of the grant, and holds it."""

from __future__ import annotations

import ctypes
import signal
import sys
from ctypes import c_int, c_uint, c_uint32, c_void_p

GREETING = 0x5041474546524F4D
"""What stands in the page."""


def main() -> None:
    """Share a page with the domain whose number is the argument."""
    library = ctypes.CDLL("libxengnttab.so.1", use_errno=True)
    library.xengntshr_open.restype = c_void_p
    library.xengntshr_open.argtypes = [c_void_p, c_uint]
    library.xengntshr_share_pages.restype = c_void_p
    library.xengntshr_share_pages.argtypes = [c_void_p, c_uint32, c_int, c_void_p, c_int]
    handle = library.xengntshr_open(None, 0)
    reference = c_uint32(0)
    address = library.xengntshr_share_pages(handle, int(sys.argv[1]), 1, ctypes.byref(reference), 1)
    if not address:
        sys.exit(f"share_page: errno {ctypes.get_errno()}")
    ctypes.c_uint64.from_address(address).value = GREETING
    print(reference.value, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
