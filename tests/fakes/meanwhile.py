"""What happens between a death and the next command: a boot of the host, or the domain's owner."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from snapvm.errors import SnapvmError
from snapvm.model import DomainState
from tests.fakes.scene import DOMAIN, Scene

Deed = Callable[[Scene], None]


def is_on(scene: Scene) -> bool:
    return scene.hypervisor.state_of(DOMAIN).has_memory


def nothing(_scene: Scene) -> None:
    """The next command follows at once."""


def destroy(scene: Scene) -> None:
    """`virsh destroy`, `xl destroy`."""
    if is_on(scene):
        scene.hypervisor.stop(scene.hypervisor.find(DOMAIN))


def let_run(scene: Scene) -> None:
    """Have the domain run on, or start it afresh from the disks that have its names."""
    with suppress(SnapvmError):  # a disk has no name just then
        if not is_on(scene):
            _start(scene, paused=False)
        elif scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED:
            scene.hypervisor.resume(scene.machine.domain)
    if is_on(scene):
        scene.count(2)


def use(scene: Scene) -> None:
    """Have it run for a while, and shut it off."""
    let_run(scene)
    destroy(scene)


def hold(scene: Scene) -> None:
    """End it, and start it anew to stand still."""
    destroy(scene)
    with suppress(SnapvmError):
        _start(scene, paused=True)


def undefine(scene: Scene) -> None:
    """End it and have it forgotten, and where its variables are, if it has any."""
    destroy(scene)
    if DOMAIN in scene.hypervisor.machines and not scene.machine.places:
        scene.hypervisor.forget(DOMAIN)


def reboot(scene: Scene) -> None:
    """Lose the power: everything is off, /run is empty, the kernel counts from nothing."""
    destroy(scene)
    path = _boot_path(scene)
    path.write_text(f"{path.read_text()}again\n")
    shutil.rmtree(scene.host.settings.run_dir, ignore_errors=True)
    for volume in scene.lvm.volumes:
        volume.active = not volume.skipped and volume.autoactivated
        volume.written = 0
    for volume in scene.lvm.volumes:
        if volume.origin and not volume.pool:
            volume.active = scene.lvm.named(volume.vg, volume.origin).active


def reboot_and_start(scene: Scene) -> None:
    """The host comes up and starts the domain."""
    reboot(scene)
    let_run(scene)


DEEDS: tuple[Deed, ...] = (nothing, destroy, let_run, use, hold, undefine, reboot, reboot_and_start)


def _start(scene: Scene, *, paused: bool) -> None:
    known = {**scene.hypervisor.machines, **scene.hypervisor.forgotten}
    scene.hypervisor.start(known[DOMAIN].domain, paused=paused)


def _boot_path(scene: Scene) -> Path:
    return scene.host.settings.state_dir.parent / "boot_id"


def first_boot(scene: Scene) -> Path:
    """Return a file for ``hostid.BOOT_PATH``."""
    path = _boot_path(scene)
    path.write_text("the first\n")
    return path
