"""``snapvm list`` and ``snapvm show``: print the snapshots in the catalog."""

from __future__ import annotations

from snapvm import naming
from snapvm.cli.arguments import AsJson, OptionalDomain, Reference
from snapvm.cli.manual import Manual
from snapvm.cli.session import Job, Session

LIST_MANUAL = Manual(
    prerequisites="None. LVM is asked about the volumes; the hypervisor is not asked.",
    success=(
        "The snapshots are printed, the oldest of each domain first: as a table on a terminal (if "
        "it is too narrow for NOTE, notes are shown below the rows), as aligned columns elsewhere, "
        "and with `--json` as an array of records as in `snapshot.json`, each with its `ref` and "
        "the `health` of each disk, as `show` prints them. Times are in this host's time zone. "
        "HEALTH is that of the disk in the worst state, and for a thick snapshot how full it is; "
        "`unknown` means that LVM gives no answer, `no group` that LVM does not show the volume "
        "group now. KIND is `full` (memory and disks), `disks`, or `undo` (the disks from before a "
        "rollback). A record that cannot be read is printed last as `damaged`, with the reason on "
        "standard error. With DOM, only the snapshots of the domain that has this name now are "
        "printed, and those that were taken when a domain had it."
    ),
    failure="Nothing is changed.",
    example="snapvm list demo --json | jq -r '.[].ref'",
)
SHOW_MANUAL = Manual(
    prerequisites="None. LVM is asked about the volumes; the hypervisor is not asked.",
    success=(
        "Everything that is recorded about the snapshot is printed, with the present state of its "
        "volumes (for a thick one, how full it is), and a chart of what happened while the domain "
        "stood still. `--json` prints the record as in `snapshot.json`, with its `ref` and the "
        "`health` of each disk: `ok`, `nearly full`, `merging`, `unusable` (`snapvm check` says "
        "why), `lost`, `gone`, `no group` (LVM does not show the volume group now, so the volume "
        "may still exist) or `unknown`; `volume` is the present name of the snapshot's volume, or "
        "null. The names in `disks` are those from when the snapshot was taken."
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
    """Show everything about a snapshot, and what filled its pause."""
    naming.split_reference(reference)

    def run(session: Session) -> None:
        # heavy: the catalog and its parsers; `snapvm --help` does without
        from snapvm.cli import listing

        listing.print_record(session, reference, as_json=as_json)

    return Job(json=as_json, run=run)
