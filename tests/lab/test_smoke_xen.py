"""The Xen flavour is what it claims to be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import recipe
from tests.lab.guests import Guest
from tests.lab.vm import Lab
from tests.lab.xenguests import verify_stream

CTYPES_SCRIPT = f"""
import ctypes
control = ctypes.CDLL("libxenctrl.so.{recipe.CHOSEN.xen}", use_errno=True)
control.xc_interface_open.restype = ctypes.c_void_p
control.xc_interface_open.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint]
control.xc_version.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
handle = control.xc_interface_open(None, None, 0)
assert handle
print(hex(control.xc_version(handle, 0, None)))
"""


@pytest.fixture(scope="module")
def guest(xen_lab: Lab) -> Iterator[Guest]:
    """A running paravirtual domain with two thin disks."""
    with Guest(xen_lab, "smoke", "--disks", "2") as guest:
        yield guest


def test_xen_answers(xen_lab: Lab) -> None:
    done = xen_lab.run("xl info", timeout_seconds=60, check=True)
    assert "xen-3.0-x86_64" in done.stdout


def test_python_reaches_libxenctrl(xen_lab: Lab) -> None:
    done = xen_lab.run(["python3", "-"], timeout_seconds=60, input=CTYPES_SCRIPT, check=True)
    major, minor = map(int, recipe.CHOSEN.xen.split("."))
    assert done.stdout.strip() == hex(major << 16 | minor)


def test_paravirtual_domain_counts(guest: Guest) -> None:
    seen = guest.wait_until(guest.look().n + 10)
    assert seen.state == "ok"
    done = guest.lab.run(["pulse-disk", "/dev/vg0/smoke-d1"], timeout_seconds=60, check=True)
    assert int(done.stdout) >= seen.n - 1


@pytest.mark.long
def test_checkpoint_of_the_stock_saver_is_whole_and_the_domain_goes_on(guest: Guest) -> None:
    before = guest.look()
    guest.lab.run("xl save -c smoke /var/tmp/image", timeout_seconds=120, check=True)
    assert verify_stream(guest.lab, "/var/tmp/image").status == 0
    assert guest.wait_until(before.n + 10).state == "ok"
