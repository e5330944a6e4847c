"""Arguments and options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

from snapvm.cli.completion import complete_domain, complete_reference

Domain = Annotated[
    str,
    typer.Argument(
        metavar="DOM",
        help="The name of a domain.",
        show_default=False,
        autocompletion=complete_domain,
    ),
]
OptionalDomain = Annotated[
    str | None,
    typer.Argument(
        metavar="DOM",
        help="Only the snapshots of this domain.",
        show_default=False,
        autocompletion=complete_domain,
    ),
]
RepairedDomain = Annotated[
    str | None,
    typer.Argument(
        metavar="DOM",
        help="Only what was left of this domain.",
        show_default=False,
        autocompletion=complete_domain,
    ),
]
Reference = Annotated[
    str,
    typer.Argument(
        metavar="DOM@ID",
        help="A snapshot: its id, a unique beginning of it, or `latest`.",
        show_default=False,
        autocompletion=complete_reference,
    ),
]
References = Annotated[
    list[str],
    typer.Argument(
        metavar="DOM@ID",
        help="Snapshots: the id, a unique beginning of it, or `latest`.",
        show_default=False,
        autocompletion=complete_reference,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, a failure too.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
