"""The domain on which the crash sweep operates: made ready, let die, and looked over.

After every death the next command mends what is to be mended; then the domain must run and agree
with its disks, ``snapvm check`` must find nothing, what was current must not be lost, and nothing
may be left over: no volume, file, process, kernel setting or capability of QEMU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from snapvm import durable
from snapvm.catalog import Catalog
from snapvm.model import LvRef, Record, RecordKind, VolumeKind
from snapvm.settings import Settings
from tests.lab.host import deaths, oracle, pulse_disk
from tests.lab.host.patience import patient
from tests.lab.host.places import on_xen
from tests.lab.host.verbs import DYING, KEPT, NAME, NEWER, Verb, Way
from tests.lab.host.watcher import OFF, Watcher

PATIENCE: Final = {"SNAPVM_LOCK_WAIT_SECONDS": "120"}
STATE: Final = Settings().state_dir
RUN: Final = Settings().run_dir
USERFAULTFD: Final = Path("/proc/sys/vm/unprivileged_userfaultfd")
CAPABILITIES: Final = '{"execute":"query-migrate-capabilities"}'
BASELINE: Final = Path("/var/tmp/healthy.json")
"""What ``prepare`` leaves for ``look``."""
GUARDS: Final = ("pgrep", "-x", "snapvm-guard")
GUARD_SECONDS: Final = 60
LVS: Final = ("lvm", "lvs", "--noheadings", "-o", "lv_full_name")


@dataclass(frozen=True)
class Healthy:
    """What there is, and is set, when nothing is left over."""

    volumes: tuple[str, ...]
    settings: tuple[str, ...]

    @classmethod
    def now(cls) -> Self:
        """Look."""
        return cls(tuple(sorted(_volumes() - _of(_records()))), _settings())


class Patient:
    """A running domain, one snapshot of it, and what is right of both."""

    def __init__(self, healthy: Healthy | None = None) -> None:
        self._watcher = Watcher(NAME)
        self._middles: dict[Verb, str] = {}
        self.healthy = healthy or Healthy.now()

    def points(self, verb: Verb) -> list[str]:
        """Let the command live once, and return every point it passes."""
        self.prepare(verb)
        found = deaths.points(verb.argv)
        self.look_over(verb, 0)
        return found

    def die(self, verb: Verb, point: str, way: Way) -> tuple[str, float | None]:
        """Let the command die at a point, and have it mended.

        Return what is wrong, if anything, and how many milliseconds after the death the domain ran
        again that stood still then.
        """
        reaction_ms = None
        try:
            counted = self.prepare(verb)
            self._watcher.forget()
            done = deaths.die(verb.argv, point, way, {})
            if not done.at:
                return f"it never came there: status {done.status}: {done.said}", None
            done.require(*way.statuses)
            deaths.wait_for_orphans()
            story = self._watcher.story()
            if way is Way.SNAPVM and _has_guard(verb, point) and story.stood_at(done.at):
                reaction_ms = story.ran_after_ms(done.at)
                assert reaction_ms is not None, "its guard did not make it run again"
            if way.is_mended_later:
                deaths.run(["repair"], env=PATIENCE).require(0)
            self.look_over(verb, counted)
        except (AssertionError, OSError, subprocess.CalledProcessError) as problem:
            return str(problem) or "it failed without a word", reaction_ms
        return "", reaction_ms

    def close(self) -> None:
        """Leave nothing that watches."""
        self._watcher.close()

    # --- before ---

    def prepare(self, verb: Verb) -> int:
        """Leave what the command begins with: one snapshot, and nothing else of ours.

        Return what the domain has counted to.
        """
        dead = verb.dead
        if dead is not None and dead not in self._middles:
            passed = self.points(dead)
            self._middles[dead] = passed[len(passed) // 2]
        found = _records()
        fits = [
            r for r in found if r.id == KEPT and (r.memory is not None or not verb.needs_memory)
        ]
        others = [f"{NAME}@{record.id}" for record in found if record not in fits]
        if others:
            deaths.run(["delete", "--yes", *others]).require(0)
        if not fits:
            self._take(KEPT, verb)
        if verb is Verb.UNDO:
            deaths.run(["rollback", f"{NAME}@{KEPT}", "--yes"]).require(0)
        if verb is Verb.PRUNE:
            self._take(NEWER, verb)
        counted = oracle.require_counting(NAME)
        if dead is not None:
            deaths.die(dead.argv, self._middles[dead], Way.BOTH, {}).require(-9)
            deaths.wait_for_orphans()
        return counted

    def _take(self, id_: str, verb: Verb) -> None:
        how = () if verb.needs_memory else ("--disk-only",)
        deaths.run(["take", NAME, "--name", id_, *how]).require(0)

    # --- afterwards ---

    def look_over(self, verb: Verb, counted: int) -> None:
        """Raise ``AssertionError`` unless all is well."""
        deaths.run(["check"]).require(0)
        self._revive()
        oracle.require_counting(NAME)
        deaths.wait_for_orphans()
        found = _records()
        volumes = _volumes() ^ _of(found) ^ set(self.healthy.volumes)
        assert not volumes, f"volumes {volumes}"
        left = [*_files_left()]
        assert not left, f"files {left}"
        assert _settings() == self.healthy.settings, _settings()
        undone = [record for record in found if record.kind is RecordKind.UNDO]
        strange = {r.id for r in found if r not in undone} - {KEPT, DYING, NEWER}
        assert not strange, f"records nobody asked for: {strange}"
        if verb.goes_back:
            for record in undone:
                _require_current(record, counted if verb is not Verb.UNDO else 0)

    def _revive(self) -> None:
        """Start a domain again that was shut off by ``take --stop``: from its snapshot."""
        if self._watcher.story().state == OFF:
            assert DYING in {record.id for record in _records()}, "it is off, and not captured"
            deaths.run(["rollback", f"{NAME}@{DYING}", "--yes"]).require(0)


def _has_guard(verb: Verb, point: str) -> bool:
    """Whether a domain that stands still there is to be made to run by the guard."""
    return verb in (Verb.TAKE, Verb.ROLLBACK, Verb.UNDO) and not point.startswith("after resume")


def _records() -> list[Record]:
    entries = list(Catalog(STATE, RUN).entries())
    damaged = [str(entry) for entry in entries if not isinstance(entry, Record)]
    assert not damaged, f"records that cannot be read: {damaged}"
    return [entry for entry in entries if isinstance(entry, Record)]


def _of(records: Iterable[Record]) -> set[str]:
    """Return the volumes of records."""
    return {_name(disk.snapshot) for record in records for disk in record.disks}


def _name(volume: LvRef) -> str:
    return f"{volume.vg}/{volume.lv}"


def _volumes() -> set[str]:
    """Return every volume there is, whatever its tags."""
    said = _output(*LVS)
    return {line.split()[0] for line in said.splitlines() if line.strip()}


def _files_left() -> Iterable[Path]:
    """Yield what only work under way may have."""
    lent = RUN / "userfaultfd.was"
    if lent.exists() and lent.stat().st_size:
        yield lent
    for path in STATE.glob("domains/*/*"):
        if path.name.startswith(".") and path.name != ".name":
            yield path
        elif path.is_dir():
            yield from (file for file in path.iterdir() if file.suffix in (".new", ".part"))


def _settings() -> tuple[str, ...]:
    """Return what is set on the host, and in the domain's QEMU."""
    if on_xen():
        return ()
    said = _output("virsh", "qemu-monitor-command", NAME, CAPABILITIES)
    # libvirt numbers its questions.
    told = "".join(part for part in said.split(",") if '"id"' not in part)
    return (USERFAULTFD.read_text().strip(), told)


def _require_current(record: Record, counted: int) -> None:
    """What was current before the rollback is on the disks of its record, all of one instant."""
    names = [_name(disk.snapshot) for disk in record.disks]
    thin = [_name(d.snapshot) for d in record.disks if d.kind is VolumeKind.THIN]
    _lvm(*(f"lvchange -qq -ay -K {name}" for name in thin))
    try:
        starts = [pulse_disk.read_start(f"/dev/{name}") for name in names]
        numbers = [pulse_disk.number_in(start[: pulse_disk.SECTOR]) for start in starts]
    finally:
        _lvm(*(f"lvchange -qq -an {name}" for name in thin))
    held = [number for number in numbers if number is not None]
    assert len(held) == len(names), f"{record.id} holds {numbers}"
    # A domain that stands still has written the step it is in to some of its disks.
    assert max(held) - min(held) <= 1, f"{record.id} holds {numbers}"
    assert min(held) >= counted - 1, f"{record.id} holds {numbers}, {counted} was counted"


def _lvm(*orders: str) -> None:
    text = "\n".join(orders)
    done = subprocess.run(["lvm"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "ail" not in done.stderr, done.stderr


def _output(*argv: str) -> str:
    env = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(argv, capture_output=True, text=True, check=True, env=env).stdout


def main() -> None:
    """``prepare``; something happens; ``look``: raises ``AssertionError`` unless all is well."""
    if sys.argv[1] == "prepare":
        domain = Patient()
        domain.prepare(Verb.TAKE)
        # Durably: the power may be what fails next.
        durable.write(BASELINE, json.dumps(asdict(domain.healthy)).encode())
    else:
        _wait_for_guard()
        kept = json.loads(BASELINE.read_text())
        settings = tuple(kept["settings"]) if sys.argv[2:] != ["booted"] else _settings()
        domain = Patient(Healthy(tuple(kept["volumes"]), settings))
        deaths.run(["repair"], env=PATIENCE).require(0)
        domain.look_over(Verb.TAKE, 0)
    domain.close()


def _wait_for_guard() -> None:
    for _ in range(round(patient(GUARD_SECONDS)) * 5):
        if subprocess.run(GUARDS, stdout=subprocess.DEVNULL, check=False).returncode:
            return
        time.sleep(0.2)
    raise AssertionError("its guard is still there")


if __name__ == "__main__":
    main()
