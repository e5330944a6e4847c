"""Which vCPUs the state of an HVM or PVH domain's machine has: the record HVM_CONTEXT.

Its parts have a header each, and end with one of the type END; the first is HEADER.  Xen looks at
nothing else before it loads them (xen.git xen/include/public/hvm/save.h, xen/common/hvm/save.c).
"""

from __future__ import annotations

from struct import Struct
from typing import Final

_PART: Final = Struct("<HHI")
"""typecode, instance, length (struct hvm_save_descriptor)."""
_END, _HEADER, _CPU = 0, 1, 2


def vcpus(context: bytes) -> frozenset[int]:
    """Return the vCPUs whose state is in a context; raise ``ValueError`` when it is cut short."""
    found: set[int] = set()
    at, is_first = 0, True
    while at + _PART.size <= len(context):
        kind, instance, length_bytes = _PART.unpack_from(context, at)
        if is_first and kind != _HEADER:
            break
        if kind == _END:
            return frozenset(found)
        if kind == _CPU:
            found.add(instance)
        at, is_first = at + _PART.size + length_bytes, False
    raise ValueError(f"its parts cannot be told apart from byte {min(at, len(context))} on")
