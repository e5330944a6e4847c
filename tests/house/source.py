"""The sources as the house rules see them."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "snapvm"


@dataclass(frozen=True)
class Import:
    """One import: which module, where, and whether it stands inside a function."""

    module: str
    line: int
    is_late: bool
    is_for_types: bool


@dataclass(frozen=True)
class Module:
    """One module of snapvm."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        """Its dotted name."""
        return ".".join(self.path.relative_to(ROOT).with_suffix("").parts)

    @property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.text, str(self.path))

    def imports(self) -> Iterator[Import]:
        """Yield every import, those inside functions and for types alone too."""
        yield from _imports(self.tree, is_late=False, is_for_types=False)


def _imports(node: ast.AST, *, is_late: bool, is_for_types: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            for module in _targets(child):
                yield Import(module, child.lineno, is_late, is_for_types)
        else:
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            yield from _imports(
                child,
                is_late=is_late or is_function,
                is_for_types=is_for_types or _asks_for_types(child),
            )


def _asks_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _targets(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.module is not None, "relative imports are not used"
    return [
        f"{node.module}.{alias.name}" if _is_module(node.module, alias.name) else node.module
        for alias in node.names
    ]


def _is_module(package: str, name: str) -> bool:
    path = ROOT.joinpath(*package.split("."), name)
    return path.with_suffix(".py").exists() or path.is_dir()


@cache
def modules() -> tuple[Module, ...]:
    """Return every module of snapvm."""
    return tuple(Module(path, path.read_text()) for path in sorted(PACKAGE.rglob("*.py")))


@cache
def files() -> tuple[Path, ...]:
    """Return every file that git has or would take."""
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return tuple(path for name in listed.split("\0") if name and (path := ROOT / name).is_file())
