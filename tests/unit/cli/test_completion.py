"""bash's pieces of ``dom@id`` put together again."""

from __future__ import annotations

import os

import pytest

from snapvm.cli import completion


@pytest.mark.parametrize(
    ("words", "cursor", "joined", "left_out"),
    [
        ("snapvm\nshow\ndemo\n@\nbe", 4, "snapvm\nshow\ndemo@be", "demo"),
        ("snapvm\nshow\ndemo\n@", 3, "snapvm\nshow\ndemo@", "demo"),
        ("snapvm\nshow\na\n@\nb\n@\nc", 6, "snapvm\nshow\na@b@c", "a@b"),
        ("snapvm\ndelete\na\n@\nb\nc", 5, "snapvm\ndelete\na@b\nc", ""),
        ("snapvm\nshow\nde", 2, "snapvm\nshow\nde", ""),
        ("snapvm\nshow\na\n@\nb\nrest", 4, "snapvm\nshow\na@b", "a"),
    ],
)
def test_words_are_joined(
    monkeypatch: pytest.MonkeyPatch, words: str, cursor: int, joined: str, left_out: str
) -> None:
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(cursor))
    assert completion._join_words() == left_out
    assert os.environ["COMP_WORDS"] == joined
    assert os.environ["COMP_CWORD"] == str(joined.count("\n"))
