"""How long a KVM domain stands still, and how fast it is back: ``make bench-kvm``, in the lab.

The pause of ``take`` stands against two scripts that a person would type: suspend, ``lvcreate -s``
of each disk, resume, which has no memory at all; and libvirt's live memory snapshot with the
``lvcreate`` in its gap.  Every pause is what lies between QEMU's own STOP and RESUME.  The lab is
emulated where there is no hardware for it: what is compared is measured in turn in the same lab,
and only the ratios mean something elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from tests.bench import harness
from tests.bench.harness import Figure, plain, proportion
from tests.bench.kvmdeeds import (
    CHANNELS,
    IMPORTS,
    INSTALL,
    LARGE_MIB,
    SMALL_MIB,
    FilledGuest,
    Sample,
    restore_by_script,
    roll_back,
    script,
    stock,
    take,
)
from tests.lab.guests import FORGET_ALL
from tests.lab.vm import Lab, Shape

RUNS = 3
FEW = 2
"""Where a round costs a minute under emulation."""
LAB_MIB = 6144
SCRIPT_LIMITS = {1: 0.6, 2: None, 4: 0.5}


def main() -> None:
    """Measure, report, end."""
    figures: list[Figure] = []
    with Lab("kvm", shape=Shape(memory_mib=LAB_MIB)) as lab:
        lab.run(INSTALL, timeout_seconds=120, check=True)
        for count in (4, 2):
            for mib in (SMALL_MIB, LARGE_MIB):
                with FilledGuest(lab, f"b{count}", count, mib) as guest:
                    figures += against_script(guest)
        with FilledGuest(lab, "small", 1, SMALL_MIB) as small:
            figures += against_script(small)
            figures += rollbacks(small)
            with FilledGuest(lab, "large", 1, LARGE_MIB) as large:
                figures += sizes(small, large)
                with small.resting():
                    figures += against_script(large)
                    figures += against_libvirt(large)
                    figures += rollbacks(large)
    harness.end(harness.report("kvm", figures))


def in_turn(runs: int = RUNS, **subjects: Callable[[], Sample]) -> dict[str, list[Sample]]:
    """Measure the subjects in turn; what has to warm up has done so in `FilledGuest`."""
    return harness.alternate(runs, warm_up=0, **subjects)


def against_script(guest: FilledGuest) -> list[Figure]:
    """Compare the pause with that of suspend, lvcreate -s, resume; idle, then dirtying."""
    name = f"{guest.disks}disk" + "s" * (guest.disks > 1) + "_2g" * (guest.memory_mib == LARGE_MIB)
    figures = script_figures(guest, name, RUNS if guest.memory_mib == SMALL_MIB else FEW)
    with guest.dirtying():
        return figures + script_figures(guest, f"{name}_dirty", FEW)


def script_figures(guest: FilledGuest, name: str, runs: int) -> list[Figure]:
    measured = in_turn(runs, ours=lambda: take(guest), script=lambda: script(guest))
    return [
        proportion(
            f"pause_vs_script_{name}",
            pauses(measured["ours"]),
            pauses(measured["script"]),
            "virsh suspend; lvcreate -s; virsh resume",
            SCRIPT_LIMITS[guest.disks],
        ),
        plain(f"pause_ms_{name}", "ms", pauses(measured["ours"])),
        plain(f"script_pause_ms_{name}", "ms", pauses(measured["script"])),
        *within(name, measured["ours"]),
    ]


def sizes(small: FilledGuest, large: FilledGuest) -> list[Figure]:
    """Compare the pause of a large guest with that of a small one, both idle."""
    measured = in_turn(
        FEW, large=lambda: take_alone(large, small), small=lambda: take_alone(small, large)
    )
    peaks = [sample.peak_mb for sample in measured["large"] + measured["small"]]
    return [
        proportion(
            "pause_2g_over_512m",
            pauses(measured["large"]),
            pauses(measured["small"]),
            "the same with 512 MB",
            1.3,
        ),
        plain("pause_ms_2g", "ms", pauses(measured["large"])),
        plain("pause_ms_512m", "ms", pauses(measured["small"])),
        *within("2g", measured["large"]),
        plain("take_seconds_2g", "s", [sample.seconds for sample in measured["large"]]),
        Figure(
            name="take_peak_rss_mb",
            unit="MB",
            samples=(max(peaks),),
            against="the highest of all; at most 150",
            limit=150.0,
        ),
    ]


def take_alone(guest: FilledGuest, other: FilledGuest) -> Sample:
    with other.resting():
        return take(guest)


def against_libvirt(guest: FilledGuest) -> list[Figure]:
    """Compare the pause under dirtying with libvirt's own live snapshot."""
    with guest.dirtying():
        measured = in_turn(FEW, ours=lambda: take(guest), stock=lambda: stock(guest))
    return [
        proportion(
            "pause_vs_libvirt_2g_dirty",
            pauses(measured["ours"]),
            pauses(measured["stock"]),
            "virsh snapshot-create-as --live --memspec; lvcreate -s; virsh resume",
            0.25,
        ),
        plain("pause_ms_2g_dirty", "ms", pauses(measured["ours"])),
        plain("libvirt_pause_ms_2g_dirty", "ms", pauses(measured["stock"])),
    ]


def rollbacks(guest: FilledGuest) -> list[Figure]:
    """Compare a rollback with a script that does the same with the same plain image.

    Fast is a sparse image, which several threads read.  What a command takes to start is a large
    part of it when the guest is small, above all under emulation.  How large tells the script with
    the mere import of the libraries before it: no program with them can be faster than that.  Away
    is how long the guest does not run, which a rollback prepares for while it still does.
    """
    suffix = "_2g" * (guest.memory_mib == LARGE_MIB)
    image = kept_image(guest, "plain")
    sparse_image = kept_image(guest, "sparse")
    measured = in_turn(
        FEW,
        plain=lambda: roll_back(guest, "plain"),
        fast=lambda: roll_back(guest, "sparse"),
        script=lambda: restore_by_script(guest, image),
        least=lambda: restore_by_script(guest, image, ahead=IMPORTS),
        fast_least=lambda: restore_by_script(guest, sparse_image, ahead=IMPORTS, options=CHANNELS),
    )
    guest.lab.run(FORGET_ALL, timeout_seconds=120)
    seconds = {name: [sample.seconds for sample in them] for name, them in measured.items()}
    away = {name: pauses(measured[name]) for name in ("plain", "fast", "script")}
    by_hand = "virsh destroy; LV swap; virsh restore"
    imports = "the script; ours: the script with the import of the libraries before"
    without_guest = "the script; how long no guest runs, of either"
    wanted = (
        ("vs_script", "plain", by_hand, 1.2),
        ("fast_vs_script", "fast", by_hand, 1.0),
        ("least", "least", imports, None),
        ("fast_least", "fast_least", imports, None),
    )
    return [
        *(
            proportion(f"rollback_{name}{suffix}", seconds[how], seconds["script"], against, limit)
            for name, how, against, limit in wanted
        ),
        *(plain(f"rollback_{how}_seconds{suffix}", "s", them) for how, them in seconds.items()),
        *(
            proportion(f"rollback_{how}_away{suffix}", away[how], away["script"], without_guest)
            for how in ("plain", "fast")
        ),
        *(plain(f"rollback_{how}_away_ms{suffix}", "ms", them) for how, them in away.items()),
    ]


def kept_image(guest: FilledGuest, form: str) -> PurePosixPath:
    """Take a snapshot with an image of this form, named after it; return where the image is."""
    record = guest.take("--name", form, "--image-format", form)
    uuid, file = record["domain"]["uuid"], record["memory"]["file"]
    return PurePosixPath("/var/lib/snapvm/domains", uuid, form, file)


def pauses(samples: Sequence[Sample]) -> list[float]:
    return [sample.pause_ms for sample in samples]


def within(name: str, samples: Sequence[Sample]) -> list[Figure]:
    """Return what the pause was spent on; LVM and memory are beside each other."""
    kinds = ("ahead", "suspend", "lvm", "memory", "resume")
    return [
        plain(
            f"pause_{kind}_ms_{name}",
            "ms",
            [
                sum(part["duration_ms"] for part in sample.parts if part["name"].startswith(kind))
                for sample in samples
            ],
        )
        for kind in kinds
    ]


if __name__ == "__main__":
    main()
