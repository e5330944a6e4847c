"""Run in the lab: save one suspended guest by Xen's own saver and by ours, and compare the images.

Both happen in one window, so that the guest is the very same: ours first keeps what it needs, then
``xc_domain_save`` of libxenguest (xen.git tools/include/xenguest.h) writes its stream, then the
guest goes on.  With ``ends`` as a second argument ours is made as by ``take --stop``: in one pass,
as the stock saver does it, so that the two times can be compared.

Prints JSON: how many pages there were, of how many the type or the bytes differ, which of the
other records differ, and how long each saver worked.  A table in which ours zeroed an entry does
not count as differing: it stands, by its PFN, under "zeroed", and also under "lost" when the stock
image has no data of it.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ctypes import CFUNCTYPE, POINTER, Structure, byref, c_int, c_uint32, c_void_p
from dataclasses import dataclass
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
from snapvm.model import Domain, HypervisorKind, Silent
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
    """Yield the PFNs that have data, some at a time."""
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
    """Yield a set that gets the PFN of each table in which an entry is zeroed during the block."""
    handler = ZeroedTables()
    foreignlog.log.setLevel(logging.INFO)
    foreignlog.log.addHandler(handler)
    try:
        yield handler.pfns
    finally:
        foreignlog.log.removeHandler(handler)


class Stopwatch:
    """Adds up how long several blocks take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the block."""
        begun = time.monotonic()
        yield
        self.seconds += time.monotonic() - begun


@dataclass(frozen=True, kw_only=True)
class SavedTwice:
    """Both images of one guest, and how long each saver worked."""

    ours: Path
    stock: Path
    foreign: int
    """How many entries ours says that it has zeroed."""
    ours_seconds: float
    stock_seconds: float


def save_twice(
    driver: XenHypervisor, domain: Domain, folder: Path, *, domain_ends: bool
) -> SavedTwice:
    """Save a domain by both savers in one window, ours in one pass when the ``domain_ends``."""
    ours, stock = Stopwatch(), Stopwatch()
    stream = folder / "stock"
    image = images.new_image(HypervisorKind.XEN, folder, domain_ends=domain_ends)
    capturing = driver.capture(domain, folder, image=image, clock=WindowClock(), progress=Silent())
    with ExitStack() as stack:
        with ours.running():
            capture = stack.enter_context(capturing)
        with capture.window():
            with ours.running():
                capture.arm()
            with stock.running():
                stock_save(driver._control, driver._domains.get(domain).domid, stream)
            if domain_ends:
                with ours.running():
                    memory = capture.drain()
        if not domain_ends:
            with ours.running():
                memory = capture.drain()
    assert memory is not None
    path = folder / memory.file
    return SavedTwice(
        ours=path,
        stock=as_image(stream, path),
        foreign=sum(memory.foreign.values()),
        ours_seconds=ours.seconds,
        stock_seconds=stock.seconds,
    )


def main(name: str, how: str = "") -> None:
    """Save ``name`` twice and compare."""
    host = wiring.open_host(load())
    driver = host.hypervisor
    assert isinstance(driver, XenHypervisor)
    with TemporaryDirectory(dir="/var/tmp") as place, zeroed_tables() as zeroed:
        os.sync()
        saved = save_twice(driver, driver.find(name), Path(place), domain_ends=how == "ends")
        with survey(saved.ours) as mine, survey(saved.stock) as theirs:
            pages = compare_pages(mine, theirs, sorted(zeroed))
        mine_said, stock_said = other_records(saved.ours), other_records(saved.stock)
    names = sorted(mine_said.keys() | stock_said.keys())
    differing = [name for name in names if mine_said.get(name) != stock_said.get(name)]
    seconds = {"ours": saved.ours_seconds, "stock": saved.stock_seconds}
    found = {**pages, "foreign": saved.foreign, "records": names, "differing": differing}
    print(json.dumps({**found, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
