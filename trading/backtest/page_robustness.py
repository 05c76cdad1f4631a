"""The part of a backtest's page that says what becomes of it where something is not as assumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from trading.backtest.labels import Form, said

if TYPE_CHECKING:
    from trading.backtest.robustness import Neighbourhood, Robustness, TradeOrder

BINS: Final = 40
_SHOWN: Final[tuple[tuple[str, str, Form], ...]] = (
    ("total_return", "return", "signed"),
    ("sharpe", "Sharpe", "ratio"),
    ("max_drawdown", "drawdown", "share"),
    ("trades", "trades", "count"),
)


def robustness_section(found: Robustness) -> dict[str, Any]:
    """What the template shows: sentences, tables, the heat map, the histogram of drawdowns."""
    tables = [
        _table("Higher costs", "all costs times", found.costs, [f"{factor:g}" for factor in found.costs.index], 1,
               "0: trading for nothing. Costs of 1 are those assumed."),
        _table("Later decisions", "bars late", found.delay, [f"{bars:g}" for bars in found.delay.index], 0,
               "Everything decided one bar later, as after an outage."),
        _table("Quarters of the time", "from", found.parts, [str(start)[:10] for start in found.parts["start"]], None,
               "Parts of equal length; a trade belongs to the part in which it began."),
        _regimes(found.regimes),
    ]  # fmt: skip
    return {
        "headline": f"What breaks it first: {found.verdict}." if found.breaks else sentence(found.verdict),
        "others": [sentence(text) for text in found.breaks[1:]],
        "tables": tables,
        "best": _best(found),
        "heat": _heat(found.neighbourhood) if found.neighbourhood is not None else None,
        "order": _order(found.order) if found.order is not None else None,
    }


def sentence(text: str) -> str:
    """With a capital at its beginning and a full stop at its end."""
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!')) else '.'}"


def _table(
    title: str, head: str, figures: pd.DataFrame, names: Sequence[str], marked: int | None, note: str
) -> dict[str, Any]:
    columns = [figures[name].tolist() for name, _, _ in _SHOWN]
    forms = [form for _, _, form in _SHOWN]
    rows = [
        [name, *(said(value, form) for value, form in zip(values, forms, strict=True))]
        for name, *values in zip(names, *columns, strict=True)
    ]
    return {"title": title, "columns": [head, *(text for _, text, _ in _SHOWN)], "rows": rows, "marked": marked,
            "note": note}  # fmt: skip


def _regimes(figures: pd.DataFrame) -> dict[str, Any]:
    forms: list[tuple[str, Form]] = [
        ("share", "share"), ("total_return", "signed"), ("sharpe", "ratio"), ("exposure", "share"),
    ]  # fmt: skip
    rows = [
        [f"{regime} {kind}", *(said(float(row[name]), form) for name, form in forms)]
        for (regime, kind), row in zip(figures.index, figures.to_dict("records"), strict=True)
        if row["bars"]
    ]
    return {
        "title": "Kinds of market",
        "columns": ["", "of time", "return", "Sharpe", "held"],
        "rows": rows,
        "marked": None,
        "note": "As known the bar before. Trend: the close above its mean of 200 bars; volatility: above its median.",
    }


def _best(found: Robustness) -> str:
    share = found.best_five_share
    if math.isnan(share):
        return "There was no profit of which the best trades could have a share."
    left = found.without_best_five
    rest = f"the others together {'made' if left >= 0 else 'lost'} {abs(left):,.2f}"
    return f"The five best trades made {share:.0%} of the profit; {rest}."


def _heat(found: Neighbourhood) -> dict[str, Any]:
    values = found.sharpe.to_numpy(dtype=np.float64)
    scale = max(float(np.nanmax(np.abs(values), initial=0.0)), 0.5)
    down, across = str(found.sharpe.index.name), str(found.sharpe.columns.name)
    rows = [
        (
            f"{name:g}",
            [
                _heat_cell(value, scale, [name, column] == [*found.chosen])
                for value, column in zip(line, found.sharpe.columns, strict=True)
            ],
        )
        for name, line in zip(found.sharpe.index, values, strict=True)
    ]
    share = f"{found.positive} of {found.neighbours} neighbours" if found.neighbours else "There are no neighbours that"
    return {
        "title": f"Sharpe ratio of the neighbours: {down} down, {across} across",
        "corner": "",
        "columns": [f"{column:g}" for column in found.sharpe.columns],
        "rows": rows,
        "note": f"Framed: the parameters chosen. {share} have a Sharpe ratio above 0. Empty: not allowed or no trade.",
    }


def _heat_cell(value: float, scale: float, chosen: bool) -> dict[str, Any]:
    if math.isnan(value):
        return {"text": "", "kind": "none", "depth": "", "chosen": chosen}
    depth = f"{0.06 + 0.6 * abs(value) / scale:.2f}"
    return {"text": f"{value:.2f}", "kind": "win" if value > 0 else "loss", "depth": depth, "chosen": chosen}


def _order(found: TradeOrder) -> dict[str, Any]:
    """A histogram in a box of 100 x 40, and the figures beside it in words."""
    depths = 100 * found.drawdowns
    low = min(float(depths.min()), 100 * found.drawdown)
    low, high = (low * 1.02, 0.0) if low < 0 else (-1.0, 0.0)
    counts, _ = np.histogram(depths, BINS, (low, high))
    heights = 36 * counts / max(int(counts.max()), 1)
    bars = [
        (f"{100 * at / BINS:.2f}", f"{38 - height:.2f}", f"{height:.2f}") for at, height in enumerate(heights) if height
    ]
    worse = float((found.drawdowns < found.drawdown).mean())
    worst, usual = np.quantile(found.drawdowns, [0.05, 0.5])
    return {
        "bars": bars,
        "width": f"{100 / BINS * 0.86:.2f}",
        "at": f"{100 * (100 * found.drawdown - low) / (high - low):.2f}",
        "low": f"{low:.0f}%",
        "note": (
            f"The same trades in {len(depths):,} other orders end with the same return. Their drawdown, by trade, is "
            f"{usual:.1%} in the middle and {worst:.1%} or deeper in one of twenty; as it was (the line) it is "
            f"{found.drawdown:.1%}, and {worse:.0%} of the orders were worse. At most {found.streak} trades in a row "
            f"lost; in one of twenty orders {np.quantile(found.streaks, 0.95):.0f} or more."
        ),
    }
