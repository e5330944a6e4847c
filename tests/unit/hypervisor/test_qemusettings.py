"""What QEMU is set to for a capture: all of it, and put back whatever happens."""

from __future__ import annotations

import copy
import errno
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapvm import durable
from snapvm.hypervisor.libvirtlink import LibvirtFailed
from snapvm.hypervisor.qemusettings import MigrationSettings
from tests.fakes.instants import instants_of, interrupted_at
from tests.unit.hypervisor.fakemonitor import WANTED, FakeQemu, killed, lender


@pytest.fixture
def qemu() -> FakeQemu:
    return FakeQemu()


def test_qemu_is_set_for_the_block_alone(qemu: FakeQemu, tmp_path: Path) -> None:
    before = copy.deepcopy(vars(qemu))
    with lender(qemu, tmp_path).lent(WANTED):
        on = {name for name, is_on in qemu.capabilities.items() if is_on}
        assert on == {"events", "pause-before-switchover"}
        assert qemu.parameters["downtime-limit"] == 100
        assert lender(qemu, tmp_path).is_lent()
    assert vars(qemu) == before
    assert not lender(qemu, tmp_path).is_lent()


def test_what_qemu_refuses_changes_nothing(qemu: FakeQemu, tmp_path: Path) -> None:
    before = copy.deepcopy(vars(qemu))

    def refuse(command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        if command == "migrate-set-parameters" and arguments == {"downtime-limit": 100}:
            raise LibvirtFailed("QEMU: no", -1)
        return FakeQemu.execute(qemu, command, arguments)

    qemu.execute = refuse  # type: ignore[method-assign]
    with pytest.raises(LibvirtFailed, match="no"), lender(qemu, tmp_path).lent(WANTED):
        pytest.fail("it was lent")
    del qemu.execute
    assert vars(qemu) == before
    assert not lender(qemu, tmp_path).is_lent()


def test_what_a_dead_one_was_lent_is_put_back(qemu: FakeQemu, tmp_path: Path) -> None:
    before = copy.deepcopy(vars(qemu))
    killed(qemu, lender(qemu, tmp_path))
    assert vars(qemu) != before
    lender(qemu, tmp_path).put_back()
    assert vars(qemu) == before
    lender(qemu, tmp_path).put_back()
    assert vars(qemu) == before


def test_what_is_lent_again_after_a_death_is_put_back_to_what_it_was_before(
    qemu: FakeQemu, tmp_path: Path
) -> None:
    """What is put back is what there was before the dead one, not what it left."""
    before = copy.deepcopy(vars(qemu))
    killed(qemu, lender(qemu, tmp_path))
    with lender(qemu, tmp_path).lent(MigrationSettings(capabilities=())):
        assert not qemu.capabilities["pause-before-switchover"]
    assert vars(qemu) == before


def test_a_note_that_cannot_be_read_now_is_kept(
    qemu: FakeQemu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was removed unread, QEMU stayed set for a capture, and `virsh save` failed."""
    before = copy.deepcopy(vars(qemu))
    killed(qemu, lender(qemu, tmp_path))

    def refuse(path: Path, _limit_bytes: int) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(durable, "read", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            lender(qemu, tmp_path).put_back()
    lender(qemu, tmp_path).put_back()
    assert vars(qemu) == before


def test_another_run_of_the_domain_is_left_alone(qemu: FakeQemu, tmp_path: Path) -> None:
    killed(qemu, lender(qemu, tmp_path))
    fresh = FakeQemu()
    fresh.parameters["downtime-limit"] = 500
    assert not lender(fresh, tmp_path, run="8").is_lent()
    lender(fresh, tmp_path, run="8").put_back()
    assert fresh.parameters["downtime-limit"] == 500
    assert not (tmp_path / "run" / "uuid.qemu").exists()


def test_a_qemu_that_is_gone_does_not_hide_why(qemu: FakeQemu, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lender(qemu, tmp_path).lent(WANTED):
        qemu.is_gone = True
        raise ZeroDivisionError
    assert not (tmp_path / "run" / "uuid.qemu").exists(), "nobody is set otherwise any more"


def test_one_that_does_not_answer_is_put_back_later(qemu: FakeQemu, tmp_path: Path) -> None:
    before = copy.deepcopy(vars(qemu))
    silent = replace(lender(qemu, tmp_path), is_over=lambda: False)
    with pytest.raises(ZeroDivisionError), silent.lent(WANTED):
        qemu.is_gone = True
        raise ZeroDivisionError
    qemu.is_gone = False
    assert vars(qemu) != before
    lender(qemu, tmp_path).put_back()
    assert vars(qemu) == before


def test_put_back_whatever_the_instant_of_an_interruption(qemu: FakeQemu, tmp_path: Path) -> None:
    """They stayed until the next command on the domain, and `virsh save` of it failed."""
    before = copy.deepcopy(vars(qemu))
    whole = lender(qemu, tmp_path)

    def lend() -> None:
        with whole.lent(WANTED):
            pass

    def left() -> tuple[object, bool]:
        return vars(qemu), whole.is_lent()

    modules = ("snapvm.hypervisor.qemusettings", "snapvm.durable")
    for instant in instants_of(lend, modules):
        how, now = interrupted_at(lend, modules, instant, left)
        assert how in ("done", "interrupted") and now == (before, False), instant
