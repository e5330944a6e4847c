"""Volumes of ours that nothing names: neither a record nor a journal."""

from __future__ import annotations

from collections.abc import Sequence

from snapvm.host import Host
from snapvm.lvm import argv
from snapvm.lvm.report import LogicalVolume, Report
from snapvm.model import Record


def of(host: Host, report: Report) -> tuple[LogicalVolume, ...]:
    """Return every volume with our tag whose set nobody knows.

    None while there is a record or a journal that cannot be read: it might name any of them.
    """
    known = _known_sets(host)
    if known is None:
        return ()
    tags = {argv.set_tag(set_) for set_ in known}
    return tuple(v for v in report.tagged(argv.TAG_OURS) if not v.tags & tags)


def remove(host: Host, volumes: Sequence[LogicalVolume]) -> tuple[LogicalVolume, ...]:
    """Remove those of the volumes that still nothing names and nobody uses; return them."""
    wanted = {volume.uuid for volume in volumes}
    report = host.lvm.report()
    still = [v for v in of(host, report) if v.uuid in wanted and not v.is_open]
    host.lvm.remove([volume.ref for volume in still], report)
    return tuple(still)


def _known_sets(host: Host) -> set[str] | None:
    # Journals first: a take that ends meanwhile is found as a record then.
    domains = host.catalog.domains()
    intents = [left.intent for uuid, _ in domains for left in host.catalog.leftovers(uuid)]
    entries = list(host.catalog.entries())
    records = [entry for entry in entries if isinstance(entry, Record)]
    if len(records) < len(entries) or not all("set" in intent for intent in intents):
        return None
    return {str(intent["set"]) for intent in intents} | {record.set for record in records}
