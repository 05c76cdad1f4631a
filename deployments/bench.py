"""``make bench``: how fast the parts are, each beside a peer measured in the same run.

Figures are the best of several repeats, in milliseconds; the ratio is the peer's time over ours. Peers
come from the dev dependencies. Inputs are generated with a fixed seed.
"""

from __future__ import annotations

import io
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from deployments import show
from deployments.sandbox.generator import RECIPES, generate
from deployments.sandbox.markets import GENERATED_START
from trading.candles import COLUMNS, frame_of
from trading.window import Timeframe, Window


@dataclass(frozen=True)
class Figure:
    """One measured thing: ours and a peer's best time in milliseconds."""

    what: str
    ours: float
    peer: str
    theirs: float


def best(work: Callable[[], object], repeats: int) -> float:
    """The shortest of several runs, in milliseconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def market(bars: int, step_ms: int) -> pd.DataFrame:
    """A generated candle frame of ``bars`` bars."""
    opens = int(GENERATED_START.timestamp() * 1000) + step_ms * np.arange(bars, dtype="int64")
    return frame_of(opens, generate(RECIPES[:1], bars, 7)["BTCSIM"])


def backtests() -> Figure:
    """SMA 20/50, long and flat, 100,000 bars, fees: the engine with its figures, against backtesting.py."""
    from backtesting import Backtest, Strategy

    from trading.backtest.engine import Costs, run
    from trading.backtest.metrics import summarise
    from trading.indicators import sma
    from trading.strategies import sma_cross

    candles = market(100_000, 3_600_000)
    costs = Costs(0.001, 0.0)

    def ours() -> object:
        return summarise(run(candles, sma_cross(candles), costs, cash=1e9), 8766.0)

    class Cross(Strategy):  # type: ignore[misc]
        def init(self) -> None:
            close = np.asarray(self.data.Close, dtype="float64")
            self.fast, self.slow = (self.I(lambda period=period: sma(close, period)) for period in (20, 50))

        def next(self) -> None:
            if self.fast[-1] > self.slow[-1] and self.fast[-2] <= self.slow[-2]:
                self.buy()
            elif self.fast[-1] < self.slow[-1] and self.position:
                self.position.close()

    table = candles.rename(columns=str.title).tz_localize(None)

    def theirs() -> object:
        return Backtest(table, Cross, cash=1e9, commission=0.001, finalize_trades=True).run()

    ours()  # compiles
    return Figure("backtest of 100,000 bars, figures included", best(ours, 5), "backtesting.py", best(theirs, 1))


def indicators() -> Figure:
    """RSI, ATR, ADX, CCI and Bollinger of 100,000 bars, against ``ta``."""
    from ta.momentum import RSIIndicator
    from ta.trend import ADXIndicator, CCIIndicator
    from ta.volatility import AverageTrueRange, BollingerBands

    from trading import indicators as own

    candles = market(100_000, 3_600_000)
    high, low, close = (candles[name].to_numpy() for name in ("high", "low", "close"))
    columns = candles["high"], candles["low"], candles["close"]

    def ours() -> object:
        return (
            own.rsi(close), own.atr(high, low, close), own.adx(high, low, close), own.cci(high, low, close),
            own.bollinger(close),
        )  # fmt: skip

    def theirs() -> object:
        return (
            RSIIndicator(columns[2]).rsi(),
            AverageTrueRange(*columns).average_true_range(),
            ADXIndicator(*columns).adx(),
            CCIIndicator(*columns).cci(),
            BollingerBands(columns[2]).bollinger_hband(),
        )

    return Figure("five indicators of 100,000 bars", best(ours, 5), "ta", best(theirs, 1))


def reading(folder: Path) -> list[Figure]:
    """A million one-minute candles: read all of them, against one Parquet file; append one, against rewriting it."""
    from tasks.store import open_store, read_candles, write_candles

    candles = market(1_000_000, 60_000)
    start = GENERATED_START
    end = start + timedelta(minutes=len(candles))
    window = Window("BTCSIM", Timeframe.M1, start, end)
    one_more = window.within(end, end + timedelta(minutes=1))
    path = folder / "candles.parquet"
    candles.reset_index().to_parquet(path)
    with open_store(folder) as store:
        write_candles(store, window, candles, "simulated")
        # as the store does: open times, contract, index
        read = best(lambda: read_candles(store, window), 3)
        parquet = best(lambda: pd.read_parquet(path).set_index("open_time"), 3)
        values = candles.iloc[-1:].to_numpy()
        prices = iter(np.linspace(1.0, 1.001, 20))

        def append() -> object:
            # another value each time, so that each is a real write
            row = frame_of([int(end.timestamp() * 1000)], values * next(prices))
            return write_candles(store, one_more, row, "simulated")

        appended = best(append, 10)
        rewritten = best(lambda: candles.reset_index()[["open_time", *COLUMNS]].to_parquet(io.BytesIO()), 1)
    return [
        Figure("read 1,000,000 candles of one series", read, "pandas.read_parquet", parquet),
        Figure("append one candle to that series", appended, "rewrite the Parquet file", rewritten),
    ]


def _ratio(figure: Figure) -> str:
    return f"{figure.theirs / figure.ours:,.1f}x"


def main() -> None:
    """Measure everything and print the table."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="tradeflows-bench-") as folder:
        figures = [backtests(), indicators(), *reading(Path(folder))]
    rows = [
        [
            figure.what,
            f"{figure.ours:,.1f}",
            figure.peer,
            f"{figure.theirs:,.1f}",
            f"{figure.theirs / figure.ours:,.1f}x",
        ]
        for figure in figures
    ]
    columns = ("what", "ours, ms", "peer", "peer, ms", "ratio")
    Console(width=120).print(show.table("Benchmarks", columns, rows, right=("ours, ms", "peer, ms", "ratio")))


if __name__ == "__main__":
    main()
