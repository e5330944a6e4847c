"""What a command works with; ``snapvm.cli.wiring`` puts it together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from snapvm.catalog import Catalog
from snapvm.guard import Guard
from snapvm.hypervisor.base import Hypervisor
from snapvm.lvm.volumes import Lvm
from snapvm.model import Domain
from snapvm.settings import Settings

Guarded = Callable[[Domain], AbstractContextManager[Guard]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The drivers of this host, its records and its settings."""

    hypervisor: Hypervisor
    lvm: Lvm
    catalog: Catalog
    settings: Settings
    guarded: Guarded
    """Makes a guard watch a domain during a block; see ``snapvm.guard``."""
