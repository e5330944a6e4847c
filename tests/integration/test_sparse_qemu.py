"""The sparse image against QEMU itself: one saves a running guest, another one goes on with it."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from snapvm.memory import libvirtimage, sparseimage
from snapvm.model import Silent
from tests.integration.qemu import START_SECONDS, Machine, running

SOURCE = Path(__file__).with_name("counting_guest.c")
COUNTER, WRONG = 8 << 20, (8 << 20) + 4
WARM_UP = 1500
"""More steps than the guest has pages that change, so that each has been used."""
USED_BYTES = (16 << 20) + (4 << 20)
"""What the guest fills of its 64 MiB; firmware and the like are some hundred KB."""
ROUND = 4096
"""So many steps and the guest has looked at all of its memory."""


@pytest.mark.parametrize("channels", [0, 1, 3], ids=["one thread", "one channel", "three"])
@pytest.mark.parametrize("how", ["background-snapshot", "precopy"])
def test_goes_on_from_the_converted_stream(
    how: str, channels: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("q")
    kernel, image, sparse = folder / "guest", folder / "stream.save", folder / "sparse.save"
    build(kernel)
    options = ("-m", "64", "-kernel", str(kernel))
    writer = libvirtimage.Writer()
    descriptor = writer.begin(image, "<domain/>", "<cookie/>")
    begin = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.close(descriptor)
    with running(folder, *options) as machine:
        before = wait_until(machine, WARM_UP)
        if how == "background-snapshot":
            machine.execute("stop")
            before = word(machine, COUNTER)
            switch_on(machine, how)
        migrate(machine, "migrate", f"file:{image},offset={begin}")
    writer.end(image)
    sparseimage.convert(image, sparse, Silent())
    for path in (image, sparse):  # zero pages are stored in neither
        assert USED_BYTES < path.stat().st_blocks * 512 < USED_BYTES * 1.5
    wanted = ["mapped-ram"] + ["multifd"] * bool(channels)
    with running(folder, *options, "-incoming", "defer", "-S") as machine:
        switch_on(machine, *wanted)
        if channels:
            machine.execute("migrate-set-parameters", **{"multifd-channels": channels})
        migrate(machine, "migrate-incoming", f"file:{sparse},offset={begin}")
        back = word(machine, COUNTER)
        assert back == before if how == "background-snapshot" else back >= before
        machine.execute("cont")
        wait_until(machine, back + ROUND)


def build(kernel: Path) -> None:
    """Compile the guest."""
    argv = ["gcc", "-m32", "-O1", "-Wall", "-Wextra", "-ffreestanding", "-fno-pic", "-no-pie"]
    argv += ["-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-mno-sse", "-nostdlib"]
    argv += ["-static", "-Wl,-N,-Ttext=0x100000,--build-id=none,--no-warn-rwx-segments"]
    argv += ["-fno-toplevel-reorder", "-o", str(kernel), str(SOURCE)]
    subprocess.run(argv, check=True)


def word(machine: Machine, address: int) -> int:
    """Read a word of the guest's memory."""
    return int(machine.ask(f"xp /1wx {address:#x}").split(":")[1], 16)


def wait_until(machine: Machine, number: int) -> int:
    """Wait until the guest has counted so far; it must find nothing wrong."""
    deadline = time.monotonic() + START_SECONDS
    while (seen := word(machine, COUNTER)) < number:
        assert word(machine, WRONG) == 0
        assert time.monotonic() < deadline, f"it does not count: {seen}"
        time.sleep(0.02)
    return seen


def switch_on(machine: Machine, *capabilities: str) -> None:
    """Set capabilities of QEMU's migration."""
    on: list[dict[str, Any]] = [{"capability": name, "state": True} for name in capabilities]
    machine.execute("migrate-set-capabilities", capabilities=on)


def migrate(machine: Machine, command: str, uri: str) -> None:
    """Save or load, to the end."""
    machine.execute(command, uri=uri)
    deadline = time.monotonic() + START_SECONDS
    while (state := machine.execute("query-migrate")).get("status") != "completed":
        assert state.get("status") not in ("failed", "cancelled"), state
        assert time.monotonic() < deadline, state
        time.sleep(0.02)
