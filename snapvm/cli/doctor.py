"""``snapvm doctor``: say what a `take` would do, and what stands in its way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from snapvm.cli import failures, output
from snapvm.cli.arguments import AsJson, Domain
from snapvm.cli.manual import Manual
from snapvm.cli.session import Job, Session
from snapvm.cli.words import counted, plain, size, versions

if TYPE_CHECKING:
    from snapvm.diagnosis import Diagnosis, Footing
    from snapvm.lvm.logicalvolume import LogicalVolume

MANUAL = Manual(
    prerequisites=(
        "DOM exists. It is not changed, with one exception: to find out what QEMU can do, its "
        "migration settings are briefly set to those of a `take`, and the host's "
        "vm.unprivileged_userfaultfd to 1. If a `doctor` is killed at that moment, `repair` sets "
        "both back, and so does the next `doctor` or `take` of DOM."
    ),
    success=(
        "The output shows what a `take` would do: how memory would be captured here and why that "
        "way, whether an agent answers in the guest, the volume under each disk, how full its pool "
        "is, and the room for memory images; then advice on what makes the pause long, may soon be "
        "refused, or is not safe; and finally that nothing stands in the way."
    ),
    failure="Everything that stands in the way of a `take` is printed, with what to do about it.",
    example="snapvm doctor demo",
)


def doctor(domain: Domain, as_json: AsJson = False) -> Job:
    """Show how a domain would be captured, and what stands in the way."""

    def run(session: Session) -> None:
        # heavy: drivers, sh and their parsers; `snapvm --help` answers in 0.15 s without them
        from snapvm import diagnosis, recordfile
        from snapvm.cli import wiring
        from snapvm.refusals import NotReady

        host = wiring.open_host(session.settings(), session)
        found = diagnosis.look(host, domain)
        advice = diagnosis.advice(found, host.settings)
        omitted = [recordfile.omitted_dict(each) for each in found.omitted]
        values = {**_as_values(found), "omitted": omitted, "advice": list(advice)}
        if not as_json:
            output.say_findings((*_lines(found), *(f"advice: {text}" for text in advice)))
        if found.refusals:
            raise NotReady(domain=domain, count=len(found.refusals), diagnosis=values)
        if as_json:
            output.out_json(values)
        else:
            output.say(f"nothing stands in the way of taking a snapshot of {found.domain.name}")
            if there := failures.there_too(" ".join(advice), session.unusual_state_dir):
                output.err(f"hint: {plain(there)}")

    return Job(json=as_json, run=run)


def _lines(found: Diagnosis) -> Iterator[str]:
    domain = found.domain
    cpus = counted(domain.vcpus, "vCPU")
    yield (
        f"{plain(domain.name)}: {domain.state.value}, {cpus}, {size(domain.memory_bytes)}"
        f" ({plain(versions(found.versions))})"
    )
    if found.capture:
        yield f"memory: {plain(found.capture)}"
    elif not domain.state.has_memory:
        yield f"memory: none, the domain is {domain.state.value}"
    yield f"guest agent: {_agent(found)}"
    for disk in found.disks:
        yield f"{plain(disk.target)}: {_footing(disk)}"
    for omitted in found.omitted:
        yield f"{plain(omitted.target)}: left out, {plain(omitted.why)}"
    yield f"room for memory images: {size(found.free_bytes)}"
    for refusal in found.refusals:
        yield f"in the way: {plain(refusal.message())}"
        if hint := refusal.hint():
            yield f"hint: {plain(hint)}"


def _agent(found: Diagnosis) -> str:
    if found.agent:
        return f"none that --quiesce could use: {plain(found.agent)}"
    return "answers; --quiesce is possible, and a rollback sets the clock"


def _footing(disk: Footing) -> str:
    volume = disk.volume
    text = f"{volume.ref}, {volume.kind.value}, {size(volume.size_bytes)}"
    if disk.store_bytes:
        room = f"{size(disk.store_bytes)} of {size(volume.vg_free_bytes)} free in {volume.vg}"
        return f"{text}; a snapshot takes {room}"
    if disk.pool is None:
        return text
    fills = f"data {_percent(disk.pool.data_percent)}, metadata"
    return f"{text}; pool {disk.pool.ref}: {fills} {_percent(disk.pool.metadata_percent)}"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f} %"


def _as_values(found: Diagnosis) -> dict[str, Any]:
    domain = found.domain
    return {
        "domain": {
            "name": domain.name,
            "uuid": domain.uuid,
            "hypervisor": domain.hypervisor.value,
            "state": domain.state.value,
            "memory_bytes": domain.memory_bytes,
            "vcpus": domain.vcpus,
        },
        "versions": dict(found.versions),
        "capture": found.capture,
        "guest_agent": {"answers": not found.agent, "why_not": found.agent},
        "disks": [
            {
                "target": disk.target,
                "volume": str(disk.volume.ref),
                "kind": disk.volume.kind.value,
                "size_bytes": disk.volume.size_bytes,
                "snapshot_bytes": disk.store_bytes,
                "pool": None if disk.pool is None else _pool(disk.pool),
            }
            for disk in found.disks
        ],
        "free_bytes": found.free_bytes,
        "in_the_way": [
            {"message": refusal.message(), "hint": refusal.hint()} for refusal in found.refusals
        ],
    }


def _pool(pool: LogicalVolume) -> dict[str, Any]:
    return {
        "volume": str(pool.ref),
        "data_percent": pool.data_percent,
        "metadata_percent": pool.metadata_percent,
    }
