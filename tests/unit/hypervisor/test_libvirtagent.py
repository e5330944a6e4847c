"""What the agent's driver makes of what libvirt and the guest say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from snapvm.attention import StillFrozen
from snapvm.failures import ClockNotSet, NotFrozen
from snapvm.hypervisor import domainxml, libvirtagent, libvirtlink
from snapvm.hypervisor.libvirtagent import LibvirtAgent
from snapvm.hypervisor.libvirtlink import LibvirtFailed
from snapvm.model import Domain, DomainState, DomainUuid, HypervisorKind
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.fakelibvirt import LIBVIRT, libvirtError

CHANNEL = f"<channel type='unix'><target type='virtio' name='{domainxml.AGENT_CHANNEL}'/></channel>"
DOMAIN = Domain(
    name="demo",
    uuid=DomainUuid("11111111-2222-3333-4444-555555555555"),
    hypervisor=HypervisorKind.LIBVIRT,
    state=DomainState.RUNNING,
    memory_bytes=1 << 20,
    vcpus=1,
    definition=f"<domain><devices>{CHANNEL}</devices></domain>",
)


UNRESPONSIVE = 86
"""VIR_ERR_AGENT_UNRESPONSIVE."""


@dataclass
class Guest:
    """A guest whose agent says what it is told to, and libvirt in front of it."""

    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)
    active: bool = True

    def isActive(self) -> bool:  # noqa: N802 - libvirt's own name
        return self.active

    def qemuAgentCommand(  # noqa: N802 - libvirt's own name
        self, _handle: object, line: str, seconds: int, flags: int
    ) -> str:
        command = json.loads(line)["execute"]
        self.asked.append((command, seconds))
        assert flags == 0
        answer = self.answers.get(command, libvirtError("agent is not connected", UNRESPONSIVE))
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, bytes):
            return answer.decode()
        return json.dumps({"return": answer})

    def qemuMonitorCommand(  # noqa: N802 - libvirt's own name
        self, _handle: object, line: str, _flags: int
    ) -> str:
        self.asked.append((json.loads(line)["execute"], 0))
        return '{"return": {}}'


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Guest:
    guest = Guest()
    monkeypatch.setattr(libvirtagent, "libvirt_qemu", guest)
    monkeypatch.setattr("snapvm.hypervisor.qmp.libvirt_qemu", guest)
    monkeypatch.setattr(libvirtlink, "libvirt", LIBVIRT)
    return guest


@pytest.fixture
def agent(guest: Guest) -> LibvirtAgent:
    return LibvirtAgent(lambda _domain: guest, limit_seconds=0.25)


def refusal(ask: Callable[[Domain], None], domain: Domain) -> DomainRefused:
    with pytest.raises(DomainRefused) as refused:
        ask(domain)
    return refused.value


def test_only_one_that_answers_and_is_not_frozen_will_do(guest: Guest, agent: LibvirtAgent) -> None:
    silent = refusal(agent.check, DOMAIN)
    assert "does not answer: agent is not connected" in str(silent)
    assert "start qemu-guest-agent" in silent.hint()
    guest.answers["guest-fsfreeze-status"] = "frozen"
    assert "virsh domfsthaw 'my web'" in refusal(agent.check, replace(DOMAIN, name="my web")).hint()
    guest.answers["guest-fsfreeze-status"] = "thawed"
    agent.check(DOMAIN)
    assert all(seconds == libvirtagent.ANSWER_SECONDS for _, seconds in guest.asked)


def test_without_a_channel_or_paused_nobody_is_asked(guest: Guest, agent: LibvirtAgent) -> None:
    bare = replace(DOMAIN, definition="<domain><devices/></domain>")
    assert "no channel" in str(refusal(agent.check, bare)) and not agent.is_expected(bare)
    named = refusal(agent.check, replace(bare, name="my web")).hint()
    assert "(virsh edit 'my web': " in named
    assert not agent.is_expected(replace(DOMAIN, definition=""))
    paused = refusal(agent.check, replace(DOMAIN, state=DomainState.PAUSED))
    assert "it is paused" in str(paused)
    assert agent.is_expected(DOMAIN) and not guest.asked


def test_freezing_has_the_limit_of_the_settings(guest: Guest, agent: LibvirtAgent) -> None:
    guest.answers["guest-fsfreeze-freeze"] = 2
    agent.freeze(DOMAIN)
    assert guest.asked == [("guest-fsfreeze-freeze", 1)], "libvirt takes whole seconds"


@pytest.mark.parametrize("answer", [0, libvirtError("a hook failed", UNRESPONSIVE)])
def test_frozen_or_it_fails(guest: Guest, agent: LibvirtAgent, answer: object) -> None:
    guest.answers["guest-fsfreeze-freeze"] = answer
    with pytest.raises(NotFrozen):
        agent.freeze(DOMAIN)


def test_an_agent_that_is_still_freezing_is_asked_again(guest: Guest, agent: LibvirtAgent) -> None:
    guest.answers["guest-fsfreeze-thaw"] = [libvirtError("busy", UNRESPONSIVE), 2]
    assert agent.thaw(DOMAIN)
    assert len(guest.asked) == 2
    guest.answers["guest-fsfreeze-thaw"] = libvirtError("busy", UNRESPONSIVE)
    with pytest.raises(StillFrozen, match="busy"):
        agent.thaw(DOMAIN)


@pytest.mark.parametrize(
    ("answers", "was_frozen"),
    [([2], True), ([0], False), ([libvirtError("late", UNRESPONSIVE), 0], True)],
    ids=["frozen", "not any more", "thawed by a call of which nothing was heard"],
)
def test_an_agent_tells_whether_it_was_frozen_until_then(
    guest: Guest, agent: LibvirtAgent, answers: list[object], was_frozen: bool
) -> None:
    guest.answers["guest-fsfreeze-thaw"] = answers
    assert agent.thaw(DOMAIN) is was_frozen


def test_one_that_is_off_is_not_frozen(guest: Guest, agent: LibvirtAgent) -> None:
    guest.active = False
    agent.thaw(DOMAIN)
    LibvirtAgent(lambda _domain: None, 1).thaw(DOMAIN)
    assert not guest.asked


def test_one_that_has_ended_is_not_asked(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transient domain is not known any more then."""
    monkeypatch.setattr(libvirtagent, "CONNECT_SECONDS", 0.1)
    agent = LibvirtAgent(lambda _domain: None, 1)
    with pytest.raises(NotFrozen, match="not there any more"):
        agent.freeze(DOMAIN)
    with pytest.raises(ClockNotSet, match="not there any more"):
        agent.set_clock(DOMAIN)
    assert not guest.asked


def test_the_clock_is_set_by_the_guests_own(guest: Guest, agent: LibvirtAgent) -> None:
    guest.answers = {"guest-get-time": [1_000 * 10**9, 1_090 * 10**9], "guest-set-time": {}}
    assert agent.set_clock(DOMAIN) == pytest.approx(90, abs=1)
    assert [command for command, _ in guest.asked] == [
        "guest-get-time",
        "guest-set-time",
        "guest-get-time",
        "rtc-reset-reinjection",
    ]


def test_a_clock_that_is_not_set_is_told(
    guest: Guest, agent: LibvirtAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libvirtagent, "CONNECT_SECONDS", 0.1)
    with pytest.raises(ClockNotSet, match="not connected"):
        agent.set_clock(DOMAIN)
    guest.answers = {"guest-get-time": None, "guest-set-time": {}}
    with pytest.raises(ClockNotSet):
        agent.set_clock(DOMAIN)


@pytest.mark.parametrize(
    "said", [b'{"return": ' + b"[" * 100_000, b'{"return": ' + b"9" * 5000 + b"}", b"[]"]
)
def test_what_a_guest_says_that_cannot_be_read_is_no_answer(
    guest: Guest, agent: LibvirtAgent, said: bytes
) -> None:
    """A guest may say what it likes; it was taken for a bug of snapvm's, by the thaw too."""
    for command in ("status", "freeze", "thaw"):
        guest.answers[f"guest-fsfreeze-{command}"] = said
    assert "cannot be read" in str(refusal(agent.check, DOMAIN))
    with pytest.raises(NotFrozen, match="cannot be read"):
        agent.freeze(DOMAIN)
    with pytest.raises(StillFrozen, match="cannot be read"):
        agent.thaw(DOMAIN)


@pytest.mark.parametrize("said", [b"1" + b"0" * 400, b"1e999", b"-1e999", b"NaN", b'"inf"'])
def test_a_time_without_end_is_none(guest: Guest, agent: LibvirtAgent, said: bytes) -> None:
    """A clock was set forward by inf s, which is no JSON either."""
    guest.answers = {"guest-get-time": b'{"return": ' + said + b"}", "guest-set-time": {}}
    with pytest.raises(ClockNotSet):
        agent.set_clock(DOMAIN)


def test_a_guest_is_thawed_though_libvirtd_is_away_for_a_moment(guest: Guest) -> None:
    """It was restarted in the window: the guest's programs hung until somebody came."""
    absences = [1]

    def found(_domain: Domain) -> Guest:
        if absences:
            absences.pop()
            raise LibvirtFailed("Failed to connect socket", 38)
        return guest

    guest.answers["guest-fsfreeze-thaw"] = 2
    LibvirtAgent(found, limit_seconds=2).thaw(DOMAIN)
    assert [command for command, _ in guest.asked] == ["guest-fsfreeze-thaw"]
