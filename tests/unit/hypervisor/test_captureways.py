"""Which way memory is captured: the first that is possible, and it is said why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest

from snapvm.hypervisor import captureways
from snapvm.hypervisor.migrationstream import NotPossible
from snapvm.model import CaptureMethod, Domain, DomainState
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.fakedomain import DOMAIN

ORDER = (
    CaptureMethod.BACKGROUND,
    CaptureMethod.PRECOPY,
    CaptureMethod.LIBVIRT,
    CaptureMethod.STOP,
)


@dataclass
class FakeJob:
    """A job of which only the domain is asked, and what becomes of it."""

    domain: Domain = DOMAIN
    domain_ends: bool = False
    is_compressed: bool = False


PAUSED = replace(DOMAIN, state=DomainState.PAUSED)


def way(method: CaptureMethod, why_not: str, entered: list[str]) -> Any:
    """Return a way that is possible when nothing is said against it."""

    class FakeCapture:
        way = f"{method}: some way"

        def __init__(self, why: str) -> None:
            self.method = self.way + why

        @staticmethod
        @contextmanager
        def possible(_ground: object) -> Iterator[None]:
            if why_not:
                raise NotPossible(why_not)
            entered.append(method)
            yield
            entered.remove(method)

        @classmethod
        @contextmanager
        def prepared(cls, _job: object, _image: object, why: str) -> Iterator[Any]:
            with cls.possible(None):
                yield cls(why)

    return FakeCapture


@pytest.fixture
def entered() -> list[str]:
    return []


def without(
    monkeypatch: pytest.MonkeyPatch, entered: list[str], against: Mapping[CaptureMethod, str]
) -> None:
    assert tuple(captureways.WAYS) == ORDER
    ways = {method: way(method, against.get(method, ""), entered) for method in ORDER}
    monkeypatch.setattr(captureways, "WAYS", ways)


def chosen(entered: list[str], wanted: CaptureMethod, job: Any = FakeJob()) -> str:  # noqa: B008
    """Choose; what was prepared is prepared for as long as it is needed."""
    with ExitStack() as stack:
        capture = captureways.choose(stack, job, cast("Any", None), wanted)
        assert len(entered) == 1
        method = capture.method
    assert not entered
    assert captureways.foresee(job, wanted) == method
    assert not entered
    return method


@pytest.mark.parametrize("missing", range(4))
def test_the_first_that_is_possible(
    monkeypatch: pytest.MonkeyPatch, entered: list[str], missing: int
) -> None:
    without(monkeypatch, entered, dict.fromkeys(ORDER[:missing], "no"))
    said = chosen(entered, CaptureMethod.AUTO)
    assert said.startswith(f"{ORDER[missing]}:")
    assert said.count("is not possible: no") == missing
    assert said.endswith(")") is (missing > 0)


def test_the_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch, entered: list[str]) -> None:
    without(monkeypatch, entered, {})
    assert chosen(entered, CaptureMethod.STOP) == "stop: some way (as was asked for)"


CHOOSING = "let snapvm choose: leave --capture out, and `capture` in the settings"


def test_the_one_that_was_asked_for_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, entered: list[str]
) -> None:
    without(monkeypatch, entered, {CaptureMethod.PRECOPY: "no"})
    with pytest.raises(DomainRefused, match="precopy is not possible: no") as refused:
        chosen(entered, CaptureMethod.PRECOPY)
    assert refused.value.hint() == CHOOSING, "the settings may have asked for it"


def test_none_is_possible(monkeypatch: pytest.MonkeyPatch, entered: list[str]) -> None:
    without(monkeypatch, entered, dict.fromkeys(ORDER, "no"))
    with pytest.raises(DomainRefused, match="stop is not possible") as refused:
        chosen(entered, CaptureMethod.AUTO)
    assert refused.value.hint() == "shut it off, or take its disks alone: --disk-only"


def test_one_that_is_paused_can_be_captured_again(
    monkeypatch: pytest.MonkeyPatch, entered: list[str]
) -> None:
    """Precopy and the others end in a state from which QEMU saves nothing before it has run."""
    without(monkeypatch, entered, {CaptureMethod.BACKGROUND: "no"})
    with pytest.raises(DomainRefused) as refused:
        chosen(entered, CaptureMethod.AUTO, FakeJob(PAUSED))
    assert str(refused.value.why) == (
        "background is not possible: no; it is paused, and after precopy, libvirt or stop QEMU "
        "would not save it again before it has run"
    )
    assert refused.value.hint() == (
        "let it run first (virsh resume demo), or take its disks alone: --disk-only"
    )
    without(monkeypatch, entered, {})
    assert chosen(entered, CaptureMethod.AUTO, FakeJob(PAUSED)).startswith("background:")


@pytest.mark.parametrize("wanted", ORDER[1:])
def test_one_that_is_paused_is_not_captured_so_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, entered: list[str], wanted: CaptureMethod
) -> None:
    without(monkeypatch, entered, {})
    with pytest.raises(DomainRefused, match=f"it is paused, and after {wanted} QEMU") as refused:
        chosen(entered, wanted, FakeJob(PAUSED))
    assert refused.value.hint() == f"let it run first (virsh resume demo), or {CHOOSING}"


@pytest.mark.parametrize("wanted", [CaptureMethod.AUTO, *ORDER[1:]])
def test_one_that_is_paused_and_ends_is_captured_in_any_way(
    monkeypatch: pytest.MonkeyPatch, entered: list[str], wanted: CaptureMethod
) -> None:
    without(monkeypatch, entered, {CaptureMethod.BACKGROUND: "no"})
    assert chosen(entered, wanted, FakeJob(PAUSED, domain_ends=True))


@pytest.mark.parametrize("wanted", [CaptureMethod.AUTO, CaptureMethod.LIBVIRT])
def test_an_image_that_shall_be_compressed_is_not_left_to_libvirt(
    monkeypatch: pytest.MonkeyPatch, entered: list[str], wanted: CaptureMethod
) -> None:
    """It wrote one that was plain, and nobody was told."""
    own = captureways.WAYS[CaptureMethod.LIBVIRT]
    without(monkeypatch, entered, dict.fromkeys(ORDER, "no"))
    monkeypatch.setattr(captureways, "WAYS", {**captureways.WAYS, CaptureMethod.LIBVIRT: own})
    with pytest.raises(DomainRefused, match=r"libvirt is not possible: .* compress it") as refused:
        chosen(entered, wanted, FakeJob(is_compressed=True))
    assert refused.value.hint().startswith("leave --compress out, and `compress` in the settings")


@pytest.mark.parametrize(
    ("wanted", "domain"),
    [
        (CaptureMethod.PRECOPY, DOMAIN),
        (CaptureMethod.AUTO, PAUSED),
        (CaptureMethod.LIBVIRT, PAUSED),
    ],
)
def test_compression_is_not_to_be_left_out_where_that_would_not_help(
    monkeypatch: pytest.MonkeyPatch, entered: list[str], wanted: CaptureMethod, domain: Domain
) -> None:
    without(monkeypatch, entered, dict.fromkeys(ORDER, "no"))
    with pytest.raises(DomainRefused) as refused:
        chosen(entered, wanted, FakeJob(domain, is_compressed=True))
    assert "compress" not in refused.value.hint()
