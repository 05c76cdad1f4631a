"""TA-Lib (ours) and ``ta`` hold each other: every indicator that both have, on real candles, to 1e-9."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import talib
from hypothesis import given, settings
from hypothesis import strategies as st
from ta.momentum import (
    KAMAIndicator,
    PercentagePriceOscillator,
    ROCIndicator,
    RSIIndicator,
    StochasticOscillator,
    StochRSIIndicator,
    UltimateOscillator,
    WilliamsRIndicator,
)
from ta.trend import MACD, ADXIndicator, CCIIndicator, EMAIndicator, SMAIndicator, TRIXIndicator, WMAIndicator
from ta.volatility import AverageTrueRange, BollingerBands, DonchianChannel
from ta.volume import AccDistIndexIndicator, MFIIndicator, OnBalanceVolumeIndicator, VolumeWeightedAveragePrice

from trading import indicators as own

# recursive indicators forget how they were started: (1 - 1/14)^1000 is 1e-32
WARM_UP = 1_000

Bars = pd.DataFrame


def columns(bars: Bars, *names: str) -> list[np.ndarray]:
    return [bars[name].to_numpy() for name in names]


HLC = ("high", "low", "close")


def direction(bars: Bars) -> np.ndarray:
    plus, minus = own.directional_movement(*columns(bars, "high", "low"))
    return (plus - minus) / (plus + minus)


def direction_of_ta(bars: Bars) -> pd.Series:
    both = ADXIndicator(bars["high"], bars["low"], bars["close"])
    return (both.adx_pos() - both.adx_neg()) / (both.adx_pos() + both.adx_neg())


def vwap_of_ta(bars: Bars) -> pd.Series:
    return VolumeWeightedAveragePrice(
        bars["high"], bars["low"], bars["close"], bars["volume"], 14
    ).volume_weighted_average_price()


PAIRS: dict[str, tuple[Callable[[Bars], np.ndarray], Callable[[Bars], pd.Series]]] = {
    "sma": (lambda b: own.sma(*columns(b, "close"), 20), lambda b: SMAIndicator(b["close"], 20).sma_indicator()),
    "ema": (lambda b: own.ema(*columns(b, "close"), 50), lambda b: EMAIndicator(b["close"], 50).ema_indicator()),
    "rsi": (lambda b: own.rsi(*columns(b, "close")), lambda b: RSIIndicator(b["close"]).rsi()),
    "macd": (lambda b: own.macd(*columns(b, "close"))[0], lambda b: MACD(b["close"]).macd()),
    "macd_signal": (lambda b: own.macd(*columns(b, "close"))[1], lambda b: MACD(b["close"]).macd_signal()),
    "macd_histogram": (lambda b: own.macd(*columns(b, "close"))[2], lambda b: MACD(b["close"]).macd_diff()),
    "stochastic_k": (
        lambda b: own.stochastic(*columns(b, *HLC))[0],
        lambda b: StochasticOscillator(b["high"], b["low"], b["close"]).stoch(),
    ),
    "stochastic_d": (
        lambda b: own.stochastic(*columns(b, *HLC))[1],
        lambda b: StochasticOscillator(b["high"], b["low"], b["close"]).stoch_signal(),
    ),
    "williams_r": (
        lambda b: own.williams_r(*columns(b, *HLC)),
        lambda b: WilliamsRIndicator(b["high"], b["low"], b["close"]).williams_r(),
    ),
    "roc": (lambda b: own.roc(*columns(b, "close"), 12), lambda b: ROCIndicator(b["close"], 12).roc()),
    "cci": (lambda b: own.cci(*columns(b, *HLC)), lambda b: CCIIndicator(b["high"], b["low"], b["close"]).cci()),
    "adx": (lambda b: own.adx(*columns(b, *HLC)), lambda b: ADXIndicator(b["high"], b["low"], b["close"]).adx()),
    "atr": (
        lambda b: own.atr(*columns(b, *HLC)),
        lambda b: AverageTrueRange(b["high"], b["low"], b["close"]).average_true_range(),
    ),
    "bollinger_upper": (
        lambda b: own.bollinger(*columns(b, "close"))[0],
        lambda b: BollingerBands(b["close"]).bollinger_hband(),
    ),
    "bollinger_lower": (
        lambda b: own.bollinger(*columns(b, "close"))[2],
        lambda b: BollingerBands(b["close"]).bollinger_lband(),
    ),
    "adx_of_directions": (
        lambda b: 100 * own.wilder(np.abs(direction(b)), 14),
        lambda b: ADXIndicator(b["high"], b["low"], b["close"]).adx(),
    ),
    "direction": (direction, direction_of_ta),
    # TA-Lib has none
    "vwap": (lambda b: own.vwap(*columns(b, *HLC, "volume")), vwap_of_ta),
}
# figures around zero are held to 1e-9 of their usual size, not of the moment's
SIGNED = {
    "direction",
    "macd",
    "macd_signal",
    "macd_histogram",
    "roc",
    "cci",
    "williams_r",
    "stochastic_k",
    "stochastic_d",
}


# what both libraries have and we do not offer yet, so that either can be chosen when we do; Aroon is
# missing here, because the two break ties between equal extremes differently
OTHERS: dict[str, Callable[[Bars], tuple[np.ndarray, pd.Series]]] = {
    "wma": lambda b: (talib.WMA(b["close"], 9), WMAIndicator(b["close"], 9).wma()),
    "mfi": lambda b: (
        talib.MFI(*columns(b, *HLC, "volume"), 14),
        MFIIndicator(b["high"], b["low"], b["close"], b["volume"], 14).money_flow_index(),
    ),
    "ultimate": lambda b: (
        talib.ULTOSC(*columns(b, *HLC), 7, 14, 28),
        UltimateOscillator(b["high"], b["low"], b["close"]).ultimate_oscillator(),
    ),
    "ppo": lambda b: (talib.PPO(b["close"], 12, 26, 1), PercentagePriceOscillator(b["close"]).ppo()),
    "trix": lambda b: (talib.TRIX(b["close"], 15), TRIXIndicator(b["close"], 15).trix()),
    "accumulation": lambda b: (
        talib.AD(*columns(b, *HLC, "volume")),
        AccDistIndexIndicator(b["high"], b["low"], b["close"], b["volume"]).acc_dist_index(),
    ),
    "kama": lambda b: (talib.KAMA(b["close"], 10), KAMAIndicator(b["close"], 10, 2, 30).kama()),
    "plus_di": lambda b: (
        talib.PLUS_DI(*columns(b, *HLC), 14),
        ADXIndicator(b["high"], b["low"], b["close"], 14).adx_pos(),
    ),
    "minus_di": lambda b: (
        talib.MINUS_DI(*columns(b, *HLC), 14),
        ADXIndicator(b["high"], b["low"], b["close"], 14).adx_neg(),
    ),
    "stochastic_rsi": lambda b: (
        talib.STOCHRSI(b["close"], 14, 14, 3, 0)[0],
        100 * StochRSIIndicator(b["close"], 14).stochrsi(),
    ),
    "highest": lambda b: (
        talib.MAX(b["high"], 20),
        DonchianChannel(b["high"], b["low"], b["close"], 20).donchian_channel_hband(),
    ),
}


@pytest.fixture(scope="module")
def sessions() -> Bars:
    import arch.data.sp500

    table = arch.data.sp500.load().astype("float64")
    return table.rename(columns=str.lower)[["open", "high", "low", "close", "volume"]]


@pytest.fixture(scope="module")
def hours(shared: Path) -> Bars:
    return pd.read_parquet(shared / "data" / "binance_BTCUSDT_1h.parquet")


def agree(name: str, bars: Bars) -> None:
    ours, theirs = PAIRS[name][0](bars)[WARM_UP:], PAIRS[name][1](bars).to_numpy()[WARM_UP:]
    assert np.isfinite(ours).all()
    usual = float(np.mean(np.abs(theirs))) if name in SIGNED else 0.0
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9 * usual)


@pytest.mark.parametrize("name", PAIRS)
def test_both_libraries_agree_on_sessions(name: str, sessions: Bars) -> None:
    agree(name, sessions)


@pytest.mark.parametrize("name", PAIRS)
def test_both_libraries_agree_on_hours(name: str, hours: Bars) -> None:
    agree(name, hours)


@pytest.mark.parametrize("name", OTHERS)
def test_both_libraries_agree_on_what_is_not_offered_yet(name: str, sessions: Bars) -> None:
    ours, theirs = (np.asarray(values)[WARM_UP:] for values in OTHERS[name](sessions))
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9 * float(np.mean(np.abs(theirs))))


def test_on_balance_volume_agrees_wherever_the_close_moved(sessions: Bars) -> None:
    ours = own.obv(*columns(sessions, "close", "volume"))
    theirs = OnBalanceVolumeIndicator(sessions["close"], sessions["volume"]).on_balance_volume().to_numpy()
    # on an unchanged close TA-Lib adds nothing, as Granville wrote, and ``ta`` adds the volume
    moved = np.diff(sessions["close"].to_numpy()) != 0
    np.testing.assert_allclose(np.diff(ours)[moved], np.diff(theirs)[moved], rtol=1e-9)
    assert (np.diff(ours)[~moved] == 0).all()


@pytest.mark.parametrize("name", PAIRS)
def test_no_indicator_sees_the_future(name: str, sessions: Bars) -> None:
    whole = PAIRS[name][0](sessions)
    for cut in (WARM_UP, 2_500):
        np.testing.assert_array_equal(PAIRS[name][0](sessions.iloc[:cut]), whole[:cut])


def test_warm_up_is_nan_not_zero(sessions: Bars) -> None:
    for name, first in {"atr": 14, "adx": 27, "rsi": 14, "sma": 19, "cci": 19, "bollinger_upper": 19}.items():
        values: Any = PAIRS[name][0](sessions)
        assert np.isnan(values[:first]).all(), name
        assert np.isfinite(values[first]), name


# --- windows summed afresh ------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(0, 120), period=st.integers(1, 70))
def test_windows_are_those_of_numpy(seed: int, rows: int, period: int) -> None:
    values = np.random.default_rng(seed).normal(100, 1, rows)
    total, (mean, deviation) = own.window_sum(values, period), own.window_moments(values, period)
    for found in (total, mean, deviation):
        assert found.shape == (rows,)
        assert np.isnan(found[: period - 1]).all()
    if rows >= period:
        windows = np.lib.stride_tricks.sliding_window_view(values, period)
        np.testing.assert_allclose(total[period - 1 :], windows.sum(axis=1), rtol=1e-12)
        np.testing.assert_allclose(mean[period - 1 :], windows.mean(axis=1), rtol=1e-12)
        np.testing.assert_allclose(deviation[period - 1 :], windows.std(axis=1), rtol=1e-9, atol=1e-13)


def test_windows_are_the_same_numbers_wherever_the_series_starts() -> None:
    # longer than the pieces in which the moments are computed
    values = np.random.default_rng(1).lognormal(3, 2, 50_000)
    for period in (1, 5, 20, 50):
        whole = own.window_sum(values, period), *own.window_moments(values, period)
        part = own.window_sum(values[777:], period), *own.window_moments(values[777:], period)
        for every, some in zip(whole, part, strict=True):
            np.testing.assert_array_equal(some[period - 1 :], every[777 + period - 1 :])


def test_nothing_is_left_of_prices_long_gone() -> None:
    values = np.r_[np.full(100, 1e6), np.full(100, 1e-7)]
    mean, deviation = own.window_moments(values, 20)
    assert mean[-1] == 1e-7
    assert deviation[-1] == 0
    assert own.window_sum(values, 20)[-1] == pytest.approx(2e-6, rel=1e-12)
    # which is why they are not taken from TA-Lib
    assert talib.SMA(values, 20)[-1] != pytest.approx(1e-7, rel=1e-6)


# --- where TA-Lib gives up ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rsi", "adx", "direction", "cci", "bollinger_upper", "stochastic_k", "atr"])
def test_a_coin_may_cost_next_to_nothing(name: str, sessions: Bars) -> None:
    cheap = sessions.iloc[:500] / 2**45
    scale = 2**45 if name in {"bollinger_upper", "atr"} else 1
    np.testing.assert_allclose(PAIRS[name][0](cheap) * scale, PAIRS[name][0](sessions.iloc[:500]), rtol=1e-9)


def test_an_empty_range_has_the_close_in_its_middle() -> None:
    flat = np.full(60, 0.1 + 0.2)
    k, d = own.stochastic(flat, flat, flat)
    assert (k[-1], d[-1]) == (50, 50)
    assert own.williams_r(flat, flat, flat)[-1] == -50
    # by TA-Lib alone it is what rounding makes of 0 / 0
    assert own.cci(flat, flat, flat)[-1] == 0
    assert own.vwap(flat, flat, flat, np.zeros(60))[-1] == flat[-1]
