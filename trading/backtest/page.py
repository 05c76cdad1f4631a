"""A backtest as one HTML page that stands alone: it loads nothing, and opens from a disk, a mail or an artifact.

The page is made of what is given and of nothing else: the same input gives the same page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from trading.backtest import words
from trading.backtest.bootstrap import Intervals
from trading.backtest.charts import MOST_TRADES, as_json, chart_data
from trading.backtest.engine import BacktestResult
from trading.backtest.labels import COSTS, FIGURES, Form, Label, said
from trading.backtest.page_robustness import robustness_section, sentence
from trading.backtest.periods import TOTAL, monthly
from trading.errors import InvalidRequest

if TYPE_CHECKING:
    from trading.backtest.robustness import Robustness

MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
MODES: Final = {
    "sample": "Sample data: real history from a file. It is not the market of today.",
    "simulated": "Simulated data: these candles were generated. Nothing here is about a real market.",
}


@dataclass(frozen=True, eq=False)
class Page:
    """What a page shows of one strategy on one symbol.

    Attributes:
        sentence: what the strategy does, in one sentence.
        parameters: by name; none for a strategy without.
        candles: the bars that were traded, those of ``result`` and of ``hold`` (buy-and-hold, same cash and costs).
        figures, hold_figures: ``trading.backtest.metrics.summarise`` of both.
        intervals: of the figures, by bootstrap.
        robust: what becomes of the figures where the assumptions change.
        overfitting: of everything that was tried (``ml.overfitting.Overfitting`` as a mapping): trials,
            deflated_sharpe, pbo, spa, reasons.
        origin: what leads back to data and code, by name: dataset digest, code version, request key.
        links: addresses by name: MLflow run, flow run. Only http and https become links.
        notes: what else a reader must know, below the verdict.
    """

    symbol: str
    timeframe: str
    strategy: str
    sentence: str
    data_mode: str
    candles: pd.DataFrame
    result: BacktestResult
    hold: BacktestResult
    figures: Mapping[str, Any]
    hold_figures: Mapping[str, Any]
    parameters: Mapping[str, object] = field(default_factory=dict)
    intervals: Intervals | None = None
    robust: Robustness | None = None
    overfitting: Mapping[str, Any] | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def render(page: Page) -> str:
    """The page as HTML.

    Raises:
        InvalidRequest: candles, result and buy-and-hold are not of the same bars, or the result is of several symbols.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    _check(page)
    data = chart_data(page.candles, page.result, page.hold) | {"mode": page.data_mode}
    given = ", ".join(f"{name}={_said(value)}" for name, value in page.parameters.items())
    loader = PackageLoader("trading.backtest", "")
    templates = Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=StrictUndefined)
    return templates.get_template("page.html.j2").render(
        page=page,
        title=f"{page.strategy}({given})" if given else page.strategy.replace("_", " "),
        banner=_banner(page.data_mode),
        span=_span(page),
        verdict=words.of_hold(page.figures)
        if page.strategy == words.HOLD
        else words.verdict(page.figures, page.hold_figures, page.overfitting),
        tiles=_tiles(page),
        every=data["every"],
        hidden=f"Of the trades, the {MOST_TRADES:,} that moved the most money are drawn."
        if data["trades"]["all"] > MOST_TRADES
        else "",
        months=_months(page),
        figures=[_figures(title, names, page) for title, names in FIGURES],
        interval_note=_interval_note(page.intervals),
        costs=_costs(page),
        robust=robustness_section(page.robust) if page.robust is not None else None,
        luck=_luck(page.overfitting),
        assumptions=words.assumptions(page.result.rules, page.result.costs),
        origin=list(page.origin.items()),
        links=[(name, text, text.startswith(("https://", "http://"))) for name, text in page.links.items()],
        data=Markup(as_json(data)),  # noqa: S704 - as_json leaves nothing that ends the element
    )


def _check(page: Page) -> None:
    bars = page.candles.index
    for name, each in (("the result", page.result), ("buy-and-hold", page.hold)):
        if not bars.equals(each.equity.index):
            raise InvalidRequest(
                f"{page.strategy} on {page.symbol}: {name} has {len(each.equity)} bars and there are {len(bars)} "
                "candles; give those that were traded"
            )
    if len(page.result.symbols) != 1:
        raise InvalidRequest(f"{page.strategy} trades {len(page.result.symbols)} symbols; a page is about one")


def _banner(data_mode: str) -> dict[str, str] | None:
    if data_mode == "live":
        return None
    text = MODES.get(data_mode, f"Data of kind {data_mode!r}: not live.")
    return {"kind": data_mode if data_mode in MODES else "other", "text": text}


def _span(page: Page) -> str:
    first, last = page.candles.index[0], page.candles.index[-1]
    days = (last - first).days
    return f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC, {len(page.candles):,} bars, {days:,} days"


def _tiles(page: Page) -> list[dict[str, str]]:
    found, hold = page.figures, page.hold_figures
    error = words.known(found, "sharpe_error")
    made, held = found["total_return"], hold["total_return"]
    return [
        {"name": "return after costs", "value": said(made, "signed"), "kind": "win" if made > 0 else "loss",
         "note": f"{said(words.known(found, 'annual_return'), 'signed')} a year"},
        {"name": "buy and hold", "value": said(held, "signed"), "kind": "",
         "note": f"{abs(100 * (made - held)):,.1f} points {'less' if made >= held else 'more'}"},
        {"name": "Sharpe ratio", "kind": "",
         "value": f"{said(found['sharpe'], 'ratio')}{f' ± {error:.2f}' if error is not None else ''}",
         "note": f"hold {said(hold['sharpe'], 'ratio')}"},
        {"name": "deepest drawdown", "value": said(found["max_drawdown"], "share"), "kind": "",
         "note": f"hold {said(hold['max_drawdown'], 'share')}"},
        {"name": "trades", "value": f"{found['trades']:,}", "kind": "",
         "note": f"{said(found['win_rate'], 'share')} won, {found['exposure']:.0%} of bars"},
        {"name": "costs", "value": said(found["cost_of_start"], "share"), "kind": "", "note": "of the starting cash"},
    ]  # fmt: skip


def _months(page: Page) -> dict[str, Any]:
    own = monthly(page.result.equity, page.result.start_cash)
    held = monthly(page.hold.equity, page.hold.start_cash)[TOTAL]
    values = own.drop(columns=TOTAL).to_numpy()
    scale = max(float(np.nanmax(np.abs(values))), 0.01)
    rows = [
        (year, [*(_cell(value, scale) for value in months), _cell(total, 0.0), _cell(other, 0.0) | {"kind": "plain"}])
        for year, months, total, other in zip(own.index, values, own[TOTAL], held, strict=True)
    ]
    return {"corner": "", "columns": [*MONTHS, "year", "hold"], "rows": rows}


def _cell(value: float, scale: float) -> dict[str, Any]:
    """A cell of a heat table; deeper coloured the nearer ``value`` is to ``scale`` (0: not coloured)."""
    if np.isnan(value):
        return {"text": "", "kind": "none", "depth": "", "chosen": False}
    depth = f"{0.06 + 0.6 * min(abs(value) / scale, 1):.2f}" if scale and value else ""
    return {"text": f"{100 * value:+.1f}", "kind": "win" if value > 0 else "loss", "depth": depth, "chosen": False}


def _figures(title: str, labels: Sequence[Label], page: Page) -> dict[str, Any]:
    ranges = _ranges(page)
    rows = [
        {
            "name": label.text,
            "meaning": label.meaning,
            "value": label.of(page.figures),
            "range": ranges.get(label.name, ""),
            "hold": label.of(page.hold_figures) if label.compared else "",
        }
        for label in labels
        if label.name != "deflated_sharpe" or words.known(page.figures, label.name) is not None
    ]
    return {"title": title, "rows": rows}


def _ranges(page: Page) -> dict[str, str]:
    found = page.intervals
    error = words.known(page.figures, "sharpe_error")
    if found is None:
        return {"sharpe": f"± {error:.2f}"} if error is not None else {}
    ends: dict[str, tuple[tuple[float, float], Form]] = {
        "total_return": (found.total_return, "signed"),
        "sharpe": (found.sharpe, "ratio"),
        "max_drawdown": (found.max_drawdown, "share"),
    }
    return {name: f"{said(low, form)} to {said(high, form)}" for name, ((low, high), form) in ends.items()}


def _interval_note(found: Intervals | None) -> str:
    if found is None:
        return ""
    return (
        f"Small print below a figure: its {found.level:.0%} interval over {found.repeats:,} resamples of the returns "
        f"in blocks of {found.block:,.0f} bars on average (stationary bootstrap)."
    )


def _costs(page: Page) -> list[dict[str, str]]:
    paid = page.result.costs
    rows = [(kind, paid[kind]) for kind in COSTS] + [("together", sum(paid[kind] for kind in COSTS))]
    return [
        {"name": name, "paid": said(value, "money"), "share": said(value / page.result.start_cash, "share")}
        for name, value in rows
    ]


def _luck(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if found is None or int(found.get("trials") or 0) < 2:
        return None
    rows = [
        ("tried in all", said(found["trials"], "count")),
        ("deflated Sharpe ratio", said(words.known(found, "deflated_sharpe"), "share")),
        ("probability of overfitting (PBO)", said(words.known(found, "pbo"), "share")),
        ("superior ability (SPA), p-value", said(words.known(found, "spa"), "ratio")),
    ]
    return {"rows": rows, "reasons": [sentence(reason) for reason in found.get("reasons", ())]}


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
