"""Settings: the file, then the environment; what cannot be used says where it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapvm import settings
from snapvm.errors import BadSetting
from snapvm.model import CaptureMethod
from snapvm.settings import Settings


def write(folder: Path, text: str) -> dict[str, str]:
    path = folder / "snapvm.toml"
    path.write_text(text)
    return {"SNAPVM_CONFIG": str(path)}


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    environment = write(tmp_path, 'state_dir = "/a"\nrun_dir = "/b"\nwindow_limit_seconds = 5\n')
    loaded = settings.load({**environment, "SNAPVM_RUN_DIR": "/c"})
    assert loaded.state_dir == Path("/a")
    assert loaded.run_dir == Path("/c")
    assert loaded.window_limit_seconds == 5.0
    assert loaded.libvirt_uri == Settings().libvirt_uri


@pytest.mark.parametrize(("text", "seconds"), [("0", 0.0), ("2.5", 2.5)])
def test_there_may_be_no_waiting_at_all(text: str, seconds: float) -> None:
    assert settings.load({"SNAPVM_LOCK_WAIT_SECONDS": text}).lock_wait_seconds == seconds


def test_every_setting_can_be_set() -> None:
    assert set(settings._READERS) == set(Settings.__slots__)


@pytest.mark.parametrize(
    "text",
    [
        "state_dir = 5",
        'state_dir = "relative"',
        'state_dir = ""',
        'libvirt_uri = "a\\u001bb"',
        "pool_data_limit_percent = 101",
        "pool_data_limit_percent = 0",
        "window_limit_seconds = nan",
        "window_limit_seconds = true",
        "lock_wait_seconds = false",
        "pool_data_limit_percent = true",
        "window_limit_seconds = [1]",
        'window_limit_seconds = "soon"',
        "window_limit_seconds = inf",
        f"window_limit_seconds = 1{'0' * 400}",
        f"lock_wait_seconds = 1{'0' * 400}",
        f"lock_wait_seconds = 1{'0' * 5000}",  # Python reads no whole number that long
        "colour = 1",
        "[section]\nx = 1",
        "= =",
        "\udcff",
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "snapvm.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BadSetting) as refused:
        settings.load({"SNAPVM_CONFIG": str(path)})
    assert str(path) in refused.value.message()


@pytest.mark.parametrize("value", ["", "x", "-1", "1e10", "nan"])
def test_a_variable_that_cannot_be_used_is_named(value: str) -> None:
    with pytest.raises(BadSetting, match="SNAPVM_WINDOW_LIMIT_SECONDS"):
        settings.load({"SNAPVM_CONFIG": "/dev/null", "SNAPVM_WINDOW_LIMIT_SECONDS": value})


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    nope = tmp_path / "nope"
    with pytest.raises(BadSetting, match=f"in SNAPVM_CONFIG cannot be used: .*{nope}") as refused:
        settings.load({"SNAPVM_CONFIG": str(nope)})
    assert "unset SNAPVM_CONFIG" in refused.value.hint()
    with pytest.raises(BadSetting, match=f"{tmp_path} cannot be used: Is a directory"):
        settings.load({"SNAPVM_CONFIG": str(tmp_path)})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("statedir = '/x'", "there is no setting 'statedir'; did you mean 'state_dir'?"),
        ("LOCK-WAIT-SECOND = 1", "did you mean 'lock_wait_seconds'?"),
        ("colour = 1", "there is no setting 'colour'"),
        ("[snapvm]\nstate_dir = '/x'", "there is no table [snapvm]"),
        ("cow_size = 20", "20 must be a text, in quotes"),
        ("group_limit_percent = 0", "0 must be a percentage above 0, and at most 100"),
        ("run_dir = '/etc/passwd'", "'/etc/passwd' is not a folder"),
        ("libvirt_uri = ''", "'' must be a text on one line, and not empty"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_what_was_meant(
    tmp_path: Path, text: str, why: str
) -> None:
    with pytest.raises(BadSetting) as refused:
        settings.load(write(tmp_path, text))
    assert why in refused.value.message()


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    """The first line, which looks well, was called an invalid statement."""
    environment = write(tmp_path, "\ufeffcapture = 'stop'\r\n")
    assert settings.load(environment).capture is CaptureMethod.STOP


def test_a_file_without_end_is_refused() -> None:
    """It was read until there was no memory left."""
    with pytest.raises(BadSetting, match="/dev/zero cannot be used: it is larger than"):
        settings.load({"SNAPVM_CONFIG": "/dev/zero"})


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    """Found by fuzzing."""
    path = tmp_path / "snapvm.toml"
    path.write_text("state_dir = " + "[" * 5000)
    with pytest.raises(BadSetting):
        settings.load({"SNAPVM_CONFIG": str(path)})


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("SNAPVM_LOCK_WAIT_SECONDS", "abc", "'abc' is not a number"),
        ("SNAPVM_LOCK_WAIT_SECONDS", "-1", "'-1' must be a number of at least 0"),
        ("SNAPVM_CAPTURE", "x", "'x' must be one of auto, "),
        ("SNAPVM_CONFIG", "", "it is empty"),
    ],
)
def test_what_is_allowed_is_told_and_how_to_be_rid_of_it(
    variable: str, value: str, why: str
) -> None:
    with pytest.raises(BadSetting) as refused:
        settings.load({"SNAPVM_CONFIG": "/dev/null", variable: value})
    assert f"{variable} cannot be used: {why}" in refused.value.message()
    assert f"`unset {variable}`" in refused.value.hint()
    with pytest.raises(BadSetting) as refused:
        settings.load({"SNAPVM_CONFIG": "/"})
    assert "correct it there" in refused.value.hint()
