"""Run in the lab: save one suspended guest by Xen's own saver and by ours, and compare the images.

Both happen in one window, so that the guest is the very same: ours first keeps what it needs, then
``xc_domain_save`` of libxenguest (xen.git tools/include/xenguest.h) writes its stream, then the
guest goes on.  With ``ends`` as a second argument ours is made as by ``take --stop``: in one pass,
which is what the stock saver does, and then the two times can be compared.  Prints as JSON how many
pages there were, of how many the type or the bytes differ, and which of the other records do, and
how long each saver worked.  A table in which ours zeroed an entry is not counted as differing but
under "zeroed"; "lost" are those of them, by their frames, that the stock image has no data of.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, Structure, byref, c_int, c_uint32, c_void_p
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from snapvm import images
from snapvm.cli import wiring
from snapvm.clock import WindowClock
from snapvm.hypervisor.xen import XenHypervisor
from snapvm.hypervisor.xencontrol import XenControl
from snapvm.memory import foreignlog
from snapvm.memory.pageindex import PageIndex
from snapvm.memory.xenformat import RECORD_HEADER, LibxlRecord, PageType
from snapvm.memory.xenframes import Survey, survey
from snapvm.memory.xenimage import open_image
from snapvm.memory.xenrecord import PageBatch, SharedInfo, VcpuState
from snapvm.model import HypervisorKind, Silent
from snapvm.settings import load

STREAM_MARK = b"\xff" * 8 + b"XENF"
"""How a libxc stream begins."""
AT_ONCE = 4096
DATA_TYPES = {type_ for type_ in PageType if type_ < PageType.BROKEN}


Callback = CFUNCTYPE(c_int, c_void_p)


class SaveCallbacks(Structure):
    """struct save_callbacks; a plain save of a PV domain calls ``suspend`` alone."""

    _fields_ = (
        ("suspend", Callback),
        ("unused", c_void_p * 5),
        ("data", c_void_p),
    )


def stock_save(control: XenControl, domid: int, path: Path) -> None:
    """Let Xen write the stream of a domain that stands still already.

    Without our pause, as ``xl save`` does: a suspended domain does not run by being unpaused, and
    for a paused one the saver does not forgive the foreign entries that it drops tables for.
    """
    save = control.libraries.guest.xc_domain_save
    save.restype = c_int
    save.argtypes = (
        *(c_void_p, c_int, c_uint32, c_uint32),
        *(POINTER(SaveCallbacks), c_int, c_int),
    )
    callbacks = SaveCallbacks(suspend=Callback(lambda _data: 1))
    control.unpause(domid)
    try:
        with path.open("wb") as file:
            status = save(control.handle, file.fileno(), domid, 0, byref(callbacks), 0, -1)
            os.fsync(file.fileno())
    finally:
        control.pause(domid)
    if status:
        raise OSError(ctypes.get_errno(), "xc_domain_save failed")


def as_image(stream: Path, ours: Path) -> Path:
    """Put an xl image's frame, which we take from ours, around a bare stream."""
    with ours.open("rb") as file:
        head = file.read(1 << 20)
    path = stream.with_suffix(".xl")
    end = RECORD_HEADER.pack(LibxlRecord.END, 0)
    path.write_bytes(head[: head.index(STREAM_MARK)] + stream.read_bytes() + end)
    return path


def batches(index: PageIndex) -> Iterator[np.ndarray[Any, Any]]:
    """Give the PFNs that have data, some at a time."""
    for pfns in index.of_types(DATA_TYPES):
        for start in range(0, len(pfns), AT_ONCE):
            yield pfns[start : start + AT_ONCE]


def compare_pages(ours: Survey, stock: Survey, zeroed: list[int]) -> dict[str, Any]:
    """Compare types and bytes of all pages of either image, but for tables with zeroed entries."""
    pages = missing = 0
    types: set[int] = set()
    content: set[int] = set()
    for pfns in batches(ours.index):
        pages += len(pfns)
        types |= set(pfns[ours.index.types(pfns) != stock.index.types(pfns)].tolist())
        content |= {pfn for pfn in pfns.tolist() if ours.read_frame(pfn) != stock.read_frame(pfn)}
    for pfns in batches(stock.index):
        missing += int((ours.index.offsets(pfns) == 0).sum())
    return {
        "pages": pages,
        "types": len(types.difference(zeroed)),
        "bytes": len(content.difference(zeroed)),
        "missing": missing,
        "zeroed": zeroed,
        "lost": sorted(types.intersection(zeroed)),
    }


def other_records(path: Path) -> dict[str, bytes]:
    """Return what is said of the vCPUs and the shared page."""
    found = {}
    with open_image(path) as image:
        for record in image.records(with_pages=False):
            match record:
                case VcpuState():
                    found[f"{record.part.name} {record.vcpu_id}"] = record.context
                case SharedInfo():
                    found["SHARED_INFO"] = record.page
                case PageBatch():
                    continue
    return found


class ZeroedTables(logging.Handler):
    """Learns from the log in which tables an entry was zeroed."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.pfns: set[int] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Note the table that the line names."""
        assert isinstance(record.args, tuple)
        _index, table_pfn, *_ = record.args
        self.pfns.add(int(str(table_pfn)))


@contextmanager
def zeroed_tables() -> Iterator[set[int]]:
    """Give the PFNs of the tables of which an entry is zeroed in the context."""
    handler = ZeroedTables()
    foreignlog.log.setLevel(logging.INFO)
    foreignlog.log.addHandler(handler)
    try:
        yield handler.pfns
    finally:
        foreignlog.log.removeHandler(handler)


def main(name: str, how: str = "") -> None:
    """Save ``name`` twice and compare."""
    domain_ends = how == "ends"
    host = wiring.open_host(load())
    driver = host.hypervisor
    assert isinstance(driver, XenHypervisor)
    domain = driver.find(name)
    with TemporaryDirectory(dir="/var/tmp") as place, zeroed_tables() as zeroed:
        folder = Path(place)
        os.sync()
        image = images.new_image(HypervisorKind.XEN, folder, domain_ends=domain_ends)
        capturing = driver.capture(
            domain, folder, image=image, clock=WindowClock(), progress=Silent()
        )
        begun = time.monotonic()
        with capturing as capture:
            prepared = time.monotonic()
            with capture.window():
                standing = time.monotonic()
                capture.arm()
                caught = time.monotonic()
                stock_save(driver._control, driver._domains.get(domain).domid, folder / "stock")
                saved = time.monotonic()
                if domain_ends:
                    memory = capture.drain()
            running = time.monotonic()
            if not domain_ends:
                memory = capture.drain()
            drained = time.monotonic()
        assert memory is not None
        ours = folder / memory.file
        stock = as_image(folder / "stock", ours)
        with survey(ours) as mine, survey(stock) as theirs:
            pages = compare_pages(mine, theirs, sorted(zeroed))
        mine_said, stock_said = other_records(ours), other_records(stock)
    names = sorted(mine_said.keys() | stock_said.keys())
    differing = [name for name in names if mine_said.get(name) != stock_said.get(name)]
    foreign = sum(memory.foreign.values())
    write_seconds = drained - (saved if domain_ends else running)
    ours_seconds = prepared - begun + caught - standing + write_seconds
    seconds = {"ours": ours_seconds, "stock": saved - caught}
    found = {**pages, "foreign": foreign, "records": names, "differing": differing}
    print(json.dumps({**found, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
