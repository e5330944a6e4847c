"""A Xen domain ended, restored and started: what is waited for, and what is told."""

from __future__ import annotations

import resource
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.errors import UnknownDomain
from snapvm.failures import CommandFailed, DomainFailed
from snapvm.hypervisor import xendomains, xenkeeper
from snapvm.model import DomainState
from tests.unit.hypervisor.fakexen import UUID, Scene


@pytest.mark.parametrize("paused", [False, True])
def test_stop_restore_and_start(scene: Scene, paused: bool) -> None:
    xen, driver = scene
    domain = driver.find("web")
    wanted = DomainState.PAUSED if paused else DomainState.RUNNING
    flag = ["-p"] if paused else []
    with pytest.raises(
        DomainFailed, match=r"^web could not be restored: a domain of this name runs"
    ):
        driver.restore(domain, Path("/image"), paused=paused)
    driver.stop(domain)
    driver.stop(domain)
    driver.restore(domain, Path("/image"), paused=paused)
    assert xen.ran[-1] == ["xl", "restore", *flag, "/image"]
    assert driver.find("web").state is wanted
    driver.stop(domain)
    driver.start(domain, paused=paused)
    assert xen.ran[-1][:-1] == ["xl", "create", "-q", *flag]
    assert f'uuid = "{UUID}"' in xen.texts[0]
    assert driver.find("web").state is wanted


@pytest.mark.parametrize("is_slow", [False, True])
def test_what_a_peer_has_mapped_does_not_keep_a_domain(scene: Scene, is_slow: bool) -> None:
    """Xen lists it as dying for as long; it ended in "is paused and could not be resumed"."""
    xen, driver = scene
    domain = driver.find("web")
    xen.zombie_pages, xen.is_slow = 3, is_slow
    driver.stop(domain)
    driver.restore(domain, Path("/image"), paused=False)
    assert driver.find("web").state is DomainState.RUNNING


def test_an_xl_that_fails_as_the_domain_goes_by_itself_is_no_failure(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest had powered off in that instant: there was nothing left to destroy."""
    xen, driver = scene
    domain, gone = driver.find("web"), xen.gone

    def late() -> None:
        gone()
        raise CommandFailed(argv=("xl", "destroy", "5"), status=1, stderr="no such domain")

    monkeypatch.setattr(xen, "gone", late)
    driver.stop(domain)
    with pytest.raises(UnknownDomain):
        driver.find("web")


def test_a_domain_whose_memory_is_not_free_yet_is_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    xen, driver = scene
    domain = driver.find("web")
    xen.zombie_pages = 1 << 18
    monkeypatch.setattr("snapvm.hypervisor.xendomains._GONE_SECONDS", 0.1)
    with pytest.raises(DomainFailed, match=r"^web could not be ended: .* does not go"):
        driver.stop(domain)


def test_what_the_kernel_serves_is_waited_for(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its network interface had its name (vifname) for a moment more: it was not restored then."""
    _, driver = scene
    domain = driver.find("web")
    monkeypatch.setattr(xendomains, "KERNELS", tmp_path)
    (tmp_path / "vif-15-5").mkdir()
    (tmp_path / "vif-5-0").mkdir()
    threading.Timer(0.2, (tmp_path / "vif-5-0").rmdir).start()
    driver.stop(domain)
    assert [path.name for path in tmp_path.iterdir()] == ["vif-15-5"]


def test_a_large_domain_may_take_minutes_to_go(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """xl took longer than it was waited for, and the rollback went back to a domain half gone.

    Xen does not call it dying before the last of its memory is free.
    """
    xen, driver = scene
    domain = driver.find("web")
    xen.freed_at_once = 8
    monkeypatch.setattr("snapvm.hypervisor.xendomains._GONE_SECONDS", 0.2)
    driver.stop(domain)
    assert not xen.info_of
    with pytest.raises(UnknownDomain):
        driver.find("web")


def test_a_large_domain_may_take_hours_to_come(scene: Scene, tmp_path: Path) -> None:
    """It was given up, and came all the same, without its rollback."""
    xen, driver = scene
    domain = replace(driver.find("web"), memory_bytes=512 << 30)
    image = tmp_path / "memory.xl"
    with image.open("wb") as file:
        file.truncate(domain.memory_bytes)
    driver.stop(domain)
    xen.xl_seconds = 6 * 3600
    driver.restore(domain, image, paused=False)
    driver.stop(domain)
    driver.start(domain, paused=False)
    assert driver.find("web").state is DomainState.RUNNING
    driver.stop(domain)
    xen.xl_seconds = 24 * 3600
    with pytest.raises(DomainFailed, match="did not end"):
        driver.restore(domain, image, paused=False)


def test_a_domain_starts_though_no_file_can_be_made(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found in the lab, whose /tmp was full."""
    _, driver = scene
    domain = driver.find("web")
    driver.stop(domain)
    monkeypatch.setattr("tempfile.tempdir", "/proc")
    driver.start(domain, paused=False)
    assert driver.find("web").state is DomainState.RUNNING


def test_a_domain_that_no_descriptor_is_left_for_is_not_started(scene: Scene) -> None:
    """It was off by then, and that ended as a bug of snapvm's."""
    _, driver = scene
    domain = driver.find("web")
    driver.stop(domain)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(DomainFailed, match=r"web could not be started: .*Too many open files"):
            driver.start(domain, paused=False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_an_image_that_xl_does_not_take(scene: Scene) -> None:
    _, driver = scene
    domain = driver.find("web")
    driver.stop(domain)
    with pytest.raises(DomainFailed, match=r"^web could not be restored: .*no such image"):
        driver.restore(domain, Path("/bad"), paused=False)


def test_one_that_libvirt_started_is_xls_afterwards(
    scene: Scene,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`virsh list` showed it shut off, and nobody had said so when it went back."""
    _, driver = scene
    domain = driver.find("web")
    monkeypatch.setattr(xenkeeper, "USERDATA", tmp_path)
    note = tmp_path / f"userdata-d.5.{UUID}.libvirt-xml"
    for is_libvirts in (False, True):
        if is_libvirts:
            note.touch()
        driver.stop(domain)
        note.unlink(missing_ok=True)  # as libxl does
        assert "libvirt" not in caplog.text
        driver.restore(domain, Path("/image"), paused=False)
        assert ("web belongs to xl now: libvirt" in caplog.text) is is_libvirts
