"""``snapvm delete`` and ``snapvm prune`` say what went, and delete no more than they were told."""

from __future__ import annotations

import json

from snapvm.errors import ExitStatus
from tests.fakes.records import disks_only, put_record
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.cli.conftest import Call


def test_delete_takes_several_and_each_once(call: Call, scene: Scene) -> None:
    for name in ("a", "b", "c"):
        call("take", DOMAIN, "--name", name)
    done = call("delete", "demo@a", "demo@b", "demo@a", "--yes")
    assert done.out == "deleted demo@a, demo@b\n"
    assert scene.ids() == ["c"]
    assert json.loads(call("delete", "demo@c", "-y", "--json").out) == {"deleted": ["demo@c"]}


def put_days(scene: Scene, days: int) -> None:
    state_dir = scene.host.settings.state_dir
    for day in range(1, days + 1):
        made = disks_only(
            f"d{day}", created=f"2026-03-{day:02}T12:00:00+00:00", domain_uuid=UUID, disks=()
        )
        put_record(state_dir, made)


def test_prune_keeps_what_the_rules_keep(call: Call, scene: Scene) -> None:
    put_days(scene, 5)
    tried = call("prune", DOMAIN, "--keep-last", "2", "--dry-run")
    assert "demo@d3 of" in tried.out and tried.out.endswith("would delete 3 snapshots, kept 2\n")
    assert len(scene.ids()) == 5
    assert call("prune", DOMAIN, "--keep-last", "2").status == ExitStatus.REFUSED
    done = json.loads(call("prune", "--all", "--keep-daily", "2", "--yes", "--json").out)
    assert done["kept"] == {"demo@d5": ["daily"], "demo@d4": ["daily"]}
    assert sorted(done["deleted"]) == ["demo@d1", "demo@d2", "demo@d3"]
    assert scene.ids() == ["d4", "d5"]
    again = call("prune", "--all", "--keep-daily", "2")
    assert again.status == 0 and again.out == "deleted no snapshots, kept 2\n"


def test_prune_takes_a_uuid_as_every_verb_does(call: Call, scene: Scene) -> None:
    put_days(scene, 3)
    other = disks_only("other", created="2026-03-09T12:00:00+00:00", disks=())
    assert other.domain == DOMAIN and other.domain_uuid != UUID
    put_record(scene.host.settings.state_dir, other)
    done = call("prune", UUID, "--keep-last", "1", "--dry-run", "--json")
    told = json.loads(done.out)
    assert told["kept"] == {"demo@d3": ["last"]}
    assert told["deleted"] == ["demo@d2", "demo@d1"]
    assert call("prune", UUID, "--keep-last", "1", "--yes").status == 0
    assert scene.ids() == ["d3"]


def test_one_that_is_refused_when_others_are_gone_is_told_with_them(
    call: Call, scene: Scene
) -> None:
    for name in "abc":
        call("take", DOMAIN, "--name", name)
    (used,) = [volume for volume in scene.lvm.volumes if volume.name.endswith("d0.b")]

    def occupy(argv: tuple[str, ...]) -> None:
        used.opened = used.opened or argv[1] == "lvremove"

    scene.lvm.before = occupy
    done = call("delete", "demo@a", "demo@b", "demo@c", "--yes", "--json")
    told = json.loads(done.out)
    assert done.status == told["error"]["exit_status"] == ExitStatus.FAILED
    assert told["deleted"] == ["demo@a"] and told["not_touched"] == ["demo@b", "demo@c"]
    assert told["error"]["kind"] == "DeleteStopped" and told["because"] == "VolumeRefused"
    assert "deleted demo@a, not touched demo@b, demo@c\n" in done.err
    assert scene.ids() == ["b", "c"]


def test_delete_of_one_that_is_missing_deletes_none(call: Call, scene: Scene) -> None:
    call("take", DOMAIN, "--name", "a")
    assert call("delete", "demo@a", "demo@z", "--yes").status == ExitStatus.NOT_FOUND
    assert scene.ids() == ["a"]
