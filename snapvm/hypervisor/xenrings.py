"""Wait until the rings are at rest over which a guest's disks are served.

The backend posts one response to each request, so nothing is in flight when ``req_prod`` equals
``rsp_prod`` in a ring's first page (xen/include/public/io/ring.h).  That page belongs to the guest,
which has granted it to this domain; it is mapped read-only through the grant.
"""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from snapvm.clock import Deadline
from snapvm.failures import CaptureFailed
from snapvm.hypervisor.xendisks import front_folder
from snapvm.hypervisor.xenlib import XenFailed, XenLibraries, failed
from snapvm.hypervisor.xenstore import XenStore

DRAIN_LIMIT_SECONDS = 10.0
_POLL_SECONDS = 0.001
_PROT_READ = 1
_GRANTS = 1 << 32
"""A grant is a number of 32 bits."""
_UNUSED = ("1", "6")
"""States of a front end that has no ring, not yet or not any more: Initialising and Closed
(public/io/xenbus.h).  A former grant stays in xenstore, and may be of another page by now."""
_PRODUCERS = struct.Struct("<I4xI")
"""req_prod, req_event, rsp_prod, rsp_event."""


def ring_references(store: XenStore, domid: int, captured: Iterable[str]) -> dict[str, list[int]]:
    """Return the grant of the first page of every ring, by the number of the ``captured`` drive.

    Drives that cannot change do not matter, and another domain may serve them; a drive that the
    guest has not connected has no ring.  Raises ``XenFailed`` for a value that is not a grant.
    """
    found: dict[str, list[int]] = {}
    for number in captured:
        folder = f"{front_folder(domid)}/{number}"
        if store.read(f"{folder}/state") in _UNUSED:
            continue
        queues = [name for name in store.names(folder) if name.startswith("queue-")]
        for place in [f"{folder}/{queue}" for queue in queues] or [folder]:
            reference = store.read(f"{place}/ring-ref") or store.read(f"{place}/ring-ref0")
            if reference is not None:
                found.setdefault(number, []).append(_number(reference, place))
    return found


def _number(reference: str, place: str) -> int:
    """Read a grant, which the guest wrote, so that it may be anything."""
    is_number = reference.isascii() and reference.isdigit()
    if not is_number or int(reference) >= _GRANTS:
        raise XenFailed(f"{place} holds no grant: {reference[:40]!r}")
    return int(reference)


class Rings:
    """The rings of one domain, by number of drive; ``drain`` waits until they are at rest."""

    def __init__(
        self,
        libraries: XenLibraries,
        domid: int,
        name: str,
        references: dict[str, list[int]],
    ) -> None:
        self._libraries = libraries
        self._domid = domid
        self._name = name
        self.references = references

    def drain(self) -> None:
        """Wait until every request has its response; raise ``CaptureFailed`` when that takes long.

        The guest must stand still, because a running guest makes new requests.
        """
        with self._mapped() as rings:
            deadline = Deadline(DRAIN_LIMIT_SECONDS)
            while busy := [number for number, address in rings if _in_flight(address)]:
                if not deadline.left_seconds:
                    raise CaptureFailed(
                        domain=self._name, why=f"I/O on its disk {busy[0]} does not finish"
                    )
                time.sleep(_POLL_SECONDS)

    @contextmanager
    def _mapped(self) -> Iterator[list[tuple[str, int]]]:
        grants = self._libraries.grants
        with ExitStack() as stack:
            handle = grants.xengnttab_open(self._libraries.logger, 0)
            if not handle:
                raise CaptureFailed(domain=self._name, why=str(failed("opening grants")))
            stack.callback(grants.xengnttab_close, handle)
            found = []
            for number, references in self.references.items():
                for reference in references:
                    address = grants.xengnttab_map_grant_ref(
                        handle, self._domid, reference, _PROT_READ
                    )
                    if not address:
                        why = f"looking at the ring of disk {number}"
                        raise CaptureFailed(domain=self._name, why=str(failed(why)))
                    stack.callback(grants.xengnttab_unmap, handle, address, 1)
                    found.append((number, address))
            yield found


def _in_flight(address: int) -> bool:
    requests, responses = _PRODUCERS.unpack(ctypes.string_at(address, _PRODUCERS.size))
    return bool(requests != responses)
