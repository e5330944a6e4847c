"""What a lab domain looks like, and how libvirt and xl are told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.lab.host.places import BOOT_FOLDER, SOCKET_FOLDER

ISOLATED_CPUS = Path("/sys/devices/system/cpu/isolated")
"""Processors kept for domains; empty where there are none."""

HOW = {
    "thin": "-V {size} -T {group}/pool -n {name}",
    "thick": "-Wn -L {size} -n {name} {group}",
    "striped": "-Wn --type striped -i 2 -L {size} -n {name} {group}",
    "raid1": "-Wn --type raid1 -m 1 -L {size} -n {name} {group}",
}
"""Options of lvcreate for each kind of volume."""


_NOT_EMULATED = "pci=noearly initcall_blacklist=i8042_init,serial8250_init"
"""Xen: what costs a guest minutes to look for, where each port is QEMU's and all is emulated."""
_SCREENLESS = "vga = 'none'\nvnc = 0\n"
"""Each character on a screen goes through QEMU as well."""


@dataclass(frozen=True)
class DomainShape:
    """A domain to be; ``groups`` are taken in turn for its disks."""

    name: str
    disks: int
    size_mib: int
    memory_mib: int
    vcpus: int
    bus: str
    cache: str
    kinds: tuple[str, ...]
    """Keys of ``HOW``, taken in turn too."""
    groups: tuple[str, ...]
    backends: tuple[str, ...] = ("phy",)
    """Xen: who serves the disks, ``phy`` or ``qdisk``, taken in turn too."""

    guest_type: str = "pv"
    """Xen: ``pv``, ``pvh`` or ``hvm``."""

    agent: bool = False
    """It has the channel of a guest agent; ``pulse`` answers there."""

    @property
    def volumes(self) -> list[tuple[str, str, str]]:
        """Volume group, name and kind of each disk's logical volume."""
        groups, kinds = self.groups, self.kinds
        return [
            (groups[n % len(groups)], f"{self.name}-d{n}", kinds[n % len(kinds)])
            for n in range(self.disks)
        ]

    @property
    def paths(self) -> list[str]:
        """Device path of each disk's logical volume."""
        return [f"/dev/{group}/{name}" for group, name, _ in self.volumes]

    def kernel_words(self, console: str) -> str:
        """Return the domain's kernel command line."""
        less = f"{_NOT_EMULATED} " if self.guest_type == "hvm" else ""
        return f"console={console} {less}quiet loglevel=1 panic=-1 pulse.disks={self.disks}"


AGENT = """
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>"""


def libvirt_xml(shape: DomainShape, *, kvm: bool) -> str:
    """Return the domain's libvirt definition."""
    prefix = {"virtio": "vd", "scsi": "sd"}[shape.bus]
    disks = "".join(
        f"""
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw' cache='{shape.cache}'/>
      <source dev='{path}'/>
      <target dev='{prefix}{chr(ord("a") + number)}' bus='{shape.bus}'/>
    </disk>"""
        for number, path in enumerate(shape.paths)
    )
    scsi = "<controller type='scsi' model='virtio-scsi'/>" if shape.bus == "scsi" else ""
    agent = AGENT if shape.agent else ""
    processor = "<cpu mode='host-passthrough'/>" if kvm else ""
    cpus = ISOLATED_CPUS.read_text().strip()
    pinned = f" cpuset='{cpus}'" if cpus else ""
    return f"""<domain type='{"kvm" if kvm else "qemu"}'>
  <name>{shape.name}</name>
  <memory unit='MiB'>{shape.memory_mib}</memory>
  <vcpu placement='static'{pinned}>{shape.vcpus}</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{BOOT_FOLDER}/vmlinuz</kernel>
    <initrd>{BOOT_FOLDER}/pulse.initrd</initrd>
    <cmdline>{shape.kernel_words("ttyS0")}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  {processor}
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>{disks}
    {scsi}{agent}
    <controller type='usb' model='none'/>
    <serial type='unix'>
      <source mode='bind' path='{SOCKET_FOLDER}/{shape.name}.sock'/>
      <log file='/var/log/libvirt/qemu/{shape.name}-serial.log' append='on'/>
    </serial>
  </devices>
</domain>
"""


def xl_config(shape: DomainShape) -> str:
    """Return the domain's xl configuration."""
    backends = shape.backends
    disks = ", ".join(
        f"'format=raw,vdev=xvd{chr(ord('a') + number)},access=rw,"
        f"backendtype={backends[number % len(backends)]},target={path}'"
        for number, path in enumerate(shape.paths)
    )
    return f"""name = '{shape.name}'
type = '{shape.guest_type}'
memory = {shape.memory_mib}
vcpus = {shape.vcpus}
kernel = '{BOOT_FOLDER}/vmlinuz'
ramdisk = '{BOOT_FOLDER}/pulse.initrd'
extra = '{shape.kernel_words("hvc0")}'
disk = [{disks}]
on_reboot = 'destroy'
on_crash = 'preserve'
{_SCREENLESS if shape.guest_type == "hvm" else ""}"""
