"""The domain on which the crash sweep operates: made ready, let down, and looked over.

After every death the next command mends what is to be mended; then the domain must run and agree
with its disks, ``snapvm check`` must find nothing, and nothing may be left over: no volume, no
file, no process, no kernel setting, no capability of QEMU.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from snapvm.crashpoint import LIST, PREFIX, VARIABLE
from tests.lab import deaths
from tests.lab.deaths import Way
from tests.lab.guests import COMMAND_SECONDS, Guest, snapvm
from tests.lab.vm import Flavour, Lab
from tests.lab.xenguests import XenGuest

NAME = "crash"
KEPT = "kept"
DYING = "dying"
GUARD_SECONDS = 60
PATIENCE = {"SNAPVM_LOCK_WAIT_SECONDS": "120"}
"""The guard may still be at work."""

KINDS = {"thin": "thin", "thick": "thick", "mixed": "thick,thin"}
"""Of which kind the volumes of the domain's two disks are."""

SETTINGS = "sysctl -n vm.unprivileged_userfaultfd"
CAPABILITIES = f'virsh qemu-monitor-command {NAME} \'{{"execute":"query-migrate-capabilities"}}\''
LEFT = """
find /run/snapvm -name userfaultfd.was -size +0
find /var/lib/snapvm -name '.*.draft' -o -name '.*.gone' -o -name '.*.json' -o -name '.*.new'
pgrep -af 'snapvm[.]cli|guard[.]main|/snapvm (take|rollback|delete|undo|prune|repair)' || true
"""


class Verb(StrEnum):
    """A command of the sweep."""

    TAKE = "take"
    TAKE_STOP = "take --stop"
    ROLLBACK = "rollback"
    UNDO = "undo"
    DELETE = "delete"
    PRUNE = "prune"
    REPAIR_TAKE = "repair of take"
    """``repair`` dies while it mends a take that died in the middle."""
    REPAIR_ROLLBACK = "repair of rollback"
    REPAIR_DELETE = "repair of delete"

    @property
    def dead(self) -> Verb | None:
        """Return the command that has to be dead before this one begins."""
        return Verb(self.removeprefix("repair of ")) if self.startswith("repair of ") else None

    @property
    def argv(self) -> list[str]:
        """Return the command line that is going to die."""
        match self:
            case Verb.TAKE:
                return ["snapvm", "take", NAME, "--name", DYING]
            case Verb.TAKE_STOP:
                return ["snapvm", "take", NAME, "--name", DYING, "--stop"]
            case Verb.ROLLBACK | Verb.DELETE:
                return ["snapvm", self.value, f"{NAME}@{KEPT}", "--yes"]
            case Verb.UNDO:
                return ["snapvm", "undo", NAME, "--yes"]
            case Verb.PRUNE:
                rules = ["--keep-last", "1", "--include-named", "--include-undo"]
                return ["snapvm", "prune", NAME, *rules, "--yes"]
            case _:
                return ["snapvm", "repair"]


class Patient:
    """A domain with two disks, a snapshot of it, and what is right of both."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.lab = guest.lab
        self._middles: dict[Verb, str] = {}
        self._healthy = self._host_settings()

    def points(self, verb: Verb) -> list[str]:
        """Let the command live once, and return every point it passes."""
        self.prepare(verb)
        env = {VARIABLE: LIST}
        done = self.lab.run(verb.argv, timeout_seconds=COMMAND_SECONDS, env=env, check=True)
        self._revive()
        lines = done.stderr.splitlines()
        return [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]

    def die(self, verb: Verb, point: str, way: Way) -> str:
        """Let the command die at a point, have it mended; return what is wrong, if anything."""
        try:
            self.prepare(verb)
            done = deaths.die(self.lab, verb.argv, point, way)
            assert done.status in way.statuses, f"status {done.status}: {done.stderr}"
            assert "Traceback" not in done.stderr, done.stderr
            self.look_over(way)
        except AssertionError as problem:
            return str(problem) or "it failed without a word"
        return ""

    def prepare(self, verb: Verb) -> None:
        """Leave what the command begins with: one snapshot, and nothing else of ours."""
        dead = verb.dead
        if dead is not None and dead not in self._middles:
            points = self.points(dead)
            self._middles[dead] = points[len(points) // 2]
        others = [id_ for id_ in self.guest.ids() if id_ != KEPT]
        if others:
            snapvm(self.lab, "delete", "--yes", *(f"{NAME}@{id_}" for id_ in others))
        if KEPT not in self.guest.ids():
            self.guest.take("--name", KEPT)
        if verb is Verb.UNDO:
            self.guest.roll_back(KEPT)
        if verb is Verb.PRUNE:
            self.guest.take("--name", "newer")
        if dead is not None:
            deaths.die(self.lab, dead.argv, self._middles[dead], Way.BOTH)

    def look_over(self, way: Way) -> None:
        """Raise ``AssertionError`` unless all is well, after the next command at the latest."""
        if way is not Way.BOTH:
            self._wait_until_it_stands_no_more()
        if way.is_mended_later:
            argv = ["snapvm", "repair"]
            mended = self.lab.run(argv, timeout_seconds=COMMAND_SECONDS, env=PATIENCE)
            assert mended.status == 0, f"repair: {mended.stdout}{mended.stderr}"
        said = self.lab.run(["snapvm", "check"], timeout_seconds=COMMAND_SECONDS)
        assert said.status == 0, f"check: {said.stdout}{said.stderr}"
        self._revive()
        seen = self.guest.look()
        assert seen.state == "ok", seen
        assert self.guest.wait_until(seen.n + 3).state == "ok"
        left = self.lab.run(LEFT, timeout_seconds=60).stdout
        assert not left, f"left over: {left}"
        assert self._host_settings() == self._healthy, self._host_settings()
        known = {KEPT, DYING, "newer"}
        strange = [id_ for id_ in self.guest.ids() if id_ not in known and "undo" not in id_]
        assert not strange, f"records nobody asked for: {strange}"

    def _revive(self) -> None:
        """Start a domain again that was shut off by ``take --stop``: from its snapshot."""
        if self.guest.state() == "shut off":
            assert DYING in self.guest.ids(), "it is shut off, and there is no snapshot of it"
            self.guest.roll_back(DYING)

    def _wait_until_it_stands_no_more(self) -> None:
        """The guard makes it run again; where it was ended already, the next command does."""
        deadline = time.monotonic() + GUARD_SECONDS
        while self.guest.state() == "paused":
            assert time.monotonic() < deadline, "it is still paused"
            time.sleep(0.5)

    def forget_settings(self) -> None:
        """Take the settings of the host as they are now for right: it was booted anew."""
        self._healthy = self._host_settings()

    def _host_settings(self) -> str:
        script = f"{SETTINGS}; [ -e /proc/xen/capabilities ] || {CAPABILITIES}"
        text = self.lab.run(script, timeout_seconds=60).stdout
        # libvirt numbers its questions.
        return "".join(part for part in text.split(",") if '"id"' not in part)


@contextmanager
def patient(lab: Lab, kind: str) -> Iterator[Patient]:
    """Have a domain to operate on, its disks of one of ``KINDS``."""
    of_flavour = XenGuest if lab.flavour is Flavour.XEN else Guest
    disks = ("--disks", "2", "--vg", "vg0,vg1", "--kind", KINDS[kind])
    with of_flavour(lab, NAME, *disks, "--memory", "128") as guest:
        yield Patient(guest)
