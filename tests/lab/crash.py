"""``make crash-sweep``: snapvm killed at every point of every command, on the real thing.

For each verb the points are asked of snapvm itself (``SNAPVM_CRASH=list``); then it dies at each in
turn.  The guard does what it does; the next command mends the rest; and then the domain must run
and agree with its disks, ``snapvm check`` must find nothing, and nothing may be left over: no
volume, no file, no process, no kernel setting, no capability of QEMU.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from snapvm.crashpoint import LIST, PREFIX, VARIABLE
from tests.lab.guests import COMMAND_SECONDS, Guest, snapvm, volumes
from tests.lab.vm import REPOSITORY, Flavour, Lab
from tests.lab.xenguests import XenGuest

RESULT = REPOSITORY / "build" / "crash.json"
VERBS = ("take", "rollback", "delete")
NAME = "crash"
KEPT = "kept"
KILLED = -9
GUARD_SECONDS = 60
PATIENCE = {"SNAPVM_LOCK_WAIT_SECONDS": "120"}
"""The guard may still be at work."""

SETTINGS = "sysctl -n vm.unprivileged_userfaultfd"
CAPABILITIES = f'virsh qemu-monitor-command {NAME} \'{{"execute":"query-migrate-capabilities"}}\''
LEFT = """
find /run/snapvm -name userfaultfd.was -size +0
find /var/lib/snapvm -name '.*.draft' -o -name '.*.gone' -o -name '.rollback.json' -o -name '.*.new'
pgrep -af 'snapvm[.]cli|/snapvm (take|rollback|delete)' || true
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One death: of which command, where, and what was wrong afterwards; nothing when it passed."""

    flavour: str
    verb: str
    point: str
    problem: str = ""


class Patient:
    """A domain with a thick disk and a thin one, a snapshot of it, and what is right of both."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.lab = guest.lab
        self.flavour = self.lab.flavour.value
        self._healthy = self._host_settings()
        self._prepare()

    def _prepare(self) -> None:
        """Leave one snapshot, and nothing else of ours."""
        others = [id_ for id_ in self.guest.ids() if id_ != KEPT]
        if others:
            snapvm(self.lab, "delete", "--yes", *(f"{NAME}@{id_}" for id_ in others))
        if KEPT not in self.guest.ids():
            self.guest.take("--name", KEPT)
        self._volumes = volumes(self.lab)

    def command(self, verb: str) -> list[str]:
        """Return the command line that is going to die."""
        if verb == "take":
            return ["snapvm", "take", NAME, "--name", "dying"]
        return ["snapvm", verb, f"{NAME}@{KEPT}", "--yes"]

    def points(self, verb: str) -> list[str]:
        """Let the command live once, and return every point it passes."""
        env = {VARIABLE: LIST}
        argv = self.command(verb)
        done = self.lab.run(argv, timeout_seconds=COMMAND_SECONDS, env=env, check=True)
        self._prepare()
        lines = done.stderr.splitlines()
        return [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]

    def die(self, verb: str, point: str) -> Case:
        """Let the command die at a point, have it mended, and look for damage."""
        case = Case(flavour=self.flavour, verb=verb, point=point)
        try:
            self._die(verb, point)
            self._prepare()
        except AssertionError as problem:
            return Case(**{**asdict(case), "problem": str(problem)})
        return case

    def _die(self, verb: str, point: str) -> None:
        argv, env = self.command(verb), {VARIABLE: point}
        done = self.lab.run(argv, timeout_seconds=COMMAND_SECONDS, env=env)
        assert done.status == KILLED, f"it was not killed: {done.status} {done.stderr}"
        self._wait_until_it_runs()
        mended = self.lab.run(["snapvm", "repair"], timeout_seconds=COMMAND_SECONDS, env=PATIENCE)
        assert mended.status == 0, f"repair: {mended.stdout}{mended.stderr}"
        said = self.lab.run(["snapvm", "check"], timeout_seconds=COMMAND_SECONDS)
        assert said.status == 0, f"check: {said.stdout}{said.stderr}"
        seen = self.guest.look()
        assert seen.state == "ok", seen
        assert self.guest.wait_until(seen.n + 3).state == "ok"
        left = self.lab.run(LEFT, timeout_seconds=60).stdout
        assert not left, f"left over: {left}"
        assert self._host_settings() == self._healthy, self._host_settings()
        known = {KEPT, "dying"}
        strange = [id_ for id_ in self.guest.ids() if id_ not in known and "undo" not in id_]
        assert not strange, f"records nobody asked for: {strange}"

    def _wait_until_it_runs(self) -> None:
        """The guard makes it run again; where it was ended already, the next command does."""
        deadline = time.monotonic() + GUARD_SECONDS
        while self.guest.state() == "paused":
            assert time.monotonic() < deadline, f"it is {self.guest.state()}"
            time.sleep(0.5)

    def _host_settings(self) -> str:
        script = f"{SETTINGS}; [ -e /proc/xen/capabilities ] || {CAPABILITIES}"
        text = self.lab.run(script, timeout_seconds=60).stdout
        # libvirt numbers its questions.
        return "".join(part for part in text.split(",") if '"id"' not in part)


@contextmanager
def patient(lab: Lab) -> Iterator[Patient]:
    """Have a domain to operate on."""
    kind = XenGuest if lab.flavour is Flavour.XEN else Guest
    disks = ("--disks", "2", "--vg", "vg0,vg1", "--kind", "thick,thin")
    with kind(lab, NAME, *disks, "--memory", "128") as guest:
        yield Patient(guest)


def main(flavours: Sequence[str]) -> int:
    """Sweep; write the result as JSON and as a table."""
    cases: list[Case] = []
    for flavour in flavours:
        with Lab(flavour) as lab, patient(lab) as subject:
            for verb in VERBS:
                for point in subject.points(verb):
                    cases.append(subject.die(verb, point))
                    _show(cases[-1])
    failures = [asdict(case) for case in cases if case.problem]
    result = {"cases": len(cases), "passed": len(cases) - len(failures), "failures": failures}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['passed']} of {result['cases']} passed; {RESULT.relative_to(REPOSITORY)}")
    return 1 if failures else 0


def _show(case: Case) -> None:
    outcome = case.problem.splitlines()[0] if case.problem else "ok"
    print(f"{case.flavour:4} {case.verb:9} {case.point:44} {outcome}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [flavour.value for flavour in Flavour]))
