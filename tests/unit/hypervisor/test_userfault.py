"""The permission for userfaultfd: shared, and put back by the last one or after a death."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from snapvm.hypervisor import userfault
from tests.fakes.instants import instants_of, interrupted_at


@pytest.fixture
def sysctl(tmp_path: Path) -> Path:
    path = tmp_path / "unprivileged_userfaultfd"
    path.write_text("0\n")
    return path


def given(sysctl: Path) -> bool:
    return sysctl.read_text() == "1\n"


def test_it_is_given_for_the_block(tmp_path: Path, sysctl: Path) -> None:
    with userfault.allowed(tmp_path / "run", sysctl):
        assert given(sysctl)
    assert not given(sysctl)


def test_one_that_the_host_gives_to_all_stays(tmp_path: Path, sysctl: Path) -> None:
    sysctl.write_text("1\n")
    with userfault.allowed(tmp_path, sysctl):
        pass
    userfault.put_back(tmp_path, sysctl)
    assert sysctl.read_text() == "1\n"


def test_the_last_of_several_puts_it_back(tmp_path: Path, sysctl: Path) -> None:
    with userfault.allowed(tmp_path, sysctl):
        with userfault.allowed(tmp_path, sysctl):
            pass
        userfault.put_back(tmp_path, sysctl)
        assert given(sysctl), "one still needs it"
    assert not given(sysctl)


def test_what_a_dead_process_was_allowed_is_taken_back(tmp_path: Path, sysctl: Path) -> None:
    script = (
        "import os, sys, pathlib; from snapvm.hypervisor import userfault\n"
        "with userfault.allowed(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    argv = [sys.executable, "-c", script, str(tmp_path), str(sysctl)]
    assert subprocess.run(argv, env=os.environ, timeout=30, check=False).returncode == -9
    assert given(sysctl)
    userfault.put_back(tmp_path, sysctl)
    userfault.put_back(tmp_path, sysctl)
    assert not given(sysctl)


def test_a_kernel_without_userfaultfd_is_told_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), userfault.allowed(tmp_path, tmp_path / "none"):
        pass
    userfault.put_back(tmp_path, tmp_path / "none")


def test_where_it_may_not_be_changed_nothing_is_to_be_put_back(tmp_path: Path) -> None:
    """As in a unit with ProtectKernelTunables=: a `repair` failed there, for ever."""
    fixed = Path("/proc/sys/kernel/osrelease")
    with pytest.raises(OSError, match=r"ermi|Read-only"), userfault.allowed(tmp_path, fixed):
        pass
    userfault.put_back(tmp_path, fixed)


def test_it_is_taken_back_though_no_more_files_may_be_open(tmp_path: Path, sysctl: Path) -> None:
    """The host went on giving it to all, and the `take` ended as a bug."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with userfault.allowed(tmp_path, sysctl):
            assert given(sysctl)
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not given(sysctl)


def test_it_is_taken_back_whatever_the_instant_of_an_interruption(
    tmp_path: Path, sysctl: Path
) -> None:
    def allow() -> None:
        with userfault.allowed(tmp_path, sysctl):
            pass

    def left() -> str:
        now = sysctl.read_text().strip()
        sysctl.write_text("0\n")
        (tmp_path / userfault.FILE).unlink(missing_ok=True)
        return now

    modules = ("snapvm.hypervisor.userfault",)
    for instant in instants_of(allow, modules):
        how, now = interrupted_at(allow, modules, instant, left)
        assert how in ("done", "interrupted") and now == "0", instant
