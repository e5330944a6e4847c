"""Builds the lab's base image once and keeps it in the user's cache folder.

The image holds Debian packages and nothing of the project (see ``recipe.py``). It is never written
to: every run of the lab puts a throw-away overlay over it.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.lab import recipe
from tests.lab.errors import HostNotReady, ImageBuildFailed

BUILD_SECONDS: Final = 1200
"""Longest time one build may take before it is given up."""

UNUSED_SECONDS: Final = 7 * 86400
"""Images of earlier recipes are removed after this long without use."""


_SITE: Final = "dist-packages"
"""What comes from PyPI, by the name of the folder that Debian's Python has for it."""


@dataclass(frozen=True)
class BaseImage:
    """The parts of a built image; all of them read-only."""

    folder: Path
    emulator: Path
    """The folder of the image whose QEMU is used."""

    @property
    def root(self) -> Path:
        """Raw ext4 image with the root file system."""
        return self.folder / "root.ext4"

    @property
    def kernel(self) -> Path:
        """Debian's Linux, for the lab (also as dom0) and for the domains in it."""
        return self.folder / "vmlinuz"

    @property
    def xen(self) -> Path:
        """Xen's ELF, not compressed: the form QEMU's ``-kernel`` takes."""
        return self.folder / "xen"

    @property
    def busybox(self) -> Path:
        """Static busybox for the lab's initramfs."""
        return self.folder / "busybox"

    @property
    def qemu(self) -> tuple[str, ...]:
        """Command line of an image's own QEMU, on that image's own libraries."""
        tree = self.emulator / "qemu"
        firmware = (tree / "usr/share/qemu", tree / "usr/share/seabios")
        return (
            str(tree / "lib64/ld-linux-x86-64.so.2"),
            "--library-path",
            f"{tree}/lib/x86_64-linux-gnu:{tree}/usr/lib/x86_64-linux-gnu",
            str(tree / "usr/bin/qemu-system-x86_64"),
            *(word for folder in firmware for word in ("-L", str(folder))),
        )

    @property
    def modules(self) -> Path:
        """The kernel's module folder, with ``modules.dep``."""
        return self.folder / "modules"


def cache_folder() -> Path:
    """Return (and make) the folder where the lab keeps what outlives a run."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "snapvm-lab"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_host_tools() -> None:
    """Raise ``HostNotReady`` naming every Debian package that this host lacks."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    tools = recipe.HOST_TOOLS.items()
    missing = sorted({package for tool, package in tools if not shutil.which(tool, path=path)})
    if not Path("/usr/lib/x86_64-linux-gnu/libc.a").exists():
        missing.append("libc6-dev")
    if missing:
        raise HostNotReady(f"the lab needs more on this host: apt install {' '.join(missing)}")


def ensure_image() -> BaseImage:
    """Return the base image of today's recipe, building it first when it is not cached.

    A build takes one to two minutes and a working Debian mirror; two processes never build at once.
    Raises ``HostNotReady`` or ``ImageBuildFailed``.
    """
    check_host_tools()
    return BaseImage(_ensure(recipe.CHOSEN), _ensure(recipe.USUAL))


def _ensure(release: recipe.Release) -> Path:
    """Return the folder of a release's image."""
    folder = cache_folder() / recipe.fingerprint(release)
    if _is_built(folder):
        os.utime(folder)  # says when it was last of use
        return folder
    with _build_lock():
        if not _is_built(folder):
            _remove_unused()
            _build(release, folder)
    return folder


def _is_built(folder: Path) -> bool:
    return (folder / "root.ext4").exists()


@contextmanager
def _build_lock() -> Iterator[None]:
    with (cache_folder() / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is building the lab image; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """Tell the person at the terminal what the lab is doing, on standard error."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


def _remove_unused() -> None:
    for root in cache_folder().glob("*/root.ext4"):
        if time.time() - root.parent.stat().st_mtime > UNUSED_SECONDS:
            shutil.rmtree(root.parent, ignore_errors=True)


def _build(release: recipe.Release, final: Path) -> None:
    started = time.monotonic()
    say(f"building the base image, Debian {release.suite}: one to two minutes, once per recipe")
    work = Path(tempfile.mkdtemp(prefix="building-", dir=final.parent))
    try:
        _fetch_from_pypi(release, work)
        _mmdebstrap(release, work)
        _unpack_boot_files(work)
        (work / "root.ext4").chmod(0o444)
        work.chmod(0o755)
        work.rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say(f"base image ready after {time.monotonic() - started:.0f} s: {final}")


def _fetch_from_pypi(release: recipe.Release, work: Path) -> None:
    """Fetch what the release has too old, for its Python and not for ours."""
    site = work / _SITE
    site.mkdir()
    if not release.from_pypi:
        return
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:"]
    argv += ["--python-version", release.python, "--target", str(site), *release.from_pypi]
    done = subprocess.run(argv, timeout=BUILD_SECONDS, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ImageBuildFailed(f"pip ended with {done.returncode}:\n{done.stderr}")


def _mmdebstrap(release: recipe.Release, work: Path) -> None:
    root, boot = work / "root.ext4", work / "boot.tar"
    log = work.parent / "build.log"
    with root.open("wb") as root_file, boot.open("wb") as boot_file, log.open("wb") as log_file:
        root_file.truncate(recipe.IMAGE_BYTES)
        # The hook may run as another user id (user namespace) and reopens these by number.
        for handle in (root_file, boot_file):
            os.fchmod(handle.fileno(), 0o666)
        hook = (recipe.HERE / "base" / "hook.sh").read_text()
        argv = [
            "mmdebstrap",
            "--variant=apt",
            "--format=null",
            f"--include={','.join(release.packages())}",
            '--aptopt=APT::Install-Recommends "false"',
            # A copy of the archive may be older than what Debian allows one of testing to be.
            '--aptopt=Acquire::Check-Valid-Until "false"',
            "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.EXCLUDED_PATHS),
            *_site_arguments(release, work),
            _hook_argument(hook, root_file.fileno(), boot_file.fileno()),
            release.suite,
        ]
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                pass_fds=(root_file.fileno(), boot_file.fileno()),
                timeout=BUILD_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            text = f"mmdebstrap took more than {BUILD_SECONDS} s; see {log}"
            raise ImageBuildFailed(text) from error
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        text = f"mmdebstrap ended with {done.returncode}; the end of {log}:\n{tail}"
        raise ImageBuildFailed(text)


def _site_arguments(release: recipe.Release, work: Path) -> list[str]:
    """Have what was fetched where Debian's Python looks before its own packages."""
    if not release.from_pypi:
        return []
    python = f"/usr/local/lib/python{release.python}"
    return [
        f'--customize-hook=mkdir -p "$1{python}"',
        f"--customize-hook=copy-in {work / _SITE} {python}",
    ]


def _hook_argument(script: str, root_fd: int, boot_fd: int) -> str:
    # mmdebstrap passes a text with spaces to sh -c with the tree as $1. As a here-document the
    # script is a file in the repository that the user namespace need not be able to read.
    return (
        "--customize-hook="
        f"sh -s \"$1\" /proc/self/fd/{root_fd} /proc/self/fd/{boot_fd} <<'SNAPVM_HOOK'\n"
        f"{script}\nSNAPVM_HOOK\n"
    )


def _unpack_boot_files(work: Path) -> None:
    tree = work / "tree"
    tree.mkdir()
    # Not tarfile: its filters came with 3.11.4, and are asked for by name from 3.12 on.
    argv = ["tar", "-x", "--no-same-owner", "-C", str(tree), "-f", str(work / "boot.tar")]
    subprocess.run(argv, timeout=60, check=True)
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    (xen,) = (tree / "boot").glob("xen-*.gz")
    (modules,) = (tree / "usr/lib/modules").iterdir()
    kernel.rename(work / "vmlinuz")
    (work / "xen").write_bytes(gzip.decompress(xen.read_bytes()))
    modules.rename(work / "modules")
    (tree / "usr/bin/busybox").rename(work / "busybox")
    shutil.rmtree(tree / "boot")
    tree.rename(work / "qemu")
    (work / "boot.tar").unlink()


if __name__ == "__main__":
    print(ensure_image().folder)
