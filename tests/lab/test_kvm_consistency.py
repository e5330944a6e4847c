"""The promise itself, on real LVM, libvirt and KVM: memory and disks of one instant, any time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.guests import Guest, snapvm, volumes
from tests.lab.vm import Lab

pytestmark = pytest.mark.lab

ROUNDS = 2
"""How often the promise is tried on every change; the long run does it twenty times."""
LONG_ROUNDS = 20


@pytest.fixture(scope="module")
def guest(kvm_lab: Lab) -> Iterator[Guest]:
    """A running domain with a thick disk in one volume group and a thin one in another."""
    options = ("--disks", "2", "--vg", "vg0,vg1", "--kind", "thick,thin", "--memory", "128")
    with Guest(kvm_lab, "oracle", *options) as guest:
        yield guest


@pytest.mark.parametrize(
    "rounds", [ROUNDS, pytest.param(LONG_ROUNDS, marks=pytest.mark.long)], ids=["few", "twenty"]
)
def test_takes_each_rolled_back(guest: Guest, rounds: int) -> None:
    """RAM and both disks agree to one step after every rollback, and it goes on counting."""
    back = guest.look()
    for _ in range(rounds):
        before = guest.wait_until(back.n + 20)
        assert before.state == "ok", before
        record = guest.take()
        assert guest.say("damage").endswith("damaged")
        guest.roll_back(record["id"])
        back = guest.look()
        assert back.state == "ok", back
        assert back.n >= before.n
    assert guest.wait_until(back.n + 20).state == "ok"
    guest.delete_all()
    assert volumes(guest.lab) == set()


def test_the_pool_stays_monitored(guest: Guest) -> None:
    """No word is said to dmeventd in the window; it goes on watching, or no pool would grow."""
    ask = "lvs --noheadings -o seg_monitor vg1/pool"
    assert guest.lab.run(ask, timeout_seconds=60, check=True).stdout.strip() == "monitored"
    guest.take("--disk-only", "--name", "monitored")
    assert guest.lab.run(ask, timeout_seconds=60, check=True).stdout.strip() == "monitored"


def test_the_oracle_sees_a_missing_pause(guest: Guest) -> None:
    """Negative control: the same, with the pause taken out, must come back torn."""
    script = "PYTHONPATH=/snapvm python3 -m tests.lab.no_pause oracle"
    done = guest.lab.run(script, timeout_seconds=240, check=True)
    assert "did not stand still" in done.stdout
    guest.roll_back(done.stdout.split("@")[-1].strip())
    assert guest.wait_until(10**9).state.startswith("torn")


@pytest.mark.long
def test_twice_the_same_then_older_then_newer(kvm_lab: Lab) -> None:
    """Any snapshot, any number of times, in any order."""
    with Guest(kvm_lab, "order", "--disks", "2", "--memory", "128") as guest:
        seen = {}
        for name in ("old", "new"):
            guest.wait_until(guest.look().n + 10)
            seen[name] = guest.look().n
            guest.take("--name", name)
        for name in ("new", "new", "old", "new"):
            guest.wait_until(guest.look().n + 10)
            guest.roll_back(name, "--paused")
            assert guest.state() == "paused"
            disks = kvm_lab.run(
                "pulse-disk /dev/vg0/order-d0; pulse-disk /dev/vg0/order-d1",
                timeout_seconds=60,
                check=True,
            ).stdout.split()
            kvm_lab.run(["virsh", "resume", "order"], timeout_seconds=60, check=True)
            back = guest.look()
            assert back.state == "ok", back
            first, second = (int(text) for text in disks)
            assert second <= first <= second + 1
            assert seen[name] <= first + 1
            if name == "old":
                assert first < seen["new"]


def test_the_image_is_restored_by_virsh_alone(kvm_lab: Lab) -> None:
    """The saved memory starts without snapvm, with the run flag set and no option given."""
    with Guest(kvm_lab, "plain", "--disks", "1", "--memory", "128") as guest:
        record = guest.take()
        guest.say("damage")
        disk = record["disks"][0]
        snapshot = f"{disk['snapshot']['vg']}/{disk['snapshot']['lv']}"
        folder = f"/var/lib/snapvm/domains/{record['domain']['uuid']}/{record['id']}"
        script = f"""
            set -e
            virsh destroy plain
            lvremove -qq -y vg0/plain-d0
            lvcreate -qq -s -kn -prw -n plain-d0 {snapshot}
            lvchange -ay -K vg0/plain-d0
            virsh restore {folder}/memory.save
        """
        kvm_lab.run(script, timeout_seconds=240, check=True)
        assert guest.state() == "running"
        back = guest.look()
        assert back.state == "ok"
        assert guest.wait_until(back.n + 20).state == "ok"


def test_a_paused_domain_stays_paused(kvm_lab: Lab) -> None:
    """One that its owner had paused is captured and still paused, and so after a rollback."""
    with Guest(kvm_lab, "owner", "--disks", "1", "--memory", "128") as guest:
        kvm_lab.run(["virsh", "suspend", "owner"], timeout_seconds=60, check=True)
        record = guest.take()
        assert guest.state() == "paused"
        guest.roll_back(record["id"])
        assert guest.state() == "paused"
        kvm_lab.run(["virsh", "resume", "owner"], timeout_seconds=60, check=True)
        back = guest.look()
        assert guest.wait_until(back.n + 20).state == "ok"


def test_a_domain_that_libvirt_has_forgotten(kvm_lab: Lab) -> None:
    """It comes back from its image, transient; a snapshot of its disks says what is missing."""
    with Guest(kvm_lab, "forgotten", "--disks", "2", "--memory", "128") as guest:
        taken = guest.take()["id"]
        guest.say("damage")
        forget = "virsh undefine forgotten && virsh destroy forgotten && ! virsh dominfo forgotten"
        kvm_lab.run(forget, timeout_seconds=60, check=True)
        said = guest.roll_back(taken).stderr
        assert "libvirt has no definition of the domain" in said, said
        back = guest.look()
        assert guest.wait_until(back.n + 20).state == "ok"
        kvm_lab.run(["virsh", "destroy", "forgotten"], timeout_seconds=60, check=True)
        undone = snapvm(kvm_lab, "undo", "forgotten", "--yes", status=4).stderr
        assert "virsh define" in undone, undone


def test_a_domain_that_is_off_gives_its_disks(kvm_lab: Lab) -> None:
    """Said everywhere: no memory; unless it went off with its capture."""
    with Guest(kvm_lab, "off", "--disks", "2", "--memory", "128") as guest:
        stopped_at = guest.look().n
        guest.take("--stop", "--name", "end")
        assert guest.state() == "shut off"
        said = snapvm(kvm_lab, "take", "off", "--name", "cold").stdout
        assert "disks" in said and "shut off" in said
        assert "disks" in snapvm(kvm_lab, "list", "off").stdout
        record = snapvm(kvm_lab, "show", "off@cold").stdout
        assert "disks" in record
        before = kvm_lab.run("pulse-disk /dev/vg0/off-d0", timeout_seconds=60).stdout
        scribble = "dd if=/dev/urandom of=/dev/vg0/off-d0 bs=1M count=1 oflag=direct status=none"
        kvm_lab.run(scribble, timeout_seconds=90, check=True)
        guest.roll_back("cold")
        assert guest.state() == "shut off"
        after = kvm_lab.run("pulse-disk /dev/vg0/off-d0", timeout_seconds=60).stdout
        assert after == before
        guest.roll_back("end")
        back = guest.look()
        assert back.state == "ok" and back.n >= stopped_at
        assert guest.wait_until(back.n + 20).state == "ok"
