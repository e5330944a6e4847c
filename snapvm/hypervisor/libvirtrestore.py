"""Restore a sparse image by several threads, through libvirt's C function.

libvirt can do that since 11.2, but its Python module (11.3) cannot ask for it: ``restoreParams``
passes every number as an unsigned long, and libvirt refuses that for the number of channels
("invalid type 'ullong' for parameter 'parallel.channels', expected 'int'").  So the C function is
called directly, on the connection that the module's object holds.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from snapvm.hypervisor.libvirtlink import raise_last_error

_LIBRARY = "libvirt.so.0"
_NAME_BYTES = 80
"""VIR_TYPED_PARAM_FIELD_LENGTH (libvirt/libvirt-common.h)."""
_INT, _STRING = 1, 7
"""VIR_TYPED_PARAM_INT and VIR_TYPED_PARAM_STRING."""


class _Value(ctypes.Union):
    _fields_ = (("i", ctypes.c_int), ("l", ctypes.c_longlong), ("s", ctypes.c_char_p))


class _Parameter(ctypes.Structure):
    """virTypedParameter."""

    _fields_ = (
        ("field", ctypes.c_char * _NAME_BYTES),
        ("type", ctypes.c_int),
        ("value", _Value),
    )


def restore(connection: Any, image: Path, channels: int, flags: int) -> None:
    """Start a domain from a sparse image, read by ``channels`` threads; raise libvirt's error."""
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype = ctypes.c_void_p
    pointer_of.argtypes = (ctypes.py_object, ctypes.c_char_p)
    call = ctypes.CDLL(_LIBRARY).virDomainRestoreParams
    call.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Parameter), ctypes.c_int, ctypes.c_uint)
    parameters = (_Parameter * 2)(
        _Parameter(b"file", _STRING, _Value(s=str(image).encode())),
        _Parameter(b"parallel.channels", _INT, _Value(i=channels)),
    )
    handle = pointer_of(connection._o, b"virConnectPtr")  # noqa: SLF001 - there is no other way
    if call(handle, parameters, len(parameters), flags) < 0:
        raise_last_error("virDomainRestoreParams() failed")
