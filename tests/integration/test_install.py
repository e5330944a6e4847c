"""`make install` on a host whose Python belongs to its packages, as Debian's does (PEP 668)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.house.source import ROOT

LIMIT_SECONDS = 600


def make(target: str, prefix: Path) -> None:
    """Make a target as root would, with this host's own Python where it has one."""
    own = "/usr/bin/python3"
    python = own if Path(own).exists() else "python3"
    argv = ["make", "--silent", "-C", str(ROOT), target, f"PREFIX={prefix}", f"PYTHON3={python}"]
    subprocess.run(argv, check=True, timeout=LIMIT_SECONDS)


def run(*argv: str | Path) -> str:
    done = subprocess.run(
        argv, cwd="/", check=True, timeout=LIMIT_SECONDS, capture_output=True, text=True
    )
    return done.stdout


def test_it_is_installed_runs_and_is_removed(tmp_path: Path) -> None:
    prefix = tmp_path / "local"
    make("install", prefix)
    snapvm = prefix / "bin" / "snapvm"
    assert run(snapvm, "--version").startswith("snapvm ")
    assert "rollback" in run(snapvm, "--help")
    inside = "import snapvm; print(snapvm.__file__)"
    assert run(prefix / "lib/snapvm/bin/python", "-c", inside).startswith(str(prefix))
    page = prefix / "share" / "man" / "man1" / "snapvm.1"
    assert page.read_bytes() == (ROOT / "man" / "snapvm.1").read_bytes()
    make("uninstall", prefix)
    assert [path for path in prefix.rglob("*") if not path.is_dir()] == []
