"""Features: what a model sees of candles, without units and without a view of the future.

Every feature is a ratio, a return or a bounded oscillator, so that one model can learn from several
symbols. The value at bar i uses bars up to and including i, that is, what is known at its close.

Each feature declares its ``look_back``: how many bars before bar i its value may depend on. The
recursive indicators (EMA, RSI, ATR, ADX, MACD) never forget entirely; their look-back is the number
of bars after which what came before hardly weighs anything (``feature_columns.FORGOTTEN``), and earlier
rows are NaN. A model that is given ``FeatureSet.rows_needed`` candles therefore computes the same row as
in training, up to 1e-9 (all features are of order one).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pandas as pd

from ml import feature_coarse, feature_columns, feature_market
from ml.feature_columns import Bars, Feature
from trading import candles as candle_frames
from trading.errors import InvalidRequest

# Raise it whenever the arithmetic of a feature changes: models made with another revision are refused.
REVISION: Final = 2

# the least value of each whole number, for parameters that are one and for those that are any number of them
_SINGLE: Final[Mapping[str, int]] = {
    "rsi": 2, "williams_r": 2, "roc": 1, "cci": 2, "adx": 2, "bollinger": 2, "atr": 2, "volatility": 2, "obv": 1,
    "vwap": 1, "volume": 2, "volume_roc": 1, "volume_price_trend": 1, "levels": 2, "coarse_period": 2,
}  # fmt: skip
_MANY: Final[Mapping[str, int]] = {"returns": 1, "lags": 1, "ema": 2, "sma": 2, "coarse": 2, "coarse_returns": 1}
_FIXED: Final[Mapping[str, tuple[int, ...]]] = {"stochastic": (2, 1), "macd": (2, 2, 1), "short_over_long": (2, 2)}


@dataclass(frozen=True)
class FeatureSet:
    """Which features, with which periods (all in bars); 0 or () leaves a family out.

    Args:
        returns, lags: spans of returns; how many bars ago the one-bar returns were.
        stochastic: bars of the range, bars of the average.
        williams_r: with the period of the stochastic it would be %K again, less one; hence twice that.
        macd: fast, slow, signal.
        short_over_long: short and long span of the ratios of volatility and of range.
        volume: of the mean that the volume is compared with.
        levels: how many earlier bars make support and resistance.
        doji: largest body as a share of the range. hammer: least shadow in bodies.
        calendar: any of hour, weekday, month.
        coarse: how many bars make a coarser one, for each coarser timeframe; with ``coarse_returns`` and
            ``coarse_period`` in coarser bars.

    Raises:
        InvalidRequest: a period is not a whole number or too small, one is given twice, MACD's fast period is
            not below its slow one (nor the short span below the long one), or nothing at all is wanted.
    """

    returns: tuple[int, ...] = (1, 5, 10)
    lags: tuple[int, ...] = (1, 2, 3, 5, 10)
    rsi: int = 14
    stochastic: tuple[int, ...] = (14, 3)
    williams_r: int = 28
    roc: int = 12
    cci: int = 20
    macd: tuple[int, ...] = (12, 26, 9)
    ema: tuple[int, ...] = (9, 21, 50)
    sma: tuple[int, ...] = (20, 50)
    adx: int = 14
    bollinger: int = 20
    atr: int = 14
    volatility: int = 20
    short_over_long: tuple[int, ...] = (5, 50)
    obv: int = 20
    vwap: int = 20
    volume: int = 20
    volume_roc: int = 10
    volume_price_trend: int = 20
    levels: int = 20
    doji: float = 0.1
    hammer: float = 2.0
    calendar: tuple[str, ...] = ("hour", "weekday", "month")
    coarse: tuple[int, ...] = (4,)
    coarse_returns: tuple[int, ...] = (1, 5)
    coarse_period: int = 20

    def __post_init__(self) -> None:
        for name in (*_MANY, *_FIXED, "calendar"):
            object.__setattr__(self, name, _listed(name, getattr(self, name)))
        for name in ("doji", "hammer"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        for name, least in _SINGLE.items():
            _require_whole(name, getattr(self, name), least, off=name != "coarse_period")
        for name, least in _MANY.items():
            for period in getattr(self, name):
                _require_whole(name, period, least)
        for name, leasts in _FIXED.items():
            given = getattr(self, name)
            if given and len(given) != len(leasts):
                raise InvalidRequest(f"feature periods {name}={given!r} must be {len(leasts)} numbers, or none")
            for period, least in zip(given, leasts, strict=False):
                _require_whole(name, period, least)
        for name in ("macd", "short_over_long"):
            given = getattr(self, name)
            if given and given[0] >= given[1]:
                raise InvalidRequest(f"feature periods {name}={given!r}: the first must be below the second")
        if not set(self.calendar) <= set(feature_market.CYCLES):
            raise InvalidRequest(f"calendar={self.calendar!r} may name {', '.join(feature_market.CYCLES)} only")
        if not declared(self):
            raise InvalidRequest("every feature is switched off; a model needs at least one")

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


def _listed(name: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, int | float | str) for each in value):
        raise InvalidRequest(f"feature parameter {name}={value!r} must be a list of plain values; () leaves it out")
    if name not in _FIXED and len(set(value)) != len(value):
        raise InvalidRequest(f"feature parameter {name}={value!r} names something twice")
    return tuple(value)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise InvalidRequest(f"feature parameter {name}={value!r} must be a number of at least 0; 0 leaves it out")
    return float(value)


def _require_whole(name: str, value: object, least: int, *, off: bool = False) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or (value < least and not (off and value == 0)):  # type: ignore[operator]
        allowed = f"at least {least}" + (", or 0 to leave it out" if off else "")
        raise InvalidRequest(f"feature period {name}={value!r} must be whole bars, {allowed}")


def features(candles: pd.DataFrame, feature_set: FeatureSet, step_ms: int | None = None) -> pd.DataFrame:
    """Features of every bar: float64, shape (n, len(feature_set.names)), index of ``candles``.

    A column is NaN for its first ``look_back`` rows and finite from there on. ``candles`` keep the
    contract of ``trading.candles``, which is checked where data enters and not again here.

    Args:
        step_ms: how long a bar lasts, in milliseconds; None takes the smallest distance of two open times,
            which is the same unless no two bars follow each other without a gap.
    """
    stamps = candle_frames.open_times_ms(candles)
    if step_ms is None:
        step_ms = int(np.diff(stamps).min()) if len(stamps) > 1 else 1
    columns = (np.ascontiguousarray(candles[name], dtype=np.float64) for name in candle_frames.COLUMNS)
    bars = Bars(stamps, step_ms, *columns)
    wanted = declared(feature_set)
    # column by column, as it is written
    table = np.empty((len(wanted), len(candles)))
    for column, feature in zip(table, wanted, strict=True):
        column[: feature.look_back] = np.nan
        if len(candles) > feature.look_back:
            column[feature.look_back :] = feature.compute(bars)[feature.look_back :]
    return pd.DataFrame(table.T, index=candles.index, columns=list(feature_set.names), copy=False)


@lru_cache(maxsize=64)
def declared(feature_set: FeatureSet) -> tuple[Feature, ...]:
    """The features of the set with their look-backs, in the order of the columns."""
    chosen, price, market = feature_set, feature_columns, feature_market
    families: list[tuple[Any, Callable[[Any], list[Feature]]]] = [
        (chosen.returns, price.returns),
        (chosen.lags, price.lagged_returns),
        (chosen.rsi, price.rsi),
        (chosen.stochastic, price.stochastic),
        (chosen.williams_r, price.williams_r),
        (chosen.roc, price.roc),
        (chosen.cci, price.cci),
        (chosen.macd, price.macd),
        (chosen.ema, price.ema),
        (chosen.sma, price.sma),
        (chosen.adx, price.adx),
        (chosen.bollinger, price.bollinger),
        (chosen.atr, price.atr),
        (chosen.volatility, price.volatility),
        (chosen.short_over_long, price.short_over_long),
        (chosen.obv, market.obv),
        (chosen.vwap, market.vwap),
        (chosen.volume, market.volume_ratio),
        (chosen.volume_roc, market.volume_roc),
        (chosen.volume_price_trend, market.volume_price_trend),
        (chosen.levels, market.levels),
        (chosen.doji, market.doji),
        (chosen.hammer, market.hammer),
        (chosen.calendar, market.calendar),
    ]
    listed = [feature for parameter, family in families if parameter for feature in family(parameter)]
    for factor in chosen.coarse:
        listed += feature_coarse.coarse(factor, chosen.coarse_returns, chosen.coarse_period)
    return tuple(listed)
