"""A lab that died is tried again; a test that failed is not."""

from __future__ import annotations

import pytest

from tests.lab.died import only_deaths

DEATH = '<testcase name="a"><failure message="tests.lab.errors.LabDied: no answer"/></testcase>'
SETUP = '<testcase name="b"><error message="failed on setup: LabDied: gone"/></testcase>'
FAILED = '<testcase name="c"><failure message="AssertionError: assert 0"/></testcase>'
PASSED = '<testcase name="d"/>'


@pytest.mark.parametrize(
    ("cases", "is_tried_again"),
    [(PASSED, False), (DEATH + PASSED, True), (DEATH + SETUP, True), (DEATH + FAILED, False)],
)
def test_only_deaths_are_tried_again(cases: str, is_tried_again: bool) -> None:
    report = f"<testsuites><testsuite>{cases}</testsuite></testsuites>"
    assert only_deaths(report) is is_tried_again
