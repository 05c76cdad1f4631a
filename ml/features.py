"""Features: what a model sees of candles, without units and without a view of the future.

Every feature is a ratio, a return or a bounded oscillator, so that one model can learn from several
symbols. The value at bar i uses bars up to and including i, that is, what is known at its close.

Each feature declares its ``look_back``: how many bars before bar i its value may depend on. The
recursive indicators (EMA, RSI, ATR, ADX, MACD) never forget entirely; their look-back is the number
of bars after which what came before weighs less than ``FORGOTTEN``, and earlier rows are NaN. A model
that is given ``FeatureSet.rows_needed`` candles therefore computes the same row as in training, up to
1e-9 (all features are of order one).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import numpy as np
import pandas as pd

from trading import candles as candle_frames
from trading.errors import InvalidRequest

# Raise it whenever the arithmetic of a feature changes: models made with another revision are refused.
REVISION: Final = 1
FORGOTTEN: Final = 1e-9
# features are of order one: what has no bound of its own and is above this is not a number to learn from
BEYOND: Final = 1e6
_FLAT: Final = 1e-12


@dataclass(frozen=True)
class FeatureSet:
    """Which features, with which periods (all in bars).

    Raises:
        InvalidRequest: a period is not a whole number of at least 2 (1 for returns), or MACD's fast
            period is not below its slow one.
    """

    returns: tuple[int, ...] = (1, 5, 10)
    rsi: int = 14
    macd: tuple[int, int, int] = (12, 26, 9)
    atr: int = 14
    adx: int = 14
    bollinger: int = 20
    ema: tuple[int, ...] = (9, 21, 50)
    volume: int = 20
    volatility: int = 20
    calendar: bool = True

    def __post_init__(self) -> None:
        for name in ("returns", "macd", "ema"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        least = {"returns": 1}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "calendar":
                continue
            for period in value if isinstance(value, tuple) else (value,):
                if not isinstance(period, int) or period < least.get(field.name, 2):
                    raise InvalidRequest(
                        f"feature period {field.name}={value!r} must be whole bars, at least {least.get(field.name, 2)}"
                    )
        if len(self.macd) != 3 or self.macd[0] >= self.macd[1]:
            raise InvalidRequest(f"macd={self.macd!r} must be (fast, slow, signal) with fast < slow")

    @property
    def version(self) -> str:
        """Name of the definition: equal definitions, and only those, have equal versions."""
        text = json.dumps([REVISION, self.definition()], sort_keys=True)
        return f"features-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def rows_needed(self) -> int:
        """How many candles one row of features needs, the current one included."""
        return max(feature.look_back for feature in declared(self)) + 1

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of ``features``, in order."""
        return tuple(feature.name for feature in declared(self))

    def definition(self) -> dict[str, Any]:
        """The parameters as JSON values; ``from_definition`` reads them back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_definition(cls, definition: Mapping[str, Any]) -> FeatureSet:
        """The set that ``definition`` describes.

        Raises:
            InvalidRequest: a parameter is unknown, missing or out of range.
        """
        known = {field.name for field in fields(cls)}
        if set(definition) != known:
            raise InvalidRequest(
                f"feature definition has parameters {sorted(definition)}; exactly {sorted(known)} are needed"
            )
        values: dict[str, Any] = dict(definition)
        return cls(**values)


@dataclass(frozen=True)
class Feature:
    """One column: its name, how many earlier bars it may depend on, and how to compute it.

    ``lowest`` and ``highest`` are what its arithmetic can give at all (rounding aside), whatever the
    candles; ``expectations.features`` holds every matrix to them.
    """

    name: str
    look_back: int
    compute: Callable[[_Bars], np.ndarray]
    lowest: float = -BEYOND
    highest: float = BEYOND


@dataclass(frozen=True)
class _Bars:
    """Columns of a candle frame as float64 arrays of shape (n,), and open times in milliseconds."""

    open_ms: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray


def features(candles: pd.DataFrame, feature_set: FeatureSet) -> pd.DataFrame:
    """Features of every bar: float64, shape (n, len(feature_set.names)), index of ``candles``.

    A column is NaN for its first ``look_back`` rows and finite from there on. ``candles`` keep the
    contract of ``trading.candles``, which is checked where data enters and not again here.
    """
    stamps = candle_frames.open_times_ms(candles)
    columns = (np.ascontiguousarray(candles[name], dtype=np.float64) for name in ("high", "low", "close", "volume"))
    bars = _Bars(stamps, *columns)
    table = np.full((len(candles), len(feature_set.names)), np.nan)
    for at, feature in enumerate(declared(feature_set)):
        if len(candles) > feature.look_back:
            table[feature.look_back :, at] = feature.compute(bars)[feature.look_back :]
    return pd.DataFrame(table, index=candles.index, columns=list(feature_set.names))


def declared(feature_set: FeatureSet) -> tuple[Feature, ...]:
    """The features of the set with their look-backs, in the order of the columns."""
    chosen = feature_set
    fast, slow, smooth = chosen.macd
    listed = [Feature(f"return_{bars}", bars, _log_return(bars)) for bars in chosen.returns]
    # none of n values lies further from their mean than sqrt(n - 1) population deviations
    widest = math.sqrt(chosen.bollinger)
    listed += [
        Feature("rsi", _wilder_memory(chosen.rsi), _rsi(chosen.rsi), 0, 1),
        Feature("macd_histogram", _ema_memory(slow) + _ema_memory(smooth), _macd_histogram(fast, slow, smooth)),
        Feature("atr", _wilder_memory(chosen.atr), _atr(chosen.atr), 0),
        # ADX smooths a smoothed series, so the start is forgotten later than once
        Feature("adx", _wilder_memory(chosen.adx) * 3 // 2, _adx(chosen.adx), 0, 1),
        Feature(
            "bollinger_position",
            chosen.bollinger - 1,
            _bollinger_position(chosen.bollinger),
            -widest / 2,
            widest / 2,
        ),
        Feature("bollinger_width", chosen.bollinger - 1, _bollinger_width(chosen.bollinger), 0, 4 * widest),
    ]
    # the close is itself 2 / (period + 1) of the EMA
    listed += [
        Feature(f"ema_{period}", _ema_memory(period), _ema_ratio(period), -1, (period - 1) / 2) for period in chosen.ema
    ]
    listed += [
        Feature("volume_ratio", chosen.volume - 1, _volume_ratio(chosen.volume), 0, math.log1p(chosen.volume)),
        Feature("volatility", chosen.volatility, _volatility(chosen.volatility), 0),
    ]
    if chosen.calendar:
        for name, period_ms, shift_ms in (("hour", _DAY_MS, 0), ("weekday", 7 * _DAY_MS, 3 * _DAY_MS)):
            listed.append(Feature(f"{name}_sin", 0, _cycle(period_ms, shift_ms, np.sin), -1, 1))
            listed.append(Feature(f"{name}_cos", 0, _cycle(period_ms, shift_ms, np.cos), -1, 1))
    return tuple(listed)


_DAY_MS: Final = 86_400_000


def _ema_memory(period: int) -> int:
    """Bars until an EMA with smoothing 2 / (period + 1), seeded with a mean of ``period`` bars, forgot its seed."""
    return period + math.ceil(math.log(FORGOTTEN) / math.log(1 - 2 / (period + 1)))


def _wilder_memory(period: int) -> int:
    """The same for Wilder's smoothing 1 / period; one bar more, for the first difference."""
    return period + 1 + math.ceil(math.log(FORGOTTEN) / math.log(1 - 1 / period))


def _log_return(bars: int) -> Callable[[_Bars], np.ndarray]:
    def compute(candles: _Bars) -> np.ndarray:
        return _log_returns(candles.close, bars)

    return compute


def _rsi(period: int) -> Callable[[_Bars], np.ndarray]:
    def compute(candles: _Bars) -> np.ndarray:
        import talib

        # Where the price long stood still RSI is a quotient of two forgotten numbers: no side has strength.
        value = np.asarray(talib.RSI(candles.close, period)) / 100
        moved = np.nan_to_num(_log_returns(candles.close, 1)) != 0
        still = np.convolve(moved, np.ones(5 * period))[: len(moved)] == 0
        return np.where(still, 0.5, value)

    return compute


def _macd_histogram(fast: int, slow: int, smooth: int) -> Callable[[_Bars], np.ndarray]:
    def compute(candles: _Bars) -> np.ndarray:
        import talib

        # in percent of the price, so that it is of order one like the rest
        return np.asarray(100 * talib.MACD(candles.close, fast, slow, smooth)[2] / candles.close)

    return compute


def _atr(period: int) -> Callable[[_Bars], np.ndarray]:
    def compute(candles: _Bars) -> np.ndarray:
        import talib

        return np.asarray(talib.ATR(candles.high, candles.low, candles.close, period) / candles.close)

    return compute


def _adx(period: int) -> Callable[[_Bars], np.ndarray]:
    def compute(candles: _Bars) -> np.ndarray:
        import talib

        return np.asarray(talib.ADX(candles.high, candles.low, candles.close, period)) / 100

    return compute


def _ema_ratio(period: int) -> Callable[[_Bars], np.ndarray]:
    def compute(candles: _Bars) -> np.ndarray:
        import talib

        return np.asarray(candles.close / talib.EMA(candles.close, period) - 1)

    return compute


def _bollinger_position(period: int) -> Callable[[_Bars], np.ndarray]:
    """Distance from the middle band in half band widths of two standard deviations; 0 where the price is flat."""

    def compute(candles: _Bars) -> np.ndarray:
        mean, deviation = _rolling(candles.close, period)
        flat = deviation <= _FLAT * mean
        return np.where(flat, 0.0, (candles.close - mean) / np.where(flat, 1.0, 2 * deviation))

    return compute


def _bollinger_width(period: int) -> Callable[[_Bars], np.ndarray]:
    def compute(candles: _Bars) -> np.ndarray:
        mean, deviation = _rolling(candles.close, period)
        return np.asarray(4 * deviation / mean)

    return compute


def _volume_ratio(period: int) -> Callable[[_Bars], np.ndarray]:
    """Volume over its mean, as log(1 + ratio); a ratio of one where nothing at all was traded."""

    def compute(candles: _Bars) -> np.ndarray:
        mean, _ = _rolling(candles.volume, period)
        silent = mean == 0
        return np.asarray(np.log1p(np.where(silent, 1.0, candles.volume / np.where(silent, 1.0, mean))))

    return compute


def _volatility(period: int) -> Callable[[_Bars], np.ndarray]:
    def compute(candles: _Bars) -> np.ndarray:
        return _rolling(_log_returns(candles.close, 1), period)[1]

    return compute


def _cycle(period_ms: int, shift_ms: int, wave: Callable[[np.ndarray], np.ndarray]) -> Callable[[_Bars], np.ndarray]:
    """Position in a cycle that starts at the epoch plus the shift (1970-01-01 was a Thursday: +3 days is a Sunday)."""

    def compute(candles: _Bars) -> np.ndarray:
        return wave(2 * np.pi * ((candles.open_ms - shift_ms) % period_ms) / period_ms)

    return compute


def _log_returns(close: np.ndarray, bars: int) -> np.ndarray:
    result = np.full(len(close), np.nan)
    result[bars:] = np.log(close[bars:] / close[:-bars])
    return result


def _rolling(values: np.ndarray, period: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation of the last ``period`` values, NaN before.

    Each window is summed afresh: running sums would carry rounding errors of bars long gone.
    """
    mean, deviation = np.full((2, len(values)), np.nan)
    if len(values) >= period:
        windows = np.lib.stride_tricks.sliding_window_view(values, period)
        mean[period - 1 :] = windows.mean(axis=1)
        deviation[period - 1 :] = windows.std(axis=1)
    return mean, deviation
