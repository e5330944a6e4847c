"""Memory images by name: their format in a record, their file beside it, and who reads them."""

from __future__ import annotations

from typing import Final

LIBVIRT_SAVE: Final = "libvirt-save"
LIBVIRT_SPARSE: Final = "libvirt-sparse"
XL_SAVE: Final = "xl-save"

ZSTD_SINCE: Final = (10, 6)
"""The release of libvirt that reads what zstd has compressed: before that the format had no number
(libvirt, NEWS 10.4.0, qemu_saveimage.h)."""

LIBVIRT_FILE: Final = "memory.save"
XL_FILE: Final = "memory.xl"
