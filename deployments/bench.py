"""``make bench``: how fast the parts are, each beside a peer measured in the same run.

Figures are the best of several repeats, in milliseconds; the ratio is the peer's time over ours. Peers
come from the dev dependencies. Inputs are generated with a fixed seed.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

from rich.console import Console

from deployments import bench_analyse, bench_backtest, bench_data, bench_features, bench_llm, bench_models, show
from deployments.bench_figures import Figure, best, market


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


def main() -> None:
    """Measure everything and print the table."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="tradeflows-bench-") as temporary:
        folder = Path(temporary)
        figures = [
            *bench_data.backfills(folder),
            *bench_data.validation(),
            *bench_data.reading(folder),
            *bench_features.features_figures(),
            *bench_models.models_figures(),
            *bench_analyse.analyse_figures(),
            *bench_llm.llm_figures(),
            *bench_backtest.backtest_figures(),
            indicators(),
        ]
    printed(figures)


def printed(figures: list[Figure]) -> None:
    """The table, and under it what there is to say."""
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
    console = Console(width=130)
    console.print(show.table("Benchmarks", columns, rows, right=("ours, ms", "peer, ms", "ratio")))
    for figure in figures:
        if figure.note:
            console.print(f"  {figure.what}: {figure.note}", style="dim", highlight=False)


if __name__ == "__main__":
    main()
