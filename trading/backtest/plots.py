"""Pictures of backtests: equity and drawdown, trades on the price, months, the neighbourhood of parameters.

Each is about 1,380 pixels wide and readable at 1,150. Equal input gives equal files.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from trading.backtest.engine import BacktestResult
from trading.backtest.periods import TOTAL, monthly
from trading.backtest.words import HOLD
from trading.pictures import write_png

COLOURS: Final = (
    "#d1495b", "#00798c", "#edae49", "#66a182", "#8d6a9f", "#2e4057", "#4f9dde", "#a0522d", "#e377c2", "#93a800",
)  # fmt: skip
# of those beyond the colours
DASHES: Final = ("-", "--", ":", "-.")
MOST_POINTS: Final = 4_000  # more than a screen has pixels
MOST_MARKED: Final = 400  # trades whose fills still can be told apart
_INK: Final = "#17202a"
_GREY: Final = "#9aa0a6"
_WIN: Final = "#00798c"
_LOSS: Final = "#d1495b"
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "year")


def equity_picture(results: Mapping[str, BacktestResult], title: str, path: Path, data_mode: str) -> Path:
    """Draw the equity of each strategy in percent of its start, and its drawdown, into a PNG file.

    Args:
        results: by name of the strategy, all over the same bars; ``buy_and_hold`` is drawn in grey.
        data_mode: written into the picture unless it is ``live``.
    """
    figure = _figure(6.4)
    curves, falls = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    named = itertools.product(DASHES, COLOURS)
    looks: dict[str, dict[str, Any]] = {
        name: {"color": colour, "ls": dash, "lw": 1.4}
        for name, (dash, colour) in zip((name for name in results if name != HOLD), itertools.cycle(named))
    }
    # the named strategies lie above buy-and-hold
    for name in sorted(results, key=lambda name: name != HOLD):
        result = results[name]
        equity = result.equity.to_numpy() / result.start_cash
        times = _times(result.equity.index)
        look = looks.get(name, {"color": _GREY, "lw": 1.8})
        kept = extremes(equity)
        curves.plot(times[kept], 100 * equity[kept], label=_label(name, equity), **look)
        depth = 100 * (equity / np.maximum(np.maximum.accumulate(equity), 1.0) - 1)
        kept = extremes(depth)
        falls.plot(times[kept], depth[kept], **(look | {"lw": 1.0}))
        if name == HOLD:
            falls.fill_between(times[kept], depth[kept], 0, color=_GREY, alpha=0.15, lw=0)
    curves.axhline(100, color="#333333", lw=0.7, ls=":")
    _head(curves, title, data_mode)
    curves.set_ylabel("equity, % of start")
    falls.set_ylabel("drawdown, %")
    falls.set_ylim(top=0)
    curves.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    for axis in (curves, falls):
        _plain(axis)
    _dates(falls)
    return write_png(figure, path)


def trades_picture(candles: pd.DataFrame, result: BacktestResult, title: str, path: Path, data_mode: str) -> Path:
    """Draw the trades of a result of one symbol on its price: from each entry to its exit, gains and losses apart.

    Args:
        candles: the bars that were traded.
        data_mode: written into the picture unless it is ``live``.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.dates import date2num

    figure = _figure(6.0)
    axis = figure.subplots()
    times, close = _times(candles.index), candles["close"].to_numpy()
    kept = extremes(close)
    axis.plot(times[kept], close[kept], color=_GREY, lw=0.9, zorder=1)
    trades = result.trades
    ends = np.minimum(trades["exit_bar"].to_numpy(), len(times) - 1)
    still_open = trades["exit_time"].isna().to_numpy()
    entered = np.column_stack([date2num(times[trades["entry_bar"]]), trades["entry_price"]])
    left = np.column_stack([date2num(times[ends]), np.where(still_open, close[-1], trades["exit_price"])])
    won = trades["pnl"].to_numpy() > 0
    colours = np.where(won, _WIN, _LOSS)
    few = len(trades) <= MOST_MARKED
    axis.add_collection(
        LineCollection(list(np.stack([entered, left], axis=1)), colors=list(colours), lw=1.6 if few else 1.0, zorder=2)
    )
    if few:
        long = trades["side"].to_numpy() > 0
        for chosen, marker in ((long, "^"), (~long, "v")):
            axis.scatter(*entered[chosen].T, marker=marker, s=26, color="#2e4057", zorder=3)
            closed = chosen & ~still_open
            axis.scatter(*left[closed].T, marker="o", s=15, facecolors="white", edgecolors=colours[closed], zorder=3)
    note = "triangle: entry, up for long; ring: exit" if few else "fills are not marked, there are too many"
    said = f"{won.sum():,} of {len(trades):,} trades with a profit (green), the others in red; {note}"
    axis.text(0.01, 0.985, said, transform=axis.transAxes, fontsize=9, color="#5d6975", va="top")
    axis.margins(y=0.08)
    axis.set_ylabel("price")
    _head(axis, title, data_mode)
    _plain(axis)
    _dates(axis)
    return write_png(figure, path)


def monthly_picture(result: BacktestResult, title: str, path: Path, data_mode: str) -> Path:
    """Draw the return of each month and year, in percent, as a coloured table.

    Args:
        data_mode: written into the picture unless it is ``live``.
    """
    table = monthly(result.equity, result.start_cash)
    months = 100 * table.drop(columns=TOTAL).to_numpy()
    figure = _figure(1.5 + 0.42 * len(table))
    axis = figure.subplots()
    years = 100 * table[TOTAL].to_numpy()
    # a year is no month: its cells have no colour
    _cells(axis, np.column_stack([months, np.full(len(table), np.nan)]), "+.1f")
    for row, value in enumerate(years):
        if np.isfinite(value):
            axis.text(12, row, f"{value:+.1f}", ha="center", va="center", fontsize=10, fontweight="bold", color=_INK)
    axis.set_xticks(range(13), _MONTHS)
    axis.set_yticks(range(len(table)), [str(year) for year in table.index])
    _head(axis, f"{title}: return by month, %", data_mode)
    return write_png(figure, path)


def neighbourhood_picture(
    sharpe: pd.DataFrame, chosen: tuple[object, object], title: str, path: Path, data_mode: str
) -> Path:
    """Draw the Sharpe ratio over two parameters as a coloured table, the chosen point framed.

    Args:
        sharpe: float64, one parameter down, one across (``trading.backtest.robustness.Neighbourhood.sharpe``).
        chosen: the values of both.
        data_mode: written into the picture unless it is ``live``.
    """
    from matplotlib.patches import Rectangle

    figure = _figure(1.7 + 0.42 * len(sharpe))
    axis = figure.subplots()
    _cells(axis, sharpe.to_numpy(dtype=np.float64), ".2f")
    down, across = list(sharpe.index), list(sharpe.columns)
    if chosen[0] in down and chosen[1] in across:
        corner = (across.index(chosen[1]) - 0.5, down.index(chosen[0]) - 0.5)
        axis.add_patch(Rectangle(corner, 1, 1, fill=False, lw=2.4, edgecolor=_INK, zorder=4))
    axis.set_xticks(range(len(across)), [f"{value:g}" for value in across])
    axis.set_yticks(range(len(down)), [f"{value:g}" for value in down])
    axis.set_xlabel(str(sharpe.columns.name or ""))
    axis.set_ylabel(str(sharpe.index.name or ""))
    _head(axis, f"{title}: Sharpe ratio (framed: chosen)", data_mode)
    return write_png(figure, path)


def extremes(values: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Which of the values (n,) to draw: the lowest and the highest of each of ``most / 2`` parts, and both ends.

    int64, increasing; all of them where there are no more than ``most``.
    """
    count = len(values)
    if count <= most:
        return np.arange(count)
    every = -(-count // (most // 2))
    parts = -(-count // every)
    padded = np.append(values, np.full(parts * every - count, values[-1])).reshape(parts, every)
    firsts = np.arange(parts) * every
    places = np.concatenate([firsts + padded.argmin(axis=1), firsts + padded.argmax(axis=1), [0, count - 1]])
    return np.unique(np.minimum(places, count - 1))


def _cells(axis: Any, values: np.ndarray, form: str) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    scale = max(float(np.nanmax(np.abs(values), initial=0.0)), 1e-9)
    colours = LinearSegmentedColormap.from_list("", ["#dd7f8b", "#ffffff", "#6fb3ad"])
    axis.imshow(values, cmap=colours, vmin=-scale, vmax=scale, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            axis.text(column, row, f"{value:{form}}", ha="center", va="center", fontsize=10, color=_INK)
    axis.set_xticks(np.arange(-0.5, values.shape[1]), minor=True)
    axis.set_yticks(np.arange(-0.5, values.shape[0]), minor=True)
    axis.grid(which="minor", color="white", lw=1.5)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)


def _figure(height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, height), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _head(axis: Any, title: str, data_mode: str) -> None:
    """The title, and what kind of data this is, so that no copy of the picture goes without it."""
    note = "" if data_mode == "live" else f"   ({data_mode} data)"
    axis.set_title(f"{title}{note}", loc="left", fontsize=13, fontweight="bold", color=_INK)
    if data_mode != "live":
        axis.text(
            0.5, 0.5, f"{data_mode} data", transform=axis.transAxes, fontsize=44, color="#000000", alpha=0.05,
            ha="center", va="center", rotation=15,
        )  # fmt: skip


def _plain(axis: Any) -> None:
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.01)


def _dates(axis: Any) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator()
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _times(index: pd.Index) -> np.ndarray:
    return pd.DatetimeIndex(index).tz_localize(None).to_numpy()


def _label(name: str, equity: np.ndarray) -> str:
    return f"{name.replace('_', ' ')}  {100 * (equity[-1] - 1):+.1f} %"
