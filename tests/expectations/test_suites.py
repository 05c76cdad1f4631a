"""What all suites rely on: frames are judged apart, and what could not be checked is not called a finding."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pandas as pd
import pytest

from expectations.suites import library, per_owner, run, verdict
from trading.errors import ExpectationFailed

# Great Expectations takes seconds to import and a tenth of one to judge
pytestmark = pytest.mark.integration


def between(column: str, **limits: float) -> object:
    gx, gxe = library()
    return gx.ExpectationSuite("test", [gxe.ExpectColumnValuesToBeBetween(column=column, **limits)])


def test_an_expectation_that_raises_says_nothing_about_the_data() -> None:
    with pytest.raises(ExpectationFailed, match=r"be_between of absent could not be checked.*absent"):
        run(between("absent", min_value=0), pd.DataFrame({"a": [1.0]}))


def test_findings_belong_to_the_owners_of_the_rows() -> None:
    frame = pd.DataFrame({"a": [1.0, -1.0, -2.0, 3.0, -4.0]})
    broken = run(between("a", min_value=0), frame)
    assert broken[0].rows.tolist() == [1, 2, 4]
    assert str(broken[0].finding) == "critical: a must be at least 0: 3 of 5 rows, first -1 in row 1"
    found = per_owner(broken, np.array([0, 0, 0, 1, 3]), 4, lambda row: f" in row {row}")
    assert [[finding.observed for finding in each] for each in found] == [
        ["-1 in row 1 and 1 more"],
        [],
        [],
        ["-4 in row 4"],
    ]


def test_the_worst_comes_first() -> None:
    gx, gxe = library()
    severities = ("info", "critical", "warning")
    suite = gx.ExpectationSuite(
        "test",
        [gxe.ExpectColumnValuesToBeBetween(column=name, max_value=0, severity=name) for name in severities],
    )
    frame = pd.DataFrame([dict.fromkeys(severities, 1.0)])
    said = verdict("test-1", 3, [each.finding for each in run(suite, frame)])
    assert [finding.severity for finding in said.findings] == ["critical", "warning", "info"]
    assert [finding.subject for finding in said.critical] == ["critical"]


def test_only_the_last_frame_is_kept_in_memory() -> None:
    frame = pd.DataFrame({"a": np.zeros(10)})
    kept = weakref.ref(frame)
    run(between("a", min_value=0), frame)
    run(between("a", min_value=0), pd.DataFrame({"a": [1.0]}))
    del frame
    gc.collect()
    assert kept() is None


def test_all_rows_of_many_are_named() -> None:
    frame = pd.DataFrame({"a": -1.0 - np.arange(5000)})
    (broken,) = run(between("a", min_value=0), frame)
    assert broken.rows.tolist() == list(range(5000))
    found = per_owner([broken], np.arange(5000) // 1000, 5, lambda _: "")
    assert [each[0].observed for each in found] == [f"-{1 + 1000 * owner} and 999 more" for owner in range(5)]
