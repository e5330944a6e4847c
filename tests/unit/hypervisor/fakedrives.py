"""Drives as xenstored has them, and the grants of a guest whose rings are at rest."""

from __future__ import annotations

import ctypes

DISK = {
    "dev": "xvda",
    "params": "/dev/vg0/demo-d0",
    "type": "phy",
    "mode": "w",
    "device-type": "disk",
    "script": "/etc/xen/scripts/block",
}


class FakeGrants:
    """Xen's grants of a guest whose rings are at rest; some are another domain's to map."""

    def __init__(self, *foreign: int) -> None:
        self.foreign = foreign
        self.page = ctypes.create_string_buffer(4096)

    def xengnttab_open(self, _logger: object, _flags: int) -> int:
        return 1

    def xengnttab_close(self, _handle: int) -> None: ...

    def xengnttab_map_grant_ref(
        self, _handle: int, _domid: int, reference: int, _prot: int
    ) -> int | None:
        return None if reference in self.foreign else ctypes.addressof(self.page)

    def xengnttab_unmap(self, _handle: int, _address: int, _count: int) -> None: ...
