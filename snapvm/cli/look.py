"""``snapvm list`` and ``snapvm show``: what there is; the catalog tells it."""

from __future__ import annotations

from snapvm import naming
from snapvm.cli.arguments import AsJson, OptionalDomain, Reference
from snapvm.cli.manual import Manual
from snapvm.cli.session import Job, Session

LIST_MANUAL = Manual(
    prerequisites="None. LVM is asked how the volumes are; the hypervisor is not.",
    success=(
        "The snapshots are printed, the first made of a domain first: a table on a terminal (where "
        "it is too narrow for NOTE, notes stand below), aligned columns elsewhere, and with "
        "`--json` an array of records as `snapshot.json` holds them, each with its `ref` and the "
        "`health` of each disk as `show` has it. Times are of this host's clock. HEALTH is that of "
        "the disk which is worst off, with how much of what a thick snapshot can keep is used; "
        "`unknown` where LVM does not tell, `no group` where it does not show the volume group "
        "now. KIND is `full` (memory and disks), `disks`, or `undo` (the disks that were current "
        "before a rollback). A record that cannot be read is shown last as `damaged`, with the "
        "reason on standard error. With DOM only the snapshots of the domain that has this name "
        "now are printed, and those that were taken when a domain had it."
    ),
    failure="Nothing is changed.",
    example="snapvm list demo --json | jq -r '.[].ref'",
)
SHOW_MANUAL = Manual(
    prerequisites="None. LVM is asked how the volumes are; the hypervisor is not.",
    success=(
        "All that is recorded about the snapshot is printed, how its volumes are now (a thick "
        "one: how much of what it can keep is used), and the time the domain stood still is drawn "
        "with what filled it. With `--json` the record as `snapshot.json` holds it, with its "
        "`ref` and the `health` of each disk: `ok`, `nearly full`, `merging`, `unusable` "
        "(`snapvm check` says why), `lost`, `gone`, `no group` (LVM does not show its volume "
        "group now, so it need not be gone) or `unknown`."
    ),
    failure="Nothing is changed.",
    example="snapvm show demo@latest",
)


def list_snapshots(domain: OptionalDomain = None, as_json: AsJson = False) -> Job:
    """List snapshots, of one domain or of all."""

    def run(session: Session) -> None:
        # heavy: the catalog and its parsers; `snapvm --help` does without
        from snapvm.cli import listing

        listing.print_list(session, domain, as_json=as_json)

    return Job(json=as_json, run=run)


def show(reference: Reference, as_json: AsJson = False) -> Job:
    """Show all about a snapshot, and what filled its pause."""
    naming.split_reference(reference)

    def run(session: Session) -> None:
        # heavy: the catalog and its parsers; `snapvm --help` does without
        from snapvm.cli import listing

        listing.print_record(session, reference, as_json=as_json)

    return Job(json=as_json, run=run)
