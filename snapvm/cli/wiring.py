"""Putting the parts of a command together; imported only by commands that contact the host."""

from __future__ import annotations

import sys
from pathlib import Path

import snapvm
from snapvm.catalog import Catalog
from snapvm.cli.session import Session
from snapvm.guard import watching
from snapvm.host import Host
from snapvm.hypervisor.detect import open_driver
from snapvm.lvm.volumes import Lvm
from snapvm.model import Domain
from snapvm.process import ShRunner
from snapvm.settings import Settings

_BOOT = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from snapvm.cli import guard; guard.main()"
)


def guard_command(settings: Settings, domain: Domain) -> tuple[str, ...]:
    """Return the command line that starts a guard with this very snapvm and these settings."""
    root = str(Path(snapvm.__path__[0]).parent)
    cache = ("-X", f"pycache_prefix={sys.pycache_prefix}") if sys.pycache_prefix else ()
    return (
        sys.executable,
        *cache,
        # Else modules of the current folder, whosever it is, come before Python's own (-c).
        "-P",
        "-c",
        _BOOT,
        root,
        str(settings.state_dir),
        str(settings.run_dir),
        settings.libvirt_uri,
        domain.uuid,
        domain.name,
    )


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
        catalog=Catalog(
            settings.state_dir, settings.run_dir, wait_seconds=settings.lock_wait_seconds
        ),
        settings=settings,
        guarded=lambda domain: watching(runner, guard_command(settings, domain)),
    )
