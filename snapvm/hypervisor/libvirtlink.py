"""The connection to libvirt: open it, translate its errors, and listen to its events.

libvirt-python blocks in C, where Python cannot run a signal handler.  So ``wait_for`` runs a long
call in a thread, and the main thread still answers signals.
"""

from __future__ import annotations

import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

try:
    import libvirt
    import libvirt_qemu
except ImportError:  # Debian's python3-libvirt is not seen by a venv; open_link says so
    libvirt = None
    libvirt_qemu = None

from snapvm.failures import DomainFailed, HypervisorFailed
from snapvm.hypervisor import answers, libvirtunit
from snapvm.hypervisor.runevents import DEVICE_ADDED, RunEvents
from snapvm.interrupt import shielded
from snapvm.model import Domain
from snapvm.refusals import HostLacks
from snapvm.workers import start, workers

T = TypeVar("T")
TICK_SECONDS = 0.2
OPEN_SECONDS = 60.0
"""How long a libvirtd may take to answer: one that is started looks at all of its domains first."""
ALIVE_SECONDS = 20
"""A libvirtd of which nothing is heard for so long is asked whether it is there."""
ALIVE_COUNT = 5
"""A libvirtd that hangs (its event loop, not a job) has lost the connection after 120 s: that is
``ALIVE_SECONDS`` times one more than this.  It is much longer than a busy host keeps a libvirtd
waiting: one that was given up would still do what it was asked for once it goes on.
"""
PROBE_SECONDS = 120.0
"""How long libvirt may take to ask what each QEMU can do: it starts them one after the other, as
long as their packages have changed since it did so last."""
# Flags of virDomainGetXMLDesc (libvirt/libvirt-domain.h).
XML_SECURE, XML_INACTIVE, XML_MIGRATABLE = 1, 2, 8
_NO_SUCH_DOMAIN = 42
"""VIR_ERR_NO_DOMAIN (libvirt/virterror.h)."""
_NO_JOB = 0
"""VIR_DOMAIN_JOB_NONE (libvirt/libvirt-domain.h)."""
_TOLD_ELSEWHERE = 84
"""VIR_ERR_OPERATION_UNSUPPORTED (libvirt/virterror.h), where the job is a migration to this host
(qemu_driver.c, qemuDomainGetJobStatsInternal)."""


@dataclass(eq=False)
class LibvirtFailed(HypervisorFailed):
    """An error of libvirt; the driver turns it into a more exact failure where it can."""

    code: int

    def message(self) -> str:
        return self.said

    @property
    def is_unknown_domain(self) -> bool:
        """Whether the domain does not exist."""
        return self.code == _NO_SUCH_DOMAIN


@contextmanager
def spoken() -> Iterator[None]:
    """Turn libvirt's exception in the block into ``LibvirtFailed``, with its text and code."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise LibvirtFailed(
            error.get_error_message() or str(error), error.get_error_code() or 0
        ) from error


def denial(ask: Callable[[], object], *codes: int) -> LibvirtFailed | None:
    """Return libvirt's failure if its code is one of ``codes`` (libvirt/virterror.h).

    Returns None when the call succeeds, or fails in another way: then nothing is known.
    """
    try:
        with spoken():
            ask()
    except LibvirtFailed as failure:
        return failure if failure.code in codes else None
    return None


def probed(ask: Callable[[], T]) -> T:
    """Return what libvirt answers when it knows what every QEMU on this host can do.

    libvirt starts each of them to learn it, and waits for one that hangs without a limit
    (qemu_monitor.c, qemuMonitorSend).  Whatever has to know it waits as well: a domain
    could not be started.  Raises ``LibvirtFailed``, and ``HostLacks`` when there is no answer.
    """

    def asked() -> T:
        with spoken():
            return ask()

    try:
        return answers.within(PROBE_SECONDS, asked)
    except TimeoutError:
        raise HostLacks(
            what="a QEMU that tells libvirt what it can do (libvirt has been waiting for one for "
            f"{PROBE_SECONDS:g} s)",
            remedy="`pgrep -a -f /qmp.monitor` shows the one that hangs; when it is ended (kill -9 "
            "PID), libvirt goes on; domains run on",
        ) from None


def is_busy(handle: Any) -> bool:
    """Tell whether libvirt has a job on a domain: a save, a migration, a dump or a backup.

    During some of these jobs anybody can suspend the domain but nobody can resume it (libvirt,
    qemu_migration.c and qemu_snapshot.c, the jobs that are allowed beside).  Raises
    ``LibvirtFailed``.
    """
    try:
        with spoken():
            return bool(handle.jobInfo()[0] != _NO_JOB)
    except LibvirtFailed as failure:
        if failure.code == _TOLD_ELSEWHERE:
            return True
        raise


@contextmanager
def doing(deed: str, domain: Domain) -> Iterator[None]:
    """Turn a failure in the block into ``DomainFailed``: the domain could not be ``deed``."""
    try:
        with spoken():
            yield
    except LibvirtFailed as failure:
        raise DomainFailed(domain=domain.name, deed=deed, why=str(failure)) from failure


def looked_up_again(handle: Any, uuid: str) -> Any:
    """Return a new handle of the same domain, because a handle keeps the id of its look-up.

    Raises ``LibvirtFailed``.
    """
    with spoken():
        return handle.connect().lookupByUUIDString(uuid)


def raise_last_error(what: str) -> NoReturn:
    """Raise libvirt's exception for a C function that failed in this thread."""
    raise libvirt.libvirtError(what)


def _require_local(connection: Any, uri: str) -> None:
    """Raise ``HostLacks`` for a libvirt on another host, whose volumes are not here."""
    host = urlsplit(connection.getURI()).hostname
    if host:
        raise HostLacks(
            what=f"a libvirt of its own at {uri}: that one is on {host}",
            remedy="run snapvm on the host where the domain runs: it needs that host's volumes",
        )


def _opened(uri: str) -> Any:
    """Connect; raise ``LibvirtFailed``, and ``TimeoutError`` for a libvirtd that hangs.

    libvirt itself would wait for ever, and the main thread could not be interrupted.  Calls on the
    open connection would wait for ever, too, but for messages that find out whether it is alive;
    our event loop has to run for those (libvirt-host.c, virConnectSetKeepAlive).
    """

    def ask() -> Any:
        with spoken():
            connection = libvirt.open(uri)
        with suppress(LibvirtFailed), spoken():  # it is no daemon that could hang
            connection.setKeepAlive(ALIVE_SECONDS, ALIVE_COUNT)
        return connection

    return answers.within(OPEN_SECONDS, ask)


class Link:
    """A connection whose event loop runs in a thread; it is made again when it was lost."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._renewing = threading.Lock()
        libvirt.registerErrorHandler(lambda *_: None, None)
        libvirt.virEventRegisterDefaultImpl()
        start(threading.Thread(target=_run_events, name="libvirt-events", daemon=True))
        try:
            self._connection = _opened(uri)
            with spoken():
                _require_local(self._connection, uri)
        except TimeoutError:
            raise HostLacks(
                what=f"a libvirt that answers at {uri} (it has been silent for {OPEN_SECONDS:g} s)",
                remedy=f"see `{libvirtunit.looking()}`; domains run on while it is restarted",
            ) from None
        except LibvirtFailed as failure:
            raise HostLacks(
                what=f"a libvirt that answers at {uri} ({failure})",
                remedy=f"start libvirt ({libvirtunit.starting()}) and run snapvm as root",
            ) from failure

    @property
    def connection(self) -> Any:
        """The connection, made again if libvirtd was restarted; raise ``LibvirtFailed``."""
        with self._renewing, spoken():
            if not self._connection.isAlive():
                try:
                    self._connection = _opened(self.uri)
                except TimeoutError:
                    silent = f"libvirt has been silent for {OPEN_SECONDS:g} s"
                    raise LibvirtFailed(silent, 0) from None
            return self._connection

    @property
    def is_lost(self) -> bool:
        """Whether the connection was lost and is not made again yet; raise ``LibvirtFailed``."""
        with spoken():
            return not self._connection.isAlive()

    def domain(self, uuid: str) -> Handle:
        """Return a handle that outlives the connection; raise ``LibvirtFailed`` if none exists."""
        return Handle(self, uuid)

    @contextmanager
    def run_events(self, domain: Any, names: Sequence[str]) -> Iterator[RunEvents]:
        """Listen to these events of a domain for the block."""
        events = RunEvents()
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(self._listening(domain, name, events))
            yield events

    @contextmanager
    def _listening(self, domain: Any, name: str, events: RunEvents) -> Iterator[None]:
        connection = self.connection
        with spoken():
            if name == DEVICE_ADDED:
                kind = libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED
                number = connection.domainEventRegisterAny(
                    domain, kind, events.on_device_added, None
                )
                forget = connection.domainEventDeregisterAny
            else:
                number = libvirt_qemu.qemuMonitorEventRegister(
                    connection, domain, name, events.on_event, None, 0
                )
                forget = partial(libvirt_qemu.qemuMonitorEventDeregister, connection)
        try:
            yield
        finally:
            # A lost connection has no events, and a failure of the block must not be hidden.
            with suppress(LibvirtFailed), spoken():
                forget(number)


class Handle:
    """Stands for libvirt's virDomain, and looks it up again when the connection is a new one.

    So a domain can be resumed even if libvirtd was restarted while it stood still.
    """

    def __init__(self, link: Link, uuid: str) -> None:
        self._link = link
        self._uuid = uuid
        self._made_by: Any = None
        self._found: Any = None
        self._now()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now(), name)

    def _now(self) -> Any:
        connection = self._link.connection
        if connection is not self._made_by:
            with spoken():
                self._found = connection.lookupByUUIDString(self._uuid)
            self._made_by = connection
        return self._found


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def open_link(uri: str) -> Link:
    """Connect; raise ``HostLacks`` without the Python module or without a libvirtd."""
    if libvirt is None:
        raise HostLacks(
            what="Python's libvirt module",
            remedy="install the package python3-libvirt (py3-libvirt, libvirt-python) where snapvm "
            "runs with the system's Python; else "
            f"{shlex.quote(sys.executable)} -m pip install libvirt-python",
        )
    return Link(uri)


def wait_for(call: Callable[[], T], *, tick: Callable[[], None], abort: Callable[[], None]) -> T:
    """Run a call that blocks in libvirt, and call ``tick`` now and then meanwhile.

    When ``tick`` raises, or a signal interrupts, ``abort`` has to make the call end.  The call has
    ended in any case when this function returns or raises.
    """
    future: Future[T] | None = None
    with workers(1) as pool:
        try:
            with shielded():  # an interruption finds the call under way, so that it can be ended
                future = pool.submit(call)
            while wait([future], TICK_SECONDS).not_done:
                tick()
            return future.result()
        except BaseException:
            while future is not None and not future.done():
                abort()  # once more should libvirt not have known of the call yet
                wait([future], TICK_SECONDS)
            raise
