"""What the charts of a backtest's page draw, small enough to stand in the page.

A long series is put together in groups of as many bars each: of a group its open, highest, lowest and last value
are kept, so that no extreme is ever hidden. Trades stay where they were, to the bar.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

import numpy as np
import pandas as pd

from trading.backtest.engine import BacktestResult

MOST_GROUPS: Final = 10_000
MOST_TRADES: Final = 5_000
DIGITS: Final = 6  # of the span of a series: finer than any screen


def chart_data(
    candles: pd.DataFrame,
    result: BacktestResult,
    hold: BacktestResult,
    *,
    groups: int = MOST_GROUPS,
    trades: int = MOST_TRADES,
) -> dict[str, Any]:
    """Everything the charts draw, ready for JSON.

    Bars are counted from 0; ``every`` of them (the last group may have fewer) make one entry of a list.

    Args:
        candles: the bars that were traded.
        hold: buy-and-hold over the same bars.
        groups, trades: how many there may be.

    Returns:
        bars, every; times (``runs_of``); price: open, high, low, close; equity and hold: low, high, last in percent
        of the start; fall and hold_fall: deepest drawdown of each group in percent, 0 or below; trades
        (``trade_columns``).
    """
    bars = len(candles)
    every = math.ceil(bars / groups)
    starts = np.arange(0, bars, every)
    ends = np.append(starts[1:], bars) - 1
    price = {
        "open": candles["open"].to_numpy()[starts],
        "high": np.maximum.reduceat(candles["high"].to_numpy(), starts),
        "low": np.minimum.reduceat(candles["low"].to_numpy(), starts),
        "close": candles["close"].to_numpy()[ends],
    }
    curves = {name: 100 * each.equity.to_numpy() / each.start_cash for name, each in (("own", result), ("hold", hold))}
    places = _places(price["low"].min(), price["high"].max())
    return {
        "bars": bars,
        "every": every,
        "times": runs_of(pd.DatetimeIndex(candles.index)),
        "price": {name: _short(values, places) for name, values in price.items()},
        "equity": _grouped(curves["own"], starts, ends),
        "hold": _grouped(curves["hold"], starts, ends),
        "fall": _short(np.minimum.reduceat(drawdowns(curves["own"]), starts), 3),
        "hold_fall": _short(np.minimum.reduceat(drawdowns(curves["hold"]), starts), 3),
        "trades": trade_columns(result, places + 1, trades),
    }


def runs_of(times: pd.DatetimeIndex) -> dict[str, Any]:
    """Times as runs of equal steps: ``start``, then pairs of how many bars follow and at which step, all in ms."""
    stamps = times.as_unit("ms").asi8
    steps = np.diff(stamps)
    changes = np.flatnonzero(np.diff(steps)) + 1
    firsts = np.concatenate([[0], changes]) if len(steps) else np.empty(0, dtype=np.int64)
    counts = np.diff(np.append(firsts, len(steps)))
    runs = np.column_stack([counts, steps[firsts]]) if len(steps) else np.empty((0, 2), dtype=np.int64)
    return {"start": int(stamps[0]), "runs": runs.astype(np.int64).ravel().tolist()}


def trade_columns(result: BacktestResult, places: int, most: int = MOST_TRADES) -> dict[str, Any]:
    """The trades by column, in the order of their entries: at most ``most``, those that moved most money.

    Columns: number (from 1, of all), side, entry and exit (bars; ``bars`` of the result while open), entered and
    left (prices), size, gain (over the notional of the entry, percent), pnl, fees, slippage, carry (funding and
    borrow), why_in and why_out (places in ``reasons``). ``all``: how many there are.
    """
    trades = result.trades
    kept = np.arange(len(trades))
    if len(trades) > most:
        kept = np.sort(np.argsort(-trades["pnl"].abs().to_numpy(), kind="stable")[:most])
    rows = trades.iloc[kept]
    reasons = sorted({*rows["entry_reason"], *rows["exit_reason"]})
    place = {reason: at for at, reason in enumerate(reasons)}
    notional = (rows["size"] * rows["entry_price"]).to_numpy()
    cents = _places(0.0, result.start_cash) if result.start_cash < 1000 else 2

    return {
        "all": len(trades),
        "reasons": reasons,
        "number": (kept + 1).tolist(),
        "side": rows["side"].astype(int).tolist(),
        "entry": rows["entry_bar"].tolist(),
        "exit": rows["exit_bar"].tolist(),
        "entered": _short(rows["entry_price"].to_numpy(), places),
        "left": _short(rows["exit_price"].to_numpy(), places),
        "size": [float(f"{size:.6g}") for size in rows["size"]],
        "gain": _short(100 * rows["pnl"].to_numpy() / notional, 3),
        "pnl": _short(rows["pnl"].to_numpy(), cents),
        "fees": _short(rows["fees"].to_numpy(), cents),
        "slippage": _short(rows["slippage"].to_numpy(), cents),
        "carry": _short((rows["funding"] + rows["borrow"]).to_numpy(), cents),
        "why_in": [place[reason] for reason in rows["entry_reason"]],
        "why_out": [place[reason] for reason in rows["exit_reason"]],
    }


def drawdowns(equity: np.ndarray) -> np.ndarray:
    """Fall from the highest value so far, the start of 100 included, in percent: 0 or below, (n,)."""
    return 100 * (equity / np.maximum(np.maximum.accumulate(equity), 100.0) - 1)


def as_json(document: Any) -> str:
    """Compact JSON that may stand in a script element of a page: nothing in it ends the element."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _grouped(curve: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> dict[str, list[float | None]]:
    low, high = np.minimum.reduceat(curve, starts), np.maximum.reduceat(curve, starts)
    places = _places(float(low.min()), float(high.max()))
    found = {"last": _short(curve[ends], places)}
    # where a group is one bar, the last value says it all
    if len(starts) < len(curve):
        found |= {"low": _short(low, places), "high": _short(high, places)}
    return found


def _places(lowest: float, highest: float) -> int:
    """Decimal places at which ``DIGITS`` digits of the span remain."""
    span = max(highest - lowest, abs(highest) * 1e-6)
    return max(0, DIGITS - 1 - math.floor(math.log10(span))) if span > 0 else DIGITS


def _short(values: np.ndarray, places: int) -> list[float | None]:
    """Rounded, without the zeros that JSON does not need; None where there is no number."""
    rounded = np.round(values, places) + 0.0  # no -0.0
    known = np.isfinite(rounded)
    whole = [int(value) if value.is_integer() else value for value in np.where(known, rounded, 0.0).tolist()]
    return whole if known.all() else [value if sure else None for value, sure in zip(whole, known, strict=True)]
