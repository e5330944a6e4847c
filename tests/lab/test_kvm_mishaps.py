"""What befalls the host in the middle of a take: libvirtd, QEMU, lvm, the disk, the power.

snapvm is stopped inside the window, while the domain stands still; then it happens.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import deaths
from tests.lab.deaths import Way
from tests.lab.guests import snapvm
from tests.lab.patient import DYING, KEPT, NAME, Patient, Verb, patient
from tests.lab.vm import Completed, Lab

pytestmark = [pytest.mark.lab, pytest.mark.long]

IN_WINDOW = "after suspend 1"
SMALL = "/var/tmp/small"
TAKE_THERE = ["snapvm", "--state-dir", SMALL, "take", NAME]


@pytest.fixture(scope="module")
def subject(kvm_lab: Lab) -> Iterator[Patient]:
    """A running domain with a thick disk and a thin one, and one snapshot."""
    with patient(kvm_lab, "mixed") as subject:
        yield subject


@pytest.fixture(autouse=True)
def _prepared(subject: Patient) -> None:
    subject.prepare(Verb.TAKE)


def befall(subject: Patient, deed: str, argv: list[str] | None = None) -> Completed:
    """Let something happen inside the window of a take, which goes on then."""
    argv = argv or Verb.TAKE.argv
    done = deaths.at_point(subject.lab, argv, IN_WINDOW, f"{deed}\nkill -CONT $p")
    assert done.status != deaths.NEVER_CAME, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    print(f"status {done.status}: {done.stderr}")
    return done


def script(subject: Patient, text: str) -> str:
    done = subject.lab.run(text, timeout_seconds=120)
    assert done.status == 0, done.stdout + done.stderr
    return done.stdout


def test_libvirtd_is_restarted(subject: Patient) -> None:
    """snapvm's connection is lost with the domain paused: it, or the guard, connects anew."""
    restart = "pkill -x libvirtd; while pgrep -x libvirtd; do sleep 0.1; done >&2; libvirtd -d"
    done = befall(subject, restart)
    assert done.status in (0, 6), done
    subject.look_over(Way.SNAPVM)


def test_lvm_hangs(subject: Patient) -> None:
    """The domain runs again when the limit is over; what lvm does afterwards is cleaned away."""
    limit = ["env", "SNAPVM_WINDOW_LIMIT_SECONDS=5"]
    done = befall(subject, "pkill -STOP -x lvm", [*limit, *Verb.TAKE.argv])
    assert done.status in (6, 7), done
    assert subject.guest.state() == "running"
    script(subject, "pkill -CONT -x lvm; while pgrep -x lvm; do sleep 0.2; done >&2")
    subject.look_over(Way.SNAPVM)
    assert DYING not in subject.guest.ids()


def test_the_file_system_of_images_gets_full(subject: Patient) -> None:
    script(subject, f"mkdir -p {SMALL} && mount -t tmpfs -o size=400m small {SMALL}")
    try:
        done = befall(subject, f"head -c 600M /dev/zero >{SMALL}/filler", TAKE_THERE)
        assert done.status == 6, done
        assert "No space left" in done.stderr and "hint:" in done.stderr
        script(subject, f"[ -z \"$(find {SMALL} -name '*.json' -o -name 'memory*')\" ]")
    finally:
        subject.lab.run(f"umount -l {SMALL}", timeout_seconds=60)
    subject.look_over(Way.INT)


def test_the_disk_of_images_fails(subject: Patient) -> None:
    """EIO: refused to the last byte; when the disk is back, repair finds what is left."""
    script(
        subject,
        "lvcreate -qq -y -Wn -L 512m -n images vg0 && mkfs.ext4 -q /dev/vg0/images\n"
        "dmsetup create failing --table "
        '"0 1048576 linear /dev/vg0/images 0"\n'
        f"mkdir -p {SMALL} && mount /dev/mapper/failing {SMALL}",
    )
    fail = (
        "dmsetup suspend --noflush --nolockfs failing\n"
        "dmsetup load failing --table '0 1048576 error'; dmsetup resume failing"
    )
    try:
        done = befall(subject, fail, TAKE_THERE)
        assert done.status in (6, 7), done
        assert subject.guest.state() == "running"
        script(
            subject,
            f"umount {SMALL}; dmsetup suspend --noflush --nolockfs failing\n"
            "dmsetup load failing --table '0 1048576 linear /dev/vg0/images 0'\n"
            f"dmsetup resume failing; mount /dev/mapper/failing {SMALL}\n"
            f"snapvm --state-dir {SMALL} repair && snapvm --state-dir {SMALL} list --json >&2",
        )
    finally:
        away = f"umount {SMALL}; dmsetup remove failing; lvremove -qq -y vg0/images"
        subject.lab.run(away, timeout_seconds=60)
    subject.look_over(Way.INT)


def test_qemu_is_killed(subject: Patient) -> None:
    """Nobody can resume it: the failure says so, nothing of ours is left, and it starts again."""
    done = befall(subject, f"pkill -KILL -f 'guest={NAME},'")
    assert done.status in (6, 8), done
    snapvm(subject.lab, "repair")
    assert subject.guest.ids() == [KEPT]
    subject.guest.roll_back(KEPT)
    subject.look_over(Way.INT)


def test_the_power_fails(subject: Patient) -> None:
    """After the reboot the journal is there: repair takes the set back, and the rest is whole."""
    remote = subject.lab.start(
        ["bash", "-c", deaths.STOPPED, "deaths", "echo stopped; sleep 100", *Verb.TAKE.argv],
        timeout_seconds=200,
        env={"SNAPVM_CRASH": "after lvm lvconvert 1:STOP"},
    )
    script(
        subject, "for i in $(seq 300); do pgrep -f 'sleep 10[0]' && exit; sleep 0.2; done; exit 1"
    )
    subject.lab.power_cut()
    del remote
    subject.lab.boot()
    said = snapvm(subject.lab, "repair").stdout
    assert "took back the unfinished snapshot" in said, said
    assert subject.guest.ids() == [KEPT]
    subject.guest.roll_back(KEPT)
    subject.forget_settings()
    subject.look_over(Way.INT)
