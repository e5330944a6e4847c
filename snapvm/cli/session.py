"""The state of one run of ``snapvm``: its options, its settings, and the job to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapvm.errors import BadSetting

if TYPE_CHECKING:
    from snapvm.settings import Settings


@dataclass(slots=True)
class Session:
    """The options that stand before the verb, and what a bug report needs."""

    state_dir: Path | None = None
    verbose: bool = False
    json: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings that options after the verb change."""
    used_state_dir: Path | None = None
    """The folder of records, once the settings have been read."""
    last_commands: Iterable[str] = field(default_factory=tuple)
    """The last commands that the runner has run, once there is a runner."""

    def override(self, **values: Any) -> None:
        """Let options after the verb change settings; None leaves a setting as it is."""
        self.overrides |= {key: value for key, value in values.items() if value is not None}

    def settings(self) -> Settings:
        """Return the settings, the flags applied; raise ``BadSetting``."""
        # heavy: a TOML parser, which neither help nor a wrong command line needs
        from snapvm import settings

        loaded = settings.load()
        if self.state_dir is not None:
            try:
                settings.require_folder(self.state_dir)
            except ValueError as error:
                why = f"{str(self.state_dir)!r} {error}"
                raise BadSetting(where="--state-dir", why=why) from None
            loaded = replace(loaded, state_dir=self.state_dir)
        self.used_state_dir = loaded.state_dir
        return replace(loaded, **self.overrides)

    def unusual_state_dir(self) -> Path | None:
        """Return the folder of records when a `snapvm` typed elsewhere would take another.

        What a variable says holds here alone: sudo drops it, and that of a unit or of a crontab is
        in no shell.
        """
        # heavy: a TOML parser, which neither help nor a wrong command line needs
        from snapvm import settings

        used = self.used_state_dir or self.state_dir
        try:
            return None if used == settings.load({}).state_dir else used
        except BadSetting:
            return used


@dataclass(frozen=True, slots=True)
class Job:
    """What a verb is asked to do: its arguments are checked, and nothing has been contacted.

    A verb returns its job instead of doing it, so that only parsing happens inside Typer, which
    turns some exceptions into others (a broken pipe into ``sys.exit(1)``).
    """

    json: bool
    run: Callable[[Session], None]
