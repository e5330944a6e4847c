"""The tests keep rules of their own: each can be read, moved and run without any other."""

from __future__ import annotations

from tests.house.source import ROOT, Module

SIZE_LIMIT_LINES = 345
"""As of the modules that they test."""

TESTS = tuple(Module(path, path.read_text()) for path in sorted((ROOT / "tests").rglob("*.py")))


def test_they_are_short_and_say_what_they_are() -> None:
    for module in TESTS:
        is_package = module.path.name == "__init__.py"
        assert module.text.startswith(('"""', "#!")) or is_package, f"{module.name}: no docstring"
        assert not is_package or not module.text, f"{module.name} is not empty"
        assert module.text.count("\n") <= SIZE_LIMIT_LINES, module.name


def test_what_several_need_stands_in_no_test_of_one_thing() -> None:
    for module in TESTS:
        for found in module.imports():
            is_test = found.module.rpartition(".")[2].startswith("test_")
            assert not is_test, f"{module.name}:{found.line} imports {found.module}"


def test_they_look_at_what_is_left_and_not_at_who_was_called() -> None:
    for module in TESTS:
        assert not any(found.module.startswith("unittest") for found in module.imports()), (
            f"{module.name} has mocks; tests/fakes has what keeps a state"
        )
