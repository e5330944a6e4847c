"""A guest that holds another domain's page: the stock saver breaks it, snapvm does not."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest

from tests.lab import initrd
from tests.lab.guests import FORGET_ALL, snapvm, volumes
from tests.lab.host.share_page import GREETING
from tests.lab.image import ensure_image
from tests.lab.vm import Lab
from tests.lab.xenguests import verify_stream

pytestmark = pytest.mark.lab

NAME = "held"
IN_LAB = "cd /snapvm && PYTHONPATH=/snapvm python3 -m tests.lab.host"
START = f"""
    set -e
    lab-domain create {NAME} --disks 1 --memory 128
    cp /share/holder.initrd /var/lib/lab/
    sed -i s/pulse.initrd/holder.initrd/ /etc/xen/lab/{NAME}.cfg
    xl create -q -p /etc/xen/lab/{NAME}.cfg
    ({IN_LAB}.share_page $(xl domid {NAME}) > /run/share.ref 2>&1 & echo $! > /run/share.pid)
    until [ -s /run/share.ref ]; do sleep 0.2; done
    printf '%-512s' "$(cat /run/share.ref)" |
        dd of=/dev/vg0/{NAME}-d0 bs=512 seek=100 oflag=direct status=none
    xl unpause {NAME}
"""


@pytest.fixture(scope="module")
def held(xen_lab: Lab) -> Iterator[Lab]:
    """A running guest with the mapping."""
    (xen_lab.share / "holder.initrd").write_bytes(
        initrd.pulse_initrd(ensure_image(), initrd.HOLDER_SOURCE)
    )
    try:
        xen_lab.run(START, timeout_seconds=240, check=True)
        yield xen_lab
    finally:
        xen_lab.run(f"lab-domain destroy {NAME}; kill $(cat /run/share.pid)", timeout_seconds=120)
        xen_lab.run(FORGET_ALL, timeout_seconds=120, check=True)


def ask(lab: Lab, line: str = "?") -> dict[str, str]:
    """Return what the guest says."""
    done = lab.run(f"{IN_LAB}.holder {NAME} '{line}'", timeout_seconds=90, check=True)
    return dict(re.findall(r"(\w+)=([\w-]+)", done.stdout))


def test_the_guest_holds_the_page(held: Lab) -> None:
    deadline = time.monotonic() + 60
    said = ask(held)
    assert said["error"] == "0", said
    while said["value"] == "0" and time.monotonic() < deadline:
        said = ask(held)
    assert int(said["value"], 16) == GREETING
    assert (said["holder"], said["witness"], said["bugs"]) == ("alive", "alive", "0")


def test_the_stock_saver_loses_two_tables_and_verify_sees_it(held: Lab) -> None:
    """When this fails because nothing is lost, Xen has been mended."""
    held.run(f"xl save -c {NAME} /var/tmp/stock", timeout_seconds=120, check=True)
    assert verify_stream(held, "/var/tmp/stock").status == 0
    done = snapvm(held, "verify", "/var/tmp/stock", "--json", status=4)
    report = json.loads(done.stdout)
    assert not report["sound"]
    assert report["counts"]["TABLE_LOST"] == 2, report["counts"]
    held.run("rm /var/tmp/stock", timeout_seconds=60, check=True)


def test_but_for_the_zeroed_entries_it_is_the_image_that_xen_would_have_saved(held: Lab) -> None:
    script = f"cd /snapvm && PYTHONPATH=/snapvm python3 -m tests.lab.cross_check {NAME}"
    said = json.loads(held.run(script, timeout_seconds=240, check=True).stdout)
    assert len(said["zeroed"]) == 2 and said["lost"] == said["zeroed"], said
    assert (said["types"], said["bytes"], said["missing"], said["foreign"]) == (0, 0, 0, 2), said
    assert said["records"] and not said["differing"], said


def test_ours_has_them_with_one_entry_zeroed_each(held: Lab) -> None:
    taken = json.loads(snapvm(held, "take", NAME, "--name", "kept", "--json").stdout)
    assert sum(taken["memory"]["foreign"].values()) == 2, taken["memory"]
    shown = snapvm(held, "show", f"{NAME}@kept").stdout
    assert "2 page-table entries for frames that are not the domain's" in shown
    report = json.loads(snapvm(held, "verify", f"{NAME}@kept", "--json").stdout)
    assert report["sound"] and not report["findings"], report
    said = ask(held, "t")
    assert int(said["touched"], 16) == GREETING, said
    assert (said["holder"], said["bugs"]) == ("alive", "0")


def test_one_who_asks_for_it_has_such_a_guest_refused(held: Lab) -> None:
    before = volumes(held)
    done = snapvm(held, "take", NAME, "--foreign-ptes", "refuse", status=6)
    assert "maps 2 pages that are not its own" in done.stderr, done.stderr
    assert volumes(held) == before
    assert ask(held)["holder"] == "alive"


def test_after_a_rollback_only_the_touch_of_the_dead_mapping_fails(held: Lab) -> None:
    snapvm(held, "rollback", f"{NAME}@kept", "--yes")
    said = ask(held)
    assert (said["holder"], said["witness"], said["bugs"]) == ("alive", "alive", "0"), said
    before = int(said["count"])
    said = ask(held, "t")
    assert said["touched"] == "0"
    said = ask(held)
    assert said["holder"] == "signal-7", said
    assert (said["witness"], said["bugs"]) == ("alive", "0"), said
    assert int(said["count"]) > before
