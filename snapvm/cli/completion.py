"""Completion in the shell: names of domains and ``DOM@ID``, from the catalog's folders alone."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from snapvm.cli import output
from snapvm.cli.session import Session
from snapvm.errors import SnapvmError

if TYPE_CHECKING:
    from snapvm.catalog import Catalog

INSTRUCTION = "_SNAPVM_COMPLETE"
"""The variable by which Typer's shell scripts ask for completions."""


def complete_domain(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the domains that have or had snapshots and whose name begins with ``incomplete``."""
    return _offered(ctx, incomplete, lambda catalog: catalog.names())


def complete_reference(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the snapshots whose ``DOM@ID`` begins with ``incomplete``."""
    return _offered(ctx, incomplete, _references)


def _references(catalog: Catalog) -> Iterator[str]:
    for uuid, name in catalog.domains():
        for id_ in catalog.ids(uuid):
            yield f"{name}@{id_}"


def _offered(
    ctx: typer.Context,
    incomplete: str,
    source: Callable[[Catalog], Iterator[str] | tuple[str, ...]],
) -> list[str]:
    state_dir = ctx.find_root().params.get("state_dir")
    session = Session(state_dir=Path(state_dir).absolute() if state_dir else None)
    # heavy: the catalog and its parsers; `snapvm --help` does without
    from snapvm.cli.lookup import catalog_of

    # Two domains may have had one name.
    found = sorted({text for text in source(catalog_of(session)) if text.startswith(incomplete)})
    # The shells insert words as they are: a word that needs quotes would become another command,
    # and a word that begins with a hyphen an option.
    return [text for text in found if shlex.quote(text) == text and text[:1] != "-"]


def answer(run: Callable[[], object]) -> int:
    """Let Typer answer a shell that asks for completions, and print nothing else.

    A message would end up in the middle of the line that the user is typing.
    """
    prefix = ""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        try:
            if os.environ[INSTRUCTION] == "complete_bash":
                prefix = _join_words()
            run()
        except BaseException:  # even SystemExit, by which Typer ends a completion
            pass
    with contextlib.suppress(output.ReaderLeft, SnapvmError):
        output.out(
            "".join(f"{line.removeprefix(prefix)}\n" for line in said.getvalue().splitlines())
        )
    return 0


def _join_words() -> str:
    """Join ``dom @ id`` for Typer; return the prefix that bash does not want in the answers.

    bash breaks words at an @ (COMP_WORDBREAKS in bash(1)) and replaces only the last piece,
    which for readline begins with the @ itself (rl_special_prefixes, bash's bashline.c).
    """
    words = os.environ.get("COMP_WORDS", "").split("\n")
    cursor = int(os.environ.get("COMP_CWORD", "0"))
    joined: list[str] = []
    is_glued = False
    for word in words[: cursor + 1]:
        is_break = bool(word) and not word.strip("@")
        if joined and (is_break or is_glued):
            joined[-1] += word
        else:
            joined.append(word)
        is_glued = is_break
    os.environ["COMP_WORDS"] = "\n".join(joined)
    os.environ["COMP_CWORD"] = str(len(joined) - 1)
    return joined[-1].rpartition("@")[0]
