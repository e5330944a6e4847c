"""Print how fast page tables are canonicalised, in GB of tables a second on one thread.

    python tests/bench/normaliser.py [guest MiB]

The tables are those of a kernel's linear map (every entry present, frames in runs of 512) and of
processes (half of the entries present, frames scattered over the whole guest), half and half.  Time
is the thread's own on its processor, so that neighbours on the machine do not count.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from snapvm.memory.normalise import ENTRIES, FrameMap, Normaliser

TABLES = 4096
ROUNDS = 10
HOST_FRAMES = 1 << 24  # 64 GiB of RAM


def main() -> None:
    """Measure; the best of some rounds, with the batch copied anew each time but not counted."""
    guest_frames = int(sys.argv[1] if len(sys.argv) > 1 else "4096") * 256
    random = np.random.default_rng(1)
    runs = random.permutation(HOST_FRAMES // 512)[: guest_frames // 512].astype(np.uint64)
    starts = np.repeat(runs << np.uint64(9), 512)
    p2m = np.asarray(starts + np.tile(np.arange(512, dtype=np.uint64), len(runs)), np.uint64)
    m2p = np.full(HOST_FRAMES, (1 << 64) - 1, np.uint64)
    m2p[p2m] = np.arange(guest_frames, dtype=np.uint64)
    build_ms = []
    for _ in range(3):
        began = time.perf_counter()
        frames = FrameMap.build(p2m, m2p, max_mfn=HOST_FRAMES)
        build_ms.append((time.perf_counter() - began) * 1000)

    linear = p2m[np.arange(TABLES // 2 * ENTRIES) % guest_frames] << np.uint64(12) | np.uint64(0x63)
    scattered = p2m[random.integers(0, guest_frames, TABLES // 2 * ENTRIES)] << np.uint64(12)
    scattered |= np.uint64(0x8000000000000067)
    scattered[random.random(len(scattered)) < 0.5] = 0
    source = np.concatenate([linear, scattered]).reshape(TABLES, ENTRIES)
    normaliser = Normaliser(frames, "benchmark")
    levels, pfns = np.ones(TABLES, np.uint8), np.arange(TABLES, dtype=np.uint64)
    seconds = []
    for _ in range(ROUNDS):
        tables = source.copy()
        began = time.thread_time()
        foreign = normaliser.canonicalise(tables, levels, pfns)
        seconds.append(time.thread_time() - began)
        if len(foreign):
            raise SystemExit("the benchmark's own tables are wrong")
    figures = {
        "normaliser_gb_per_s": round(source.nbytes / min(seconds) / 1e9, 2),
        "frame_map_build_ms": round(min(build_ms), 1),
        "guest_mib": guest_frames // 256,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
