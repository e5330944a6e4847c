"""How large a machine's UEFI variables and vTPM may be together."""

from __future__ import annotations

import os
from pathlib import Path

from snapvm import sidefiles
from snapvm.model import SideKind, SidePlace, SideShape


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
