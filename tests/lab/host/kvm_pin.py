"""Keeps KVM's static keys as they are, so that an emulated lab never patches its running kernel.

KVM flips three of them when the first virtual CPU of a kind comes or the last one goes: without an
in-kernel APIC, with an APIC disabled by software, with one disabled by hardware (linux,
arch/x86/kvm/lapic.c: kvm_has_noapic_vcpu, apic_sw_disabled, apic_hw_disabled).  Each flip patches
code that the other processor may be running, by way of an int3; under QEMU 7.2's multi-threaded
TCG that int3 was seen to be met after its handler had gone ("Oops: int3" in
kvm_arch_vcpu_ioctl_run) while a domain was starting.  One sleeping virtual CPU of each kind holds
all three keys where they are.  It is never run and costs nothing.
"""

from __future__ import annotations

import os
import signal
from fcntl import ioctl
from typing import Final

# linux/kvm.h
CREATE_VM: Final = 0xAE01
CREATE_VCPU: Final = 0xAE41
CREATE_IRQCHIP: Final = 0xAE60
GET_SREGS: Final = 0x8138AE83
SET_SREGS: Final = 0x4138AE84
SREGS_BYTES: Final = 0x138
APIC_BASE_OFFSET: Final = 272


def main() -> None:
    """Make the three virtual CPUs and sleep."""
    kvm = os.open("/dev/kvm", os.O_RDWR)
    without_apic = ioctl(kvm, CREATE_VM, 0)
    ioctl(without_apic, CREATE_VCPU, 0)
    with_apic = ioctl(kvm, CREATE_VM, 0)
    ioctl(with_apic, CREATE_IRQCHIP, 0)
    ioctl(with_apic, CREATE_VCPU, 0)  # an APIC begins as disabled by software
    by_hardware = ioctl(with_apic, CREATE_VCPU, 1)
    registers = bytearray(SREGS_BYTES)
    ioctl(by_hardware, GET_SREGS, registers)
    registers[APIC_BASE_OFFSET : APIC_BASE_OFFSET + 8] = bytes(8)
    ioctl(by_hardware, SET_SREGS, registers)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
