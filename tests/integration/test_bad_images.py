"""Truncated, bit-flipped and hostile images: what the commands say of them and what they cost."""

from __future__ import annotations

import json
import os
import random
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from tests.unit.memory import xen_builders as build
from tests.unit.memory.xen_builders import L1, L2, L3, L4, Guest

ROOT: Final = Path(__file__).resolve().parents[2]
SEED: Final = 20261125
FLIPPED: Final = 60
CUT: Final = 20
TORN: Final = 20
ALLOWED_KIB: Final = 64 << 10
BATCH_KIB: Final = 128 << 10
"""What a record may declare at most (xen.git tools/libs/guest/xg_sr_stream_format.h)."""
SOUND: Final = "a sound one"

Ended = dict[tuple[str, str], dict[str, Any]]


def damaged(draw: random.Random) -> dict[str, bytes]:
    """Make images that are cut short, have bits turned over, or have words from elsewhere."""
    whole = Guest(order=[*range(64), 590]).encode()
    images = {}
    for number in range(CUT):
        images[f"cut {number}"] = whole[: draw.randrange(len(whole))]
    # Most of an image is pages, in which anything may stand: half of the damage is kept off them.
    begins = whole.index(build.record(1, b"")[:4], 200)
    for number in range(FLIPPED):
        data = bytearray(whole)
        reach = begins + 700 if number % 2 else len(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(reach)] ^= 1 << draw.randrange(8)
        images[f"flipped {number}"] = bytes(data)
    for number in range(TORN):
        data = bytearray(whole)
        at = draw.randrange(begins // 8) * 8
        data[at : at + 8] = draw.choice([b"\xff" * 8, bytes(8), draw.randbytes(8)])
        images[f"torn {number}"] = bytes(data)
    return images


def hostile() -> dict[str, bytes]:
    """Make images that are small and claim or lead to much."""
    images = {}
    everywhere = Guest()
    for table, below in ((L4, L3), (L3, L2), (L2, L1), (L1, 0x999)):
        everywhere.pages[table] = build.page(dict.fromkeys(range(512), below << 12 | build.RW))
    images["tables hung below each other 512 times"] = everywhere.encode()
    itself = Guest()
    for table in (L4, L3, L2, L1):
        itself.pages[table] = build.page(dict.fromkeys(range(512), L4 << 12 | build.RW))
    images["tables hung below themselves"] = itself.encode()
    guest = Guest()
    end_pfn = (1 << 28) - 1
    for name, frame in (("one frame", build.P2M), ("frames beyond", 1 << 40)):
        head = guest.before_pages()
        p2m = np.full(end_pfn // 512 + 1, frame, "<u8")
        head[5] = build.record(3, struct.pack("<II", 0, end_pfn) + p2m.tobytes())
        parts = [*head, guest.page_records(), *guest.after_pages()]
        images[f"a terabyte's table of frames in {name}"] = b"".join(parts)
    entries = np.arange(1 << 18, dtype="<u8") << np.uint64(10) | np.uint64(0xE << 60)
    far = build.record(1, struct.pack("<II", len(entries), 0) + entries.tobytes())
    head[5] = build.record(3, struct.pack("<II", 0, end_pfn) + p2m.tobytes())
    images["far-flung pages"] = b"".join([*head, far, *guest.after_pages()])
    for name, claim in (("pages", 0x7FFFFFF), ("a record", 1)):
        body = struct.pack("<II", claim, 0) + bytes(64)
        size = struct.pack("<II", 1, 0x7FFFFF8)
        images[f"gigabytes claimed by {name}"] = b"".join([*guest.before_pages(), size, body])
    images["empty"] = b""
    images["a million nested brackets"] = Guest(config=b"[" * 1_000_000 + b"\0").encode()
    return images


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """How both verbs ended on each image, by file and verb."""
    folder = tmp_path_factory.mktemp("images")
    images = {**damaged(random.Random(SEED)), **hostile(), SOUND: Guest().encode()}
    for name, data in images.items():
        (folder / name).write_bytes(data)
    argv = [sys.executable, "-m", "tests.integration.bad_images", str(folder)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        argv, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=600
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 3 * len(images), done.stderr
    return {(run["file"], run["verb"]): run for run in found}


def test_each_ends_in_a_named_error_or_in_a_report(ended: Ended) -> None:
    """No bug, no signal, no traceback; an error of the format says where it is."""
    refused = 0
    for run in ended.values():
        assert run["status"] in (0, 4), run
        assert "Traceback" not in run["said"], run
        if run["verb"] != "verify" or not run["status"]:
            continue
        if "is not sound" not in run["said"]:
            assert re.search(r"at byte \d+: \w+", run["said"]), run
            refused += 1
    assert refused > CUT + FLIPPED // 4
    assert ended[SOUND, "verify"]["status"] == 0


def test_what_is_cut_short_is_refused_where_it_ends(ended: Ended) -> None:
    for number in range(CUT):
        run = ended[f"cut {number}", "verify"]
        assert run["status"] == 4 and "at byte" in run["said"], run


def test_none_costs_more_memory_than_it_may(ended: Ended) -> None:
    """At most 64 MiB beyond what a sound one needs, and the batch that is declared."""
    usual_kib = {verb: ended[SOUND, verb]["peak_kib"] for _, verb in ended}
    for run in ended.values():
        batch_kib = BATCH_KIB if "gigabytes" in run["file"] else 0
        assert run["peak_kib"] - usual_kib[run["verb"]] < ALLOWED_KIB + batch_kib, run
