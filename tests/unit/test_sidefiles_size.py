"""Which UEFI variables and vTPMs are refused before their domain stands still, or goes back."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from snapvm import sidefiles
from snapvm.model import SideFile, SideKind, SidePlace, SideShape
from snapvm.refusals import DomainRefused, RecordUnusable


def test_the_flash_of_an_arm_board_is_not_too_large_beside_a_tpm(tmp_path: Path) -> None:
    """AAVMF's is 64 MiB, all of it variables, and a vTPM has a little more: that was refused."""
    flash, tpm = tmp_path / "demo_VARS.fd", tmp_path / "tpm2"
    flash.touch()
    os.truncate(flash, 64 << 20)
    tpm.mkdir()
    (tpm / "tpm2-00.permall").write_bytes(bytes(6000))
    places = (
        SidePlace(kind=SideKind.NVRAM, path=flash),
        SidePlace(kind=SideKind.TPM, path=tpm, shape=SideShape.FOLDER),
    )
    assert sidefiles.check("demo", places) == ()
    assert [len(held.content) for held in sidefiles.read(places)] == [64 << 20, 6000]


def test_what_a_server_does_not_let_root_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows the file: the domain stood still for each `take`, and none had an end."""
    flash = tmp_path / "demo_VARS.fd"
    flash.touch()
    really = os.open

    def squashed(path: Any, *how: Any, **more: Any) -> int:
        if path == flash:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return really(path, *how, **more)

    monkeypatch.setattr(os, "open", squashed)
    with pytest.raises(DomainRefused, match=r"nvram /\S+ cannot be read .Permission denied."):
        sidefiles.check("demo", [SidePlace(kind=SideKind.NVRAM, path=flash)])


def test_variables_kept_as_json_are_not_called_a_record(tmp_path: Path) -> None:
    """QEMU's device uefi-vars keeps them so; the record was said to be the file that is damaged."""
    side = SideFile(kind=SideKind.VARSTORE, name="demo.json", size_bytes=3, checksum="")
    (tmp_path / side.file).write_text("{}")
    with pytest.raises(RecordUnusable) as refused:
        sidefiles.require_whole(tmp_path, side)
    why = "it has changed since it was taken"
    assert refused.value.message() == f"{tmp_path / side.file} cannot be used: {why}"
