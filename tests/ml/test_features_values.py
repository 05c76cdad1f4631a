"""What the features are: held to ``ta`` where it has them, to their definitions and to resampled candles elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import talib
from ta import momentum, trend, volatility, volume

from ml.features import FeatureSet, declared, features
from trading.candles import frame_of, open_times_ms, resample
from trading.window import Timeframe

SET = FeatureSet()
HOUR_MS = 3_600_000
Bars = pd.DataFrame


def hlc(bars: Bars) -> tuple[pd.Series, pd.Series, pd.Series]:
    return bars["high"], bars["low"], bars["close"]


def slow_ema(bars: Bars) -> pd.Series:
    return trend.EMAIndicator(bars["close"], 26).ema_indicator()


def directions(bars: Bars) -> pd.Series:
    both = trend.ADXIndicator(*hlc(bars), 14)
    plus, minus = both.adx_pos(), both.adx_neg()
    return (plus - minus) / (plus + minus)


def true_range(bars: Bars) -> pd.Series:
    before = bars["close"].shift(1)
    sides = [bars["high"] - bars["low"], (bars["high"] - before).abs(), (bars["low"] - before).abs()]
    return pd.concat(sides, axis=1).max(axis=1)


def price_trend(bars: Bars) -> pd.Series:
    total = volume.VolumePriceTrendIndicator(bars["close"], bars["volume"]).volume_price_trend()
    return total.diff(20) / bars["volume"].rolling(20).sum()


def returns(bars: Bars, span: int = 1) -> pd.Series:
    return np.log(bars["close"] / bars["close"].shift(span))


def donchian(bars: Bars) -> volatility.DonchianChannel:
    return volatility.DonchianChannel(*hlc(bars), 20)


# the libraries start recursive averages otherwise, which is forgotten after the look-back
ORACLES: dict[str, Callable[[Bars], pd.Series]] = {
    "return_5": lambda b: returns(b, 5),
    "lagged_return_3": lambda b: returns(b).shift(3),
    "rsi": lambda b: momentum.RSIIndicator(b["close"], 14).rsi() / 100,
    "stochastic_k": lambda b: momentum.StochasticOscillator(*hlc(b), 14, 3).stoch() / 100,
    "stochastic_d": lambda b: momentum.StochasticOscillator(*hlc(b), 14, 3).stoch_signal() / 100,
    "williams_r": lambda b: momentum.WilliamsRIndicator(*hlc(b), 28).williams_r() / 100,
    "roc": lambda b: momentum.ROCIndicator(b["close"], 12).roc() / 100,
    "cci": lambda b: trend.CCIIndicator(*hlc(b), 20).cci() / 100,
    "macd": lambda b: trend.MACD(b["close"]).macd() / slow_ema(b) * 100,
    "macd_signal": lambda b: trend.MACD(b["close"]).macd_signal() / slow_ema(b) * 100,
    "macd_histogram": lambda b: trend.MACD(b["close"]).macd_diff() / slow_ema(b) * 100,
    "ema_21": lambda b: b["close"] / trend.EMAIndicator(b["close"], 21).ema_indicator() - 1,
    "sma_50": lambda b: b["close"] / trend.SMAIndicator(b["close"], 50).sma_indicator() - 1,
    "adx": lambda b: trend.ADXIndicator(*hlc(b), 14).adx() / 100,
    "direction": directions,
    "bollinger_position": lambda b: 2 * volatility.BollingerBands(b["close"]).bollinger_pband() - 1,
    "bollinger_width": lambda b: volatility.BollingerBands(b["close"]).bollinger_wband() / 100,
    "atr": lambda b: volatility.AverageTrueRange(*hlc(b), 14).average_true_range() / b["close"],
    "range_to_atr": lambda b: true_range(b) / volatility.AverageTrueRange(*hlc(b), 14).average_true_range(),
    "volatility": lambda b: returns(b).rolling(20).std(ddof=0),
    "volatility_ratio": lambda b: returns(b).rolling(5).std(ddof=0) / returns(b).rolling(50).std(ddof=0),
    "range_ratio": lambda b: true_range(b).rolling(5).mean() / true_range(b).rolling(50).mean(),
    "vwap": lambda b: b["close"] / volume.VolumeWeightedAveragePrice(*hlc(b), b["volume"], 20).vwap - 1,
    "volume_ratio": lambda b: np.log1p(b["volume"] / trend.SMAIndicator(b["volume"], 20).sma_indicator()),
    "volume_price_trend": price_trend,
    "support": lambda b: b["close"] / donchian(b).donchian_channel_lband().shift(1) - 1,
    "resistance": lambda b: b["close"] / donchian(b).donchian_channel_hband().shift(1) - 1,
}


@pytest.fixture(scope="module", params=["sp500", "hours"])
def market(request: pytest.FixtureRequest) -> Bars:
    if request.param == "sp500":
        sessions: Bars = request.getfixturevalue("sp500")
        return sessions.iloc[:2500]
    table = pd.read_parquet(request.getfixturevalue("shared") / "data" / "binance_BTCUSDT_1h.parquet").iloc[:2500]
    return frame_of(table["timestamp"], table[["open", "high", "low", "close", "volume"]].to_numpy())


@pytest.fixture(scope="module")
def table(market: Bars) -> pd.DataFrame:
    return features(market, SET)


@pytest.mark.parametrize("name", ORACLES)
def test_values_agree_with_the_ta_package(name: str, market: Bars, table: pd.DataFrame) -> None:
    theirs = ORACLES[name](market).iloc[SET.rows_needed :]
    assert np.isfinite(theirs).all()
    np.testing.assert_allclose(table[name].iloc[SET.rows_needed :], theirs, rtol=1e-9, atol=1e-9)


def test_volume_of_both_signs_and_its_change(market: Bars, table: pd.DataFrame) -> None:
    close, traded = (market[name].to_numpy() for name in ("close", "volume"))
    total = talib.OBV(close, traded)
    expected = (total[20:] - total[:-20]) / pd.Series(traded).rolling(20).sum().to_numpy()[20:]
    np.testing.assert_allclose(table["obv"].iloc[20:], expected, rtol=0, atol=1e-9)
    rate = talib.ROC(traded, 10)[10:] / 100
    np.testing.assert_allclose(table["volume_roc"].iloc[10:], rate / (rate + 2), rtol=0, atol=1e-9)


def test_a_breakout_is_a_close_beyond_the_bars_before(market: Bars, table: pd.DataFrame) -> None:
    for at in range(20, len(market), 7):
        before, close = market.iloc[at - 20 : at], market["close"].iloc[at]
        expected = int(close > before["high"].max()) - int(close < before["low"].min())
        assert table["breakout"].iloc[at] == expected
    assert set(table["breakout"].dropna()) == {-1, 0, 1}


# --- single bars ----------------------------------------------------------------------------------

ONE_BAR = FeatureSet(doji=0.1, hammer=2.0)


@pytest.mark.parametrize(
    ("bar", "doji", "hammer"),
    [
        ((100.0, 110.0, 90.0, 101.0), 1, 0),  # a twentieth of the range, shadows on both sides
        ((100.0, 110.0, 90.0, 104.0), 0, 0),
        ((100.0, 102.5, 90.0, 102.0), 0, 1),  # long shadow below, hardly one above, whatever the colour
        ((102.0, 102.5, 90.0, 100.0), 0, 1),
        ((100.0, 110.0, 97.5, 98.0), 0, -1),
        ((100.0, 104.5, 90.0, 104.0), 0, 1),
        ((100.0, 106.0, 90.0, 105.5), 0, 0),  # the shadow is less than two bodies
        ((100.0, 104.0, 90.0, 102.0), 0, 0),  # too much above
        ((100.0, 100.0, 90.0, 100.0), 1, 1),  # a dragonfly is both
        ((100.0, 100.0, 100.0, 100.0), 1, 0),  # no range at all
    ],
)
def test_doji_and_hammer_by_their_definitions(bar: tuple[float, ...], doji: int, hammer: int) -> None:
    row = features(frame_of([0], [[*bar, 1.0]]), ONE_BAR).iloc[0]
    assert (row["doji"], row["hammer"]) == (doji, hammer)


def test_our_dojis_are_mostly_those_of_talib(market: Bars, table: pd.DataFrame) -> None:
    # TA-Lib measures the body against the ranges of ten bars before, we against its own bar
    opens, *rest = (market[name].to_numpy() for name in ("open", "high", "low", "close"))
    theirs = talib.CDLDOJI(opens, *rest)[10:] != 0
    ours = table["doji"].to_numpy()[10:] == 1
    assert (ours == theirs).mean() > 0.9
    assert 0.02 < ours.mean() < 0.3


# --- markets that stand still ---------------------------------------------------------------------


def test_a_market_that_stands_still_is_neither_strong_nor_weak(random_candles: Callable[..., Bars]) -> None:
    candles = random_candles(800, 3)
    still = candles.assign(open=0.1 + 0.2, high=0.1 + 0.2, low=0.1 + 0.2, close=0.1 + 0.2, volume=0.0)
    last = features(still, SET).iloc[-1]
    neutral = {"rsi": 0.5, "stochastic_k": 0.5, "stochastic_d": 0.5, "williams_r": -0.5, "volatility_ratio": 1}
    neutral |= {"range_ratio": 1, "doji": 1, "x4_position_20": 0.5, "volume_ratio": np.log(2)}
    clock = {name for name in SET.names if name.startswith(("hour", "weekday", "month"))}
    for name in set(SET.names) - clock:
        assert last[name] == pytest.approx(neutral.get(name, 0), abs=1e-12), name


def test_what_was_before_a_long_standstill_is_forgotten(random_candles: Callable[..., Bars]) -> None:
    """TA-Lib's ADX stops where nothing moves, and would go on from what was before, however long ago."""
    parts = []
    for seed in (1, 2):
        candles = random_candles(1400, seed).to_numpy().copy()
        # both stand still for 700 bars and then move alike
        candles[300:1000] = [*[candles[299, 3]] * 4, 0.0]
        candles[1000:] = random_candles(1400, 7).to_numpy()[1000:]
        candles[:1000] *= 100 / candles[999, 3]
        parts.append(features(frame_of(HOUR_MS * np.arange(1400), candles), SET).to_numpy()[1000:])
    np.testing.assert_allclose(parts[0], parts[1], rtol=0, atol=1e-9)
    assert SET.rows_needed < 700


def test_large_volume_of_long_ago_leaves_nothing_behind(random_candles: Callable[..., Bars]) -> None:
    candles = random_candles(800, 4)
    huge = candles.copy()
    huge.iloc[50, 4] = 1e18
    same = [feature.name for feature in declared(SET) if feature.look_back < 100]
    pd.testing.assert_frame_equal(
        features(candles, SET)[same].iloc[200:], features(huge, SET)[same].iloc[200:], check_exact=True
    )


# --- calendar -------------------------------------------------------------------------------------


def test_hour_and_weekday_go_round(random_candles: Callable[..., Bars]) -> None:
    table = features(random_candles(24 * 15, 4), SET)[["hour_sin", "hour_cos", "weekday_sin", "weekday_cos"]].to_numpy()
    np.testing.assert_allclose(table[: -24 * 7], table[24 * 7 :], atol=1e-9)
    assert len(np.unique(table[: 24 * 7].round(9), axis=0)) == 24 * 7
    sunday = features(random_candles(24 * 7, 4), SET).loc["2020-01-05 00:00:00+00:00"]
    assert sunday["weekday_sin"] == pytest.approx(0)
    assert sunday["weekday_cos"] == pytest.approx(1)


def test_hour_and_month_are_those_of_the_calendar(market: Bars, table: pd.DataFrame) -> None:
    times = pd.DatetimeIndex(market.index)
    for name, angle in (("hour", (times.hour + times.minute / 60) / 24), ("month", (times.month - 1) / 12)):
        np.testing.assert_allclose(table[f"{name}_sin"], np.sin(2 * np.pi * angle), atol=1e-9)
        np.testing.assert_allclose(table[f"{name}_cos"], np.cos(2 * np.pi * angle), atol=1e-9)


def test_times_before_1970_have_their_place_too() -> None:
    stamps = int(pd.Timestamp("1969-11-30T23:00Z").timestamp() * 1000) + HOUR_MS * np.arange(2)
    rows = features(frame_of(stamps, [[1.0, 1, 1, 1, 1]] * 2), SET)
    angle = np.arctan2(rows["month_sin"], rows["month_cos"]) / (2 * np.pi) * 12 % 12
    np.testing.assert_allclose(angle, [10, 11])


# --- coarser bars ---------------------------------------------------------------------------------


def with_holes(candles: Bars, seed: int) -> Bars:
    """Some bars missing, and some without trades, as exchanges emit them."""
    rng = np.random.default_rng(seed)
    kept = candles[rng.random(len(candles)) > 0.1].copy()
    flat = np.flatnonzero(rng.random(len(kept)) < 0.15)[1:]
    values = kept.to_numpy().copy()
    values[flat] = np.column_stack([*[values[flat - 1, 3]] * 4, np.zeros(len(flat))])
    return frame_of(open_times_ms(kept), values)


@pytest.mark.parametrize("holes", [False, True])
def test_coarser_bars_are_those_of_resampling_that_were_over(random_candles: Callable[..., Bars], holes: bool) -> None:
    base = random_candles(500, 8)
    if holes:
        base = with_holes(base, 8)
    traded = base["volume"] > 0
    # what resampling leaves out entirely has a flat bar here, and is looked at in a test of its own
    slots = open_times_ms(base) // (4 * HOUR_MS)
    base = base[traded.groupby(slots).transform("any").to_numpy()]
    found = features(base, SET, HOUR_MS)
    for at in range(120, len(base), 7):
        closes_at = base.index[at] + timedelta(hours=1)
        bigger = resample(base.iloc[: at + 1], Timeframe.H1, Timeframe.H4, until=closes_at.to_pydatetime())
        close, part = bigger["close"].to_numpy(), bigger.iloc[-20:]
        low, high = part["low"].min(), part["high"].max()
        assert found["x4_return_1"].iloc[at] == pytest.approx(np.log(close[-1] / close[-2]), abs=1e-12)
        assert found["x4_return_5"].iloc[at] == pytest.approx(np.log(close[-1] / close[-6]), abs=1e-12)
        assert found["x4_sma_20"].iloc[at] == pytest.approx(close[-1] / part["close"].mean() - 1, abs=1e-12)
        assert found["x4_position_20"].iloc[at] == pytest.approx((close[-1] - low) / (high - low), abs=1e-12)


def test_a_coarser_bar_counts_from_the_close_of_its_last_base_bar() -> None:
    closes = np.r_[np.full(96, 100.0), 100, 100, 100, 110, 120, 130, 140, 150]
    base = frame_of(HOUR_MS * np.arange(len(closes)), np.column_stack([*[closes] * 4, np.ones(len(closes))]))
    found = features(base, FeatureSet(coarse=(4,), coarse_returns=(1,), coarse_period=4))["x4_return_1"].to_numpy()
    np.testing.assert_allclose(found[96:], np.log([1, 1, 1, 1.1, 1.1, 1.1, 1.1, 150 / 110]), atol=1e-12)


def test_a_coarser_bar_without_trades_is_flat(random_candles: Callable[..., Bars]) -> None:
    values = random_candles(400, 9).to_numpy().copy()
    values[200:216] = [*[values[199, 3]] * 4, 0.0]
    found = features(frame_of(HOUR_MS * np.arange(400), values), SET)["x4_return_1"].to_numpy()
    assert (found[203:215] == 0).all()
    assert found[219] != 0


def test_the_length_of_a_bar_is_the_smallest_distance_unless_it_is_given(random_candles: Callable[..., Bars]) -> None:
    base = random_candles(400, 10)
    pd.testing.assert_frame_equal(features(base, SET), features(base, SET, HOUR_MS))
    # every second bar is missing: without being told, nobody can know that the bars are hours
    sparse = base.iloc[::2]
    told, untold = (features(sparse, SET, step)["x4_return_1"].dropna() for step in (HOUR_MS, None))
    assert len(told) == len(untold)
    assert not np.allclose(told, untold)


def test_real_candles_of_a_coarser_timeframe(shared: Path) -> None:
    """The exchange's own hours, seen from its five-minute candles."""
    frames = []
    for bar in ("5m", "1h"):
        table = pd.read_parquet(shared / "data" / f"binance_BTCUSDT_{bar}.parquet")
        frames.append(frame_of(table["timestamp"], table[["open", "high", "low", "close", "volume"]].to_numpy()))
    fine, hours = frames[0].iloc[:6000], frames[1]
    found = features(fine, FeatureSet(coarse=(12,)))
    last = found[found.index.minute == 55].dropna()
    theirs = hours["close"].reindex(last.index.floor("h"))
    expected = np.log(theirs / hours["close"].shift(5).reindex(theirs.index))
    np.testing.assert_allclose(last["x12_return_5"], expected, rtol=0, atol=1e-12)
    assert len(last) > 400
