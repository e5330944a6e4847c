"""A record survives being written and read; whatever else stands in the file is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapvm import naming, recordfile
from snapvm.model import (
    DiskRecord,
    DomainState,
    DomainUuid,
    HypervisorKind,
    LvRef,
    LvUuid,
    MemoryRecord,
    OmittedDisk,
    Record,
    RecordKind,
    SnapshotId,
    Timing,
    VolumeKind,
    WindowPart,
)
from snapvm.refusals import RecordUnusable
from tests.fakes.records import make_record

texts = st.text(max_size=20)
counts = st.integers(0, (1 << 63) - 1)
times = st.floats(0, 1e11)
lvm_names = st.text("azAZ09+_.-", min_size=1, max_size=20).filter(naming.is_lvm_name)
lv_uuids = st.sampled_from(["", *(disk.snapshot.uuid for disk in make_record().disks)])
refs = st.builds(LvRef, vg=lvm_names, lv=lvm_names, uuid=lv_uuids.map(LvUuid))
records = st.builds(
    Record,
    id=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9+.-]{0,63}", fullmatch=True).map(SnapshotId),
    set=st.from_regex(r"[0-9a-f]{12}", fullmatch=True),
    kind=st.sampled_from(RecordKind),
    created=texts,
    named=st.booleans(),
    note=texts,
    domain=texts.filter(lambda text: "\0" not in text),
    domain_uuid=texts.map(DomainUuid),
    hypervisor=st.sampled_from(HypervisorKind),
    state=st.sampled_from(DomainState),
    memory_bytes=counts,
    vcpus=counts,
    capture=texts,
    memory=st.none()
    | st.builds(
        MemoryRecord,
        file=st.just("m"),
        format=texts,
        size_bytes=counts,
        checksum=texts,
        foreign=st.dictionaries(texts, counts, max_size=2),
    ),
    disks=st.lists(
        st.builds(
            DiskRecord,
            target=texts,
            volume=refs,
            snapshot=refs,
            kind=st.sampled_from(VolumeKind),
            size_bytes=counts,
        ),
        max_size=3,
    ).map(tuple),
    omitted=st.lists(
        st.builds(OmittedDisk, target=texts, why=texts, read_only=st.booleans()), max_size=2
    ).map(tuple),
    timing=st.builds(
        Timing,
        pause_ms=times,
        total_ms=times,
        parts=st.lists(
            st.builds(WindowPart, name=texts, start_ms=st.floats(-1e11, 1e11), duration_ms=times),
            max_size=3,
        ).map(tuple),
    ),
    written_bytes=counts,
    versions=st.dictionaries(texts, texts, max_size=3),
)


@settings(max_examples=60)
@given(records)
def test_a_record_comes_back_as_it_was(record: Record) -> None:
    assert recordfile.load(recordfile.dump(record).encode(), "x") == record


@given(st.binary(max_size=60))
def test_rubbish_is_refused(text: bytes) -> None:
    with pytest.raises(RecordUnusable):
        recordfile.load(text, "x")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inside: st.lists(inside, max_size=2) | st.dictionaries(texts, inside, max_size=2),
    max_leaves=4,
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, child in children:
        found += paths(child, (*path, key))
    return found


WHOLE = recordfile.as_dict(make_record())


@settings(max_examples=300)
@given(st.sampled_from(paths(WHOLE)), json_values)
def test_a_spoiled_record_is_read_or_refused_never_worse(path: tuple[Any, ...], value: Any) -> None:
    spoiled = json.loads(json.dumps(WHOLE))
    inside = spoiled
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    try:
        recordfile.load(json.dumps(spoiled).encode(), "x")
    except RecordUnusable as error:
        assert error.message()


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"null", b"{}", b'{"schema": 2}', b'{"schema": true}', b"[" * 100_000]
)
def test_other_json_is_refused(text: bytes) -> None:
    with pytest.raises(RecordUnusable):
        recordfile.load(text, "x")


def test_a_newer_record_says_so() -> None:
    newer = json.dumps({**WHOLE, "schema": 2}).encode()
    with pytest.raises(RecordUnusable, match="newer snapvm"):
        recordfile.load(newer, "x")


@pytest.mark.parametrize("file", ["../x", "/etc/passwd", ".x", "", "a/b"])
def test_an_image_elsewhere_is_refused(file: str) -> None:
    spoiled = json.loads(json.dumps(WHOLE))
    spoiled["memory"]["file"] = file
    with pytest.raises(RecordUnusable, match="plain file name"):
        recordfile.from_dict(spoiled, "x")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("uuid", "x) || (vg_name=vg0"),
        ("uuid", "../../etc/passwd"),
        ("lv", "-rf"),
        ("lv", ".."),
        ("vg", "vg0 --yes"),
        ("vg", "vg0\n"),
    ],
)
def test_what_lvm_could_misunderstand_is_refused(key: str, value: str) -> None:
    """Found by fuzzing: a uuid reached LVM's selection language as it was."""
    data = recordfile.as_dict(make_record())
    data["disks"][0]["snapshot"][key] = value
    with pytest.raises(RecordUnusable):
        recordfile.from_dict(data, "record")


@given(name=st.text() | st.just("x\udcff"), other=st.text())
def test_no_record_of_a_domain_is_passed_over(name: str, other: str) -> None:
    """Whether its name is written with escapes, as by us, or as it is."""
    record = make_record(domain=name, note=other)
    plain = json.dumps(recordfile.as_dict(record), ensure_ascii=False)
    for text in (recordfile.dump(record).encode(), plain.encode(errors="surrogatepass")):
        assert recordfile.may_be_of(text, name)


def test_a_record_of_another_domain_is_passed_over() -> None:
    assert not recordfile.may_be_of(recordfile.dump(make_record()).encode(), "another")


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "a\udcffb"])
def test_a_domain_that_nobody_can_be_asked_for_is_refused(name: str) -> None:
    """libvirt's Python raised a ValueError, and that was a bug of snapvm's."""
    data = recordfile.as_dict(make_record())
    data["domain"]["name"] = name
    with pytest.raises(RecordUnusable, match="no domain can have the name"):
        recordfile.load(json.dumps(data).encode(), "x")
    data["domain"]["name"] = "übung \U0001f600\x1b"
    assert recordfile.load(json.dumps(data).encode(), "x").domain == data["domain"]["name"]
