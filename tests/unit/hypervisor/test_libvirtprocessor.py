"""Memory whose processor this host has not is met before the domain that is there is ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.memory import libvirtimage
from snapvm.model import DomainState
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.fakelibvirt import EMULATOR, IMAGE, OFF, Connection

CPU = """<cpu mode='custom' match='exact' check='full'>
  <model fallback='forbid'>Skylake-Server-IBRS</model>
  <vendor>Intel</vendor>
  <feature policy='require' name='avx512f'/>
  <feature policy='disable' name='hle'/>
</cpu>"""
COOKIE = f"<cookie>{CPU}</cookie>"
HOST = "<cookie><cpu mode='host-passthrough' check='none' migratable='on'/></cookie>"


def of_type(kind: str) -> str:
    return (
        f"<domain type='{kind}'><os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type></os>"
        f"<devices><emulator>{EMULATOR}</emulator></devices></domain>"
    )


@pytest.fixture(autouse=True)
def _of_kvm(connection: Connection) -> None:
    connection.definition = of_type("kvm")


@pytest.mark.parametrize("state", [DomainState.PAUSED, DomainState.RUNNING])
def test_a_processor_that_has_lost_a_feature_ends_nobody(
    connection: Connection, driver: LibvirtHypervisor, state: DomainState
) -> None:
    """By a microcode, say; libvirt told of it when QEMU ran again, and the domain was gone."""
    with pytest.raises(DomainRefused, match="incompatible with host CPU: avx512f") as refused:
        driver.check_restore(replace(OFF, state=state), IMAGE, cookie=COOKIE)
    assert "microcode" in refused.value.hint() and "without memory" in refused.value.hint()
    connection.features = frozenset({"avx512f"})
    driver.check_restore(replace(OFF, state=state), IMAGE, cookie=COOKIE)


def test_libvirt_has_the_last_word_on_one_that_is_off(
    driver: LibvirtHypervisor, caplog: pytest.LogCaptureFixture
) -> None:
    """It has no memory to lose, and should the comparison be wrong it still comes back."""
    driver.check_restore(OFF, IMAGE, cookie=COOKIE)
    assert "would not start on the processor of this host: " in caplog.text


def test_what_the_domain_runs_on_now_is_there_whatever_libvirt_calls_it(
    driver: LibvirtHypervisor,
) -> None:
    running = replace(OFF, state=DomainState.RUNNING, definition=f"<domain> {CPU} </domain>")
    driver.check_restore(running, IMAGE, cookie=COOKIE.replace("\n  ", ""))
    other = replace(running, definition=f"<domain>{CPU.replace('avx512f', 'avx2')}</domain>")
    with pytest.raises(DomainRefused, match="avx512f"):
        driver.check_restore(other, IMAGE, cookie=COOKIE)


CORES = CPU.replace(
    "</cpu>", "<topology sockets='1' dies='1' clusters='1' cores='2' threads='1'/></cpu>"
)
"""Of a QEMU before 10.0."""
WITH_HT = CORES.replace("</cpu>", "<feature policy='require' name='ht'/></cpu>")


def test_cores_of_a_qemu_before_10_end_nobody(
    connection: Connection, driver: LibvirtHypervisor
) -> None:
    """Debian 12 was upgraded to 13: "extra features: ht", said libvirt, and the domain was gone."""
    connection.features = frozenset({"avx512f", "ht"})
    running = replace(OFF, state=DomainState.RUNNING, definition=f"<domain>{WITH_HT}</domain>")
    with pytest.raises(DomainRefused, match=r"libvirt before 11\.10 .* \(ht\)") as refused:
        driver.check_restore(running, IMAGE, cookie=f"<cookie>{CORES}</cookie>")
    assert "update libvirt" in refused.value.hint() and "without memory" in refused.value.hint()
    connection.version = 11_010_000
    driver.check_restore(running, IMAGE, cookie=f"<cookie>{CORES}</cookie>")


@pytest.mark.parametrize(
    ("now", "cookie"),
    [
        (WITH_HT, WITH_HT),
        (CORES.replace("avx512f", "avx2"), CORES),
        (WITH_HT, CPU),
        (WITH_HT, CORES.replace("cores='2'", "cores='1'")),
        (WITH_HT, CORES.replace("check='full'", "check='partial'")),
        (WITH_HT, CORES.replace("</cpu>", "<feature policy='disable' name='ht'/></cpu>")),
    ],
)
def test_any_other_cores_may_be_restored(
    connection: Connection, driver: LibvirtHypervisor, now: str, cookie: str
) -> None:
    connection.features = frozenset({"avx512f", "ht"})
    running = replace(OFF, state=DomainState.RUNNING, definition=f"<domain>{now}</domain>")
    driver.check_restore(running, IMAGE, cookie=f"<cookie>{cookie}</cookie>")
    driver.check_restore(OFF, IMAGE, cookie=f"<cookie>{cookie}</cookie>")


@pytest.mark.parametrize("cookie", ["", HOST, "<cookie/>", "<cookie><cpu"])
def test_what_says_nothing_of_features_is_left_to_libvirt(
    driver: LibvirtHypervisor, cookie: str
) -> None:
    driver.check_restore(OFF, IMAGE, cookie=cookie)


@pytest.mark.parametrize("code", [1, 3, 84])
def test_a_libvirt_that_cannot_say_is_not_in_the_way(
    connection: Connection, driver: LibvirtHypervisor, code: int
) -> None:
    connection.fails = code
    driver.check_restore(OFF, IMAGE, cookie=COOKIE)


def test_an_emulated_processor_is_not_compared(
    connection: Connection, driver: LibvirtHypervisor
) -> None:
    connection.definition = of_type("qemu").replace("pc-q35-10.0", "pc")
    driver.check_restore(OFF, IMAGE, cookie=COOKIE)


@pytest.mark.parametrize("cookie", [COOKIE, ""])
def test_it_stands_in_the_image_behind_the_definition(tmp_path: Path, cookie: str) -> None:
    path = tmp_path / "memory.save"
    writer = libvirtimage.Writer()
    with open(writer.begin(path, of_type("kvm"), cookie), "wb") as file:
        file.write(b"stream")
    writer.end(path)
    assert libvirtimage.read_definition(path) == of_type("kvm")
    assert libvirtimage.read_cookie(path) == cookie
