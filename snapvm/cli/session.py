"""What one call of ``snapvm`` carries from its options to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snapvm.settings import Settings


@dataclass(slots=True)
class Session:
    """The options that stand before the verb, and what a failure report wants to know."""

    state_dir: Path | None = None
    verbose: bool = False
    json: bool = False
    last_commands: Iterable[str] = field(default_factory=tuple)
    """The flight recorder of the runner, once there is one."""

    def settings(self) -> Settings:
        """Return the settings, the flags applied; raise ``BadSetting``."""
        # heavy: a TOML parser, which neither help nor a wrong command line needs
        from snapvm import settings

        loaded = settings.load()
        return loaded if self.state_dir is None else replace(loaded, state_dir=self.state_dir)


@dataclass(frozen=True, slots=True)
class Job:
    """What a verb is asked to do, its arguments checked and nothing contacted yet.

    A verb returns its job instead of doing it, so that only parsing happens inside Typer: what it
    makes of exceptions (a broken pipe becomes ``sys.exit(1)``) must not meet our own.
    """

    json: bool
    run: Callable[[Session], None]
