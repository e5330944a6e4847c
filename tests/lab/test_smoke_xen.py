"""The Xen flavour is what it claims to be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.asserts import assert_counts_on
from tests.lab.vm import Lab

CTYPES_SCRIPT = """
import ctypes
control = ctypes.CDLL("libxenctrl.so.4.20", use_errno=True)
control.xc_interface_open.restype = ctypes.c_void_p
control.xc_interface_open.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint]
control.xc_version.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
handle = control.xc_interface_open(None, None, 0)
assert handle
print(hex(control.xc_version(handle, 0, None)))
"""


@pytest.fixture(scope="module")
def domain(xen_lab: Lab) -> Iterator[str]:
    """A running paravirtual domain with two thin disks."""
    xen_lab.run("lab-domain create smoke --disks 2 --start", timeout_seconds=180, check=True)
    yield "smoke"
    xen_lab.run("lab-domain destroy smoke", timeout_seconds=180, check=True)


def test_xen_answers(xen_lab: Lab) -> None:
    done = xen_lab.run("xl info", timeout_seconds=60, check=True)
    assert "xen-3.0-x86_64" in done.stdout


def test_python_reaches_libxenctrl(xen_lab: Lab) -> None:
    done = xen_lab.run(["python3", "-"], timeout_seconds=60, input=CTYPES_SCRIPT, check=True)
    assert done.stdout.strip() == "0x40014"


def test_paravirtual_domain_counts(xen_lab: Lab, domain: str) -> None:
    seen = assert_counts_on(xen_lab, domain)
    argv = ["pulse-disk", f"/dev/vg0/{domain}-d1"]
    assert int(xen_lab.run(argv, timeout_seconds=60, check=True).stdout) >= seen.n - 1


def test_checkpoint_of_the_stock_saver_is_whole_and_the_domain_goes_on(
    xen_lab: Lab, domain: str
) -> None:
    before = assert_counts_on(xen_lab, domain)
    xen_lab.run(f"xl save -c {domain} /var/tmp/image", timeout_seconds=120, check=True)
    verify = "python3 /usr/lib/xen-4.20/bin/verify-stream-v2 -f xl -i /var/tmp/image"
    xen_lab.run(
        verify,
        timeout_seconds=180,
        check=True,
        env={"PYTHONPATH": "/usr/lib/xen-4.20/lib/python"},
    )
    assert_counts_on(xen_lab, domain, above=before.n)
