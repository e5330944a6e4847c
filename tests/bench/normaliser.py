"""Print how fast page tables are canonicalised, in GB of tables a second on one thread.

    python -m tests.bench.normaliser [guest MiB]

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
from snapvm.memory.pagingmode import (
    FRAME_SHIFT,
    PTE_ACCESSED,
    PTE_NX,
    PTE_PRESENT,
    PTE_USER,
    PTE_WRITABLE,
    Words,
)

PTE_DIRTY = 1 << 6

TABLES = 4096
ROUNDS = 10
MAP_ROUNDS = 3
HOST_FRAMES = 1 << 24
"""64 GiB of RAM."""
FRAMES_PER_MIB = 256
RUN = 512
"""How many frames of a guest are side by side: Xen gives it pieces of 2 MiB."""
LINEAR_FLAGS = PTE_PRESENT | PTE_WRITABLE | PTE_ACCESSED | PTE_DIRTY
PROCESS_FLAGS = LINEAR_FLAGS | PTE_USER | PTE_NX


def main() -> None:
    """Measure, and print the best of some rounds as JSON."""
    guest_frames = int(sys.argv[1] if len(sys.argv) > 1 else "4096") * FRAMES_PER_MIB
    random = np.random.default_rng(1)
    p2m = scattered_runs(guest_frames, random)
    frames, build_ms = measured_map(p2m)
    tables = np.concatenate([linear_map(p2m), processes(p2m, random)]).reshape(TABLES, ENTRIES)
    figures = {
        "normaliser_gb_per_s": round(tables.nbytes / measured_seconds(frames, tables) / 1e9, 2),
        "frame_map_build_ms": round(build_ms, 1),
        "guest_mib": guest_frames // FRAMES_PER_MIB,
    }
    print(json.dumps(figures))


def scattered_runs(guest_frames: int, random: np.random.Generator) -> Words:
    """Return the p2m of a guest whose frames are in runs of 512, anywhere on the host."""
    runs = random.permutation(HOST_FRAMES // RUN)[: guest_frames // RUN].astype(np.uint64)
    starts = np.repeat(runs * np.uint64(RUN), RUN)
    return starts + np.tile(np.arange(RUN, dtype=np.uint64), len(runs))


def linear_map(p2m: Words) -> Words:
    """Return the entries of a kernel's linear map: each frame in turn, all present."""
    pfns = np.arange(TABLES // 2 * ENTRIES) % len(p2m)
    return p2m[pfns] << np.uint64(FRAME_SHIFT) | np.uint64(LINEAR_FLAGS)


def processes(p2m: Words, random: np.random.Generator) -> Words:
    """Return the entries of processes: half of them present, frames anywhere in the guest."""
    pfns = random.integers(0, len(p2m), TABLES // 2 * ENTRIES)
    entries = p2m[pfns] << np.uint64(FRAME_SHIFT) | np.uint64(PROCESS_FLAGS)
    entries[random.random(len(entries)) < 0.5] = 0
    return entries


def measured_map(p2m: Words) -> tuple[FrameMap, float]:
    """Build the map of a guest's frames; return it, and the least time of some rounds in ms."""
    m2p = np.full(HOST_FRAMES, (1 << 64) - 1, np.uint64)
    m2p[p2m] = np.arange(len(p2m), dtype=np.uint64)
    times_ms = []
    for _ in range(MAP_ROUNDS):
        begun = time.perf_counter()
        frames = FrameMap.build(p2m, m2p, max_mfn=HOST_FRAMES)
        times_ms.append((time.perf_counter() - begun) * 1000)
    return frames, min(times_ms)


def measured_seconds(frames: FrameMap, source: Words) -> float:
    """Canonicalise copies of the tables; return the least time, that of copying left out."""
    normaliser = Normaliser(frames, "benchmark")
    levels, pfns = np.ones(TABLES, np.uint8), np.arange(TABLES, dtype=np.uint64)
    seconds = []
    for _ in range(ROUNDS):
        tables = source.copy()
        begun = time.thread_time()
        foreign = normaliser.canonicalise(tables, levels, pfns)
        seconds.append(time.thread_time() - begun)
        if len(foreign):
            raise SystemExit("the benchmark's own tables are wrong")
    return min(seconds)


if __name__ == "__main__":
    main()
