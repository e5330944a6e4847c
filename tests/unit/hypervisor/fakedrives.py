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

    def __init__(self, *foreign: int, handle: int = 1) -> None:
        self.foreign = foreign
        self.handle = handle
        """What opening them returns; 0 where that fails."""
        self.page = ctypes.create_string_buffer(4096)
        self.held: list[object] = []
        """What is open or mapped now."""

    def xengnttab_open(self, _logger: object, _flags: int) -> int:
        self.held += [self.handle] if self.handle else []
        return self.handle

    def xengnttab_close(self, handle: int) -> None:
        self.held.remove(handle)

    def xengnttab_map_grant_ref(
        self, handle: int, _domid: int, reference: int, _prot: int
    ) -> int | None:
        if reference in self.foreign:
            return None
        self.held.append((handle, ctypes.addressof(self.page)))
        return ctypes.addressof(self.page)

    def xengnttab_unmap(self, handle: int, address: int, count: int) -> None:
        for _ in range(count):
            self.held.remove((handle, address))
