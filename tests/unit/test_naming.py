"""Ids, references and names of volumes, for any text a user may type."""

from __future__ import annotations

import string
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapvm import naming
from snapvm.errors import AmbiguousSnapshot, BadName, UnknownSnapshot
from snapvm.model import SnapshotId

FIRST = string.ascii_letters + string.digits
ids = st.builds(
    lambda first, rest: first + rest,
    st.sampled_from(FIRST),
    st.text(FIRST + "+.-", max_size=63),
).filter(lambda text: text.casefold() not in naming.RESERVED)


@given(ids)
def test_a_proper_name_is_an_id(name: str) -> None:
    assert naming.check_name(name) == name
    assert naming.split_reference(f"my@dom@{name}") == ("my@dom", name)


@given(st.text())
def test_a_name_is_proper_or_refused(text: str) -> None:
    try:
        name = naming.check_name(text)
    except BadName:
        return
    assert name.isascii()
    assert name == text
    assert not set(name) - set(FIRST + "+.-")


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "-x", "+x", "a/b", "a b", "a\n", "é", "a_b"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(BadName):
        naming.check_name(name)


@pytest.mark.parametrize("name", ["latest", "Latest", "CURRENT"])
def test_reserved_words_cannot_be_given(name: str) -> None:
    with pytest.raises(BadName):
        naming.check_name(name)


def test_the_name_of_an_undo_record_cannot_be_given() -> None:
    """A damaged one was taken for what a rollback had kept, so that `latest` did not see it."""
    with pytest.raises(BadName, match="a rollback has replaced"):
        naming.check_name("undo-20261122T201801Z")
    assert naming.check_name("undo-this") == "undo-this"


@pytest.mark.parametrize("name", ["20260101T000000Z", "20260101T000000Z-2"])
def test_the_time_stamp_of_one_without_a_name_cannot_be_given(name: str) -> None:
    """Made anew from its tags it counted as unnamed, and `prune` deleted what a user had named."""
    with pytest.raises(BadName, match="are for snapshots without a name"):
        naming.check_name(name)
    for more in (f"at-{name}", f"{name}-nightly", f"{name}x", "20261301T000000Z"):
        assert naming.check_name(more) == more and naming.moment(more) is None


@pytest.mark.parametrize("text", ["", "demo", "@", "@x", "demo@", "demo@.x", "demo@a/b", "d@x\n"])
def test_references_that_cannot_be(text: str) -> None:
    with pytest.raises(BadName):
        naming.split_reference(text)


@given(st.lists(ids, unique=True, max_size=8), st.data())
def test_choose_finds_exactly_what_is_meant(names: list[str], data: st.DataObject) -> None:
    known = [SnapshotId(name) for name in names]
    wanted = data.draw(ids)
    fitting = [name for name in names if name.startswith(wanted)]
    try:
        chosen = naming.choose("demo", wanted, known)
    except UnknownSnapshot:
        assert not fitting
    except AmbiguousSnapshot as error:
        assert list(error.ids) == fitting
        assert wanted not in names
    else:
        assert chosen == (wanted if wanted in names else fitting[0])


def test_a_whole_id_wins_over_longer_ones() -> None:
    known = [SnapshotId("a"), SnapshotId("ab")]
    assert naming.choose("demo", "a", known) == "a"


def test_the_stamp_is_utc() -> None:
    there = timezone(timedelta(hours=5, minutes=30))
    assert naming.stamp(datetime(2026, 11, 23, 1, 47, 55, tzinfo=there)) == "20261122T201755Z"
    assert naming.is_id(naming.stamp(datetime.now(UTC)))


def test_a_taken_id_gets_a_number() -> None:
    taken = {"x", "x-2"}
    assert naming.free_id("x", taken.__contains__) == "x-3"
    assert naming.free_id("y", taken.__contains__) == "y"


def test_a_set_is_twelve_digits_and_new() -> None:
    made = {naming.new_set() for _ in range(100)}
    assert len(made) == 100
    assert all(naming.is_set(set_) for set_ in made)


lvm_names = st.text(FIRST + "+._-", min_size=1, max_size=60)


@given(st.lists(lvm_names, min_size=1, max_size=4, unique=True), lvm_names, ids, lvm_names)
def test_what_can_be_taken_can_be_rolled_back(
    ends: list[str], begin: str, id_: str, vg: str
) -> None:
    """Every volume of a take and of the rollback to it has a name, its own, that can be."""
    set_, undo = "0123456789ab", "undo-20261122T201801Z"
    taken, rolled = [], []
    for number, end in enumerate(ends):
        origin = f"{begin}{end}"
        taken.append(naming.snapshot_lv(origin, id_, set_, vg, number))
        rolled.append(naming.clone_lv(origin, set_, vg, number))
        rolled.append(naming.snapshot_lv(origin, undo, set_, vg, number))
    assert len(set(taken)) == len(taken) and len(set(rolled)) == len(rolled)
    if len(vg.replace("-", "--")) < 100:
        assert all(naming.fits(vg, name) for name in (*taken, *rolled))


@given(lvm_names, lvm_names)
def test_a_name_that_fits_fits_device_mapper(vg: str, lv: str) -> None:
    mapped = f"{vg.replace('-', '--')}-{lv.replace('-', '--')}-tpool"
    assert len(mapped) <= naming.DM_NAME_LIMIT or not naming.fits(vg, lv)


@pytest.mark.parametrize("name", ["a/b", "", "-x", "x" * 65, "latest"])
def test_a_bad_name_is_told_what_a_name_may_be(name: str) -> None:
    with pytest.raises(BadName) as refused:
        naming.check_name(name)
    assert "1 to 64 of A-Z a-z 0-9 + . -" in refused.value.hint()


def test_many_that_fit_a_prefix_are_counted() -> None:
    ids = [SnapshotId(f"a{number}") for number in range(8)]
    with pytest.raises(AmbiguousSnapshot, match="any of a0, a1, a2, a3, a4 and 3 more"):
        naming.choose("demo", "a", ids)
