"""The layout of ``snapvm VERB --help``, the same with every version of Typer.

Some versions of Typer write ``{DOM}`` for ``DOM``, and add types or ``[required]``.  Here brackets
mean optional and dots mean several, as in every man page.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


def argument_name(argument: Any) -> str:
    """Return how an argument is written in a synopsis: ``DOM``, ``[DOM]``, ``DOM@ID...``."""
    name = argument.metavar or argument.name
    several = "..." if argument.nargs != 1 else ""
    return f"{name}{several}" if argument.required else f"[{name}{several}]"


def arguments_of(command: Any) -> list[Any]:
    """Return the positional arguments of a verb."""
    return [param for param in command.params if param.param_type_name == "argument"]


class Verb(TyperCommand):
    """A verb whose help shows its arguments as a man page does."""

    def collect_usage_pieces(self, _ctx: Any) -> list[str]:
        """Return what stands behind ``Usage: snapvm VERB``."""
        return ["[OPTIONS]", *map(argument_name, arguments_of(self))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections of arguments and options."""
        arguments = [(argument_name(param), param.help or "") for param in arguments_of(self)]
        options = [
            param.get_help_record(ctx)
            for param in self.get_params(ctx)
            if param.param_type_name == "option"
        ]
        for title, rows in (("Arguments", arguments), ("Options", options)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl([row for row in rows if row is not None])

    def format_epilog(self, _ctx: Any, formatter: Any) -> None:
        """Write an example as it is typed; Typer would fold a long one."""
        if self.epilog:
            with formatter.section("Example"):
                formatter.write(f"  {self.epilog}\n")
