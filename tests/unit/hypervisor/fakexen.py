"""A Xen with one domain, and the xl that works on it, as far as the driver asks them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from snapvm.failures import CommandFailed, CommandTimedOut
from snapvm.hypervisor.xen import XenHypervisor
from snapvm.hypervisor.xendomaininfo import DomainInfo
from snapvm.process import Completed
from tests.fakes.xenstored import FakeXenstored

DYING = 1
UUID = "11111111-2222-3333-4444-555555555555"
CONFIG: dict[str, Any] = {
    "c_info": {"type": "pv", "name": "web", "uuid": UUID},
    "b_info": {"max_vcpus": 1},
}
STORED = json.dumps(CONFIG)
"""The same as an image has it."""
RUNNING = DomainInfo(
    domid=5,
    uuid=UUID,
    flags=0x20,
    total_pages=256,
    shared_info_mfn=1,
    max_vcpu_id=1,
    emulated=0,
)


@dataclass
class FakeXen:
    """Stands for ``XenControl``, and for the xl that works on it."""

    store: FakeXenstored
    info_of: dict[int, DomainInfo] = field(default_factory=dict)
    width: int = 8
    lacks: int = 0
    """How many pages the guest counts on and has not."""
    libraries: Any = field(default_factory=lambda: SimpleNamespace(major=4, minor=20))
    ran: list[list[str]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    is_freeing: bool = False
    zombie_pages: int = 0
    """What a peer has mapped of a domain that is destroyed."""
    free_mib: int = 1 << 20
    command_line: str = ""
    """What it was booted with."""
    is_slow: bool = False
    """Its xl gives up waiting for what it has told Xen to do."""
    freed_at_once: int = 0
    """How many pages of a destroyed domain are free each time one looks; all when it is 0."""
    xl_seconds: float = 0.0
    """How long xl takes to make a domain."""
    pools: dict[str, tuple[int, ...]] = field(
        default_factory=lambda: {
            "Pool-0": (0, 2, 4, 6),
            "a pool of 19 letter": (8,),
            "empty": (),
        }
    )
    """The processors of each CPU pool."""

    def domains(self) -> tuple[DomainInfo, ...]:
        return tuple(self.info_of.values())

    def info(self, domid: int) -> DomainInfo | None:
        found = self.info_of.get(domid)
        if self.is_freeing and found is not None:
            left = found.total_pages - self.freed_at_once
            self.info_of[domid] = replace(found, total_pages=left)
            if left <= 0:
                self.freed_at_once = 0
                self.gone()
        return found

    def lacking_pages(self, _domid: int) -> int:
        return self.lacks

    def guest_width(self, _domid: int) -> int:
        return self.width

    def flag(self, flags: int) -> None:
        self.info_of[5] = replace(self.info_of[5], flags=flags)

    def pause(self, _domid: int) -> None:
        self.flag(8)

    def unpause(self, _domid: int) -> None:
        self.flag(0)

    def resume(self, _domid: int) -> None:
        self.flag(self.info_of[5].flags & 8)

    def run(
        self, argv: Sequence[str], *, timeout_seconds: float = 120.0, kill: bool = True
    ) -> Completed:
        self.ran.append(list(argv))
        said = ""
        if argv[1] == "list":
            said = json.dumps([{"domid": 5, "config": CONFIG}])
        elif argv[1] == "info":
            said = f"free_memory            : {self.free_mib}\n"
            said += f"xen_commandline        : {self.command_line}\nxend_config_format : 4\n"
        elif argv[1] == "cpupool-list":
            said = "Name               CPU list\n" + "".join(
                f"{name:<19}{','.join(map(str, cpus))}\n" for name, cpus in self.pools.items()
            )
        elif argv[1] == "destroy":
            if self.freed_at_once:
                self.is_freeing = True
                raise CommandTimedOut(argv=tuple(argv), seconds=timeout_seconds)
            self.gone()
        elif argv[-1] == "/bad":
            raise CommandFailed(argv=tuple(argv), status=3, stderr="no such image")
        elif self.xl_seconds > timeout_seconds:
            raise CommandTimedOut(argv=tuple(argv), seconds=timeout_seconds)
        else:
            if argv[1] == "create":
                self.texts.append(Path(argv[-1]).read_text())
            self.come(flags=8 if "-p" in argv else 0)
        return Completed(argv=tuple(argv), status=0, stdout=said, stderr="", seconds=0)

    def gone(self) -> None:
        former, self.is_freeing = self.info_of.pop(5), False
        if self.zombie_pages:
            self.info_of[5] = replace(former, flags=DYING, total_pages=self.zombie_pages)
        self.store.values.clear()
        if self.is_slow:
            raise CommandTimedOut(argv=("xl", "destroy", "5"), seconds=120)

    def come(self, flags: int = 0) -> None:
        self.info_of.clear()
        self.info_of[5] = replace(RUNNING, flags=flags)
        self.store.values["/local/domain/5/name"] = "web"
        self.store.values["/local/domain/5/control/feature-suspend"] = "1"


Scene = tuple[FakeXen, XenHypervisor]
