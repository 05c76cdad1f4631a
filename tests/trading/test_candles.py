"""The candle contract, its digest and its resampling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

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


def test_resampling_to_no_multiple_is_refused() -> None:
    with pytest.raises(CandleContractError, match="not a coarser multiple"):
        resample(candles(), Timeframe.H2, Timeframe.H1)


@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT"])
def test_resampled_five_minutes_equal_the_exchange_s_own_hours(shared: Path, symbol: str) -> None:
    fine, own = (
        pd.read_parquet(shared / "data" / f"binance_{symbol}_{timeframe}.parquet") for timeframe in ("5m", "1h")
    )
    columns = ["open", "high", "low", "close", "volume"]
    coarse = resample(frame_of(fine["timestamp"], fine[columns]), Timeframe.M5, Timeframe.H1)
    exchange = frame_of(own["timestamp"], own[columns])
    exchange = exchange[exchange["volume"] > 0]
    common = coarse.index.intersection(exchange.index)
    assert len(common) >= len(exchange) - 1 > 5_000
    np.testing.assert_allclose(coarse.loc[common].to_numpy(), exchange.loc[common].to_numpy(), rtol=1e-9)
