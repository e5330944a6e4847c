"""`make install` on a host whose Python belongs to its packages, as Debian's does (PEP 668)."""

from __future__ import annotations

import os
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


def run(*argv: str | Path, home: Path | None = None) -> str:
    environment = os.environ if home is None else {**os.environ, "HOME": str(home)}
    done = subprocess.run(
        argv,
        cwd="/",
        check=True,
        timeout=LIMIT_SECONDS,
        capture_output=True,
        text=True,
        env=environment,
    )
    return done.stdout


def says_when_imported(home: Path, python: Path) -> None:
    """Give somebody a module of his own that Python imports wherever it looks into his folder."""
    asked = (python, "-c", "import site; print(site.getusersitepackages())")
    folder = Path(run(*asked, home=home).strip())
    folder.mkdir(parents=True)
    (folder / "usercustomize.py").write_text("print('imported')\n")
    assert "imported" in run(python, "-c", "", home=home)


def test_it_is_installed_runs_and_is_removed(tmp_path: Path) -> None:
    prefix = tmp_path / "local"
    make("install", prefix)
    snapvm = prefix / "bin" / "snapvm"
    assert run(snapvm, "--version").startswith("snapvm ")
    assert "rollback" in run(snapvm, "--help")
    # With sudo that keeps HOME, root had the modules of whoever called it.
    says_when_imported(tmp_path / "home", prefix / "lib/snapvm/bin/python")
    assert run(snapvm, "--version", home=tmp_path / "home").startswith("snapvm ")
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
