"""The guard's own process, as it is really started."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from snapvm.cli import wiring
from snapvm.guard import watching
from snapvm.model import Domain, DomainState, HypervisorKind
from snapvm.process import ShRunner
from snapvm.refusals import HostLacks
from snapvm.settings import Settings
from tests.fakes.scene import DOMAIN, UUID


def test_it_runs_nothing_of_the_folder_it_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may stand in a folder that anybody can write to."""
    trap = "open('trapped', 'w').close()\n"
    for name in ("syslog", "signal", "dataclasses", "json", "snapvm", "sh", "site"):
        (tmp_path / f"{name}.py").write_text(trap)
    monkeypatch.chdir(tmp_path)
    domain = Domain(
        name=DOMAIN,
        uuid=UUID,
        hypervisor=HypervisorKind.LIBVIRT,
        state=DomainState.RUNNING,
        memory_bytes=1 << 20,
        vcpus=1,
        definition="<domain/>",
    )
    settings = Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    command = wiring.guard_command(settings, domain)
    # A host without a hypervisor: the guard comes up, and says that it cannot watch.
    with suppress(HostLacks), watching(ShRunner(), command) as guard:
        guard.wait_until_ready()
    assert not (tmp_path / "trapped").exists()
