"""What memory images are called: their format in a record, and their file beside it."""

from __future__ import annotations

from typing import Final

LIBVIRT_SAVE: Final = "libvirt-save"
LIBVIRT_SPARSE: Final = "libvirt-sparse"
XL_SAVE: Final = "xl-save"

LIBVIRT_FILE: Final = "memory.save"
XL_FILE: Final = "memory.xl"
