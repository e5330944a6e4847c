"""The index of an image's pages: the last word on each, in little memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapvm.memory.pageindex import PageIndex
from snapvm.memory.xenformat import PageType
from snapvm.memory.xenrecord import PageBatch
from snapvm.refusals import BadImage
from tests.unit.memory.xen_builders import XTAB


def _batch(pfns: list[int], types: list[int], at: int = 4096) -> PageBatch:
    return PageBatch(
        offset_bytes=64,
        pfns=np.array(pfns, np.uint64),
        types=np.array(types, np.uint8),
        data_offset_bytes=at,
        data=None,
    )


@settings(max_examples=40)
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.integers(0, 40_000),
                st.sampled_from([t.value for t in PageType]),
            ),
            max_size=20,
        ),
        max_size=8,
    )
)
def test_the_index_is_a_dictionary_of_last_words(batches: list[list[tuple[int, int]]]) -> None:
    index = PageIndex("img", 40_000)
    expected: dict[int, tuple[int, int]] = {}
    at = 4096
    for batch in batches:
        index.add(_batch([pfn for pfn, _ in batch], [type_ for _, type_ in batch], at))
        for pfn, type_ in batch:
            has_data = type_ < 0xD
            expected[pfn] = (type_, at if has_data else 0)
            at += 4096 if has_data else 0
    pfns = np.array([*expected, 3], np.uint64)
    found = zip(index.types(pfns).tolist(), index.offsets(pfns).tolist(), strict=True)
    assert list(found) == [*expected.values(), expected.get(3, (XTAB, 0))]
    roots = sorted(pfn for pfn, (type_, _) in expected.items() if type_ == 0xC)
    assert [p for pfns in index.of_types({PageType.L4TAB_PINNED}) for p in pfns.tolist()] == roots


def test_a_page_given_and_taken_back_in_one_batch_is_a_hole() -> None:
    index = PageIndex("img", 40_000)
    index.add(_batch([5, 6, 5], [0, 0, XTAB]))
    assert index.types(np.array([5, 6], np.uint64)).tolist() == [XTAB, 0]
    index.add(_batch([6], [XTAB]))
    assert index.offsets(np.array([5, 6], np.uint64)).tolist() == [0, 0]


def test_far_flung_pages_without_data_cost_no_memory() -> None:
    def fill(type_: PageType) -> None:
        index = PageIndex("img", (1 << 32) - 1)
        for number in range(20):
            pfns = [n << 14 | number << 24 for n in range(1024)]
            index.add(_batch(pfns, [type_] * 1024))

    tracemalloc.start()
    with pytest.raises(BadImage, match="too far apart") as raised:
        fill(PageType.XALLOC)
    fill(PageType.XTAB)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert raised.value.offset_bytes == 64
    assert peak_bytes < 64 << 20
