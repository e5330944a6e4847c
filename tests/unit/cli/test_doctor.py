"""``snapvm doctor`` tells how a domain would be taken, and what stands in the way."""

from __future__ import annotations

import json
import os
import stat as statuses
from pathlib import Path

import pytest

from snapvm.errors import ExitStatus
from tests.fakes.records import disks_only
from tests.fakes.scene import DOMAIN, Scene
from tests.unit.cli.conftest import Call
from tests.unit.cli.harms import fill_pool


def test_doctor_tells_how_it_would_be_captured(call: Call, scene: Scene) -> None:
    before = scene.lvm.names()
    told = call("doctor", DOMAIN)
    assert told.status == 0
    assert "demo: running, 1 vCPU, 1.0 MiB (fake 1)" in told.out
    assert "vda: vg0/demo-d0, thin, " in told.out and "pool vg0/pool: data 10 %" in told.out
    assert told.out.endswith("\nnothing stands in the way of taking a snapshot of demo\n")
    values = json.loads(call("doctor", DOMAIN, "--json").out)
    assert values["capture"] and values["in_the_way"] == []
    assert scene.lvm.names() == before and scene.ids() == []


def test_doctor_counts_the_features_of_a_processor(call: Call, scene: Scene) -> None:
    features = "AuthenticAMD " + " ".join(f"f{n}" for n in range(40))
    scene.hypervisor.installed = {"qemu": "10.0.2", "processor": features}
    assert "(qemu 10.0.2, processor AuthenticAMD with 40 features)" in call("doctor", DOMAIN).out
    told = json.loads(call("doctor", DOMAIN, "--json").out)
    assert told["versions"]["processor"] == features


def test_doctor_names_all_that_stands_in_the_way(call: Call, scene: Scene) -> None:
    fill_pool(scene, disks_only("x"))
    told = call("doctor", DOMAIN)
    assert told.status == ExitStatus.REFUSED
    begins = [line.partition(": ")[0] for line in told.out.splitlines()][-4:]
    assert begins == ["in the way", "hint", "in the way", "hint"], "one for each pool"
    assert "2 things stand in the way of taking a snapshot of demo" in told.err
    assert "nothing stands" not in told.out
    values = json.loads(call("doctor", DOMAIN, "--json").out)
    assert len(values["in_the_way"]) == 2 and values["error"]["exit_status"] == 4


def test_doctor_names_what_would_take_an_image_nobody_restores(call: Call, scene: Scene) -> None:
    scene.hypervisor.installed = {"libvirt": "11.1.0", "qemu": "11.0.1"}
    told = call("doctor", DOMAIN)
    assert told.status == ExitStatus.REFUSED
    assert told.out.count("in the way: ") == 1 and "libvirt 12.1" in told.out


@pytest.mark.parametrize("name", ["state", "state/domains", "run"])
def test_doctor_tells_who_else_may_write_records(call: Call, scene: Scene, name: str) -> None:
    """A journal that somebody else wrote is acted upon by root's next command."""
    state, run = scene.host.settings.state_dir, scene.host.settings.run_dir
    assert state.parent / "run" == run and state.name == "state"
    for each in (state / "domains", run):
        each.mkdir(parents=True, exist_ok=True)
    folder = state.parent / name
    assert "advice" not in call("doctor", DOMAIN).out
    folder.chmod(0o777)
    told = call("doctor", DOMAIN)
    assert told.status == 0
    assert f"advice: others than root may write to {folder}: " in told.out
    folder.chmod(0o1777)
    assert "advice" not in call("doctor", DOMAIN).out


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "is_told"),
    [
        (0o700, 0, 0, False),
        (0o770, 0, 0, False),
        (0o770, 0, 4321, True),
        (0o1770, 0, 4321, False),
        (0o750, 0, 4321, False),
        (0o700, 4321, 0, True),
    ],
)
def test_doctor_tells_whose_folder_of_records_it_is(
    call: Call,
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    mode: int,
    uid: int,
    gid: int,
    *,
    is_told: bool,
) -> None:
    folder = scene.host.settings.state_dir
    folder.mkdir(exist_ok=True)
    really = Path.stat

    def stat(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        told = really(path, follow_symlinks=follow_symlinks)
        if path != folder:
            return told
        return os.stat_result((statuses.S_IFDIR | mode, *told[1:4], uid, gid, *told[6:10]))

    monkeypatch.setattr(Path, "stat", stat)
    told = call("doctor", DOMAIN).out
    assert (f"others than root may write to {folder}: " in told) is is_told
