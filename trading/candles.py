"""The candle frame: its contract, its digest, its resampling.

A candle frame is a pandas frame with

- index ``open_time``: ``datetime64[ms, UTC]``, the time at which the bar opened, unique and increasing;
- columns ``open, high, low, close, volume``: float64, prices in the quote currency (> 0),
  volume in the base asset (>= 0), ``low <= min(open, close)`` and ``max(open, close) <= high``.

A bar counts only once it is over; nothing here fills, interpolates or invents one.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Final

import numpy as np
import pandas as pd

from trading.errors import CandleContractError
from trading.window import Timeframe, Window

COLUMNS: Final = ("open", "high", "low", "close", "volume")
INDEX_NAME: Final = "open_time"
INDEX_DTYPE: Final = "datetime64[ms, UTC]"
# pandas needs longer to make this index than a thousand candles to be checked
_LABELS: Final = pd.Index(COLUMNS)


def frame_of(open_time_ms: object, values: object) -> pd.DataFrame:
    """A frame in the layout of the contract, from raw rows, in the order they came.

    Args:
        open_time_ms: shape (n,), milliseconds since the epoch, UTC.
        values: shape (n, 5), columns open, high, low, close, volume.

    The rows are not checked: see ``trading.masks`` for that, and ``check`` for the contract. Arrays in the
    frame's own layout (float64, column by column) are taken over, not copied.
    """
    index = pd.DatetimeIndex(
        np.asarray(open_time_ms, dtype="int64").astype("datetime64[ms]"), name=INDEX_NAME
    ).tz_localize("UTC")
    data = np.asfortranarray(np.asarray(values, dtype="float64").reshape(len(index), len(COLUMNS)))
    return pd.DataFrame(data, index=index, columns=_LABELS.view(), copy=False)


def empty() -> pd.DataFrame:
    """A candle frame without rows."""
    return frame_of(np.empty(0, "int64"), np.empty((0, len(COLUMNS))))


def open_times_ms(candles: pd.DataFrame) -> np.ndarray:
    """The index as int64 milliseconds since the epoch, shape (n,)."""
    index = candles.index
    if not isinstance(index, pd.DatetimeIndex) or index.unit != "ms":
        index = pd.DatetimeIndex(index).as_unit("ms")
    return np.asarray(index.asi8)


def values_of(candles: pd.DataFrame) -> np.ndarray:
    """The five columns in their order as float64, shape (n, 5); not a copy where the frame allows."""
    ours = candles if candles.columns.equals(_LABELS) else candles[list(COLUMNS)]
    return ours.to_numpy(dtype="float64")


def check(candles: pd.DataFrame) -> pd.DataFrame:
    """``candles`` itself, if it keeps the contract.

    Raises:
        CandleContractError: says which rule, and the first bar that breaks it.
    """
    missing = [name for name in COLUMNS if name not in candles.columns]
    if missing:
        raise CandleContractError(f"candles lack the columns {missing}; needed are {list(COLUMNS)}")
    if str(candles.index.dtype) != INDEX_DTYPE:
        raise CandleContractError(f"candle index is {candles.index.dtype}; it must be {INDEX_DTYPE} (bar open, UTC)")
    kinds = dict(candles.dtypes)
    wrong = {name: str(kinds[name]) for name in COLUMNS if kinds[name] != np.float64}
    if wrong:
        raise CandleContractError(f"candle columns must be float64, and these are not: {wrong}")
    stamps = open_times_ms(candles)
    if len(stamps) > 1 and not (np.diff(stamps) > 0).all():
        at = candles.index[int(np.argmax(np.diff(stamps) <= 0)) + 1]
        raise CandleContractError(f"candles must be unique and increasing in time; the bar at {at} is not")
    values = values_of(candles)
    open_, high, low, close, volume = values.T
    # not a number compares as false with everything
    sound = (low > 0) & (high < np.inf) & (volume >= 0) & (volume < np.inf)
    sound &= (high >= np.maximum(open_, close)) & (low <= np.minimum(open_, close))
    if not sound.all():
        at = int(np.argmin(sound))
        raise CandleContractError(
            f"the candle at {candles.index[at]} is impossible: "
            f"{dict(zip(COLUMNS, values[at].tolist(), strict=True))}; screen candles before you use them"
        )
    return candles


def digest(candles: pd.DataFrame) -> str:
    """sha256 of times and values, independent of pandas, of chunking and of the store.

    Columns and index are hashed as little-endian int64 milliseconds and float64 (-0.0 as 0.0),
    rows in the order they stand; the empty frame has a digest too.
    """
    hashed = hashlib.sha256(b"tradeflows candles 1\0")
    hashed.update(np.ascontiguousarray(open_times_ms(candles), dtype="<i8").data)
    rows = np.empty((len(candles), len(COLUMNS)), dtype="<f8")
    np.add(values_of(candles), 0.0, out=rows)
    hashed.update(rows.data)
    return hashed.hexdigest()


def between(candles: pd.DataFrame, window: Window) -> pd.DataFrame:
    """The rows of ``candles`` whose open time lies in ``window``."""
    bounds = [int(bound.timestamp() * 1000) for bound in (window.start, window.end)]
    first, last = np.searchsorted(open_times_ms(candles), bounds)
    return candles.iloc[first:last]


def resample(
    candles: pd.DataFrame, source: Timeframe, target: Timeframe, until: datetime | None = None
) -> pd.DataFrame:
    """Coarser candles, only those whose every part the market had time for.

    Bars without trades (zero volume and one flat price) are dropped first, as exchanges do; bars of
    the target grid are counted from the epoch in UTC. The last target bar is dropped unless the
    source reaches its end, for an unfinished candle is not a candle.

    Args:
        until: how far the source is known to reach, where that is further than its last candle.

    Raises:
        CandleContractError: the target is not a coarser multiple of the source.
    """
    if target.delta <= source.delta or target.delta % source.delta:
        raise CandleContractError(f"cannot make {target} candles out of {source} ones: not a coarser multiple")
    if candles.empty:
        return candles
    step = int(target.delta.total_seconds() * 1000)
    reached = int(open_times_ms(candles)[-1]) + int(source.delta.total_seconds() * 1000)
    if until is not None:
        reached = max(reached, int(until.timestamp() * 1000))
    flat = (candles["volume"] == 0) & (candles["high"] == candles["low"])
    traded = candles[~flat]
    bucket = open_times_ms(traded) // step * step
    grouped = traded.groupby(bucket)
    rows = grouped.agg({"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"})
    coarse = frame_of(rows.index.to_numpy(), values_of(rows))
    return coarse[open_times_ms(coarse) + step <= reached]
