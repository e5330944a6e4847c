"""What a rollback is going to do and what it did, in words."""

from __future__ import annotations

import shlex
from datetime import datetime
from typing import TYPE_CHECKING

from snapvm.cli.words import age, counted, local_time, milliseconds, size
from snapvm.model import DomainState, OmittedDisk, VolumeKind

if TYPE_CHECKING:
    from snapvm.consistency import RollbackDone
    from snapvm.planning import RollbackPlan

_DOING = {
    DomainState.RUNNING: "running again",
    DomainState.PAUSED: "paused",
    DomainState.SHUTOFF: "shut off",
}


def explanation(plan: RollbackPlan, now: datetime, *, paused: bool) -> list[str]:
    """Return lines that say what a rollback is going to do."""
    record = plan.record
    disks = counted(len(record.disks), "disk")
    what = f"memory and {disks}" if record.memory is not None else f"{disks}, no memory,"
    when = f"{local_time(record.created, precise=True)}, {age(record.created, now)}"
    return [
        f"Roll back to {record.ref}: {what} as of {when}.",
        *_losses(plan),
        *(f"- {_begun(text)}." for text in (*resized(plan), *foreseen(plan))),
        *(f"- Not in the snapshot: {each.target}, {each.why}." for each in left_out(plan)),
        f"- Its present disks are kept as {record.domain}@undo-... (see `snapvm list`).",
        f"- {_afterwards(plan, paused=paused)}",
    ]


def _begun(text: str) -> str:
    """Return a text as the beginning of a sentence; libvirt writes its name small there too."""
    return text if text.startswith("libvirt") else f"{text[0].upper()}{text[1:]}"


def resized(plan: RollbackPlan) -> list[str]:
    """Say what becomes of each disk whose size has changed since the snapshot."""
    then = {disk.target: disk.size_bytes for disk in plan.record.disks}
    told = []
    for disk in plan.disks:
        former, now = size(then[disk.target]), size(disk.size_bytes)
        if disk.size_bytes == then[disk.target]:
            continue
        if disk.kind is VolumeKind.THIN:
            told.append(f"disk {disk.target}, now {now}, returns to {former}")
        else:
            told.append(f"disk {disk.target} stays {now}; what lies beyond {former} is not touched")
    return told


def foreseen(plan: RollbackPlan) -> list[str]:
    """Say what the next start of the domain will not find as the rollback leaves it."""
    name = shlex.quote(plan.domain.name)
    if plan.is_forgotten:
        keep = f"virsh dumpxml --security-info {name} >FILE; virsh define FILE"
        told = "libvirt has no definition of the domain, and forgets it once it is shut off"
        return [f"{told}; to keep it, define it while it runs ({keep})"]
    disks = {disk.target: disk.current for disk in plan.disks}
    return [
        f"disk {target} of the snapshot, {disks[target]}, is not in the domain's definition: "
        f"the next boot from that definition will lack it (virsh edit {name})"
        for target in plan.unbooted
    ]


def left_out(plan: RollbackPlan) -> list[OmittedDisk]:
    """Return the parts of the domain that the rollback neither brings back nor keeps."""
    why = "a disk that stays as it is"
    stays = [OmittedDisk(target=target, why=why) for target in plan.others]
    found = {each.target: each for each in (*plan.record.omitted, *plan.omitted, *stays)}
    return list(found.values())


def _losses(plan: RollbackPlan) -> list[str]:
    if plan.is_forgotten:
        return ["- libvirt does not know the domain now: make sure that it runs on no other host."]
    state = plan.domain.state
    if state is DomainState.SHUTOFF:
        return [f"- The domain is {state.value} now."]
    return [f"- The domain is {state.value} now: the contents of its memory will be lost."]


def _afterwards(plan: RollbackPlan, *, paused: bool) -> str:
    record = plan.record
    if not record.state.is_on:
        return "The domain was shut off then, and will be shut off afterwards."
    if not plan.is_started:
        return "It stays off: start it from its own configuration file afterwards."
    if record.memory is None:
        how = "starts paused," if paused else "starts"
        return f"It then {how} afresh from these disks, as after a power cut."
    if paused or record.state is DomainState.PAUSED:
        return "It is then left paused at that instant."
    return "It then resumes from that instant."


def summary(done: RollbackDone) -> str:
    """Return the one line that says what a rollback did."""
    state = _DOING.get(done.state, done.state.value)
    return (
        f"{done.plan.record.domain} is back at {done.plan.record.ref} and {state}{_clock(done)}, "
        f"{milliseconds(done.seconds * 1000)} in all; its former disks are kept as {done.undo.ref}"
    )


def _clock(done: RollbackDone) -> str:
    """Say how far the guest's clock was moved; empty when nobody set it."""
    moved_seconds = done.guest.moved_seconds
    if moved_seconds is None:
        return ""
    direction = "back" if moved_seconds < 0 else "forward"
    return f", its clock set {direction} by {abs(moved_seconds):.0f} s"
