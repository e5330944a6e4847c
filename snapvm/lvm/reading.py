"""What LVM is asked, and how its answers are read: JSON of ``lvs`` and ``vgs``.

Field names are those of lvs(8) and vgs(8).  "Unknown" is never taken for "good": LVM leaves a field
empty, or prints -1, when the kernel target could not be asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from snapvm.failures import CommandFailed
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.report import Report, VolumeGroup
from snapvm.model import LvUuid, VgUuid

_SECTOR_BYTES = 512

FIELDS = (
    "vg_name",
    "vg_uuid",
    "vg_tags",
    "vg_free",
    "vg_size",
    "vg_extent_size",
    "vg_attr",
    "vg_missing_pv_count",
    "vg_mda_free",
    "max_lv",
    "lv_count",
    "vg_lock_type",
    "lv_name",
    "lv_uuid",
    "lv_size",
    "lv_attr",
    "lv_layout",
    "lv_role",
    "lv_tags",
    "lv_kernel_major",
    "lv_kernel_minor",
    "lv_health_status",
    "origin",
    "origin_size",
    "pool_lv",
    "data_percent",
    "metadata_percent",
    "lv_metadata_size",
    "lv_profile",
    "vg_profile",
    "chunk_size",
    "lv_read_ahead",
)
_AUTOACTIVATION = "lv_autoactivation"
FULL_FIELDS = (*FIELDS, _AUTOACTIVATION)
"""An LVM before 2.03.12 does not know the last one, and then tells nothing at all."""

GROUP_FIELDS = ("vg_name", "vg_uuid", "vg_attr", "vg_systemid", "vg_lock_type", "lv_count")

_AS_EXPECTED = (
    'report/compact_output=0 report/compact_output_cols="" report/list_item_separator="," '
    "report/prefixes=0 log/verbose=0 "
    'log/command_names=0 log/prefix="" log/report_command_log=1 global/wait_for_locks=1'
)
"""What lvm.conf may have otherwise: every field in every row, and commas in lists.

And nothing before the lines: lvm prints a report as messages, on standard output.  What it says
besides, of a scan that it repeats, is in the report then (lvm2, lib/log/log.c: _vprint_log).
"""

ARGV = (
    "lvm",
    "lvs",
    "--config",
    _AS_EXPECTED,
    "--all",
    "--reportformat",
    "json",
    "--units",
    "b",
    "--nosuffix",
    "--options",
    ",".join(FIELDS),
)
"""Plain json and not json_std: the latter needs a newer LVM and has locale troubles (WHATS_NEW)."""

FULL_ARGV = (*ARGV[:-1], ",".join(FULL_FIELDS))

GROUPS_ARGV = (
    "lvm",
    "vgs",
    "--config",
    _AS_EXPECTED,
    "--foreign",
    "--shared",
    "--reportformat",
    "json",
    "--options",
    ",".join(GROUP_FIELDS),
)
"""The groups that ``ARGV`` is silent about too: those without a volume, exported ones, and those of
other hosts (lvm2, tools/toollib.c: _ignore_vg)."""

DUPLICATES_ARGV = (
    "lvm",
    "pvs",
    "--config",
    _AS_EXPECTED,
    "--all",
    "--reportformat",
    "json",
    "--options",
    "vg_name,pv_name,pv_duplicate",
)
"""With ``--all``, for pvs leaves out the devices that LVM does not use."""

DUPLICATES_ALLOWED_ARGV = (
    "lvm",
    "lvmconfig",
    "--type",
    "full",
    "devices/allow_changes_with_duplicate_pvs",
)

_EXTEND_THRESHOLD = re.compile(r"thin_pool_autoextend_threshold\s*=\s*(?P<percent>\d+)")
VERSION_ARGV = ("lvm", "version")
_VERSION = re.compile(r"LVM version:\s*(\d+)\.(\d+)\.(\d+)")

_SAID = re.compile(r'"log_message"\s*:\s*"((?:[^"\\]|\\.)*)"')
_OUTCOMES = ("success", "failure")
"""What stands there of each group and volume that was looked at, beside what was said of it."""
_UNREAD = re.compile(r"Cannot process volume group (\S+)")


def in_full(failure: CommandFailed) -> CommandFailed:
    """Return the failure of an lvs or vgs with what it said, which is in the log of its report.

    There it is with ``log/report_command_log=1``, and not on standard error (lvm2, lib/log/log.c).
    """
    _, _, log = failure.stdout.rpartition('"log"')
    said = [text.replace(r"\"", '"') for text in _SAID.findall(log) if text not in _OUTCOMES]
    return replace(failure, stderr="\n".join(filter(None, (failure.stderr, *said))))


def unread_groups(failure: CommandFailed) -> tuple[str, ...]:
    """Return the groups that an lvs or vgs could not read; it has reported all others then.

    Such as one that another version of LVM has written (lvm2, tools/toollib.c,
    _process_lv_vgnameid_list).
    """
    return tuple(dict.fromkeys(_UNREAD.findall(failure.stderr)))


def parse(text: str, doubled: Callable[[], Mapping[str, str]] = dict) -> Report:
    """Read the output of ``ARGV``, or of ``FULL_ARGV``; see ``Report.doubled``.

    Raises ``CommandFailed`` when it is not the JSON that lvs(8) promises: a report cut short by a
    crash must not look like a host with fewer volumes.
    """
    with _failing_as(ARGV):
        # chunk_size is a field of segments: a volume in several pieces has a row for each of them.
        volumes = (_volume(row) for row in _rows(text, "lv"))
        once = {volume.dm_uuid: volume for volume in volumes}
        return Report(once.values(), doubled=doubled)


def parse_groups(text: str) -> tuple[VolumeGroup, ...]:
    """Read the output of ``GROUPS_ARGV``; raises as ``parse`` does."""
    with _failing_as(GROUPS_ARGV):
        return tuple(
            VolumeGroup(
                name=row["vg_name"],
                uuid=VgUuid(row["vg_uuid"]),
                is_exported=row["vg_attr"][2:3] == "x",
                system_id=row["vg_systemid"],
                lock_type=row["vg_lock_type"],
                volumes=int(row["lv_count"]),
            )
            for row in _rows(text, "vg")
        )


def parse_duplicates(text: str) -> dict[str, str]:
    """Read the output of ``DUPLICATES_ARGV``: by group, a device that LVM does not use.

    Raises as ``parse`` does.
    """
    with _failing_as(DUPLICATES_ARGV):
        rows = _rows(text, "pv")
        return {
            row["vg_name"]: row["pv_name"] for row in rows if row["pv_duplicate"] not in ("", "0")
        }


def is_on(text: str) -> bool:
    """Tell whether lvmconfig prints that a setting is switched on."""
    return text.strip().endswith("=1")


def parse_threshold(text: str) -> float:
    """Return the percentage in what ``argv.extend_threshold`` asks for; 100 where none is."""
    found = _EXTEND_THRESHOLD.search(text)
    return min(float(found["percent"]), 100.0) if found else 100.0


def parse_version(text: str) -> tuple[int, ...]:
    """Return the version in the output of ``VERSION_ARGV``; empty where none is."""
    found = _VERSION.search(text)
    return tuple(map(int, found.groups())) if found else ()


@contextmanager
def _failing_as(argv: tuple[str, ...]) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CommandFailed(
            argv=argv, status=0, stderr=f"its report could not be read: {error!r}"
        ) from error


def _rows(text: str, kind: str) -> list[dict[str, Any]]:
    return [row for section in _sections(text) for row in section.get(kind, ())]


def _sections(text: str) -> list[dict[str, Any]]:
    """Return what lvs reports, without the log behind it, which need not be JSON.

    With a warning there is a comma too many in it before 2.03.24, and characters stand as they are
    in it before 2.03.33 (lvm2, libdm-report.c).
    """
    begin = text.index("[", text.index('"report"'))
    sections, _ = json.JSONDecoder().raw_decode(text, begin)
    return list(sections)


def _volume(row: dict[str, Any]) -> LogicalVolume:
    return LogicalVolume(
        vg=row["vg_name"],
        vg_uuid=VgUuid(row["vg_uuid"]),
        vg_tags=_words(row["vg_tags"]),
        # Hidden volumes are printed in square brackets.
        name=row["lv_name"].strip("[]"),
        uuid=LvUuid(row["lv_uuid"]),
        size_bytes=int(row["lv_size"]),
        attr=row["lv_attr"],
        layout=_words(row["lv_layout"]),
        roles=_words(row["lv_role"]),
        tags=_words(row["lv_tags"]),
        device=_device(row["lv_kernel_major"], row["lv_kernel_minor"]),
        health=row["lv_health_status"],
        origin=row["origin"].strip("[]"),
        origin_bytes=int(row["origin_size"]) if row["origin_size"] else None,
        pool=row["pool_lv"].strip("[]"),
        data_percent=_percent(row["data_percent"]),
        metadata_percent=_percent(row["metadata_percent"]),
        metadata_bytes=int(row["lv_metadata_size"] or 0),
        chunk_bytes=int(row["chunk_size"] or 0),
        vg_free_bytes=int(row["vg_free"]),
        vg_bytes=int(row["vg_size"]),
        vg_extent_bytes=int(row["vg_extent_size"]),
        vg_attr=row["vg_attr"],
        vg_missing_pvs=int(row["vg_missing_pv_count"]),
        vg_metadata_free_bytes=int(row["vg_mda_free"]),
        vg_volumes_left=_left(row["max_lv"], row["lv_count"]),
        vg_lock_type=row["vg_lock_type"],
        profile=row["lv_profile"] or row["vg_profile"],
        read_ahead=_read_ahead(row["lv_read_ahead"]),
        not_at_boot=row.get(_AUTOACTIVATION) in ("", "0"),
    )


def _left(most: str, count: str) -> int | None:
    """Return how many volumes more a group may have; a group may have 0, which is any number."""
    limit = int(most or 0)
    return max(limit - int(count), 0) if limit else None


def _read_ahead(told: str) -> str:
    """Return what is told in bytes as the sectors that LVM is to be told."""
    return str(int(told) // _SECTOR_BYTES) if told.isdigit() else "auto"


def _words(text: str) -> frozenset[str]:
    return frozenset(word for word in text.split(",") if word)


def _percent(text: str) -> float | None:
    return float(text) if text and not text.startswith("-") else None


def _device(major: str, minor: str) -> tuple[int, int] | None:
    if not major or not minor or major.startswith("-"):
        return None
    return int(major), int(minor)
