"""The part of QEMU's monitor that keeps migration settings, and who is lent them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snapvm.hypervisor.libvirtlink import LibvirtFailed
from snapvm.hypervisor.qemusettings import Lender, MigrationSettings

WANTED = MigrationSettings(
    capabilities=("pause-before-switchover",), parameters={"downtime-limit": 100}
)


class FakeQemu:
    """The part of QEMU's monitor that keeps migration settings."""

    def __init__(self) -> None:
        self.capabilities = {
            "events": True,
            "xbzrle": True,
            "pause-before-switchover": False,
            "background-snapshot": False,
        }
        self.parameters = {"downtime-limit": 300, "max-bandwidth": 1 << 27, "tls-creds": ""}
        self.blocked: list[str] = []
        self.is_gone = False
        self.version = (10, 0)
        self.run_state = "running"

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        given = dict(arguments or {})
        if self.is_gone:
            raise LibvirtFailed("domain is not running", 55)
        if command.startswith("query-"):
            return self.told(command)
        if command == "migrate_cancel":
            return {}
        if command == "migrate-set-capabilities":
            wanted = {entry["capability"]: entry["state"] for entry in given["capabilities"]}
            if wanted.get("background-snapshot") and wanted.get("xbzrle"):
                raise LibvirtFailed("QEMU: they do not go together", -1)
            assert wanted.keys() == self.capabilities.keys(), "not the full list"
            self.capabilities |= wanted
            return {}
        assert command == "migrate-set-parameters"
        self.parameters |= given
        return {}

    def told(self, query: str) -> Any:
        return {
            "query-migrate-capabilities": [
                {"capability": name, "state": is_on} for name, is_on in self.capabilities.items()
            ],
            "query-migrate": {"blocked-reasons": self.blocked} if self.blocked else {},
            "query-migrate-parameters": dict(self.parameters),
            "query-version": {"qemu": dict(zip(("major", "minor"), self.version, strict=True))},
            "query-status": {"status": self.run_state},
        }[query]


def lender(qemu: FakeQemu, tmp_path: Path, run: str = "7") -> Lender:
    return Lender(
        monitor=qemu,
        domain="demo",
        file=tmp_path / "run" / "uuid.qemu",
        run=run,
        is_over=lambda: qemu.is_gone,
    )


def killed(qemu: FakeQemu, whole: Lender) -> None:
    """Leave QEMU as a snapvm does that is killed while it has it set."""
    with whole.lent(WANTED):
        note = whole.file.read_bytes()
        state = copy.deepcopy((qemu.capabilities, qemu.parameters))
    whole.file.write_bytes(note)
    qemu.capabilities, qemu.parameters = state
