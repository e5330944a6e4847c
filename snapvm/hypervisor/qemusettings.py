"""What QEMU's migration is set to: lent for one capture and put back, after a crash too.

libvirt sets only the capabilities it knows before its own jobs, and some parameters never: what is
left on makes the next ``virsh save`` fail, or slow.  So what there was before is in a file as long
as it is not put back; ``put_back`` finds it there when whoever lent it is dead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from snapvm import durable, locking
from snapvm.hypervisor import qemurun
from snapvm.hypervisor.libvirtlink import LibvirtFailed, looked_up_again, spoken
from snapvm.hypervisor.qmp import Qmp
from snapvm.model import Domain, DomainUuid

FILE_ENDING = ".qemu"
_LONGEST_BYTES = 64 << 10
_WAIT_SECONDS = 10.0
"""`snapvm doctor` borrows them for a moment, to see whether QEMU could."""


class Monitor(Protocol):
    """What is needed of ``Qmp``."""

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a command and return what it returns; raise ``LibvirtFailed``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationSettings:
    """Capabilities that are on, all others being off, and parameters, in QEMU's units."""

    capabilities: tuple[str, ...]
    parameters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lender:
    """The QEMU process of a domain, and the file that remembers what it was set to."""

    monitor: Monitor
    domain: str
    file: Path
    run: str
    """Which run of the domain it is: the settings of another QEMU are not this one's."""
    is_over: Callable[[], bool]
    """Tells whether that run has ended."""

    @contextmanager
    def lent(
        self, wanted: MigrationSettings, first: Callable[[], object] = lambda: None
    ) -> Iterator[None]:
        """Have QEMU set so for the block; what was set before is set again afterwards.

        ``first`` does what QEMU needs for it: who finds the note knows that it may have been done.
        Raises ``LibvirtFailed`` when QEMU cannot do it, and ``OSError``; nothing is changed then.
        ``Locked`` while somebody else has it set.
        """
        durable.make_folder(self.file.parent)
        with self._alone():
            self._put_back_if_noted()
            before = self._remembered(wanted)
            with self._putting_back(before):
                first()
                self._set(self._only(before, wanted.capabilities), wanted.parameters)
                yield

    def is_lent(self) -> bool:
        """Whether somebody who died left QEMU set otherwise, or somebody alive has."""
        return self._note() is not None

    def put_back(self) -> None:
        """Set QEMU as it was before somebody who died; harmless when nobody did."""
        if self.file.exists():
            with self._alone():
                self._put_back_if_noted()

    def _remembered(self, wanted: MigrationSettings) -> dict[str, Any]:
        """Return what there is now, written down before anything is changed."""
        before = {
            "run": self.run,
            "capabilities": self._capabilities(),
            "parameters": self._parameters(wanted.parameters),
        }
        durable.write(self.file, json.dumps(before).encode(), known_as="settings of QEMU")
        return before

    @staticmethod
    def _only(before: Mapping[str, Any], names: Sequence[str]) -> dict[str, bool]:
        """Return the whole list; ``events`` is libvirt's own and stays."""
        return {
            name: name in names or (name == "events" and is_on)
            for name, is_on in before["capabilities"].items()
        }

    @contextmanager
    def _putting_back(self, before: Mapping[str, Any]) -> Iterator[None]:
        """Put back at the end; a QEMU that is gone does not hide why the block failed."""
        has_failed = True
        try:
            yield
            has_failed = False
        finally:
            try:
                self._put_back(before)
            except LibvirtFailed:
                if self.is_over():
                    self.file.unlink(missing_ok=True)
                if not has_failed:
                    raise

    def _put_back_if_noted(self) -> None:
        before = self._note()
        if before is not None:
            self._put_back(before)
        self.file.unlink(missing_ok=True)

    def _alone(self) -> AbstractContextManager[None]:
        lock = self.file.with_suffix(f"{FILE_ENDING}.lock")
        return locking.locked(lock, self.domain, wait_seconds=_WAIT_SECONDS)

    def _put_back(self, before: Mapping[str, Any]) -> None:
        self._set(before["capabilities"], before["parameters"])
        self.file.unlink(missing_ok=True)

    def _note(self) -> dict[str, Any] | None:
        """Return what there was before, when it belongs to this run of the domain."""
        try:
            before = json.loads(durable.read(self.file, _LONGEST_BYTES))
        except (OSError, ValueError):
            return None
        is_ours = isinstance(before, dict) and before.get("run") == self.run
        return before if is_ours else None

    def _capabilities(self) -> dict[str, bool]:
        listed = self.monitor.execute("query-migrate-capabilities")
        return {entry["capability"]: bool(entry["state"]) for entry in listed}

    def _parameters(self, names: Mapping[str, int]) -> dict[str, int]:
        current = self.monitor.execute("query-migrate-parameters") if names else {}
        return {name: current[name] for name in names if name in current}

    def _set(self, capabilities: Mapping[str, bool], parameters: Mapping[str, int]) -> None:
        listed = [{"capability": name, "state": is_on} for name, is_on in capabilities.items()]
        self.monitor.execute("migrate-set-capabilities", {"capabilities": listed})
        if parameters:
            self.monitor.execute("migrate-set-parameters", dict(parameters))


def noted(run_dir: Path) -> tuple[DomainUuid, ...]:
    """Return the domains whose QEMU somebody has set, or had when he died."""
    return tuple(DomainUuid(file.stem) for file in sorted(run_dir.glob(f"*{FILE_ENDING}")))


def lender(domain: Domain, handle: Any | None, run_dir: Path) -> Lender:
    """Return the lender of a domain, whose file is in snapvm's folder for such.

    Of one that does not run, or that libvirt does not know any more, it only ever forgets.
    """
    run = None if handle is None else qemurun.of(handle)

    def is_over() -> bool:
        try:
            with spoken():
                return qemurun.of(looked_up_again(handle, domain.uuid)) != run
        except LibvirtFailed as failure:
            return failure.is_unknown_domain

    return Lender(
        monitor=Qmp(handle),
        domain=domain.name,
        file=run_dir / f"{domain.uuid}{FILE_ENDING}",
        run=run or "",
        is_over=is_over,
    )
