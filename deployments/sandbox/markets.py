"""The markets of the sandbox exchange: shipped history, generated series, and files of the user's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from deployments.sandbox.generator import RECIPES, generate
from tasks.files import read
from tasks.sources import SAMPLE, SIMULATED
from trading.calendars import ALWAYS_OPEN
from trading.candles import COLUMNS, frame_of, open_times_ms, resample
from trading.window import Timeframe

HISTORY_CALENDAR: Final = "XNYS"
GENERATED_START: Final = datetime(2016, 1, 1, tzinfo=UTC)
GENERATED_AHEAD: Final = timedelta(days=60)  # how far the clock can be moved on


@dataclass(frozen=True, eq=False)
class Market:
    """One series that the exchange serves.

    Attributes:
        opens: int64 ms UTC, increasing unless a file of the user's is not.
        values: float64 (n, 5), open, high, low, close, volume.
        original: what the market was before it was changed from outside; None where it was not.
        derived: made of a finer one.
        coarser: those that were made of this one.
    """

    symbol: str
    timeframe: Timeframe
    calendar: str
    data_mode: str
    quote: str
    opens: np.ndarray
    values: np.ndarray
    original: Market | None = None
    derived: bool = False
    coarser: dict[Timeframe, Market] = field(default_factory=dict)

    @cached_property
    def step(self) -> int:
        """Length of a bar in ms."""
        return int(self.timeframe.delta.total_seconds() * 1000)

    @cached_property
    def in_order(self) -> bool:
        """Whether no row opens before the one above it."""
        return bool((np.diff(self.opens) >= 0).all())


Markets = Mapping[tuple[str, Timeframe], Market]


def find(markets: Markets, symbol: str, timeframe: Timeframe) -> Market | None:
    """That market, or one made of the coarsest finer one that divides it; None where there is neither.

    A market of sessions is not made into others: its bars do not fill the grid.
    """
    if (symbol, timeframe) in markets:
        return markets[symbol, timeframe]
    finer = [
        market
        for (name, bar), market in markets.items()
        if name == symbol
        and market.calendar == ALWAYS_OPEN
        and bar.delta < timeframe.delta
        and not timeframe.delta % bar.delta
    ]
    if not finer:
        return None
    source = max(finer, key=lambda market: market.step)
    if timeframe not in source.coarser:
        source.coarser[timeframe] = _coarse(source, timeframe)
    return source.coarser[timeframe]


def shipped(seed: int, clock: datetime) -> dict[tuple[str, Timeframe], Market]:
    """S&P 500 and NASDAQ daily history (1999 to 2018), and three hourly markets generated from 2016 on.

    The generated ones reach ``GENERATED_AHEAD`` past ``clock``.
    """
    made = [_history("SP500"), _history("NASDAQ"), *_generated(seed, clock + GENERATED_AHEAD)]
    return {(market.symbol, market.timeframe): market for market in made}


def from_folder(folder: Path) -> dict[tuple[str, Timeframe], Market]:
    """Every ``<symbol>_<timeframe>.parquet`` or ``.csv`` of a folder, as sample data of a market without sessions."""
    found = {}
    for path in sorted(folder.iterdir()):
        symbol, _, timeframe = path.stem.rpartition("_")
        if path.suffix in {".parquet", ".csv"} and symbol and timeframe in set(Timeframe):
            rows = read(path)
            bar = Timeframe(timeframe)
            opens, values = rows["open_time"].to_numpy(), rows[list(COLUMNS)].to_numpy()
            found[symbol, bar] = Market(symbol, bar, ALWAYS_OPEN, SAMPLE, "USDT", opens, values)
    return found


def _coarse(source: Market, timeframe: Timeframe) -> Market:
    # a file of the user's may be out of order or have a bar twice: then the last one counts
    at = len(source.opens) - 1 - np.unique(source.opens[::-1], return_index=True)[1]
    fine = frame_of(source.opens[at], source.values[at])
    made = resample(fine, source.timeframe, timeframe)
    opens, values = open_times_ms(made), made[list(COLUMNS)].to_numpy()
    return replace(source, timeframe=timeframe, opens=opens, values=values, original=None, derived=True, coarser={})


def _history(symbol: str) -> Market:
    # real daily history that the arch package carries, taken from Yahoo Finance by its authors; importing the package
    # would take 90 MB and seconds
    spec = find_spec("arch")
    assert spec is not None and spec.origin is not None  # noqa: S101 - a dependency
    name = symbol.lower()
    table = pd.read_csv(Path(spec.origin).parent / "data" / name / f"{name}.csv.gz", index_col="Date", parse_dates=True)
    opens = pd.DatetimeIndex(table.index).as_unit("ms").asi8
    values = table[["Open", "High", "Low", "Close", "Volume"]].to_numpy(dtype="float64")
    return Market(symbol, Timeframe.D1, HISTORY_CALENDAR, SAMPLE, "USD", opens, values)


def _generated(seed: int, until: datetime) -> list[Market]:
    hours = max((until - GENERATED_START) // timedelta(hours=1), 1)
    opens = np.arange(hours, dtype="int64") * 3_600_000 + int(GENERATED_START.timestamp() * 1000)
    bars = generate(RECIPES, hours, seed)
    return [
        Market(recipe.symbol, Timeframe.H1, ALWAYS_OPEN, SIMULATED, "USDT", opens, bars[recipe.symbol])
        for recipe in RECIPES
    ]
