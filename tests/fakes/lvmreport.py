"""What the stand-in for lvs prints: a row for each volume, as lvm.conf wants them printed."""

from __future__ import annotations

import json
from collections.abc import Sequence

from snapvm.failures import CommandFailed
from snapvm.lvm.reading import FIELDS, GROUP_FIELDS
from tests.fakes.lvmvolume import FakeVolume
from tests.fakes.lvmwords import printed

EXTENT_BYTES = 4 << 20
VG_BYTES = 1 << 34


def row(
    volume: FakeVolume,
    *,
    vg_uuid: str,
    vg_tags: set[str],
    vg_free_bytes: int,
    vg_volumes: int,
    max_volumes: int,
    is_external_origin: bool,
) -> dict[str, str]:
    """Return every field of a volume and of its group."""
    layout = "thin,pool" if volume.is_pool else "thin,sparse" if volume.pool else "linear"
    is_thick_snapshot = bool(volume.origin and not volume.pool)
    roles = ["public"]
    roles += ["snapshot", "thicksnapshot"] if is_thick_snapshot else []
    roles += ["origin", "extthinorigin"] if is_external_origin else []
    is_asked = volume.active or volume.is_layered or not (volume.is_pool or is_thick_snapshot)
    has_data = is_asked and (volume.is_pool or bool(volume.pool) or is_thick_snapshot)
    told = {
        "vg_name": volume.vg,
        "vg_uuid": vg_uuid,
        "vg_tags": ",".join(sorted(vg_tags)),
        "vg_free": str(vg_free_bytes),
        "vg_size": str(VG_BYTES),
        "vg_extent_size": str(EXTENT_BYTES),
        "vg_attr": "wz--n-",
        "vg_missing_pv_count": "0",
        "vg_mda_free": str(500 << 10),
        "max_lv": str(max_volumes),
        "lv_count": str(vg_volumes),
        "lv_name": volume.name,
        "lv_uuid": volume.uuid,
        "lv_size": str(volume.size_bytes),
        "lv_attr": volume.attr,
        "lv_layout": layout,
        "lv_role": ",".join(roles),
        "lv_tags": ",".join(sorted(volume.tags)),
        "lv_kernel_major": "253" if volume.active else "-1",
        "lv_kernel_minor": str(volume.minor) if volume.active else "-1",
        "lv_health_status": volume.health,
        "origin": volume.origin,
        "origin_size": str(volume.origin_bytes) if volume.origin else "",
        "pool_lv": volume.pool,
        "data_percent": f"{volume.data_percent:.2f}" if has_data else "",
        "metadata_percent": f"{volume.metadata_percent:.2f}" if volume.is_pool and has_data else "",
        "lv_profile": volume.profile,
        "lv_read_ahead": volume.read_ahead,
        "lv_metadata_size": str(volume.metadata_bytes) if volume.is_pool else "",
        "chunk_size": str(volume.chunk_bytes),
    }
    return dict.fromkeys(FIELDS, "") | told


def statuses(volumes: list[FakeVolume], names: Sequence[str]) -> str:
    """Print what `dmsetup status` does; raise ``CommandFailed`` when a device is not there."""
    hyphens = ("-", "--")
    known = {f"{v.vg.replace(*hyphens)}-{v.name.replace(*hyphens)}": v for v in volumes if v.active}
    for name in names:
        if name not in known:
            command = ("dmsetup", "status", *names)
            raise CommandFailed(argv=command, status=1, stderr="Device does not exist.")
    begins = [f"{name}: " if len(names) > 1 else "" for name in names]
    lines = (f"{begin}{_status(known[name])}" for begin, name in zip(begins, names, strict=True))
    return "\n".join(lines)


def _status(volume: FakeVolume) -> str:
    if not volume.origin or volume.pool:
        return f"0 {volume.size_bytes // 512} linear"
    total = volume.size_bytes // 512
    used = max(int(total * volume.data_percent / 100), 16)
    fill = f"{used}/{total} 16"
    kind = "snapshot-merge" if volume.merging else "snapshot"
    return f"0 {volume.origin_bytes // 512} {kind} {'Invalid' if volume.invalid else fill}"


def group_row(vg: str, vg_uuid: str, volumes: list[FakeVolume]) -> dict[str, str]:
    """Return every field of a group."""
    told = {"vg_name": vg, "vg_uuid": vg_uuid, "vg_attr": "wz--n-", "lv_count": str(len(volumes))}
    return dict.fromkeys(GROUP_FIELDS, "") | told


def report(kind: str, rows: list[dict[str, str]], conf: dict[str, str], said: list[str]) -> str:
    """Print the rows, and what was said meanwhile: in the log of the report, or before it."""
    separator = conf.get("report/list_item_separator", ",").strip('"')
    for each in rows:
        for name in {"lv_layout", "lv_role", "lv_tags", "vg_tags"} & each.keys():
            each[name] = each[name].replace(",", separator)
    if conf.get("report/compact_output") == "1":
        shown = [name for name in rows[0] if any(each[name] for each in rows)] if rows else []
        rows = [{name: each[name] for name in shown} for each in rows]
    if conf.get("report/prefixes") == "1":
        rows = [{f"LVM2_{name.upper()}": value for name, value in each.items()} for each in rows]
    is_logged = conf.get("log/report_command_log", "1") == "1"
    log = [{"log_message": text} for text in said] if is_logged else []
    text = json.dumps({"report": [{kind: rows}], "log": log})
    if log:
        # Before 2.03.24: the comma before a row that is not shown (libdm-report.c, last_row).
        text = "},".join(text.rsplit("}", 2)[:2]) + "}"
    return printed([] if is_logged else said, text, conf)
