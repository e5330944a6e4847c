"""Check that this host has the processors to which a Xen domain's vCPUs are pinned.

Multithreading may have been switched off since (`smt=0`).  Xen pins no vCPU to processors of which
its pool has none, and libxl makes no such domain: xl would notice when the running one is gone
(xen.git, xen/common/sched/core.c, vcpu_set_hard_affinity; libxl_dom.c, libxl__build_pre).
"""

from __future__ import annotations

import logging
import re
import shlex

from snapvm.failures import CommandFailed, CommandTimedOut
from snapvm.hypervisor.xenconfig import Config
from snapvm.process import Runner
from snapvm.refusals import DomainRefused

_BY_DEFAULT = "Pool-0"
_NUMBERS = re.compile(r"\d+(,\d+)*")

log = logging.getLogger(__name__)


def require(runner: Runner, name: str, config: Config) -> None:
    """Raise ``DomainRefused`` for a vCPU that would be pinned to processors which are not there.

    Nothing is checked where xl does not tell which a pool has.
    """
    pinned = config["b_info"].get("vcpu_hard_affinity") or []
    if not any(pinned):
        return
    pool = str(config["c_info"].get("pool_name") or _BY_DEFAULT)
    here = _processors(runner, pool)
    for vcpu, wanted in enumerate(pinned):
        if here and wanted and here.isdisjoint(wanted):
            raise DomainRefused(
                domain=name,
                why=f"it would not start: its vCPU {vcpu} is pinned to processors "
                f"{_listed(wanted)}, and CPU pool {pool} has none of them now ({_listed(here)})",
                remedy="switch them on again (`xl info -n` shows what there is), or give the pool "
                f"one of them: xl cpupool-cpu-add {shlex.quote(pool)} {min(wanted)}",
            )


def _processors(runner: Runner, pool: str) -> frozenset[int]:
    """Return the processors of a pool; none where xl does not tell."""
    try:
        said = runner.run(["xl", "cpupool-list", "--cpus"]).stdout
    except (CommandFailed, CommandTimedOut) as why:
        log.debug("xl does not tell which processors a pool has: %r", why)
        return frozenset()
    begin = f"{pool:<19}"  # a name of 19 characters has no space behind it
    told = (line.removeprefix(begin) for line in said.splitlines() if line.startswith(begin))
    listed = next(filter(_NUMBERS.fullmatch, told), "")
    return frozenset(map(int, filter(None, listed.split(","))))


def _listed(numbers: frozenset[int] | list[int]) -> str:
    return ",".join(map(str, sorted(numbers)))
