"""What tests ask of a pulse guest."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.lab.vm import Lab


@dataclass(frozen=True)
class Pulse:
    """One answer of a pulse guest."""

    n: int
    disks: tuple[int, ...]
    state: str


def parse_pulse(answer: str) -> Pulse:
    """Read a line ``PULSE n=… disks=… state=…``; ``ValueError`` when it is none."""
    found = re.fullmatch(r"PULSE n=(\d+) disks=([\d,]*) state=(.*)", answer.strip())
    if not found:
        raise ValueError(f"no answer of pulse: {answer!r}")
    disks = tuple(int(number) for number in found[2].split(",") if number)
    return Pulse(int(found[1]), disks, found[3])


def ask_pulse(lab: Lab, domain: str, line: str = "?", *, timeout_seconds: float = 60) -> Pulse:
    """Ask a guest how it is; ``CommandFailed`` when it does not answer in time."""
    argv = ["pulse", domain, line, "--timeout", str(timeout_seconds)]
    done = lab.run(argv, timeout_seconds=timeout_seconds + 30, check=True)
    return parse_pulse(done.stdout)


def assert_counts_on(lab: Lab, domain: str, *, above: int = 0) -> Pulse:
    """Require a healthy guest whose number exceeds ``above`` and grows; return the last answer."""
    first = ask_pulse(lab, domain)
    second = ask_pulse(lab, domain)
    assert first.state == second.state == "ok", (first, second)
    assert above < first.n < second.n, (above, first, second)
    assert all(second.n - 1 <= number <= second.n for number in second.disks), second
    return second
