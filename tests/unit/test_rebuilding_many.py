"""Hundreds of lost records are made anew in the time that it takes to write them."""

from __future__ import annotations

import shutil

import pytest

from snapvm import consistency, rebuilding, recordfile, remaking
from snapvm.catalog import Catalog
from snapvm.consistency import TakeRequest
from snapvm.model import Record, Silent
from tests.fakes.scene import DOMAIN, Scene

MANY = 9


def test_lvm_and_the_catalog_are_not_asked_anew_for_each(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two thousand each waited for all others to be read, and for LVM to report all volumes."""
    for number in range(MANY):
        request = TakeRequest(domain=DOMAIN, name=f"n{number}", with_memory=False)
        consistency.take(scene.host, request, Silent())
    shutil.rmtree(scene.host.settings.state_dir)
    load, domains = recordfile.load, Catalog.domains
    reports: list[str] = []
    reads: list[str] = []
    looks: list[object] = []

    def count_reports(argv: tuple[str, ...]) -> None:
        reports.extend(argv[1:2] if argv[1] == "lvs" else ())

    def loaded(text: bytes, path: str) -> Record:
        reads.append(path)
        return load(text, path)

    def known(catalog: Catalog) -> object:
        looks.append(catalog)
        return domains(catalog)

    scene.lvm.before = count_reports
    monkeypatch.setattr(recordfile, "load", loaded)
    monkeypatch.setattr(Catalog, "domains", known)
    rebuilt, _ = rebuilding.look(scene.host)
    made, hopeless = remaking.put_all(scene.host, rebuilt)
    assert len(made) == MANY == len(scene.ids()) and not hopeless
    assert len(reports) == 2 and len(looks) <= 6
    assert len(reads) <= 4 * MANY
