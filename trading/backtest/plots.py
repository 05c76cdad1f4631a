"""Pictures of backtests: equity and drawdown of several strategies on one series."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from trading.backtest.engine import BacktestResult

COLOURS: Final = ("#d1495b", "#00798c", "#edae49", "#66a182", "#8d6a9f", "#2e4057")
HOLD: Final = "buy_and_hold"
MOST_POINTS: Final = 4_000  # more than a screen has pixels


def equity_picture(results: Mapping[str, BacktestResult], title: str, path: Path, data_mode: str) -> Path:
    """Draw the equity of each strategy in percent of its start, and its drawdown, into a PNG file.

    Args:
        results: by name of the strategy, all over the same bars; ``buy_and_hold`` is drawn in grey.
        data_mode: written into the picture unless it is ``live``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 6.4), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    curves, falls = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    colours = dict(zip((name for name in results if name != HOLD), COLOURS, strict=False))
    # the named strategies lie above buy-and-hold
    for name in sorted(results, key=lambda name: name != HOLD):
        result = results[name]
        equity = result.equity.to_numpy() / result.start_cash
        every = max(1, len(equity) // MOST_POINTS)
        times = pd.DatetimeIndex(result.equity.index).tz_localize(None).to_numpy()[::every]
        look: dict[str, Any] = {"color": colours.get(name, "#9aa0a6"), "lw": 1.4 if name in colours else 1.8}
        curves.plot(times, 100 * equity[::every], label=_label(name, equity), **look)
        depth = 100 * (equity / np.maximum(np.maximum.accumulate(equity), 1.0) - 1)
        falls.plot(times, depth[::every], **(look | {"lw": 1.0}))
        if name == HOLD:
            falls.fill_between(times, depth[::every], 0, color="#9aa0a6", alpha=0.15, lw=0)
    curves.axhline(100, color="#333333", lw=0.7, ls=":")
    note = "" if data_mode == "live" else f"   ({data_mode} data)"
    curves.set_title(f"{title}{note}", loc="left", fontsize=13, fontweight="bold")
    curves.set_ylabel("equity, % of start")
    falls.set_ylabel("drawdown, %")
    falls.set_ylim(top=0)
    locator = AutoDateLocator()
    falls.xaxis.set_major_locator(locator)
    falls.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    curves.legend(loc="upper left", frameon=False, fontsize=9)
    for axis in (curves, falls):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.01)
    if data_mode != "live":
        curves.text(
            0.5, 0.5, f"{data_mode} data", transform=curves.transAxes, fontsize=44, color="#000000", alpha=0.05,
            ha="center", va="center", rotation=15,
        )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _label(name: str, equity: np.ndarray) -> str:
    return f"{name.replace('_', ' ')}  {100 * (equity[-1] - 1):+.1f} %"
