"""What is hidden cannot be imported, and is there again afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

from snapvm.cli.hiding import hidden

_SCRIPT = """
from snapvm.cli.hiding import hidden
with hidden("colorsys"):
    try:
        import colorsys
    except ModuleNotFoundError as error:
        print(error.name)
import colorsys
with hidden("colorsys"):
    import colorsys
print(colorsys.ONE_THIRD < 1)
"""

_VERSION = """
import sys
from snapvm.cli import app
app.run(["--version"])
print("rich" in sys.modules)
import rich
"""


def test_a_hidden_package_is_missing_in_the_block_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], check=True, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("colorsys\nTrue\n", "")


def test_it_is_there_again_when_the_block_fails() -> None:
    with pytest.raises(ValueError, match="broken"), hidden("this_is_nowhere"):
        raise ValueError("broken")
    assert "this_is_nowhere" not in sys.modules


def test_reading_the_command_line_imports_nothing_that_draws() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _VERSION], check=True, capture_output=True, text=True
    )
    assert done.stdout.endswith("False\n")
