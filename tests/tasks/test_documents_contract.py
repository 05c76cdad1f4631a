"""What every body of the document port must do, and what the store above it does on every body.

Written once against the port. A body is a name and a way to get the address of a new, empty database; the
processes of these tests open it by that address (``store_worker.open_documents``).
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest
from pydantic import SecretStr

from tasks import gaps, quarantine
from tasks.chunks import Revision
from tasks.documents import COUNTERS, LEASES, Collection, Documents, Span
from tasks.settings import Settings
from tasks.store import (
    CHUNKS,
    COLLECTIONS,
    FORMAT,
    SERIES,
    Store,
    configured_store,
    corrections,
    open_store,
    read_candles,
    read_candles_at,
    read_with_revisions,
    write_candles,
)
from tests.tasks import store_worker
from tests.tasks.store_worker import NAMED, START, SYMBOL, THINGS, candles_at, minutes, open_documents
from trading.errors import StoreError, StoreUnavailable
from trading.gaps import Gap
from trading.window import Timeframe, Window

CHECKOUT = Path(__file__).resolve().parents[2]
NOW = datetime(2094, 5, 6, 7, 8, 9, tzinfo=UTC)  # far ahead: a server removes by its own clock what has expired
PATIENCE = 30.0


@dataclass(frozen=True)
class Body:
    """A database behind the port: ``fresh`` gives the address of a new, empty one."""

    name: str
    fresh: Callable[[pytest.FixtureRequest, Path], str]


def fresh_mongodb(request: pytest.FixtureRequest, _: Path) -> str:
    return f"mongodb:{request.getfixturevalue('mongo_database')}|{request.getfixturevalue('mongo_url')}"


BODIES = [
    Body("sqlite", lambda request, folder: f"sqlite:{folder / 'home' / 'store.db'}"),
    Body("mongodb", fresh_mongodb),
]


# the one needs a server, so it is under the marker of those tests
@pytest.fixture(params=[BODIES[0], pytest.param(BODIES[1], marks=pytest.mark.integration)], ids=lambda body: body.name)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.param.fresh(request, tmp_path)


@pytest.fixture
def documents(address: str) -> Iterator[Documents]:
    with open_documents(address) as opened:
        yield opened


@pytest.fixture
def store(address: str) -> Iterator[Store]:
    with Store(open_documents(address, COLLECTIONS)) as opened:
        yield opened


class Worker:
    """A process of ``store_worker``, ready to start its job."""

    def __init__(self, job: str, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, store_worker.__file__, job, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        )

    def ready(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def next(self) -> Any:
        """Its next result."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def results(self) -> list[Any]:
        """What it still says, until it is done; it must end well."""
        watchdog = threading.Timer(PATIENCE, self._process.kill)
        watchdog.start()
        said = self._rest()
        watchdog.cancel()
        assert self._process.returncode == 0
        return said

    def kill(self) -> list[Any]:
        """SIGKILL, at once; what it had said until then."""
        self._process.kill()
        return self._rest()

    def _rest(self) -> list[Any]:
        if self._process.returncode is not None:
            return []
        # not communicate(): it would miss what readline() has read ahead
        with self._process:
            assert self._process.stdout is not None
            said = self._process.stdout.read()
        # a line cut short was not said
        return [json.loads(line) for line in said.splitlines(keepends=True) if line.endswith("\n")]


@pytest.fixture
def worker() -> Iterator[Callable[..., Worker]]:
    with ExitStack() as stack:

        def start(job: str, *arguments: object) -> Worker:
            made = Worker(job, *arguments)
            stack.callback(made.kill)
            return made

        yield start


def together(workers: list[Worker]) -> list[list[Any]]:
    """Starts the jobs of all workers at the same time; their results."""
    for one in workers:
        one.ready()
    for one in workers:
        one.go()
    return [one.results() for one in workers]


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [document["_id"] for document in found]


# --- documents -----------------------------------------------------------------------------------


def test_what_was_put_comes_back(documents: Documents) -> None:
    document = {
        "_id": "a|b c.d$é",
        "kind": "k",
        "at": NOW,
        "text": "ünïcödé \0 \n",
        "none": None,
        "yes": True,
        "whole": 2**62,
        "negative": -7,
        "fraction": 0.1,
        "infinite": math.inf,
        "bytes": bytes(range(256)),
        "list": [1, "a", None, [2.5]],
        "inner": {"when": NOW, "deep": {"x": 1}},
    }
    documents.put(THINGS, document)
    assert documents.get(THINGS, "a|b c.d$é") == {**document, "rev": 1}


def test_a_missing_document_is_none(documents: Documents) -> None:
    assert documents.get(THINGS, "nothing") is None
    documents.put(THINGS, {"_id": "other"})
    assert documents.get(NAMED, "other") is None


def test_put_replaces_the_whole_document(documents: Documents) -> None:
    documents.put(THINGS, {"_id": "a", "kind": "old", "extra": 1})
    documents.put(THINGS, {"_id": "a", "kind": "new"})
    assert documents.get(THINGS, "a") == {"_id": "a", "kind": "new", "rev": 2}
    assert documents.find(THINGS, {"kind": "old"}) == []
    assert ids(documents.find(THINGS, {"kind": "new"})) == ["a"]


def test_rev_counts_every_write_whatever_the_caller_says(documents: Documents) -> None:
    def rev() -> int:
        return (documents.get(THINGS, "a") or {})["rev"]

    documents.put(THINGS, {"_id": "a", "rev": 77})
    assert rev() == 1
    documents.put(THINGS, {"_id": "a", "rev": 77})
    assert rev() == 2
    assert documents.compare_and_set(THINGS, {"_id": "a", "rev": 77}, 2)
    assert rev() == 3
    assert not documents.compare_and_set(THINGS, {"_id": "a"}, 2)
    assert not documents.insert(THINGS, {"_id": "a"})
    assert rev() == 3


def test_the_callers_document_is_left_alone(documents: Documents) -> None:
    document = {"_id": "a", "kind": "k"}
    documents.put(THINGS, document)
    documents.compare_and_set(THINGS, document, 1)
    assert document == {"_id": "a", "kind": "k"}


def test_insert_writes_only_what_is_new(documents: Documents) -> None:
    assert documents.insert(THINGS, {"_id": "a", "kind": "first"})
    assert not documents.insert(THINGS, {"_id": "a", "kind": "second"})
    assert documents.get(THINGS, "a") == {"_id": "a", "kind": "first", "rev": 1}


def test_insert_all_writes_only_what_is_new(documents: Documents) -> None:
    documents.insert(THINGS, {"_id": "7", "name": "first"})
    many = ({"_id": str(number), "name": f"later {number}"} for number in range(1_203))
    assert documents.insert_all(THINGS, many) == 1_202
    found = {one["_id"]: (one["name"], one["rev"]) for one in documents.find(THINGS)}
    assert len(found) == 1_203
    assert found["7"] == ("first", 1)
    assert found["1202"] == ("later 1202", 1)
    assert documents.insert_all(THINGS, [{"_id": "7", "name": "x"}, *({"_id": "new", "name": "y"} for _ in "ab")]) == 1
    assert documents.insert_all(THINGS, []) == 0


def test_insert_all_refuses_what_cannot_be_stored(documents: Documents) -> None:
    with pytest.raises(StoreError, match="NaN is not stored"):
        documents.insert_all(THINGS, [{"_id": "a", "name": "a"}, {"_id": "b", "name": math.nan}])
    assert documents.get(THINGS, "b") is None


def test_compare_and_set_writes_only_over_what_it_expects(documents: Documents) -> None:
    assert not documents.compare_and_set(THINGS, {"_id": "a", "kind": "x"}, 1)
    assert documents.get(THINGS, "a") is None
    assert documents.compare_and_set(THINGS, {"_id": "a", "kind": "one"}, 0)
    assert not documents.compare_and_set(THINGS, {"_id": "a", "kind": "x"}, 0)
    assert documents.compare_and_set(THINGS, {"_id": "a", "kind": "two"}, 1)
    assert not documents.compare_and_set(THINGS, {"_id": "a", "kind": "x"}, 1)
    assert not documents.compare_and_set(THINGS, {"_id": "a", "kind": "x"}, 3)
    assert documents.get(THINGS, "a") == {"_id": "a", "kind": "two", "rev": 2}


def test_delete_says_whether_it_was_there_and_rev_starts_again(documents: Documents) -> None:
    documents.put(THINGS, {"_id": "a"})
    documents.put(THINGS, {"_id": "a"})
    documents.put(THINGS, {"_id": "b"})
    assert documents.delete(THINGS, "a")
    assert not documents.delete(THINGS, "a")
    assert documents.get(THINGS, "a") is None
    assert documents.insert(THINGS, {"_id": "a"})
    assert documents.get(THINGS, "a") == {"_id": "a", "rev": 1}
    assert documents.get(THINGS, "b") == {"_id": "b", "rev": 1}


def test_a_unique_index_refuses_a_second_one_and_keeps_the_first(documents: Documents) -> None:
    documents.put(NAMED, {"_id": "a", "name": "same"})
    documents.put(NAMED, {"_id": "c", "name": "else"})
    for write in (
        lambda: documents.put(NAMED, {"_id": "b", "name": "same"}),
        lambda: documents.insert(NAMED, {"_id": "b", "name": "same"}),
        lambda: documents.insert_all(NAMED, [{"_id": "b", "name": "same"}]),
        lambda: documents.put(NAMED, {"_id": "c", "name": "same"}),
        lambda: documents.compare_and_set(NAMED, {"_id": "c", "name": "same"}, 1),
    ):
        with pytest.raises(StoreError, match="unique") as caught:
            write()
        assert not isinstance(caught.value, StoreUnavailable)
    assert documents.get(NAMED, "b") is None
    assert documents.get(NAMED, "c") == {"_id": "c", "name": "else", "rev": 1}
    documents.put(NAMED, {"_id": "a", "name": "same", "again": True})
    assert ids(documents.find(NAMED, {"name": "same"})) == ["a"]


def test_a_field_of_a_unique_index_must_have_a_value(documents: Documents) -> None:
    for document in ({"_id": "a"}, {"_id": "a", "name": None}):
        with pytest.raises(StoreError, match="a of named has no name, which the unique index named_name_idx needs"):
            documents.put(NAMED, document)
    assert documents.find(NAMED) == []


def test_a_field_that_looks_like_an_operator_is_refused(documents: Documents) -> None:
    documents.put(THINGS, {"_id": "a", "in": {"$set": 1, "a.b": 2}, "c.d": 3})
    assert documents.get(THINGS, "a") == {"_id": "a", "in": {"$set": 1, "a.b": 2}, "c.d": 3, "rev": 1}
    for write in (documents.put, documents.insert):
        with pytest.raises(StoreError, match=r"a of things: the field \$set begins with \$"):
            write(THINGS, {"_id": "a", "$set": 1})


# --- searching -----------------------------------------------------------------------------------


@pytest.fixture
def searched(documents: Documents) -> Documents:
    for hour in (3, 1, 4, 0, 2):
        kind = "even" if hour % 2 == 0 else "odd"
        documents.put(THINGS, {"_id": f"id{9 - hour}", "kind": kind, "at": NOW + timedelta(hours=hour)})
    documents.put(THINGS, {"_id": "zz", "kind": None, "at": NOW + timedelta(hours=9)})
    return documents


def hours(found: list[dict[str, Any]]) -> list[int]:
    return [(document["at"] - NOW) // timedelta(hours=1) for document in found]


def test_find_without_conditions_is_everything(searched: Documents) -> None:
    assert ids(searched.find(THINGS)) == ["id5", "id6", "id7", "id8", "id9", "zz"]
    assert searched.find(NAMED) == []


def test_find_equal(searched: Documents) -> None:
    assert sorted(hours(searched.find(THINGS, {"kind": "even"}))) == [0, 2, 4]
    assert searched.find(THINGS, {"kind": "Even"}) == []
    assert hours(searched.find(THINGS, {"at": NOW + timedelta(hours=3)})) == [3]
    assert hours(searched.find(THINGS, {"kind": "odd", "at": NOW + timedelta(hours=3)})) == [3]
    assert searched.find(THINGS, {"kind": "even", "at": NOW + timedelta(hours=3)}) == []
    assert hours(searched.find(THINGS, {"kind": None})) == [9]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1, 3, [1, 2]),
        (None, 2, [0, 1]),
        (3, None, [3, 4, 9]),
        (None, None, [0, 1, 2, 3, 4, 9]),
        (2, 2, []),
        (3, 1, []),
        (20, None, []),
    ],
)
def test_a_span_is_half_open_and_ascending(
    searched: Documents, low: int | None, high: int | None, expected: list[int]
) -> None:
    bounds = [None if hour is None else NOW + timedelta(hours=hour) for hour in (low, high)]
    assert hours(searched.find(THINGS, span=Span("at", *bounds))) == expected


def test_a_span_and_equality_hold_together(searched: Documents) -> None:
    assert hours(searched.find(THINGS, {"kind": "even"}, Span("at", NOW + timedelta(hours=1)))) == [2, 4]


@pytest.mark.parametrize(("newest", "expected"), [(0, []), (1, [4]), (2, [4, 2]), (50, [4, 2, 0])])
def test_newest_come_last_first(searched: Documents, newest: int, expected: list[int]) -> None:
    assert hours(searched.find(THINGS, {"kind": "even"}, Span("at"), newest=newest)) == expected


def test_newest_of_a_span(searched: Documents) -> None:
    span = Span("at", NOW + timedelta(hours=1), NOW + timedelta(hours=4))
    assert hours(searched.find(THINGS, span=span, newest=2)) == [3, 2]


def test_text_spans_go_by_code_points(documents: Documents) -> None:
    for name in ("b", "B", "a", "é", "ab"):
        documents.put(NAMED, {"_id": f"x{name}", "name": name})
    assert ids(documents.find(NAMED, span=Span("name"))) == ["xB", "xa", "xab", "xb", "xé"]
    assert ids(documents.find(NAMED, span=Span("name", "a", "b"))) == ["xa", "xab"]


def test_only_indexed_fields_are_searched(documents: Documents) -> None:
    documents.put(THINGS, {"_id": "a", "colour": "red"})
    with pytest.raises(StoreError, match="colour is not indexed in things"):
        documents.find(THINGS, {"colour": "red"})
    with pytest.raises(StoreError, match="not indexed"):
        documents.find(THINGS, span=Span("colour"))
    with pytest.raises(StoreError, match="not indexed"):
        documents.find(THINGS, {"kind = '' OR 1 --": "x"})


# --- values --------------------------------------------------------------------------------------

BAD_VALUES = {
    "numpy integer": np.int64(1),
    "numpy bool": np.bool_(True),
    "numpy float32": np.float32(0.5),
    "numpy array": np.zeros(2),
    "numpy time": np.datetime64("2024-01-01"),
    "NaT": pd.NaT,
    "NA": pd.NA,
    "naive": datetime(2024, 1, 1),
    "NaN": math.nan,
    "numpy NaN": np.float64("nan"),
    "set": {1},
    "huge": 2**70,
    "surrogate": "\ud800",
}


@pytest.mark.parametrize("field", ["at", "free"])
@pytest.mark.parametrize("wrap", [lambda bad: bad, lambda bad: {"in": bad}, lambda bad: [1, {"in": [bad]}]])
@pytest.mark.parametrize("bad", BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_value_that_would_not_come_back_is_refused(
    documents: Documents, field: str, wrap: Callable[[Any], Any], bad: object
) -> None:
    documents.put(THINGS, {"_id": "a", "kind": "kept"})
    for write in (
        lambda document: documents.put(THINGS, document),
        lambda document: documents.compare_and_set(THINGS, document, 1),
        lambda document: documents.insert(THINGS, {**document, "_id": "new"}),
    ):
        with pytest.raises(StoreError, match=r"\ba of things|new of things") as caught:
            write({"_id": "a", "kind": "lost", field: wrap(bad)})
        assert not isinstance(caught.value, StoreUnavailable)
    assert documents.find(THINGS) == [{"_id": "a", "kind": "kept", "rev": 1}]


@pytest.mark.parametrize("key", [None, 5, np.int64(5), b"a", ["a"]])
def test_an_id_is_a_string(documents: Documents, key: object) -> None:
    for write in (documents.put, documents.insert):
        with pytest.raises(StoreError, match="needs a string _id"):
            write(THINGS, {"_id": key})
        with pytest.raises(StoreError, match="needs a string _id"):
            write(THINGS, {"kind": "none"})


@pytest.mark.parametrize("bad", [np.int64(1), datetime(2024, 1, 1), [1], pd.NaT, math.nan, 2**63])
def test_a_value_that_cannot_be_searched_for_is_refused(documents: Documents, bad: object) -> None:
    for search in ({"where": {"kind": bad}}, {"span": Span("at", bad)}, {"span": Span("at", None, bad)}):
        with pytest.raises(StoreError) as caught:
            documents.find(THINGS, **search)  # type: ignore[arg-type]
        assert not isinstance(caught.value, StoreUnavailable)


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (datetime(2024, 1, 1, 0, 0, 0, 999_999, UTC), datetime(2024, 1, 1, 0, 0, 0, 999_000, UTC)),
        (datetime(2024, 1, 1, 0, 0, 0, 1_000, UTC), datetime(2024, 1, 1, 0, 0, 0, 1_000, UTC)),
        (datetime(2024, 1, 1, 2, 30, tzinfo=timezone(timedelta(hours=2))), datetime(2024, 1, 1, 0, 30, tzinfo=UTC)),
        (datetime(1969, 12, 31, 23, 59, 59, 999_500, UTC), datetime(1969, 12, 31, 23, 59, 59, 999_000, UTC)),
        (pd.Timestamp("2024-01-01 10:00:00.123456789", tz="UTC"), datetime(2024, 1, 1, 10, 0, 0, 123_000, UTC)),
    ],
)
def test_times_are_cut_to_milliseconds_and_read_in_utc(documents: Documents, given: datetime, stored: datetime) -> None:
    documents.put(THINGS, {"_id": "a", "kind": "k", "at": given, "inner": [{"when": given}]})
    for read in (
        documents.get(THINGS, "a"),
        *documents.find(THINGS, {"at": given}),
        *documents.find(THINGS, span=Span("at", given, given + timedelta(milliseconds=1))),
    ):
        assert read is not None
        for moment in (read["at"], read["inner"][0]["when"]):
            assert (moment, moment.utcoffset(), type(moment)) == (stored, timedelta(0), datetime)
    assert ids(documents.find(THINGS, {"at": given})) == ["a"]
    assert ids(documents.find(THINGS, span=Span("at", stored, stored + timedelta(milliseconds=1)))) == ["a"]
    assert documents.find(THINGS, span=Span("at", None, stored)) == []


# --- counters, leases, expiry --------------------------------------------------------------------


def test_counters_start_at_zero_and_are_apart(documents: Documents) -> None:
    assert documents.increment("tokens", 5) == 5
    assert documents.increment("tokens") == 6
    assert documents.increment("tokens", -2) == 4
    assert documents.increment("other", 0) == 0
    assert (documents.get(COUNTERS, "tokens") or {})["value"] == 4


def test_a_held_lease_is_refused_until_it_expires(documents: Documents) -> None:
    minute = timedelta(minutes=1)
    assert documents.acquire("job", "one", minute, NOW)
    assert not documents.acquire("job", "two", minute, NOW)
    assert not documents.acquire("job", "two", minute, NOW + minute - timedelta(milliseconds=1))
    assert documents.acquire("else", "two", minute, NOW)
    assert documents.acquire("job", "two", minute, NOW + minute)
    assert not documents.acquire("job", "one", minute, NOW + minute)


def test_its_owner_renews_a_lease(documents: Documents) -> None:
    minute = timedelta(minutes=1)
    assert documents.acquire("job", "one", minute, NOW)
    assert documents.acquire("job", "one", minute, NOW + minute / 2)
    assert not documents.acquire("job", "two", minute, NOW + minute)
    assert (documents.get(LEASES, "job") or {})["expires_at"] == NOW + minute * 1.5
    assert documents.acquire("job", "two", minute, NOW + minute * 1.5)


def test_only_its_owner_releases_a_lease(documents: Documents) -> None:
    minute = timedelta(minutes=1)
    documents.release("job", "nobody")
    assert documents.acquire("job", "one", minute, NOW)
    documents.release("job", "two")
    assert not documents.acquire("job", "two", minute, NOW)
    documents.release("job", "one")
    assert documents.acquire("job", "two", minute, NOW)
    documents.release("job", "one")
    assert not documents.acquire("job", "one", minute, NOW)


def test_a_lease_needs_a_time_with_a_zone(documents: Documents) -> None:
    naive = NOW.replace(tzinfo=None)
    with pytest.raises(StoreError, match="time zone"):
        documents.acquire("job", "one", timedelta(minutes=1), naive)
    assert documents.acquire("job", "one", timedelta(minutes=1), NOW)
    with pytest.raises(StoreError, match="time zone"):
        documents.acquire("job", "two", timedelta(minutes=1), naive)
    with pytest.raises(StoreError, match="time zone"):
        documents.purge(naive)


def test_purge_removes_what_has_expired_and_nothing_else(documents: Documents) -> None:
    second = timedelta(seconds=1)
    documents.put(THINGS, {"_id": "old", "expires_at": NOW - second})
    documents.put(THINGS, {"_id": "young", "expires_at": NOW + second})
    documents.put(THINGS, {"_id": "eternal"})
    documents.put(NAMED, {"_id": "named", "name": "n", "expires_at": NOW - second})
    documents.increment("counter")
    documents.acquire("lapsed", "one", second, NOW - 2 * second)
    documents.acquire("held", "one", second * 5, NOW)
    assert documents.purge(NOW) == 2
    assert documents.purge(NOW) == 0
    assert ids(documents.find(THINGS)) == ["eternal", "young"]
    assert ids(documents.find(LEASES)) == ["held"]
    assert documents.increment("counter") == 2
    assert documents.get(NAMED, "named") is not None


# --- several at once, restarts, kills ------------------------------------------------------------


def test_a_restart_loses_nothing(address: str) -> None:
    with open_documents(address) as documents:
        documents.put(THINGS, {"_id": "a", "kind": "k", "at": NOW})
        documents.put(THINGS, {"_id": "a", "kind": "k", "at": NOW})
        documents.put(NAMED, {"_id": "a", "name": "only"})
        documents.increment("tokens", 41)
        documents.acquire("job", "one", timedelta(minutes=1), NOW)
    with open_documents(address) as documents:
        assert documents.find(THINGS, {"kind": "k"}, Span("at")) == [{"_id": "a", "kind": "k", "at": NOW, "rev": 2}]
        with pytest.raises(StoreError, match="unique"):
            documents.put(NAMED, {"_id": "b", "name": "only"})
        assert documents.increment("tokens") == 42
        assert not documents.acquire("job", "two", timedelta(minutes=1), NOW)


def test_a_collection_that_came_later_is_made(address: str) -> None:
    with open_documents(address, [THINGS]) as documents:
        documents.put(THINGS, {"_id": "a"})
    with open_documents(address, [THINGS, NAMED, Collection("bare")]) as documents:
        documents.put(NAMED, {"_id": "a", "name": "n"})
        documents.put(Collection("bare"), {"_id": "a"})
        assert [ids(documents.find(one)) for one in (THINGS, NAMED, Collection("bare"))] == [["a"]] * 3


def test_two_that_are_open_see_each_other(address: str) -> None:
    with open_documents(address) as one, open_documents(address) as two:
        one.put(THINGS, {"_id": "a", "kind": "k"})
        assert two.get(THINGS, "a") == {"_id": "a", "kind": "k", "rev": 1}
        assert two.compare_and_set(THINGS, {"_id": "a", "kind": "l"}, 1)
        assert not one.compare_and_set(THINGS, {"_id": "a", "kind": "m"}, 1)
        assert ids(one.find(THINGS, {"kind": "l"})) == ["a"]


def test_threads_share_one(documents: Documents) -> None:
    counted: list[int] = []

    def count() -> None:
        counted.extend([documents.increment("shared") for _ in range(25)])

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(counted) == list(range(1, 201))


@pytest.mark.integration
def test_threads_that_make_a_counter_together_count_each_once(documents: Documents) -> None:
    counted: list[list[int]] = [[] for _ in range(20)]
    start = threading.Barrier(8)

    def count() -> None:
        for number, values in enumerate(counted):
            start.wait(PATIENCE)
            values.append(documents.increment(f"new-{number}"))

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert [sorted(values) for values in counted] == [list(range(1, 9))] * 20


def test_threads_of_one_owner_all_get_its_lease(documents: Documents) -> None:
    got: list[bool] = []
    start = threading.Barrier(8)

    def acquire() -> None:
        for number in range(10):
            start.wait(PATIENCE)
            got.append(documents.acquire(f"job-{number}", "one", timedelta(minutes=1), NOW))

    threads = [threading.Thread(target=acquire) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert got == [True] * 80


@pytest.mark.integration
def test_eight_processes_race_for_a_database_that_none_has_opened_before(
    address: str, worker: Callable[..., Worker]
) -> None:
    rounds = 12
    results = [only for [only] in together([worker("race", address, me, rounds) for me in range(8)])]
    for prize in ("lease", "insert"):
        assert Counter(number for won in results for number in won[prize]) == dict.fromkeys(range(rounds), 1)
    assert sorted(value for won in results for value in won["counter"]) == list(range(1, 8 * rounds + 1))
    with closing(open_documents(address)) as documents:
        assert documents.increment("shared", 0) == 8 * rounds
        total = documents.get(THINGS, "sum") or {}
        assert (total["value"], total["rev"]) == (8 * rounds, 8 * rounds)


@pytest.mark.integration
def test_a_process_killed_while_it_writes_leaves_the_old_or_the_new(
    address: str, worker: Callable[..., Worker]
) -> None:
    rng = np.random.default_rng(11)
    acknowledged, stored = -1, 0
    for _ in range(8):
        writer = worker("versions", address, 40_000)
        writer.ready()
        writer.go()
        # a server may still have had the write under way when its writer died, and done it after we looked
        allowed = (stored + 1, acknowledged + 2)
        acknowledged = writer.next()
        assert acknowledged in allowed
        time.sleep(rng.uniform(0, 0.05))
        acknowledged = max([acknowledged, *writer.kill()])
        with closing(open_documents(address)) as documents:
            [held] = documents.find(THINGS, {"kind": "v"})
            stored = held["left"]
            assert stored in (acknowledged, acknowledged + 1)
            assert held["right"] == stored
            assert held["body"] == stored.to_bytes(8, "big") * 40_000
            assert held["rev"] == stored
            documents.put(NAMED, {"_id": "after", "name": "usable"})


# --- candles -------------------------------------------------------------------------------------


def window_of(first: int, last: int, symbol: str = SYMBOL) -> Window:
    """Bars ``first`` to ``last`` (without it) of 1m, counted from ``START``."""
    return Window(symbol, Timeframe.M1, START + timedelta(minutes=first), START + timedelta(minutes=last))


def revisions(store: Store) -> dict[str, int]:
    return {chunk["_id"]: chunk["rev"] for chunk in store.documents.find(CHUNKS)}


def test_equal_candles_written_again_touch_nothing(store: Store) -> None:
    candles = candles_at(minutes(0, 300), 100.0)
    first = write_candles(store, window_of(0, 300), candles, "live")
    before = store.documents.find(CHUNKS)
    again = write_candles(store, window_of(0, 300), candles, "live")
    part = write_candles(store, window_of(10, 20), candles.iloc[10:20], "live")
    assert (first.added, first.changed, first.unchanged) == (300, 0, 0)
    assert (again.added, again.changed, again.unchanged) == (0, 0, 300)
    assert (part.added, part.changed, part.unchanged) == (0, 0, 10)
    assert again.digest == first.digest != part.digest
    assert store.documents.find(CHUNKS) == before
    assert list(revisions(store).values()) == [1]


def test_overlapping_writes_become_one_series_and_the_last_value_stands(store: Store) -> None:
    write_candles(store, window_of(100, 200), candles_at(minutes(100, 200), 100.0), "live")
    write_candles(store, window_of(0, 50), candles_at(minutes(0, 50), 100.0), "live")
    report = write_candles(store, window_of(40, 120), candles_at(minutes(40, 120), 101.0), "live")
    assert (report.added, report.changed, report.unchanged) == (50, 30, 0)
    expected = pd.concat(
        [
            candles_at(minutes(0, 40), 100.0),
            candles_at(minutes(40, 120), 101.0),
            candles_at(minutes(120, 200), 100.0),
        ]
    )
    pd.testing.assert_frame_equal(read_candles(store, window_of(0, 200)), expected, check_exact=True)


def test_the_order_of_disjoint_writes_does_not_matter(store: Store) -> None:
    rng = np.random.default_rng(3)
    expected = candles_at(minutes(0, 240), 100.0)
    for part in rng.permutation(8):
        first = int(part) * 30
        write_candles(store, window_of(first, first + 30), candles_at(minutes(first, first + 30), 100.0), "live")
    pd.testing.assert_frame_equal(read_candles(store, window_of(0, 240)), expected, check_exact=True)


@pytest.mark.integration
def test_eight_processes_write_one_series_and_nothing_is_lost(
    address: str, store: Store, worker: Callable[..., Worker]
) -> None:
    batches = 5
    results = together([worker("slices", address, me, 8, batches) for me in range(8)])
    assert results == [[10] * batches] * 8
    candles = read_candles(store, window_of(0, 80 * batches))
    expected = pd.concat([candles_at(minutes(me, 80 * batches, 8), 100.0 + me) for me in range(8)]).sort_index()
    pd.testing.assert_frame_equal(candles, expected, check_exact=True)
    # one revision per batch that was written: none was written over
    assert list(revisions(store).values()) == [8 * batches]


def test_a_reader_sees_a_chunk_as_it_was_or_as_it_is(address: str, store: Store, worker: Callable[..., Worker]) -> None:
    border, half = 7 * 24 * 60, 1000
    writer = worker("rewrites", address, 2 * half)
    writer.ready()
    writer.go()
    writer.next()
    seen: list[list[float]] = []
    deadline = time.monotonic() + PATIENCE
    while len({tuple(closes) for closes in seen}) < 40:
        assert time.monotonic() < deadline, "the writer wrote nothing new"
        closes = read_candles(store, window_of(border - half, border + half))["close"].to_numpy()
        assert len(closes) == 2 * half
        chunks = (closes[:half], closes[half:])
        assert all((chunk == chunk[0]).all() for chunk in chunks), "half of one write and half of another"
        seen.append([float(chunk[0]) for chunk in chunks])
    writer.kill()
    # never an older state after a newer one
    for chunk in zip(*seen, strict=True):
        assert list(chunk) == sorted(chunk)


@pytest.mark.integration
def test_a_writer_of_candles_killed_at_any_moment_leaves_each_chunk_old_or_new(
    address: str, worker: Callable[..., Worker]
) -> None:
    border, half = 7 * 24 * 60, 3000
    rng = np.random.default_rng(12)
    writers = [worker("rewrites", address, 2 * half) for _ in range(4)]
    for writer in writers:
        writer.ready()
    for writer in writers:
        writer.go()
        acknowledged = writer.next()
        time.sleep(rng.uniform(0, 0.08))
        acknowledged = max([acknowledged, *writer.kill()])
        with closing(open_documents(address, COLLECTIONS)) as documents:
            store = Store(documents)
            window = window_of(border - half, border + half)
            closes = read_candles(store, window)["close"].to_numpy()
            assert len(closes) == 2 * half
            left, right = {float(value) for value in closes[:half]}, {float(value) for value in closes[half:]}
            assert left in ({acknowledged}, {acknowledged + 1})
            assert right in ({acknowledged}, {acknowledged + 1})
            # the work that was cut off is done again, and the store is as if nothing had happened
            again = write_candles(store, window, candles_at(minutes(border - half, border + half), 99.0), "sample")
            assert (again.added, again.changed) == (0, 2 * half)
            assert set(read_candles(store, window)["close"]) == {99.0}


def late(hour: int) -> Revision:
    return Revision(NOW + timedelta(hours=hour), "sandbox", f"run-{hour}")


def test_late_changes_are_on_record_and_can_be_undone(store: Store) -> None:
    border = 7 * 24 * 60
    window = window_of(border - 20, border + 20)
    write_candles(store, window, candles_at(minutes(border - 15, border + 20), 100.0), "live")
    snapshots = []
    for hour, first in enumerate((-20, -3, 1, -3)):
        snapshots.append(read_with_revisions(store, window))
        bars = minutes(border + first, border + first + 6)
        write_candles(store, window, candles_at(bars, 101.0 + hour), "live", late(hour))
    for candles, seen in reversed(snapshots):
        pd.testing.assert_frame_equal(read_candles_at(store, window, seen), candles, check_exact=True)
    made = corrections(store, SYMBOL, "1m")
    assert [one.revision for one in made] == [late(hour) for hour in range(4) for _ in range(6)]
    assert [one.old is None for one in made[:6]] == [True] * 5 + [False]
    assert made[-1].old == (103.0, 104.0, 102.5, 103.0, 103.0)
    assert made[-1].open_time.utcoffset() == timedelta(0)


def test_a_damaged_chunk_is_never_read_as_other_candles(store: Store) -> None:
    write_candles(store, window_of(0, 50), candles_at(minutes(0, 50), 100.0), "live")
    [chunk] = store.documents.find(CHUNKS)
    rng = np.random.default_rng(7)
    for place in rng.integers(len(chunk["candles"]), size=20):
        flipped = bytearray(chunk["candles"])
        flipped[place] ^= 1 << int(rng.integers(8))
        store.documents.put(CHUNKS, {**chunk, "candles": bytes(flipped)})
        with pytest.raises(StoreUnavailable, match=r"BTCUSDT\|1m\|2024-01-01 is damaged .*checksum"):
            read_candles(store, window_of(0, 50))
    store.documents.put(CHUNKS, chunk)
    assert len(read_candles(store, window_of(0, 50))) == 50


def open_configured(address: str) -> Store:
    """The store as its settings open it."""
    scheme, _, rest = address.partition(":")
    if scheme == "sqlite":
        return configured_store(Settings(home=Path(rest).parent))
    database, _, url = rest.partition("|")
    return configured_store(Settings(mongodb_url=SecretStr(urlsplit(url)._replace(path=f"/{database}").geturl())))


def test_a_store_is_marked_with_its_format_and_one_of_another_is_refused(address: str) -> None:
    with open_configured(address) as store:
        assert store.documents.find(SERIES) == [{"_id": "format", "version": FORMAT, "rev": 1}]
        write_candles(store, window_of(0, 5), candles_at(minutes(0, 5), 100.0), "live")
    with open_configured(address) as store:
        assert len(read_candles(store, window_of(0, 5))) == 5
        store.documents.delete(SERIES, "format")
    advice = rf"and this version reads format {FORMAT}; ingest again into another TRADEFLOWS_HOME \(or database\)"
    with pytest.raises(StoreError, match=f"the store is of format 1 {advice}"):
        open_configured(address)
    with Store(open_documents(address, COLLECTIONS)) as store:
        assert store.documents.get(SERIES, "format") is None
        store.documents.put(SERIES, {"_id": "format", "version": FORMAT + 1})
    with pytest.raises(StoreError, match=f"the store is of format {FORMAT + 1} {advice}"):
        open_configured(address)


def test_gaps_and_quarantine_are_found_by_their_times(store: Store) -> None:
    window = window_of(0, 60)
    missing = Gap(START + timedelta(minutes=10), START + timedelta(minutes=20), 10)
    gaps.record(store, window, [missing], source="sandbox", now=NOW, flow_run_id=None)
    part = window_of(15, 60)
    assert gaps.record(store, part, [], source="sandbox", now=NOW, flow_run_id=None) == 5
    [left] = gaps.find(store, SYMBOL, "1m")
    assert left.gap == Gap(missing.start, part.start, 5)
    rows = candles_at(minutes(0, 3), 100.0).reset_index(drop=True)
    rows.insert(0, "open_time", np.array(minutes(0, 3)))
    rows["reasons"] = [["null"]] * 3
    assert quarantine.put(store, window, rows, source="sandbox", now=NOW, data_mode="live") == 3
    assert quarantine.heal(store, window, candles_at(minutes(1, 2), 100.0)) == 1
    assert [row["status"] for row in quarantine.find(store, SYMBOL, "1m")] == ["held", "healed", "held"]
    assert len(quarantine.seen_between(store, NOW, NOW + timedelta(milliseconds=1))) == 3
    assert quarantine.seen_between(store, NOW - timedelta(hours=1), NOW) == []


def test_the_store_opens_the_default_body(tmp_path: Path) -> None:
    with open_store(tmp_path / "new" / "home") as store:
        write_candles(store, window_of(0, 5), candles_at(minutes(0, 5), 100.0), "live")
    with open_store(tmp_path / "new" / "home") as store:
        assert len(read_candles(store, window_of(0, 5))) == 5
