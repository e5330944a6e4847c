"""Change QEMU's migration settings for one capture, and put them back, also after a crash.

Before its own jobs libvirt sets only the capabilities that it knows, and some parameters never, so
a setting that stays changed makes the next ``virsh save`` fail, or slow.  The former settings are
in a file until they are put back; after a crash ``put_back`` finds them there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from snapvm import durable, locking, retry
from snapvm.hypervisor import qemurun
from snapvm.hypervisor.libvirtlink import LibvirtFailed, looked_up_again, spoken
from snapvm.hypervisor.qmp import Qmp
from snapvm.interrupt import shielded
from snapvm.model import Domain, DomainUuid

FILE_ENDING = ".qemu"
_LONGEST_BYTES = 64 << 10
_WAIT_SECONDS = 10.0
"""How long to wait for another snapvm, such as a `doctor` that needs them for a moment."""


class Monitor(Protocol):
    """The part of ``Qmp`` that is needed here."""

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a command and return what it returns; raise ``LibvirtFailed``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationSettings:
    """The capabilities to switch on, all others being off, and parameters in QEMU's units."""

    capabilities: tuple[str, ...]
    parameters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lender:
    """The QEMU process of a domain, and the file with its former settings."""

    monitor: Monitor
    domain: str
    file: Path
    run: str
    """Identifies the run of the domain, because another QEMU has other settings."""
    is_over: Callable[[], bool]
    """Tells whether that run has ended."""

    @contextmanager
    def lent(
        self, wanted: MigrationSettings, first: Callable[[], object] = lambda: None
    ) -> Iterator[None]:
        """Change QEMU's settings for the block, and put the former ones back afterwards.

        ``first`` is called when the former settings are in the file, and before they are changed.
        Raises ``LibvirtFailed`` when QEMU does not support the settings, and ``OSError``; nothing
        is changed then.  Raises ``Locked`` while another snapvm has them changed.
        """
        durable.make_folder(self.file.parent)
        with self._alone():
            self._put_back_if_noted()
            before = self._asked(wanted)
            with self._putting_back(before):
                self._note_down(before)
                first()
                self._set(self._only(before, wanted.capabilities), wanted.parameters)
                yield

    def is_lent(self) -> bool:
        """Tell whether QEMU's settings are changed, by a snapvm that is at work or died."""
        return self._note() is not None

    def put_back(self) -> None:
        """Put back the settings that a dead snapvm has changed; harmless when there are none."""
        if self.file.exists():
            with self._alone():
                self._put_back_if_noted()

    def _asked(self, wanted: MigrationSettings) -> dict[str, Any]:
        """Return the present settings."""
        return {
            "run": self.run,
            "capabilities": self._capabilities(),
            "parameters": self._parameters(wanted.parameters),
        }

    def _note_down(self, before: Mapping[str, Any]) -> None:
        durable.write(self.file, json.dumps(before).encode(), known_as="settings of QEMU")

    @staticmethod
    def _only(before: Mapping[str, Any], names: Sequence[str]) -> dict[str, bool]:
        """Return the whole list of capabilities; ``events`` is libvirt's own and stays."""
        return {
            name: name in names or (name == "events" and is_on)
            for name, is_on in before["capabilities"].items()
        }

    @contextmanager
    def _putting_back(self, before: Mapping[str, Any]) -> Iterator[None]:
        """Put the settings back at the end; if QEMU is gone, the failure of the block is raised.

        What the block has made is not given up for a libvirtd that is just restarted.
        """
        has_failed = True
        try:
            yield
            has_failed = False
        finally:
            with shielded():
                try:
                    self._put_back(before)
                except LibvirtFailed:
                    if self.is_over():
                        self.file.unlink(missing_ok=True)
                        if not has_failed:
                            raise
                    elif not has_failed:
                        retry.libvirtd(lambda: self._put_back(before))

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
        """Return the settings in the file if they belong to this run of the domain, else None.

        Raises ``OSError`` for a file that may be whole: without it nobody could put them back.
        """
        try:
            before = json.loads(durable.read(self.file, _LONGEST_BYTES))
        except (FileNotFoundError, ValueError):
            return None
        except OSError as error:
            if not durable.is_of_file(error):
                raise
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
    """Return the domains whose QEMU's settings are changed, or were when a snapvm died."""
    return tuple(DomainUuid(file.stem) for file in sorted(run_dir.glob(f"*{FILE_ENDING}")))


def lender(domain: Domain, handle: Any | None, run_dir: Path) -> Lender:
    """Return the lender of a domain, with its file in ``run_dir``.

    For a domain that does not run, or that is unknown to libvirt, it can only remove the file.
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
