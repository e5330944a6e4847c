"""Arguments and options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

from snapvm import cowsize
from snapvm.cli.completion import complete_domain, complete_reference
from snapvm.cowsize import CowSize

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
        help="Only what was left behind for this domain.",
        show_default=False,
        autocompletion=complete_domain,
    ),
]
Reference = Annotated[
    str,
    typer.Argument(
        metavar="DOM@ID",
        help="A snapshot: its id, a unique prefix of the id, or `latest`.",
        show_default=False,
        autocompletion=complete_reference,
    ),
]
References = Annotated[
    list[str],
    typer.Argument(
        metavar="DOM@ID",
        help="Snapshots: the id of each, a unique prefix of it, or `latest`.",
        show_default=False,
        autocompletion=complete_reference,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for a failure too.")]


def _checked_wait(value: float | None) -> float | None:
    # Typer's own min and max would let NaN pass.
    if value is not None and not 0 <= value < 1e9:
        raise typer.BadParameter("it must be a number from 0 to below 1,000,000,000")
    return value


Wait = Annotated[
    float | None,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        callback=_checked_wait,
        help="Wait this long for another snapvm that is working on the domain.",
        show_default=False,
    ),
]


def as_cow_size(text: str | None) -> CowSize | None:
    """Read ``--cow-size``; raise Typer's own error when it is not a size."""
    if text is None:
        return None
    try:
        return cowsize.parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} {error}", param_hint="--cow-size") from None


CowSizeOption = Annotated[
    str | None,
    typer.Option(
        "--cow-size",
        metavar="SIZE",
        help="How much of a thick disk may change before its snapshot is lost: full (the default), "
        "20% or 4G.",
        show_default=False,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
ForgetMissing = Annotated[
    bool,
    typer.Option(
        "--forget-missing",
        help="Go on although a volume group is missing; snapvm's volumes in it stay there.",
    ),
]
