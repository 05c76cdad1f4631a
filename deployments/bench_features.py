"""The features' part of ``make bench``: all of them for a million bars, against bare TA-Lib and against ``ta``.

The bare side calls TA-Lib once for each indicator behind the features, and numpy where TA-Lib has none (and
only there): nothing is made unit free, no neutral values, no table. ``ta`` computes what it has of the same set.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from deployments.bench_figures import Figure, best, market

MILLION = 1_000_000
# for a million ta needs a third of a minute
TA_BARS = 100_000
MINUTE_MS = 60_000


def features_figures() -> list[Figure]:
    """All features of a million bars against both; one row out of as many candles as it needs, against ``ta``."""
    from ml.features import FeatureSet, features

    feature_set = FeatureSet()
    candles = market(MILLION, MINUTE_MS)
    few = candles.iloc[-feature_set.rows_needed :]
    talib_calls, numpy_calls = bare_talib(candles), bare_numpy(candles)

    # by turns, so that all meet the machine in the same moods
    turns = [
        (
            best(lambda: features(candles, feature_set), 1),
            best(lambda: [call() for call in talib_calls], 1),
            best(lambda: [call() for call in numpy_calls], 1),
        )
        for _ in range(7)
    ]
    ours, in_talib, in_numpy = (min(side) for side in zip(*turns, strict=True))
    in_ta = best(lambda: with_ta(candles.iloc[:TA_BARS]), 2) * MILLION / TA_BARS
    one = best(lambda: features(few, feature_set), 100)
    one_in_ta = best(lambda: with_ta(few), 3)
    count = len(feature_set.names)
    return [
        Figure(
            f"{count} features of 1,000,000 bars", ours, "bare TA-Lib and numpy", in_talib + in_numpy,
            f"{len(talib_calls)} calls of TA-Lib {in_talib:.0f} ms ({ours / in_talib:.1f}x of them alone), "
            f"{len(numpy_calls)} of numpy {in_numpy:.0f} ms",
        ),
        Figure(
            "the same features of 1,000,000 bars", ours, "ta, what it has of them", in_ta,
            f"theirs from {TA_BARS:,} bars, times {MILLION // TA_BARS}",
        ),
        Figure(
            f"features of one bar, from the {len(few)} candles it needs", one, "ta, what it has of them", one_in_ta,
        ),
    ]  # fmt: skip


def bare_talib(candles: pd.DataFrame) -> list[Callable[[], object]]:
    """One call of TA-Lib for each indicator of the default set that it has."""
    import talib

    opens, high, low, close, volume = (np.ascontiguousarray(candles[name]) for name in candles.columns)
    returns, true_range = np.diff(np.log(close)), talib.TRANGE(high, low, close)[1:]
    return [
        lambda: talib.RSI(close, 14),
        lambda: talib.STOCHF(high, low, close, 14, 3, 0),
        lambda: talib.WILLR(high, low, close, 28),
        lambda: talib.ROC(close, 12),
        lambda: talib.CCI(high, low, close, 20),
        lambda: talib.MACD(close, 12, 26, 9),
        *(lambda period=period: talib.EMA(close, period) for period in (9, 21, 50)),
        *(lambda period=period: talib.SMA(close, period) for period in (20, 50)),
        lambda: talib.ADX(high, low, close, 14),
        lambda: talib.PLUS_DI(high, low, close, 14),
        lambda: talib.MINUS_DI(high, low, close, 14),
        lambda: talib.BBANDS(close, 20, 2, 2),
        lambda: talib.ATR(high, low, close, 14),
        lambda: talib.TRANGE(high, low, close),
        # volatility, and both ratios of short over long
        *(lambda period=period: talib.STDDEV(returns, period) for period in (20, 5, 50)),
        *(lambda period=period: talib.SMA(true_range, period) for period in (5, 50)),
        lambda: talib.OBV(close, volume),
        lambda: talib.SMA(volume, 20),
        lambda: talib.ROC(volume, 10),
        # support, resistance
        lambda: talib.MIN(low, 20),
        lambda: talib.MAX(high, 20),
        lambda: talib.CDLDOJI(opens, high, low, close),
        lambda: talib.CDLHAMMER(opens, high, low, close),
    ]


def bare_numpy(candles: pd.DataFrame) -> list[Callable[[], object]]:
    """What TA-Lib has not: log returns, VWAP, volume-price trend, breakout, cycles of the calendar, coarser bars."""
    import talib

    _, high, low, close, volume = (np.ascontiguousarray(candles[name]) for name in candles.columns)
    stamps = pd.DatetimeIndex(candles.index).asi8
    day = 86_400_000

    def vwap() -> object:
        return talib.SUM((high + low + close) / 3 * volume, 20) / talib.SUM(volume, 20)

    def volume_price_trend() -> object:
        return talib.SUM(np.diff(close) / close[:-1] * volume[1:], 20)

    def breakout() -> object:
        # the extremes are those of TA-Lib's list
        return (close[20:] > high[:-20]).astype(np.float64) - (close[20:] < low[:-20])

    def cycle(length: int, wave: np.ufunc) -> Callable[[], object]:
        return lambda: wave(stamps % length * (2 * np.pi / length))

    def month(wave: np.ufunc) -> Callable[[], object]:
        return lambda: wave(stamps.astype("datetime64[ms]").astype("datetime64[M]").astype(np.int64) % 12 * (np.pi / 6))

    def coarser() -> object:
        slot = stamps // (4 * MINUTE_MS)
        starts = np.flatnonzero(np.diff(slot, prepend=slot[0] - 1))
        tops, bottoms = np.maximum.reduceat(high, starts), np.minimum.reduceat(low, starts)
        closes = close[np.append(starts[1:], len(close)) - 1]
        last = np.searchsorted(slot[starts], slot) - 1
        log = np.log(closes)
        width = talib.MAX(tops, 20) - talib.MIN(bottoms, 20)
        made = (log[1:] - log[:-1], log[5:] - log[:-5], talib.SMA(closes, 20), width)
        return [values[last.clip(0, len(values) - 1)] for values in made]

    return [
        *(lambda span=span: np.log(close[span:] / close[:-span]) for span in (1, 5, 10)),
        vwap,
        volume_price_trend,
        breakout,
        *(cycle(length, wave) for length in (day, 7 * day) for wave in (np.sin, np.cos)),
        *(month(wave) for wave in (np.sin, np.cos)),
        coarser,
    ]  # fmt: skip


def with_ta(candles: pd.DataFrame) -> list[pd.Series]:
    """What ``ta`` has of the default set."""
    from ta import momentum, others, trend, volatility, volume

    high, low, close, traded = (candles[name] for name in ("high", "low", "close", "volume"))
    stochastic = momentum.StochasticOscillator(high, low, close, 14, 3)
    macd = trend.MACD(close, 26, 12, 9)
    adx = trend.ADXIndicator(high, low, close, 14)
    bands = volatility.BollingerBands(close, 20, 2)
    levels = volatility.DonchianChannel(high, low, close, 20)
    return [
        others.DailyLogReturnIndicator(close).daily_log_return(),
        momentum.RSIIndicator(close, 14).rsi(),
        stochastic.stoch(),
        stochastic.stoch_signal(),
        momentum.WilliamsRIndicator(high, low, close, 28).williams_r(),
        momentum.ROCIndicator(close, 12).roc(),
        trend.CCIIndicator(high, low, close, 20).cci(),
        macd.macd(),
        macd.macd_signal(),
        macd.macd_diff(),
        *(trend.EMAIndicator(close, period).ema_indicator() for period in (9, 21, 50)),
        *(trend.SMAIndicator(close, period).sma_indicator() for period in (20, 50)),
        adx.adx(),
        adx.adx_pos(),
        adx.adx_neg(),
        bands.bollinger_pband(),
        bands.bollinger_wband(),
        volatility.AverageTrueRange(high, low, close, 14).average_true_range(),
        volume.OnBalanceVolumeIndicator(close, traded).on_balance_volume(),
        volume.VolumeWeightedAveragePrice(high, low, close, traded, 20).volume_weighted_average_price(),
        trend.SMAIndicator(traded, 20).sma_indicator(),
        momentum.ROCIndicator(traded, 10).roc(),
        volume.VolumePriceTrendIndicator(close, traded).volume_price_trend(),
        levels.donchian_channel_hband(),
        levels.donchian_channel_lband(),
    ]
