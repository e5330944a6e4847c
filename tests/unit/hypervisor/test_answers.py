"""Looking at files, and at libvirt, in threads: a host that has no room for one is called so."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from snapvm.hypervisor import answers, libvirtlink
from snapvm.refusals import HostLacks
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.libvirtd import Libvirtd
from tests.fakes.lvm import FakeLvm


@pytest.fixture(autouse=True)
def _full(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_a_look_with_a_limit_says_that_there_is_no_thread() -> None:
    with pytest.raises(HostLacks, match="one more thread"):
        answers.within(1.0, lambda: None)


def test_a_look_at_many_files_says_that_there_is_no_thread() -> None:
    with pytest.raises(HostLacks, match="one more thread"):
        answers.asked(Path.exists, [Path("/")])


def test_a_link_to_libvirt_says_that_there_is_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirtlink, "libvirt", Libvirtd(FakeHypervisor(FakeLvm())).module)
    with pytest.raises(HostLacks, match="one more thread"):
        libvirtlink.open_link("qemu:///system")
