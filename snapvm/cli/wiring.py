"""Make the parts that a command works with; imported only by commands that contact the host."""

from __future__ import annotations

from contextlib import AbstractContextManager

from snapvm.catalog import Catalog
from snapvm.cli.session import Session
from snapvm.guard import Guard
from snapvm.host import Guarded, Host
from snapvm.hypervisor.detect import open_driver
from snapvm.lvm.volumes import Lvm
from snapvm.model import Domain
from snapvm.process import ShRunner
from snapvm.settings import Settings


def unguarded(_domain: Domain) -> AbstractContextManager[Guard]:
    """See ``Host.guarded``: for commands that never pause a domain."""
    raise NotImplementedError("a command that pauses a domain needs cli.guard.guarded_host")


def open_host(
    settings: Settings, session: Session | None = None, guarded: Guarded = unguarded
) -> Host:
    """Return the drivers, the catalog and the settings of this run.

    ``session`` learns where the last commands are kept, for a bug report.  Raises ``HostLacks``
    when no hypervisor answers.
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
        guarded=guarded,
    )
