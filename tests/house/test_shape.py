"""Modules and functions are short, say what they are, and are there for somebody."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator

from tests.house.source import ROOT, Module, modules

SIZE_LIMIT_LINES = 345
"""About 300: a module that grows beyond is two."""

SCREEN_LINES = 50
"""How long a function is at most, its signature and docstring not counted."""

KEPT = {
    "collect_usage_pieces": "typer's, overridden",
    "emit": "logging's, overridden",
    "format_epilog": "typer's, overridden",
    "format_options": "typer's, overridden",
}
"""Functions, methods and classes that only others call."""


def test_modules_are_short_and_say_what_they_are() -> None:
    for module in modules():
        if module.path.name == "__init__.py":
            assert not module.text, f"{module.name} is not empty"
            continue
        assert module.text.startswith('"""'), f"{module.name} has no docstring"
        assert module.text.count("\n") <= SIZE_LIMIT_LINES, module.name


def test_what_makes_the_man_page_is_short_too() -> None:
    for path in (ROOT / "man").glob("*.py"):
        assert path.read_text().count("\n") <= SIZE_LIMIT_LINES, path.name


def test_functions_fit_a_screen() -> None:
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef):
                has_more = ast.get_docstring(node) is not None and len(node.body) > 1
                begin = node.body[int(has_more)].lineno
                length = (node.end_lineno or begin) - begin + 1
                assert length <= SCREEN_LINES, f"{module.name}:{node.lineno} {node.name}"


def errors_named(text: str) -> set[str]:
    """Return what a docstring says is raised."""
    said = re.findall(r"[Rr]aises?\b([^.]*)", text)
    return {name for part in said for name in re.findall(r"``([A-Z]\w+)``", part)}


def test_what_is_said_to_be_raised_is_an_error_there_is() -> None:
    nodes = [(module, node) for module in modules() for node in ast.walk(module.tree)]
    known = {node.name for _, node in nodes if isinstance(node, ast.ClassDef)} | set(dir(builtins))
    known |= {"UsageProblem"}  # typer's, by another name
    for module, node in nodes:
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            unknown = errors_named(ast.get_docstring(node) or "") - known
            assert not unknown, f"{module.name}: {unknown}"


def defined(tree: ast.Module) -> Iterator[str]:
    """Yield what a module defines, but for what a decorator registers, and Python's own names."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("__"):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            if not any(decorator.startswith("app.") for decorator in decorators):
                yield node.name


def read(tree: ast.Module) -> Iterator[str]:
    """Yield every name that a module reads, and texts that may be one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_whatever_is_defined_is_used() -> None:
    generator = ROOT / "man" / "generate.py"
    readers = [*modules(), Module(generator, generator.read_text())]
    used = {name for module in readers for name in read(module.tree)}
    unused = {name for module in modules() for name in defined(module.tree)} - used
    assert unused - KEPT.keys() == set(), "nobody uses it: remove it"
    assert KEPT.keys() - unused == set(), "it is used by now"
