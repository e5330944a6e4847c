"""Pulse domains seen from a test: snapvm run on them, and what they believe in."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any, Self

from tests import schema
from tests.lab.host import oracle
from tests.lab.host.oracle import Pulse
from tests.lab.vm import Completed, Lab

COMMAND_SECONDS = 240
ANSWER_SECONDS = 60
BOOT_SECONDS = 240
"""A guest with two processors has taken a minute to boot beside another one, on a slow machine."""


class Guest:
    """One pulse domain in a lab, made by ``lab-domain`` and gone at the end of the block."""

    def __init__(self, lab: Lab, name: str, *options: str) -> None:
        self.lab = lab
        self.name = name
        self._options = options

    def __enter__(self) -> Self:
        create = ["lab-domain", "create", self.name, *self._options, "--start"]
        with ExitStack() as undo:
            undo.callback(self.__exit__)
            self.lab.run(create, timeout_seconds=COMMAND_SECONDS, check=True)
            self.say("?", BOOT_SECONDS)
            self.wait_until(1)
            undo.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self.lab.run(["lab-domain", "destroy", self.name], timeout_seconds=COMMAND_SECONDS)
        self.lab.run(FORGET_ALL, timeout_seconds=COMMAND_SECONDS, check=True)

    def say(self, line: str, seconds: int = ANSWER_SECONDS) -> str:
        """Send a line to the guest's console and return its answer."""
        ask = ["pulse", self.name, line, "--timeout", str(seconds)]
        done = self.lab.run(ask, timeout_seconds=seconds + 30)
        if done.status != 0:
            traces = self.lab.run(TRACES, timeout_seconds=60).stdout
            raise AssertionError(f"{self.name} does not answer: {done.stderr}\n{traces}")
        return done.stdout.strip()

    def look(self) -> Pulse:
        """Ask the guest what it believes in."""
        return oracle.parse(self.say("?"))

    def wait_until(self, n: int) -> Pulse:
        """Wait until the guest has counted to ``n`` at least; a minute at the most."""
        for _ in range(30):
            seen = self.look()
            if seen.n >= n or seen.state != "ok":
                return seen
            self.lab.run(["sleep", "1"], timeout_seconds=30)
        raise AssertionError(f"{self.name} does not count: {seen}")

    def state(self) -> str:
        """Return what libvirt says the domain does."""
        return self.lab.run(
            ["virsh", "domstate", self.name], timeout_seconds=60, check=True
        ).stdout.strip()

    def take(self, *options: str) -> dict[str, Any]:
        """Take a snapshot and return its record, which fits the schema."""
        done = snapvm(self.lab, "take", self.name, *options, "--json")
        record = dict(json.loads(done.stdout))
        schema.require_fit(record)
        return record

    def roll_back(self, id_: str, *options: str) -> Completed:
        """Roll back to a snapshot."""
        return snapvm(self.lab, "rollback", f"{self.name}@{id_}", "--yes", *options)

    def ids(self) -> list[str]:
        """Return the ids of the guest's records."""
        listed = snapvm(self.lab, "list", self.name, "--json").stdout
        return [record["id"] for record in json.loads(listed)]

    def delete_all(self) -> None:
        """Delete every snapshot of the guest, if it has any."""
        if refs := [f"{self.name}@{id_}" for id_ in self.ids()]:
            snapvm(self.lab, "delete", "--yes", *refs)


def snapvm(lab: Lab, *arguments: str, status: int = 0) -> Completed:
    """Run snapvm in the lab as a user would; it has to end with ``status``."""
    done = lab.run(["snapvm", *arguments], timeout_seconds=COMMAND_SECONDS)
    shown = f"snapvm {' '.join(arguments)}: {done.status}\n{done.stdout}\n{done.stderr}"
    if done.status != status:
        shown += lab.run(TRACES, timeout_seconds=60).stdout
    assert done.status == status, shown
    assert "Traceback" not in done.stderr, shown
    return done


def volumes(lab: Lab) -> set[str]:
    """Return VG/LV and role tag of every volume that snapvm made."""
    argv = ["lvs", "--noheadings", "-o", "lv_full_name,lv_tags", "--select", "lv_tags={snapvm=1}"]
    lines = lab.run(argv, timeout_seconds=60, check=True).stdout.splitlines()
    return {line.strip() for line in lines if line.strip()}


TRACES = """
tail -n 60 /var/lib/snapvm/bug*.txt
tail -n 12 /var/log/libvirt/qemu/*.log
tail -c 3000 /var/log/libvirt/qemu/*-serial.log
virsh list --all
for dom in $(virsh list --name --all); do
    virsh domstate --reason $dom
    virsh qemu-monitor-command --hmp $dom 'info registers -a' | grep -E 'CPU#|RIP|HLT'
done
dmesg | tail -n 12
"""
"""What a failure report should show of the lab."""

FORGET_SNAPSHOTS = """
lvremove -qq -y --select 'lv_tags={snapvm=1}' 2>/dev/null
rm -rf /var/lib/snapvm
"""
FORGET_ALL = f"{FORGET_SNAPSHOTS}rm -rf /run/snapvm\n"
