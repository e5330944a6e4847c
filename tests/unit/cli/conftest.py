"""The command line on a host of fakes: called in this process, both outputs caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from snapvm import settings
from snapvm.cli import app, volumestates, wiring
from tests.fakes.scene import Scene, make_scene


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


Call = Callable[..., Ended]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """One running domain of two disks, and settings that lead to it."""
    made = make_scene(tmp_path)
    places = made.host.settings
    file = tmp_path / "snapvm.toml"
    file.write_text(f'state_dir = "{places.state_dir}"\nrun_dir = "{places.run_dir}"\n')
    monkeypatch.setattr(settings, "DEFAULT_FILE", file)
    monkeypatch.setattr(wiring, "open_host", lambda *_: made.host)
    monkeypatch.setattr(volumestates, "_lvm", lambda: made.host.lvm)
    return made


@pytest.fixture
def call(scene: Scene, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call ``snapvm`` with arguments."""

    def called(*arguments: str) -> Ended:
        status = app.run(list(arguments))
        out, err = capsys.readouterr()
        return Ended(status, out, err)

    return called
