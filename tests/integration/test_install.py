"""`make install` on a host whose Python belongs to its packages, as Debian's does (PEP 668)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.house.source import ROOT

LIMIT_SECONDS = 600


def own_python() -> str:
    """Return this host's own Python, where it has one that can make a venv."""
    own = "/usr/bin/python3"
    able = Path(own).exists() and subprocess.run([own, "-c", "import ensurepip"], check=False)
    return own if able and able.returncode == 0 else "python3"


def make(target: str, prefix: Path) -> None:
    """Make a target as root would."""
    chosen = [f"PREFIX={prefix}", f"PYTHON3={own_python()}"]
    argv = ["make", "--silent", "-C", str(ROOT), target, *chosen]
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
    inside = (
        "from importlib import metadata; print(metadata.metadata('snapvm')['License-Expression'])"
    )
    assert run(prefix / "lib/snapvm/bin/python", "-c", inside) == "Apache-2.0\n"
    inside = "import snapvm, pathlib; print(*pathlib.Path(snapvm.__file__).parent.glob('*.json'))"
    assert "snapshot.schema.json" in run(prefix / "lib/snapvm/bin/python", "-c", inside)
    page = prefix / "share" / "man" / "man1" / "snapvm.1"
    assert page.read_bytes() == (ROOT / "man" / "snapvm.1").read_bytes()
    make("uninstall", prefix)
    assert [path for path in prefix.rglob("*") if not path.is_dir()] == []
