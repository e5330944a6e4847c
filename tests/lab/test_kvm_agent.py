"""The agent inside the guest, on real libvirt: file systems frozen, the clock set."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.lab.guests import Guest, snapvm, volumes
from tests.lab.vm import Lab

pytestmark = [pytest.mark.lab, pytest.mark.long]

LATE_SECONDS = 3600


@pytest.fixture(scope="module")
def guest(kvm_lab: Lab) -> Iterator[Guest]:
    """A running domain with two disks whose agent answers."""
    with Guest(kvm_lab, "agent", "--disks", "2", "--memory", "128", "--agent") as guest:
        yield guest


def who(guest: Guest) -> dict[str, int]:
    """Return what the guest says of itself: whether its writers wait, and its clock."""
    return {name: int(text) for name, text in re.findall(r"(frozen|time)=(\d+)", guest.say("who"))}


def host_time(lab: Lab) -> int:
    return int(lab.run(["date", "+%s"], timeout_seconds=60, check=True).stdout)


def agent(guest: Guest, command: str, **arguments: int) -> str:
    line = json.dumps({"execute": command, "arguments": arguments})
    argv = ["virsh", "qemu-agent-command", guest.name, line]
    return guest.lab.run(argv, timeout_seconds=60, check=True).stdout


def test_frozen_in_the_image_and_never_outside_and_the_clock_is_set(guest: Guest) -> None:
    """Without its memory each disk says the same; with it the guest goes on, in the present."""
    lab = guest.lab
    assert "guest agent: answers" in snapvm(lab, "doctor", guest.name).stdout
    late_ns = (host_time(lab) - LATE_SECONDS) * 10**9
    agent(guest, "guest-set-time", time=late_ns)
    guest.wait_until(guest.look().n + 10)
    record = guest.take("--quiesce")
    assert record["quiesced"] is True
    assert who(guest)["frozen"] == 0 and who(guest)["time"] < host_time(lab) - LATE_SECONDS // 2
    seen = guest.wait_until(guest.look().n + 10)
    assert seen.state == "ok"
    guest.say("damage")
    told = guest.roll_back(record["id"]).stdout
    moved = re.search(r"its clock set forward by (\d+) s", told)
    assert moved and 0 <= int(moved[1]) - LATE_SECONDS + 5 < 900, told
    back = who(guest)
    assert back["frozen"] == 0 and abs(back["time"] - host_time(lab)) < 120
    after = guest.look()
    assert guest.wait_until(after.n + 10).state == "ok"
    guest.roll_back(record["id"], "--no-set-time", "--paused")
    disks = lab.run(
        "pulse-disk /dev/vg0/agent-d0; pulse-disk /dev/vg0/agent-d1",
        timeout_seconds=60,
        check=True,
    ).stdout.split()
    assert disks[0] == disks[1], "a frozen guest stands between two steps"
    lab.run(["virsh", "resume", guest.name], timeout_seconds=60, check=True)
    back = who(guest)
    assert back["frozen"] == 1 and back["time"] < host_time(lab) - LATE_SECONDS // 2
    lab.run(["virsh", "domfsthaw", guest.name], timeout_seconds=60, check=True)
    assert guest.wait_until(guest.look().n + 10).state == "ok"


def test_frozen_near_the_end_of_precopy(kvm_lab: Lab) -> None:
    """QEMU has more to write than is left when one is frozen, and crawls meanwhile."""
    with Guest(kvm_lab, "late", "--disks", "2", "--memory", "768", "--agent") as late:
        late.wait_until(late.look().n + 10)
        record = late.take("--quiesce", "--capture", "precopy")
        assert record["quiesced"] is True and record["capture"].startswith("precopy:")
        assert who(late)["frozen"] == 0
        assert late.wait_until(late.look().n + 10).state == "ok"
        late.roll_back(record["id"])
        assert who(late)["frozen"] == 0
        assert late.wait_until(late.look().n + 10).state == "ok"


@pytest.mark.parametrize(
    "point",
    ["before freeze file systems 1", "after freeze file systems 1", "after suspend 1"],
)
def test_thawed_after_a_kill(guest: Guest, point: str) -> None:
    """The guard does it; nobody runs `snapvm repair`."""
    lab = guest.lab
    script = f"SNAPVM_CRASH='{point}' snapvm take agent --quiesce --name dying"
    assert lab.run(script, timeout_seconds=240).status != 0
    lab.run(["sleep", "8"], timeout_seconds=30)
    assert guest.state() == "running"
    assert who(guest)["frozen"] == 0
    assert guest.wait_until(guest.look().n + 10).state == "ok"
    assert "dying" not in guest.ids()
    assert not any("snapvm.st=new" in volume for volume in volumes(lab))


def test_refused_when_no_agent_answers_in_time(guest: Guest) -> None:
    """Frozen by somebody else, or with nobody at the other end of the channel."""
    lab = guest.lab
    lab.run(["virsh", "domfsfreeze", guest.name], timeout_seconds=60, check=True)
    refused = snapvm(lab, "take", guest.name, "--quiesce", status=4)
    assert "frozen already" in refused.stderr and "virsh domfsthaw agent" in refused.stderr
    assert who(guest)["frozen"] == 1
    lab.run(["virsh", "domfsthaw", guest.name], timeout_seconds=60, check=True)
    with Guest(lab, "mute", "--disks", "1", "--memory", "128") as mute:
        before = volumes(lab)
        refused = snapvm(lab, "take", mute.name, "--quiesce", status=4)
        assert "no channel" in refused.stderr and volumes(lab) == before
