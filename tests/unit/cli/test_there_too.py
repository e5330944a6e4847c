"""Whatever names a command of snapvm says with which folder, where that is not the usual one."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from snapvm import settings
from snapvm.attention import LeftBehind
from snapvm.cli import guard as cli_guard
from snapvm.errors import ExitStatus
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.cli.conftest import Call
from tests.unit.deeds import with_settings


@pytest.fixture
def there(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have the scene's folder named by a variable; return what has to be typed."""
    folder = scene.host.settings.state_dir
    monkeypatch.setattr(settings, "DEFAULT_FILE", tmp_path / "none.toml")
    monkeypatch.setenv("SNAPVM_STATE_DIR", str(folder))
    return f"where it says `snapvm`, type `snapvm --state-dir {folder}`"


def test_a_list_with_a_damaged_record(call: Call, scene: Scene, there: str) -> None:
    """The rebuild that it names found every snapshot to have its record: in another folder."""
    call("take", DOMAIN, "--name", "a")
    assert "where it says" not in call("list").err
    (scene.host.catalog.folder(UUID, scene.host.catalog.ids(UUID)[0]) / "snapshot.json").write_text(
        "{"
    )
    listed = call("list")
    assert listed.status == 0 and "`snapvm catalog rebuild --dry-run`" in listed.err
    assert listed.err.endswith(f"hint: {there}\n")


def test_a_warning_in_the_log(call: Call, there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def warned(*_: object) -> tuple[()]:
        for _time in range(2):
            logging.getLogger("snapvm.x").warning("no room; `snapvm repair` tries again")
        return ()

    monkeypatch.setattr("snapvm.identity.chosen", warned)
    done = call("repair")
    assert done.err.count(f"hint: {there}\n") == 1
    assert done.err.startswith("warning: no room; `snapvm repair` tries again\nhint: ")


def test_what_a_doctor_advises(call: Call, scene: Scene, there: str) -> None:
    well = call("doctor", DOMAIN)
    assert well.status == 0 and "where it says" not in well.err
    scene.lvm.named("vg0", "pool").data_percent = 89.0
    told = call("doctor", DOMAIN)
    assert told.status == 0 and "`snapvm prune`" in told.out
    assert told.err.endswith(f"hint: {there}\n")


def test_a_guard_in_the_systems_log(
    scene: Scene, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("syslog.syslog", lambda _priority, line: told.append(line))
    failure = LeftBehind(leftovers=("x",), why="no room")
    cli_guard._tell(failure, scene.host.settings)
    assert told == [f"snapvm died, and {failure}; {failure.hint()}; {there}"]
    usual = with_settings(scene, state_dir=settings.Settings().state_dir).host.settings
    cli_guard._tell(failure, usual)
    assert told[1] == f"snapvm died, and {failure}; {failure.hint()}"
    assert failure.exit_status is ExitStatus.REPAIR_NEEDED
