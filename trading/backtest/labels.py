"""How the figures of a backtest are called, written and explained, on its page and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from trading.backtest.words import UNDEFINED

Form = Literal["signed", "fine", "share", "ratio", "count", "money", "times"]


_FORMS: Final[Mapping[Form, str]] = {
    "signed": "+,.1%", "fine": "+,.2%", "share": ",.1%", "ratio": ",.2f", "count": ",.0f", "money": ",.2f",
    "times": ",.1f",
}  # fmt: skip


@dataclass(frozen=True)
class Label:
    """A figure of ``trading.backtest.metrics.summarise``: ``text`` as people call it, what it means, how it is written.

    ``compared``: whether buy-and-hold has it, too.
    """

    name: str
    text: str
    form: Form
    meaning: str = ""
    compared: bool = True

    def of(self, figures: Mapping[str, Any]) -> str:
        """The figure as text; a dash where it is not defined."""
        return said(figures.get(self.name), self.form)


def said(value: float | None, form: Form) -> str:
    """A number as text; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return UNDEFINED
    if math.isinf(value):
        return "unbounded"
    if form == "signed" and abs(value) >= 1e4:
        return f"{value:+.2e}"
    return f"{value:{_FORMS[form]}}{'x' if form == 'times' else ''}"


FIGURES: Final = (
    ("Return", (
        Label("total_return", "total return", "signed"),
        Label("annual_return", "annual return", "signed", "compounded"),
        Label("sharpe", "Sharpe ratio", "ratio", "mean over deviation of the returns, annual; risk-free rate 0"),
        Label("sortino", "Sortino ratio", "ratio", "mean over the deviation below zero, annual"),
        Label("calmar", "Calmar ratio", "ratio", "annual return over the deepest drawdown"),
        Label("psr", "Sharpe above 0", "share", "probability that the true Sharpe ratio is above 0"),
        Label("deflated_sharpe", "deflated Sharpe", "share", "probability that it is no luck of many trials", False),
        Label("alpha", "alpha", "signed", "annual return that the market's does not explain", False),
        Label("beta", "beta", "ratio", "slope of the returns on those of the market", False),
    )),
    ("Risk", (
        Label("max_drawdown", "deepest drawdown", "share", "largest fall from a peak"),
        Label("mean_drawdown", "mean drawdown", "share", "of the deepest points of all drawdowns"),
        Label("drawdown_bars", "longest, bars", "count", "most bars in a row below a peak"),
        Label("volatility", "volatility", "share", "deviation of the returns, annual"),
        Label("skew", "skew", "ratio", "of the returns per bar; below 0: large losses are larger than large gains"),
        Label("kurtosis", "kurtosis", "ratio", "of the returns per bar; 3 for a normal distribution, more: wilder"),
        Label("tail_ratio", "tail ratio", "ratio", "95th percentile of the returns over the 5th, in size"),
        Label("exposure", "time in the market", "share", "share of the bars with a position"),
        Label("turnover", "turnover a year", "times", "notional traded over the mean equity"),
    )),
    ("Trades", (
        Label("trades", "trades", "count"),
        Label("win_rate", "win rate", "share", "", False),
        Label("profit_factor", "profit factor", "ratio", "all profits over all losses", False),
        Label("payoff", "payoff", "ratio", "mean profit over mean loss", False),
        Label("expectancy", "expectancy", "money", "mean profit of a trade, in the quote currency", False),
        Label("mean_trade", "mean trade", "fine", "return on the notional of the entry", False),
        Label("best_trade", "best trade", "fine", "", False),
        Label("worst_trade", "worst trade", "fine", "", False),
        Label("best_five_share", "five best trades", "share", "of all profit; above 100%: the others lost", False),
        Label("sqn", "SQN", "ratio", "root of the count times mean over deviation of the profits (Tharp)", False),
        Label("mean_trade_bars", "mean length, bars", "ratio", "", False),
        Label("longest_trade_bars", "longest, bars", "count", "", False),
    )),
)  # fmt: skip
COSTS: Final = ("fees", "slippage", "funding", "borrow")
