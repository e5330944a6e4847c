"""What QEMU says that is neither an answer nor an error is a failure like any other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from snapvm.hypervisor import libvirtlink, qmp
from snapvm.hypervisor.libvirtlink import LibvirtFailed
from snapvm.hypervisor.qmp import Qmp
from tests.fakes.libvirtdomain import LibvirtError


def test_an_answer_without_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(qemuMonitorCommand=lambda *_: "{}")
    monkeypatch.setattr(qmp, "libvirt_qemu", module)
    monkeypatch.setattr(libvirtlink, "libvirt", SimpleNamespace(libvirtError=LibvirtError))
    with pytest.raises(LibvirtFailed, match="neither"):
        Qmp(None).execute("query-migrate")
