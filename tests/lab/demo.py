"""``make demo``: snapvm at work on a real host, before your eyes.

Boots the lab, starts a domain that counts in its memory and onto two disks, takes a snapshot,
damages the running domain's memory and disks, rolls back, and lets the domain itself prove that
both are back.  Exits with 0 only when they are.
"""

from __future__ import annotations

import sys
import time

from tests.lab.guests import Guest
from tests.lab.host.oracle import Pulse
from tests.lab.vm import Lab, LabError

NAME = "demo"


class Show:
    """Types commands into the lab and shows what they say, as a terminal would."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def say(self, text: str) -> None:
        """Explain what comes next."""
        print(f"\n# {text}", flush=True)

    def type(self, line: str) -> str:
        """Run a command, show it and its output; end the demo when it fails."""
        print(f"$ {line}", flush=True)
        done = self._lab.run(line, timeout_seconds=240)
        print((done.stdout + done.stderr).rstrip(), flush=True)
        if done.status:
            sys.exit(f"demo: `{line}` ended with status {done.status}")
        return done.stdout


def play(show: Show, guest: Guest) -> None:
    """Take, damage, roll back, prove."""
    show.say("The guest counts: n in its memory, then n onto both disks, then n+1.")
    before = _look(show, guest)
    show.say("Capture its memory and both disks at one instant, while it runs.")
    show.type(f"snapvm take {NAME} --name before-damage --note 'all is well'")
    show.type("snapvm list")
    show.type(f"snapvm show {NAME}@before-damage")
    show.say("It ran on. Now damage it: its memory scribbled over, both disks overwritten.")
    show.type(f"pulse {NAME} damage")
    damaged = _look(show, guest)
    if damaged.state != "damaged":
        sys.exit(f"demo: the guest should be damaged and says {damaged.state}")
    show.type(f"pulse-disk /dev/vg0/{NAME}-d0 || echo 'nothing of the guest is left on this disk'")
    show.say("Bring memory and disks back together.")
    show.type(f"snapvm rollback {NAME}@before-damage --yes")
    back = _look(show, guest)
    show.say("It checks every number on its disks against its memory, and goes on counting:")
    later = guest.wait_until(back.n + 20)
    print(f"PULSE n={later.n} state={later.state}")
    show.say("The disks from before the rollback are kept too.")
    show.type("snapvm list")
    if not (back.state == later.state == "ok" and before.n <= back.n < later.n):
        sys.exit("demo: memory and disks did not come back together")


def _look(show: Show, guest: Guest) -> Pulse:
    show.type(f"pulse {NAME} '?'")
    return guest.look()


def main() -> None:
    """Boot the lab and play."""
    begun = time.monotonic()
    options = ("--disks", "2", "--vg", "vg0,vg1", "--memory", "128")
    with Lab("kvm") as lab, Guest(lab, NAME, *options) as guest:
        play(Show(lab), guest)
    print(f"\nMemory and both disks came back together. ({time.monotonic() - begun:.0f} s in all)")


if __name__ == "__main__":
    try:
        main()
    except (LabError, AssertionError) as error:
        sys.exit(f"demo: {error}")
