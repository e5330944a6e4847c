"""A lab: one disposable virtual machine that is a real virtualisation host."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self, TypeVar

from tests.lab import accel, initrd, pace
from tests.lab.channel import Channel, ChannelClosed, Completed, NoAnswer, Remote
from tests.lab.errors import CommandFailed, LabDied, LabError
from tests.lab.host import patience
from tests.lab.image import BaseImage, ensure_image, say
from tests.lab.machine import Boot, Flavour, Machine, Shape, command_line
from tests.lab.turn import wait_for_turn

__all__ = ["Completed", "Flavour", "Lab", "LabDied", "LabError", "Remote", "Shape"]

REPOSITORY: Final = Path(__file__).resolve().parents[2]
BOOT_SECONDS: Final = 600
ANSWER_SECONDS: Final = 30
"""What the lab may take, beyond a command's own time, to tell how it ended."""

_Result = TypeVar("_Result")


class Lab:
    """Boots a flavour and runs commands in it; use as a context manager.

    The base image is never written to; all changes go with the lab. The checkout is /snapvm inside
    (read-only), ``share`` on this side is /share inside. Start it from a thread that outlives it:
    the machine dies with the thread that booted it.
    """

    def __init__(self, flavour: Flavour | str, *, shape: Shape | None = None) -> None:
        self.flavour = Flavour(flavour)
        self.shape = shape or Shape()
        self.boot_seconds = 0.0
        self.patience = 1.0
        self._image: BaseImage | None = None
        self._machine: Machine | None = None
        self._channel: Channel | None = None
        self._turn: IO[str] | None = None
        self.folder = REPOSITORY / "build" / "lab" / f"{self.flavour}-{os.getpid()}"

    # -- life ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self._prepare()
            self.boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def boot(self) -> None:
        """Start the machine on the lab's disks and wait until it is ready for commands.

        Raises ``LabDied`` when it does not come up and ``LabError`` when a part of it failed to.
        """
        assert self._image is not None, "use the lab as a context manager"
        started = time.monotonic()
        mine, theirs = socket.socketpair()
        with theirs:
            description = self._description(self._image, theirs.fileno())
            accelerator = description.accelerator
            say(f"booting the {self.flavour} flavour ({accelerator})")
            self._machine = Machine(
                command_line(description), log=self.folder / "qemu.log", pass_fds=[theirs.fileno()]
            )
        self._channel = Channel(mine)
        hello = self._guarded(lambda channel: channel.hello(BOOT_SECONDS), "did not connect")
        self.boot_seconds = time.monotonic() - started
        self.patience = pace.patience(self.flavour, accelerator, self.boot_seconds)
        if hello["failures"]:
            raise LabError(
                f"the lab came up incomplete:\n{hello['failures']}\n{self.console_tail()}"
            )
        say(f"the {self.flavour} flavour is up after {self.boot_seconds:.0f} s")

    def power_cut(self) -> None:
        """Kill the machine as it stands; ``boot`` starts it again on the same disks."""
        if self._machine is not None:
            self._machine.kill()
        if self._channel is not None:
            self._channel.close()
        self._machine = self._channel = None

    def close(self) -> None:
        """End the machine and throw its disks away; the console's log stays in build/lab."""
        self.power_cut()
        if self.console.exists():
            shutil.copy(self.console, self.folder.parent / f"{self.flavour}-console.log")
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._turn is not None:
            self._turn.close()
            self._turn = None

    # -- commands -----------------------------------------------------------------------------

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout_seconds: float,
        input: bytes | str | None = None,  # noqa: A002 - as in subprocess
        check: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command in the lab, as root, and wait for its end.

        A text is a bash script, a sequence is an argument vector. When ``timeout_seconds`` are over
        (more on a slow machine) its process group is killed (``timed_out``). Raises
        ``CommandFailed`` with ``check=True`` and ``LabDied`` when the lab is lost; those are never
        the same thing.
        """
        remote = self.start(command, timeout_seconds=timeout_seconds, env=env)

        def feed(_: Channel) -> None:
            if input is not None:
                remote.write(input.encode() if isinstance(input, str) else input)
            remote.close_input()

        self._guarded(feed, "no answer in time")
        done = self.finish(remote, timeout_seconds=timeout_seconds)
        if check and done.status != 0:
            shown = command if isinstance(command, str) else shlex.join(command)
            end = (
                "was killed, its time was over" if done.timed_out else f"exit status {done.status}"
            )
            raise CommandFailed(f"{shown}: {end}\n{done.stdout}{done.stderr}")
        return done

    def start(
        self,
        command: str | Sequence[str],
        *,
        timeout_seconds: float,
        env: Mapping[str, str] | None = None,
        terminal: tuple[int, int] | None = None,
        sink: Callable[[bytes], None] | None = None,
    ) -> Remote:
        """Start a command in the background; see ``run``. Its input stays open."""
        argv = ["bash", "-c", command] if isinstance(command, str) else list(command)
        return self._guarded(
            lambda channel: channel.start(
                argv,
                env={patience.VARIABLE: str(self.patience), **(env or {})},
                timeout_seconds=timeout_seconds * self.patience,
                terminal=terminal,
                sink=sink,
            ),
            "no answer in time",
        )

    def finish(self, remote: Remote, *, timeout_seconds: float) -> Completed:
        """Wait for a command from ``start`` to end; ``LabDied`` when that is not told in time."""
        limit_seconds = (timeout_seconds + ANSWER_SECONDS) * self.patience
        return self._guarded(lambda _: remote.wait(limit_seconds), "no answer in time")

    # -- looking ------------------------------------------------------------------------------

    @property
    def share(self) -> Path:
        """Folder of this host that the lab sees as /share, writable on both sides."""
        return self.folder / "share"

    @property
    def console(self) -> Path:
        """File with everything the lab's (or Xen's) serial console said."""
        return self.folder / "console.log"

    def console_tail(self, lines: int = 25) -> str:
        """Return the end of the console, with QEMU's own messages after it."""
        texts = [
            path.read_text(errors="replace").splitlines()[-lines:]
            for path in (self.console, self.folder / "qemu.log")
            if path.exists()
        ]
        return "\n".join(line for text in texts for line in text)

    # -- inner parts --------------------------------------------------------------------------

    def _prepare(self) -> None:
        self._image = ensure_image()
        self._turn = wait_for_turn()
        for stale in self.folder.parent.glob(f"*/{self._overlay.name}"):
            shutil.rmtree(stale.parent, ignore_errors=True)  # we have the turn: nobody uses it
        self.share.mkdir(parents=True, exist_ok=True)
        (self.folder / "initrd").write_bytes(initrd.lab_initrd(self._image))
        (self.share / "vmlinuz").write_bytes(self._image.kernel.read_bytes())
        (self.share / "pulse.initrd").write_bytes(initrd.pulse_initrd(self._image))
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(self._image.root), "-F", "raw"]
        subprocess.run([*argv, str(self._overlay)], check=True, timeout=60)
        for path, size_gib in zip(self._disks, self.shape.disks_gib, strict=True):
            with path.open("wb") as disk:
                disk.truncate(size_gib << 30)

    @property
    def _overlay(self) -> Path:
        return self.folder / "overlay.qcow2"

    @property
    def _disks(self) -> tuple[Path, ...]:
        return tuple(self.folder / f"disk{n}.raw" for n in range(len(self.shape.disks_gib)))

    def _description(self, image: BaseImage, channel_fd: int) -> Boot:
        return Boot(
            flavour=self.flavour,
            accelerator=accel.best_accelerator(image, self.folder / "initrd"),
            image=image,
            shape=self.shape,
            initrd=self.folder / "initrd",
            overlay=self._overlay,
            disks=self._disks,
            repository=REPOSITORY,
            share=self.share,
            console=self.console,
            channel_fd=channel_fd,
        )

    def _guarded(self, work: Callable[[Channel], _Result], late: str) -> _Result:
        """Do something over the channel; turn every way of losing the lab into ``LabDied``."""
        channel, machine = self._channel, self._machine
        if channel is None or machine is None:
            raise LabDied("the lab is not running")
        try:
            return work(channel)
        except NoAnswer:
            cause = late
        except ChannelClosed:
            ended = machine.wait(2)
            cause = f"QEMU exited with status {machine.exit_status}" if ended else "connection lost"
        raise LabDied(cause, self.console_tail())
