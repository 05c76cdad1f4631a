"""Chunks: merging, what their checksums see, and that every late change can be undone exactly."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import chunks
from tasks.chunks import Revision, before, chunk_id, corrections, document, frames, merge
from tasks.chunks import frame as read
from tasks.documents import Document
from tests.tasks.store_worker import START
from trading.candles import COLUMNS, INDEX_DTYPE, digest, empty, frame_of, open_times_ms
from trading.errors import DatasetLost, StoreUnavailable
from trading.window import Timeframe, Window, period_end, period_start

NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)
WINDOW = Window("BTCUSDT", Timeframe.M1, START, START + timedelta(minutes=30))
ORIGIN = int(START.timestamp() * 1000)

Rows = dict[int, tuple[float, ...]]
prices = st.sampled_from([1.0, 1.5, 2.0]) | st.floats(1e-9, 1e9)
rows = st.dictionaries(st.integers(0, 25), st.tuples(*[prices] * 5), max_size=20)


def frame(content: Rows) -> pd.DataFrame:
    times = sorted(content)
    return frame_of([ORIGIN + bar * 60_000 for bar in times], [content[bar] for bar in times])


def content(candles: pd.DataFrame) -> Rows:
    bars = (open_times_ms(candles) - ORIGIN) // 60_000
    return dict(zip(bars.tolist(), map(tuple, candles[list(COLUMNS)].to_numpy().tolist()), strict=True))


def level(*bars: int, at: float) -> Rows:
    return dict.fromkeys(bars, (at,) * 5)


# --- merge ---------------------------------------------------------------------------------------


@given(rows, rows)
def test_merge_is_a_dict_update_in_order_of_time(stored: Rows, new: Rows) -> None:
    was, given_new = frame(stored), frame(new)
    merged = merge(was, given_new)
    expected = {**stored, **new}
    assert content(merged.candles) == expected
    assert open_times_ms(merged.candles).tolist() == [ORIGIN + bar * 60_000 for bar in sorted(expected)]
    assert (str(merged.candles.index.dtype), list(merged.candles.columns)) == (INDEX_DTYPE, list(COLUMNS))
    assert (merged.candles.dtypes == np.float64).all()
    assert (content(was), content(given_new)) == (stored, new)


@given(rows, rows)
def test_merge_says_what_is_new_and_what_was_there_before(stored: Rows, new: Rows) -> None:
    merged = merge(frame(stored), frame(new))
    every = sorted({**stored, **new})
    assert [every[at] for at in merged.added] == sorted(new.keys() - stored.keys())
    changed = [bar for bar in sorted(stored.keys() & new.keys()) if stored[bar] != new[bar]]
    assert [every[at] for at in merged.changed] == changed
    assert [tuple(old) for old in merged.old.tolist()] == [stored[bar] for bar in changed]
    assert merged.touched == ({**stored, **new} != stored)


@given(rows, rows)
def test_merge_twice_is_merge_once(stored: Rows, new: Rows) -> None:
    once = merge(frame(stored), frame(new)).candles
    twice = merge(once, frame(new))
    assert content(twice.candles) == content(once)
    assert not twice.touched


@given(rows, rows, rows)
def test_merge_may_be_grouped_either_way(one: Rows, two: Rows, three: Rows) -> None:
    left = merge(merge(frame(one), frame(two)).candles, frame(three)).candles
    right = merge(frame(one), merge(frame(two), frame(three)).candles).candles
    assert digest(left) == digest(right)


# --- a history of one chunk ----------------------------------------------------------------------


@dataclass
class History:
    """A chunk as it is written again and again, with what it held at each revision."""

    chunk: Document | None = None

    def write(self, new: Rows, revision: Revision | None = None) -> Document | None:
        merged = merge(read(self.chunk), frame(new))
        if merged.touched:
            made = document("BTCUSDT|1m", WINDOW, merged, self.chunk, "live", revision)
            # as the document port counts
            self.chunk = {**made, "rev": (self.chunk["rev"] if self.chunk else 0) + 1}
        return self.chunk

    @property
    def held(self) -> Document:
        assert self.chunk is not None
        return self.chunk


def late(hour: int, source: str = "sandbox") -> Revision:
    return Revision(NOW + timedelta(hours=hour), source, f"run-{hour}")


# with many equal values, so that some writes change nothing
few = st.dictionaries(st.integers(0, 12), st.sampled_from([(1.0,) * 5, (2.0,) * 5, (1.0, 2.0, 1.0, 2.0, 0.0)]))


@settings(max_examples=30)
@given(first=few.filter(bool), writes=st.lists(few, max_size=8), order=st.randoms(use_true_random=False))
def test_every_revision_is_read_back_in_any_order(first: Rows, writes: list[Rows], order: Any) -> None:
    history = History()
    history.write(first)
    snapshots = [(history.held["rev"], read(history.chunk))]
    for number, new in enumerate(writes):
        history.write(new, late(number))
        snapshots.append((history.held["rev"], read(history.chunk)))
    order.shuffle(snapshots)
    for rev, then in snapshots:
        pd.testing.assert_frame_equal(before(history.held, rev), then, check_exact=True)
    # before the first write, nothing of what came late was there
    assert content(before(history.held, 0)) == first


@settings(max_examples=30)
@given(first=few.filter(bool), writes=st.lists(few, max_size=8))
def test_corrections_are_the_changes_in_order(first: Rows, writes: list[Rows]) -> None:
    history, model = History(), dict(first)
    history.write(first)
    expected = []
    for number, new in enumerate(writes):
        history.write(new, late(number))
        for bar in sorted(new):
            if model.get(bar) != new[bar]:
                expected.append((START + timedelta(minutes=bar), model.get(bar), new[bar], late(number)))
        model |= new
    made = [(one.open_time, one.old, one.new, one.revision) for one in corrections(history.held)]
    assert made == expected


@settings(max_examples=25)
@given(data=st.data())
def test_more_changes_than_are_kept_lose_the_oldest_and_no_others(data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "UNDO_ENTRIES", kept)
        history = History()
        history.write(level(0, 1, 2, at=1.0))
        snapshots = [read(history.chunk)]
        for number in range(data.draw(st.integers(0, 8))):
            bars = data.draw(st.lists(st.integers(0, 6), min_size=1))
            history.write(level(*bars, at=2.0 + number), late(number))
            snapshots.append(read(history.chunk))
        for back, then in enumerate(reversed(snapshots)):
            rev = len(snapshots) - back
            if back <= kept:
                pd.testing.assert_frame_equal(before(history.held, rev), then, check_exact=True)
            else:
                with pytest.raises(DatasetLost, match=rf"BTCUSDT\|1m\|2024-01-01 .* revision {rev}.* new dataset"):
                    before(history.held, rev)
        assert len(history.held["undo"]) == min(kept, len(snapshots) - 1)


def test_what_is_kept_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    history = History()
    history.write(level(*range(20), at=1.0))
    history.write(level(3, at=2.0), late(0))
    monkeypatch.setattr(chunks, "UNDO_BYTES", 2 * len(history.held["undo"][0]["rows"]) + 50)
    history.write(level(3, at=3.0), late(1))
    assert len(history.held["undo"]) == 2
    history.write(level(3, at=4.0), late(2))
    assert len(history.held["undo"]) == 2
    assert [content(before(history.held, rev))[3][0] for rev in (4, 3, 2)] == [4.0, 3.0, 2.0]
    with pytest.raises(DatasetLost):
        before(history.held, 1)


def test_a_write_without_a_revision_keeps_what_late_changes_kept() -> None:
    history = History()
    history.write(level(0, 1, at=1.0))
    history.write(level(1, at=2.0), late(0))
    kept = history.held["undo"]
    history.write(level(20, 21, at=7.0))
    assert history.held["undo"] == kept
    history.write(level(20, at=8.0), late(1))
    # bars of a window that was first written in between are not undone, and the reader cuts them off
    assert content(before(history.held, 1)) == level(0, 1, at=1.0) | level(20, 21, at=7.0)
    assert [(one.old, one.new) for one in corrections(history.held)] == [
        ((1.0,) * 5, (2.0,) * 5),
        ((7.0,) * 5, (8.0,) * 5),
    ]


# --- what is stored ------------------------------------------------------------------------------


def test_a_chunk_says_in_the_clear_what_it_holds() -> None:
    history = History()
    held = history.write(level(3, 5, at=1.0))
    assert held is not None
    assert {name: held[name] for name in held if name not in ("candles", "checksum")} == {
        "_id": chunk_id("BTCUSDT|1m", WINDOW),
        "series": "BTCUSDT|1m",
        "start": period_start(Timeframe.M1, START),
        "end": period_end(Timeframe.M1, START),
        "first": START + timedelta(minutes=3),
        "last": START + timedelta(minutes=5),
        "rows": 2,
        "digest": digest(frame(level(3, 5, at=1.0))),
        "data_mode": "live",
        "undo": [],
        "forgotten": 0,
        "rev": 1,
    }
    assert len(held["checksum"]) == 32


def test_no_chunk_is_an_empty_candle_frame() -> None:
    pd.testing.assert_frame_equal(read(None), empty())
    pd.testing.assert_frame_equal(frames([]), empty())


@pytest.fixture(scope="module")
def stored() -> Document:
    history = History()
    rng = np.random.default_rng(2)
    history.write({bar: tuple(rng.uniform(1, 2, 5)) for bar in range(30)})
    history.write(level(4, 5, 40, at=3.0), late(0))
    return history.held


def test_any_flipped_bit_of_the_candles_is_seen(stored: Document) -> None:
    rng = np.random.default_rng(5)
    body = stored["candles"]
    for place in rng.permutation(len(body)):
        flipped = bytearray(body)
        flipped[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(StoreUnavailable, match=r"BTCUSDT\|1m\|2024-01-01 is damaged .*checksum") as caught:
            read({**stored, "candles": bytes(flipped)})
        assert not caught.value.transient


@pytest.mark.parametrize("body", [b"", b"junk", None, 5, "text"])
def test_another_body_is_seen(stored: Document, body: object) -> None:
    with pytest.raises(StoreUnavailable, match=r"chunk BTCUSDT\|1m\|2024-01-01 is damaged"):
        read({**stored, "candles": body})


def test_a_body_cut_short_or_with_something_behind_it_is_seen(stored: Document) -> None:
    for body in (stored["candles"][:-1], stored["candles"] + b"\0", stored["candles"] * 2):
        with pytest.raises(StoreUnavailable, match="checksum"):
            read({**stored, "candles": body})


@pytest.mark.parametrize("checksum", ["", "0" * 32, None, 7])
def test_a_wrong_checksum_is_damage(stored: Document, checksum: object) -> None:
    with pytest.raises(StoreUnavailable, match=r"BTCUSDT\|1m\|2024-01-01 is damaged .*restore the store from a backup"):
        read({**stored, "checksum": checksum})


@pytest.mark.parametrize("field", ["candles", "checksum"])
def test_a_missing_field_is_damage(stored: Document, field: str) -> None:
    lacking = {name: value for name, value in stored.items() if name != field}
    with pytest.raises(StoreUnavailable, match=rf"BTCUSDT\|1m\|2024-01-01 is damaged \('{field}'\)"):
        read(lacking)


def test_a_body_that_is_no_candles_is_damage_even_with_its_checksum(stored: Document) -> None:
    import pyarrow as pa
    import xxhash

    def with_body(body: bytes) -> Document:
        return {**stored, "candles": body, "checksum": xxhash.xxh3_128_hexdigest(body)}

    table = pa.table({"open_time": [1, 2], "open": [1.0, 2.0]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for body in (b"junk", sink.getvalue().to_pybytes()):
        with pytest.raises(StoreUnavailable, match=r"BTCUSDT\|1m\|2024-01-01 is damaged"):
            read(with_body(body))


def test_the_damaged_chunk_among_several_is_named(stored: Document) -> None:
    other = {**stored, "_id": "BTCUSDT|1m|2024-01-08", "checksum": "0" * 32}
    with pytest.raises(StoreUnavailable, match=r"BTCUSDT\|1m\|2024-01-08 is damaged"):
        frames([stored, other])


def test_damage_of_what_was_replaced_is_seen_too(stored: Document) -> None:
    [entry] = stored["undo"]
    rng = np.random.default_rng(6)
    for place in rng.permutation(len(entry["rows"]))[:200]:
        flipped = bytearray(entry["rows"])
        flipped[place] ^= 1 << int(rng.integers(8))
        damaged = {**stored, "undo": [{**entry, "rows": bytes(flipped)}]}
        with pytest.raises(StoreUnavailable, match=r"BTCUSDT\|1m\|2024-01-01 is damaged"):
            before(damaged, 1)
        with pytest.raises(StoreUnavailable, match=r"BTCUSDT\|1m\|2024-01-01 is damaged"):
            corrections(damaged)
        # the candles of now are as they were written
        pd.testing.assert_frame_equal(read(damaged), read(stored))
