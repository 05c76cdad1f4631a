"""The rules of what may go, for any facts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.retention import (
    EMPTY_BYTES,
    Retention,
    Stamped,
    forgettable,
    last_used,
    needed_revisions,
    root_of,
    surplus,
    too_old,
    worth_vacuum,
)
from trading.errors import InvalidRequest

NOW = datetime(2024, 5, 1, tzinfo=UTC)


def ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


@pytest.mark.parametrize(
    ("name", "days"),
    [("results", 7), ("llm_calls", 61), ("records", 0), ("newest_results", 0), ("most_reports", 0), ("traces", 0)],
)
def test_what_work_under_way_needs_cannot_be_dropped(name: str, days: int) -> None:
    with pytest.raises(InvalidRequest, match=f"{name} cannot be kept for {days}"):
        Retention(**{name: days})


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 12), st.integers(0, 30))
def test_of_each_kind_the_newest_stays_and_what_goes_is_too_old_or_one_too_many(
    ages: list[int], most: int, days: int
) -> None:
    found = [Stamped(f"{number}", ago(age)) for number, age in enumerate(ages)]
    gone = surplus(found, most, ago(days))
    left = [one for one in found if one not in gone]
    assert len(left) + len(gone) == len(found)
    assert bool(left) == bool(found)
    assert len(left) <= most
    # everything that stays but one is young, and what goes is older than all that stays
    assert sum(one.at < ago(days) for one in left) <= 1
    assert all(old.at <= one.at for old in gone for one in left)
    # and nothing goes without a reason
    assert all(one.at < ago(days) for one in gone) or len(left) == most
    assert gone == sorted(gone, key=lambda one: one.at)


def test_a_result_is_as_old_as_its_last_use() -> None:
    assert last_used({"created_at": ago(9)}) == ago(9)
    assert last_used({"created_at": ago(9), "used_at": ago(2)}) == ago(2)
    assert last_used({"created_at": ago(2), "used_at": ago(9)}) == ago(2)


def test_a_document_is_old_when_all_its_times_are() -> None:
    fields = ("timestamp", "created_at")
    assert too_old({"timestamp": ago(10), "created_at": ago(10)}, fields, ago(5))
    assert not too_old({"timestamp": ago(10), "created_at": ago(1)}, fields, ago(5))  # made today about long ago
    assert too_old({"timestamp": ago(10)}, fields, ago(5))
    assert not too_old({}, fields, ago(5))
    assert not too_old({"timestamp": ago(5)}, fields, ago(5))


def test_the_oldest_revision_that_a_dataset_needs() -> None:
    datasets = [
        {"revisions": [{"chunk": "a", "rev": 4}, {"chunk": "b", "rev": 1}]},
        {"revisions": [{"chunk": "a", "rev": 2}]},
    ]
    assert needed_revisions(datasets) == {"a": 2, "b": 1}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 40)), max_size=12),
    st.none() | st.integers(0, 40),
    st.integers(0, 40),
)
def test_what_is_forgotten_is_old_and_nobody_needs_it(
    steps: list[tuple[int, int]], needed: int | None, days: int
) -> None:
    rev, undo = 0, []
    for step, age in steps:
        rev += step
        undo.append({"rev": rev, "at": ago(age)})
    count = forgettable(undo, needed, ago(days))
    assert all(entry["at"] < ago(days) for entry in undo[:count])
    # reading back to a revision undoes the entries after it: they are all still there
    assert needed is None or not [entry for entry in undo[:count] if entry["rev"] > needed]
    # and it stops for a reason only
    if count < len(undo):
        stop: dict[str, Any] = undo[count]
        assert stop["at"] >= ago(days) or (needed is not None and stop["rev"] > needed)


def test_a_file_is_written_anew_only_where_it_helps() -> None:
    size = 4096
    enough = EMPTY_BYTES // size + 1
    assert worth_vacuum(2 * enough, enough, size)
    assert not worth_vacuum(2 * enough, enough - 2, size)  # too little
    assert not worth_vacuum(5 * enough, enough, size)  # too small a part
    assert not worth_vacuum(0, 0, size)


def test_the_top_of_a_family_and_of_a_circle() -> None:
    parents = {"fold": "estimator", "estimator": "training", "training": None}
    assert {root_of(run, parents) for run in parents} == {"training"}
    assert root_of("stranger", parents) == "stranger"
    assert root_of("a", {"a": "b", "b": "a"}) == "b"
