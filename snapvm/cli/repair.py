"""``snapvm repair``: finish or take back what a killed snapvm left behind."""

from __future__ import annotations

from typing import Annotated

import typer

from snapvm.cli import output
from snapvm.cli.arguments import AsJson, ForgetMissing, RepairedDomain, Wait
from snapvm.cli.manual import Manual
from snapvm.cli.session import Job, Session
from snapvm.errors import SnapvmError

MANUAL = Manual(
    prerequisites="No other snapvm is working on the domain.",
    success=(
        "Nothing unfinished is left: a killed take is taken back and its domain runs again, a "
        "killed rollback is finished or taken back, a delete is finished. `take`, `rollback`, "
        "`undo`, `delete` and `prune` do the same, before anything else, for the domains they work "
        "on; commands that only look, and `catalog rebuild`, do not. QEMU settings that a killed "
        "`doctor` left changed are set back too. DOM is the name of the domain, now or when it was "
        "last taken, or its uuid."
    ),
    failure=(
        "Whatever could not be finished is named, and is left for the next attempt; other domains "
        "are repaired all the same, and the exit status is that of the worst failure. While a "
        "volume group is missing (see `delete`), what is left in it is named and stays, until the "
        "group is back or `--forget-missing` is given. Work that was begun by another host that "
        "shares the state folder is left to that host, with exit status 5: it may still continue. "
        "With `--take-over` this host treats such work like its own from before a reboot."
    ),
    example="snapvm repair",
)


def repair(
    domain: RepairedDomain = None,
    forget_missing: ForgetMissing = False,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="Also finish the work of another host that is permanently down; needs DOM.",
        ),
    ] = False,
    wait: Wait = None,
    as_json: AsJson = False,
) -> Job:
    """Finish or take back what a killed snapvm left behind."""
    if take_over and domain is None:
        raise typer.BadParameter("name the DOM that no other host runs", param_hint="--take-over")

    def run(session: Session) -> None:
        # heavy: drivers, sh and their parsers; `snapvm --help` answers in 0.15 s without them
        from snapvm import consistency
        from snapvm.cli import lookup, wiring
        from snapvm.cli.progress import shown

        session.override(lock_wait_seconds=wait)
        host = wiring.open_host(session.settings(), session)
        try:
            with shown(quiet=session.verbose) as progress:
                done = consistency.repair_all(
                    host, domain, progress, forget_missing=forget_missing, take_over=take_over
                )
        except SnapvmError as failure:
            if not as_json:
                output.say_what_is_done(failure.mended)
            raise
        lookup.warn_if_mistaken(host.settings)
        if as_json:
            output.out_json({"repaired": list(done)})
            return
        for text in done or ("nothing to repair",):
            output.say(text)

    return Job(json=as_json, run=run)
