"""The candle contract, its digest and its resampling."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trading.candles import check, digest, empty, frame_of, open_times_ms, resample
from trading.errors import CandleContractError
from trading.window import Timeframe


def candles(count: int = 50, seed: int = 1, step: int = 3_600_000) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = 100 + rng.normal(0, 1, count).cumsum() * 0.1
    open_ = np.r_[100.0, close[:-1]]
    values = np.c_[
        open_, np.maximum(open_, close) + 0.1, np.minimum(open_, close) - 0.1, close, rng.uniform(1, 2, count)
    ]
    return frame_of(np.arange(count) * step + 1_704_067_200_000, values)


def test_the_contract_holds_for_ordinary_and_empty_frames() -> None:
    check(candles())
    check(empty())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda frame: frame.drop(columns="volume"), "lack the columns"),
        (lambda frame: frame.tz_localize(None), "must be datetime64"),
        (lambda frame: frame.astype({"open": "float32"}), "must be float64"),
        (lambda frame: frame.iloc[::-1], "unique and increasing"),
        (lambda frame: pd.concat([frame, frame.iloc[-1:]]), "unique and increasing"),
        (lambda frame: frame.assign(high=1.0), "is impossible"),
        (lambda frame: frame.assign(close=np.nan), "is impossible"),
        (lambda frame: frame.assign(volume=-1.0), "is impossible"),
    ],
)
def test_a_frame_that_breaks_the_contract_is_told_how(spoil: object, said: str) -> None:
    with pytest.raises(CandleContractError, match=said):
        check(spoil(candles()))  # type: ignore[operator]


def test_the_digest_sees_every_value_every_time_and_the_order() -> None:
    frame = candles()
    known = digest(frame)
    assert known == digest(frame.copy())
    for column in frame.columns:
        changed = frame.copy()
        changed.iloc[20, changed.columns.get_loc(column)] = np.nextafter(changed.iloc[20][column], np.inf)
        assert digest(changed) != known
    assert digest(frame_of(open_times_ms(frame) + 1, frame.to_numpy())) != known
    assert digest(frame.iloc[:-1]) != known
    assert digest(frame.iloc[::-1]) != known


def test_minus_zero_is_zero_and_the_unit_of_the_index_does_not_matter() -> None:
    frame = candles()
    zero, minus = frame.assign(volume=0.0), frame.assign(volume=-0.0)
    assert digest(zero) == digest(minus)
    assert digest(frame.set_axis(frame.index.as_unit("ns"))) == digest(frame)


def test_resampling_drops_the_unfinished_bar() -> None:
    coarse = resample(candles(50), Timeframe.H1, Timeframe.H4)
    assert len(coarse) == 12
    first = candles(50).iloc[:4]
    assert coarse.iloc[0].tolist() == pytest.approx(
        [first["open"].iloc[0], first["high"].max(), first["low"].min(), first["close"].iloc[-1], first["volume"].sum()]
    )


def hours(bars: set[int]) -> pd.DataFrame:
    """Those of 12 hourly candles from midnight."""
    return candles(12).iloc[sorted(bars)]


def opened(coarse: pd.DataFrame) -> list[int]:
    return [at.hour for at in coarse.index]


MIDNIGHT = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("bars", "until", "kept"),
    [
        (set(range(8)), None, [0, 4]),
        (set(range(7)), None, [0]),
        (set(range(7)), 7, [0]),
        (set(range(7)), 8, [0, 4]),  # the source has no bar 7, and is past it
        (set(range(5)), 8, [0, 4]),
        (set(range(4)), 8, [0]),  # nothing is made of nothing
        (set(range(8)), 3, [0, 4]),  # its own candles reach further
        ({0, 5}, 12, [0, 4]),
        ({0, 5}, None, [0]),
    ],
)
def test_the_last_coarse_bar_is_kept_where_the_source_is_known_to_reach_its_end(
    bars: set[int], until: int | None, kept: list[int]
) -> None:
    reached = None if until is None else MIDNIGHT + timedelta(hours=until)
    coarse = resample(hours(bars), Timeframe.H1, Timeframe.H4, reached)
    assert opened(coarse) == kept
    if 4 in kept:
        part = hours({bar for bar in bars if 4 <= bar < 8})
        assert coarse.loc[MIDNIGHT + timedelta(hours=4)].tolist() == pytest.approx(
            [part["open"].iloc[0], part["high"].max(), part["low"].min(), part["close"].iloc[-1], part["volume"].sum()]
        )


@given(bars=st.sets(st.integers(0, 11)), until=st.none() | st.integers(0, 14))
def test_until_says_no_more_than_where_the_source_ends(bars: set[int], until: int | None) -> None:
    reached = None if until is None else MIDNIGHT + timedelta(hours=until)
    coarse = resample(hours(bars), Timeframe.H1, Timeframe.H4, reached)
    end = max([*(bar + 1 for bar in bars), until or 0])
    assert opened(coarse) == sorted({bar // 4 * 4 for bar in bars if bar // 4 * 4 + 4 <= end})
    everything = resample(hours(bars), Timeframe.H1, Timeframe.H4, MIDNIGHT + timedelta(hours=12))
    pd.testing.assert_frame_equal(coarse, everything.loc[coarse.index])


def test_of_no_candles_none_are_made_however_far_the_source_reaches() -> None:
    assert resample(empty(), Timeframe.H1, Timeframe.H4, MIDNIGHT).empty


def test_resampling_to_no_multiple_is_refused() -> None:
    with pytest.raises(CandleContractError, match="not a coarser multiple"):
        resample(candles(), Timeframe.H2, Timeframe.H1)


@pytest.mark.parametrize(
    ("symbol", "timeframe", "least"),
    [("BTCUSDT", Timeframe.H1, 5_979), ("ETHUSDT", Timeframe.H1, 5_979), ("BTCUSDT", Timeframe.D1, 248)],
)
def test_resampled_five_minutes_equal_the_exchange_s_own_bars(
    shared: Path, symbol: str, timeframe: Timeframe, least: int
) -> None:
    fine, own = (
        pd.read_parquet(shared / "data" / f"binance_{symbol}_{name}.parquet") for name in ("5m", timeframe.value)
    )
    columns = ["open", "high", "low", "close", "volume"]
    coarse = resample(frame_of(fine["timestamp"], fine[columns]), Timeframe.M5, timeframe)
    exchange = frame_of(own["timestamp"], own[columns])
    exchange = exchange[exchange["volume"] > 0]
    common = coarse.index.intersection(exchange.index)
    assert least <= len(common)
    # every bar that both can have, and none that only one has
    span = slice(max(coarse.index[0], exchange.index[0]), min(coarse.index[-1], exchange.index[-1]))
    assert len(coarse.loc[span]) == len(exchange.loc[span]) == len(common)
    np.testing.assert_array_equal(coarse.loc[common].to_numpy()[:, :4], exchange.loc[common].to_numpy()[:, :4])
    np.testing.assert_allclose(coarse.loc[common]["volume"], exchange.loc[common]["volume"], rtol=1e-9)
