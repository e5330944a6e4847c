"""Talk through libvirt to the agent inside a guest (QEMU, docs/interop/qemu-ga-ref).

Agent commands are sent by ``virDomainQemuAgentCommand``, which takes a time limit.  libvirt's own
calls for freezing and time wait for ever, unless a limit is set for all users of the domain, and
the former limit cannot be asked.  Agent commands taint the domain (``custom-ga-command``), which is
only a word in a log.
"""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

try:
    import libvirt_qemu
except ImportError:  # said by libvirtlink.open_link before anything gets here
    libvirt_qemu = None

from snapvm import crashpoint, retry
from snapvm.attention import StillFrozen
from snapvm.failures import ClockNotSet, NotFrozen
from snapvm.hypervisor import domainxml
from snapvm.hypervisor.libvirtlink import LibvirtFailed, spoken
from snapvm.hypervisor.qmp import Qmp
from snapvm.model import Domain, DomainState
from snapvm.refusals import DomainRefused

ANSWER_SECONDS = 5.0
"""The limit for a command that takes the agent no time."""
CONNECT_SECONDS = 4.0
"""How long an agent may take to answer again after its domain was restored."""
RTC_SECONDS = 15.0
"""Setting the clock starts a program in the guest (hwclock)."""
_THAWED = "thawed"
_SECOND_NS = 1_000_000_000


class LibvirtAgent:
    """The agents of one libvirt's domains; see ``GuestAgent`` for what each method promises.

    ``handle_of`` returns libvirt's handle of a domain, or None when the domain is gone.
    """

    def __init__(self, handle_of: Callable[[Domain], Any | None], limit_seconds: float) -> None:
        self._handle_of = handle_of
        self._limit_seconds = limit_seconds

    def is_expected(self, domain: Domain) -> bool:
        """See ``GuestAgent.is_expected``: it has the channel."""
        return domainxml.has_agent_channel(domain.definition)

    def check(self, domain: Domain) -> None:
        """See ``GuestAgent.check``."""
        if domain.state is not DomainState.RUNNING:
            raise DomainRefused(
                domain=domain.name,
                why=f"it is {domain.state}, and a guest's agent answers only while it runs",
                remedy="leave --quiesce out",
            )
        if not self.is_expected(domain):
            raise DomainRefused(
                domain=domain.name,
                why="it has no channel for a guest agent",
                remedy="give it one, which its next start has (virsh edit "
                f"{shlex.quote(domain.name)}: <channel type='unix'><target type='virtio' "
                f"name='{domainxml.AGENT_CHANNEL}'/></channel>), and install qemu-guest-agent in "
                "it, or leave --quiesce out",
            )
        try:
            status = self._ask(domain, "guest-fsfreeze-status", ANSWER_SECONDS)
        except LibvirtFailed as failure:
            raise DomainRefused(
                domain=domain.name,
                why=f"its guest agent does not answer: {failure}",
                remedy="start qemu-guest-agent in the guest, or leave --quiesce out",
            ) from failure
        if status != _THAWED:
            raise DomainRefused(
                domain=domain.name,
                why="its file systems are frozen already",
                remedy="if nobody else needs that, such as a backup: "
                f"virsh domfsthaw {shlex.quote(domain.name)}",
            )

    def freeze(self, domain: Domain) -> None:
        """See ``GuestAgent.freeze``."""
        try:
            with crashpoint.around("freeze file systems"):
                frozen = self._ask(domain, "guest-fsfreeze-freeze", self._limit_seconds)
        except LibvirtFailed as failure:
            raise NotFrozen(domain=domain.name, why=str(failure)) from failure
        if not frozen:
            raise NotFrozen(domain=domain.name, why="its agent finds none to freeze")

    def thaw(self, domain: Domain) -> bool:
        """See ``GuestAgent.thaw``; the agent says how many file systems this call has thawed.

        An agent that is still busy freezing is asked again, and so is a libvirtd that is restarted.
        The first call may have been carried out though its answer was not heard.
        """
        calls = 0

        def attempt() -> Any:
            nonlocal calls
            if not self._is_active(domain):
                return None
            calls += 1
            return self._ask(domain, "guest-fsfreeze-thaw", self._limit_seconds)

        try:
            with crashpoint.around("thaw file systems"):
                thawed = retry.agent(attempt, limit_seconds=self._limit_seconds)
        except LibvirtFailed as failure:
            raise StillFrozen(domain=domain.name, why=str(failure)) from failure
        return calls != 1 or thawed != 0

    def set_clock(self, domain: Domain) -> float:
        """See ``GuestAgent.set_clock``.

        The command has no time in it: the guest then takes the time of its real-time clock, which
        QEMU keeps by the domain's ``<clock>``.  libvirt's ``VIR_DOMAIN_TIME_SYNC`` does the same.
        """

        def seconds() -> float:
            return float(self._ask(domain, "guest-get-time", ANSWER_SECONDS)) / _SECOND_NS

        try:
            before = retry.agent(seconds, limit_seconds=CONNECT_SECONDS)
            begun = time.monotonic()
            self._ask(domain, "guest-set-time", RTC_SECONDS)
            moved = seconds() - before - (time.monotonic() - begun)
            if not math.isfinite(moved):  # 1e999 is a number in JSON
                raise ValueError("it says that there is no end of its time")
        except (LibvirtFailed, TypeError, ValueError, OverflowError) as failure:
            raise ClockNotSet(domain=domain.name, why=str(failure)) from failure
        with suppress(LibvirtFailed):  # QEMU might send the timer interrupts that the guest missed
            if (handle := self._handle_of(domain)) is not None:
                Qmp(handle).execute("rtc-reset-reinjection")
        return moved

    def _is_active(self, domain: Domain) -> bool:
        with spoken():
            handle = self._handle_of(domain)
            return handle is not None and bool(handle.isActive())

    def _ask(self, domain: Domain, command: str, limit_seconds: float) -> Any:
        """Send the agent a command; raise ``LibvirtFailed`` when it fails or takes too long."""
        with spoken():
            handle = self._handle_of(domain)
            if handle is None:
                raise LibvirtFailed("it is not there any more", 0)
            reply = libvirt_qemu.qemuAgentCommand(
                handle,
                json.dumps({"execute": command}),
                math.ceil(limit_seconds),
                0,
            )
        try:
            return json.loads(reply).get("return")
        except (ValueError, RecursionError, AttributeError) as error:  # a guest says what it likes
            raise LibvirtFailed("what it says cannot be read", 0) from error
