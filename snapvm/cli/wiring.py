"""Putting the parts of a command together; imported only by commands that contact the host."""

from __future__ import annotations

from snapvm.catalog import Catalog
from snapvm.cli.session import Session
from snapvm.host import Host
from snapvm.hypervisor.detect import open_driver
from snapvm.lvm.volumes import Lvm
from snapvm.process import ShRunner
from snapvm.settings import Settings


def open_host(settings: Settings, session: Session | None = None) -> Host:
    """Return the drivers, the catalog and the settings of this call.

    ``session`` learns where the last commands are kept, for a failure report.  Raises
    ``HostLacks`` when no hypervisor answers.
    """
    runner = ShRunner()
    if session is not None:
        session.last_commands = runner.recorder
    return Host(
        hypervisor=open_driver(settings, runner),
        lvm=Lvm(runner),
        catalog=Catalog(settings.state_dir, settings.run_dir),
        settings=settings,
    )
