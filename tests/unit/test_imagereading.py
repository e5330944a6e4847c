"""How far an image has been read is told of who begins to read it, as long as that lasts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapvm import consistency, imagereading
from snapvm.model import Silent
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit.deeds import take

SIZE_BYTES, READ_BYTES = 1 << 20, 12345
_READER = f"""
import sys
with open(sys.argv[1], "rb", buffering=0) as image:
    image.read({READ_BYTES} if len(sys.argv) < 3 else int(sys.argv[2]))
    print("read", flush=True)
    sys.stdin.read()
"""


class Watched:
    """Progress that remembers, and says when it has been told of bytes."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.told: list[tuple[int, int]] = []
        self.is_told = threading.Event()

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        self.told.append((done_bytes, total_bytes))
        self.is_told.set()


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagereading, "_LOOK_SECONDS", 0.005)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "memory.xl"
    path.write_bytes(bytes(SIZE_BYTES))
    return path


@contextmanager
def reading(path: Path, *arguments: str) -> Iterator[None]:
    """Have another process read in a file, and keep it open."""
    with subprocess.Popen(
        [sys.executable, "-c", _READER, str(path), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"read\n"
        yield


def test_it_is_told_how_much_another_process_has_read(image: Path, tmp_path: Path) -> None:
    progress, link = Watched(), tmp_path / "link"
    link.symlink_to(image)
    with imagereading.shown(progress, link), reading(image):
        assert progress.is_told.wait(10)
    assert progress.told[0] == (READ_BYTES, SIZE_BYTES)


def test_who_has_it_open_already_does_not_count(image: Path) -> None:
    """A backup, or this process, which has just compared its checksum."""
    progress = Watched()
    with (
        image.open("rb"),
        reading(image, "7"),
        imagereading.shown(progress, image),
        reading(image),
    ):
        assert progress.is_told.wait(10)
    assert {done for done, _ in progress.told} == {READ_BYTES}


def test_one_that_is_not_there_is_for_who_restores_it_to_complain_of(tmp_path: Path) -> None:
    with imagereading.shown(Watched(), tmp_path / "none"):
        pass


@pytest.mark.parametrize("what", ["processes", "threads"])
def test_a_domain_is_restored_though_nothing_can_be_told(
    image: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    if what == "threads":
        monkeypatch.setattr(threading.Thread, "start", refuse)
    else:
        monkeypatch.setattr(imagereading, "_PROCESSES", image.parent / "none")
    is_restored = False
    with imagereading.shown(Watched(), image):
        is_restored = True
    assert is_restored


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_host_with_files_without_end_keeps_no_domain_waiting(
    image: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Any user may open as many as his limits allow, which is a million of each process."""
    monkeypatch.setattr(imagereading, "_FIRST_SECONDS", 0.5)
    listdir, is_looked_at = os.listdir, threading.Event()

    def endless(folder: str) -> list[str]:
        if not str(folder).endswith("/fd"):
            return listdir(folder)
        is_looked_at.set()
        return ["1"] * 3_000_000

    progress = Watched()
    begun = time.monotonic()
    if when == "before":
        monkeypatch.setattr(os, "listdir", endless)
    with imagereading.shown(progress, image):
        if when == "meanwhile":
            monkeypatch.setattr(os, "listdir", endless)
            assert is_looked_at.wait(10)
    assert time.monotonic() - begun < 5
    assert progress.told == []


def test_nobody_is_looked_for_when_nobody_watches(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "listdir", lambda _: pytest.fail("processes are looked through"))
    with imagereading.shown(Silent(), image):
        pass


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return make_scene(tmp_path)


def test_a_rollback_tells_how_much_of_the_memory_is_back(scene: Scene) -> None:
    """Of a large domain that takes minutes, in which nothing moved."""
    record, progress = take(scene), Watched()
    assert record.memory is not None
    path = scene.host.catalog.path(record, record.memory.file)

    def before(deed: str) -> None:
        if deed == "restore":
            with reading(path, "3"):
                assert progress.is_told.wait(10)

    scene.hypervisor.before = before
    consistency.rollback(scene.host, record, paused=False, progress=progress)
    assert progress.phases[-1] == f"restoring the memory of {DOMAIN}"
    assert (3, path.stat().st_size) in progress.told
    assert scene.host.catalog.get(UUID, record.id) == record
