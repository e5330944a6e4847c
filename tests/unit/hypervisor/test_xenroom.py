"""Memory for a domain that is going to be restored: refused is what cannot be had by any means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.failures import CommandFailed
from snapvm.hypervisor import xenroom
from snapvm.refusals import HostLacks
from tests.unit.hypervisor.fakexen import RUNNING, STORED, Scene

MIB = 1 << 20
IMAGE = Path("/image")
OWN_MIB = 1
"""What the domain has that runs."""


@pytest.fixture(autouse=True)
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "xl.conf"
    monkeypatch.setattr(xenroom, "XL_CONF", path)
    return path


def is_refused(scene: Scene, needed_mib: int) -> bool:
    _, driver = scene
    needed_bytes = needed_mib * MIB
    try:
        driver.check_restore(driver.find("web"), IMAGE, memory_bytes=needed_bytes, cookie=STORED)
    except HostLacks:
        return True
    return False


def small(scene: Scene) -> None:
    """Let the host have 100 MiB free, and a control domain of 1128."""
    xen, _ = scene
    xen.free_mib = 100
    xen.info_of[0] = replace(RUNNING, domid=0, uuid="0", total_pages=1128 * 256)


def test_what_does_not_fit_is_refused(scene: Scene, conf: Path) -> None:
    small(scene)
    conf.write_text('autoballoon="off"\n')
    fits = 100 + OWN_MIB + 1  # xl rounds down
    assert (is_refused(scene, fits), is_refused(scene, fits + 1)) == (False, True)
    _, driver = scene
    with pytest.raises(HostLacks) as told:
        driver.check_restore(driver.find("web"), IMAGE, memory_bytes=4096 * MIB)
    assert "memory that web had: 4096 MiB" in str(told.value)
    assert "1 MiB given back by what runs" in str(told.value)
    assert "xl mem-set" in told.value.hint()


def test_one_that_does_not_run_gives_nothing_back(scene: Scene, conf: Path) -> None:
    xen, driver = scene
    small(scene)
    conf.write_text("autoballoon = 0")
    domain = driver.find("web")
    del xen.info_of[5]
    driver.check_restore(domain, IMAGE, memory_bytes=101 * MIB, cookie=STORED)
    with pytest.raises(HostLacks):
        driver.check_restore(domain, IMAGE, memory_bytes=102 * MIB, cookie=STORED)


@pytest.mark.parametrize(
    ("text", "command_line", "is_taken"),
    [
        ("", "", True),
        ("", "placeholder dom0_mem=1G,max:1G loglvl=all", False),
        ("", "dom0_mem=25%", False),
        ("", "dom0_mem=", True),
        ('autoballoon="auto"', "dom0_mem=1G", False),
        ('#autoballoon="off"', "", True),
        ('  autoballoon = "off"', "", False),
        ('autoballoon="on"', "dom0_mem=1G", True),
        ("autoballoon=1", "dom0_mem=1G", True),
        ('autoballoon="nonsense"', "", True),
    ],
)
def test_what_xl_takes_from_the_control_domain_counts(
    scene: Scene, conf: Path, text: str, command_line: str, is_taken: bool
) -> None:
    small(scene)
    scene[0].command_line = command_line
    conf.write_text(text)
    assert is_refused(scene, 1000) is not is_taken
    assert is_refused(scene, 1000 + 200)


def test_where_it_is_not_known_nothing_is_refused(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    xen, driver = scene
    small(scene)
    domain = driver.find("web")
    monkeypatch.setattr(xen, "free_mib", "nobody knows")
    driver.check_restore(domain, IMAGE, memory_bytes=1 << 50, cookie=STORED)

    def fail(*_arguments: object, **_options: object) -> None:
        raise CommandFailed(argv=("xl", "info"), status=1, stderr="")

    monkeypatch.setattr(xen, "run", fail)
    driver.check_restore(domain, IMAGE, memory_bytes=1 << 50, cookie=STORED)


def test_one_that_is_booted_is_not_looked_at(scene: Scene) -> None:
    _, driver = scene
    small(scene)
    driver.check_restore(driver.find("web"), None, memory_bytes=1 << 50)
