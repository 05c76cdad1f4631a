"""What is left of a backtest when something is not quite as assumed, and what breaks it first.

Higher costs, later fills, other parameters, another order of the trades, parts of the time, without its best trades.
The accounts are those of ``run``, the figures those of ``summarise``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Final

import numba
import numpy as np
import pandas as pd

from trading.backtest import kernel
from trading.backtest.engine import BacktestResult, run
from trading.backtest.lookahead import decisions_of
from trading.backtest.metrics import summarise
from trading.backtest.periods import regimes, sub_periods
from trading.backtest.rules import Decisions, Rules
from trading.backtest.sweep import named, sweep
from trading.errors import InvalidRequest
from trading.strategies import Parameters, Rule, Value
from trading.strategy_grids import neighbourhood, parameter_sets

FACTORS: Final = (0.0, 1.0, 2.0, 3.0)
SHUFFLES: Final = 1_000
MOST_VALUES: Final = 9
_BEST: Final = 5


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """The rule with other values of two of its parameters, all else as chosen.

    ``sharpe`` (annual) and ``total_return``: float64, the first parameter down, the second across, both rising; NaN
    for sets that the rule does not take, and in ``sharpe`` for sets that did not trade. ``chosen``: the values in the
    middle. ``neighbours``: other sets that the rule takes; ``positive``: those of them whose Sharpe ratio is above 0.
    """

    sharpe: pd.DataFrame
    total_return: pd.DataFrame
    chosen: tuple[Value, Value]
    neighbours: int
    positive: int

    @property
    def share(self) -> float:
        """Share of the neighbours with a Sharpe ratio above 0; NaN without neighbours."""
        return self.positive / self.neighbours if self.neighbours else math.nan


@dataclass(frozen=True, eq=False)
class TradeOrder:
    """The trades in another order, by chance: each return on the equity before its entry, compounded.

    The final return is the same in every order; what lies between is not. Drawdowns are those of the equity after
    each trade (negative fractions), so what happens within a trade is not in them; streaks are losing trades in a row.

    ``drawdowns`` float64 and ``streaks`` int64, (repeats,): of each shuffle. ``drawdown``, ``streak``: as it was.
    """

    drawdowns: np.ndarray
    streaks: np.ndarray
    drawdown: float
    streak: int

    @property
    def table(self) -> pd.DataFrame:
        """Index ``share`` (of the shuffles, 0.05 to 0.95) that were no better; columns drawdown and streak."""
        shares = [0.05, 0.25, 0.5, 0.75, 0.95]
        table = {
            "drawdown": np.quantile(self.drawdowns, shares),
            "streak": np.quantile(self.streaks, [1 - share for share in shares]),
        }
        return pd.DataFrame(table, index=pd.Index(shares, name="share"))


@dataclass(frozen=True, eq=False)
class Robustness:
    """What ``examine`` found. Figures are those of ``trading.backtest.metrics.summarise``.

    Attributes:
        costs: a column per figure, index ``factor``: all costs times 0 (trading is free), 1, 2 and 3. Funding is none
            of them and stays; the edge that ``Limits.min_edge`` asks for grows with them.
        delay: a column per figure, index ``bars``: decided as it was (0), and everything decided one bar later (1).
        neighbourhood: other parameters; None for decisions that come without a rule.
        order: other orders of the trades; None without trades.
        parts: ``periods.sub_periods``, quarters of the time.
        regimes: ``periods.regimes``.
        best_five_share: of the whole profit, from the best five trades; NaN without a profit.
        without_best_five: profit of the other trades, in money.
        breaks: what breaks it, one sentence each, what takes least to happen first.
    """

    costs: pd.DataFrame
    delay: pd.DataFrame
    neighbourhood: Neighbourhood | None
    order: TradeOrder | None
    parts: pd.DataFrame
    regimes: pd.DataFrame
    best_five_share: float
    without_best_five: float
    breaks: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """What breaks first; or, where nothing did, what it withstood."""
        if self.breaks:
            return self.breaks[0]
        most, late = self.costs["total_return"].loc[3], self.delay["total_return"].loc[1]
        return f"nothing tried here breaks it: {most:+.1%} at three times the costs, {late:+.1%} one bar late"


def examine(
    candles: pd.DataFrame,
    rule: Rule,
    parameters: Mapping[str, Value],
    rules: Rules,
    bars_per_year: float,
    *,
    seed: int,
    heat: Mapping[str, Sequence[Value]] | None = None,
    threads: int | None = None,
    funding: np.ndarray | None = None,
) -> Robustness:
    """How robust a rule with these parameters is. The same seed gives the same answer.

    Args:
        parameters: those chosen; what lacks has its default.
        heat: two parameters and the values for their heat map; the chosen ones are added. None: ``Rule.heat`` with
            the values that the rule declares. Of each, the nine in order around the chosen one are taken.
        threads: for the heat map; None: as many as there are processors.
        funding: rate per bar that a long pays at its open, float64 (n,); None: none.

    Raises:
        CandleContractError: the candles break their contract.
        InvalidRequest: parameters that the rule does not take, or costs of which three times as much makes no sense.
        StrategyFailed: the rule raised, or gave decisions that make no sense.
    """
    full = rule.checked(parameters)
    around = _around(candles, rule, full, heat, rules, bars_per_year, threads, funding)
    name = named(rule, full)
    decided = decisions_of(name, partial(rule.decide, **full), candles)
    return _examined(candles, decided, rules, bars_per_year, seed, funding, name, around)


def examine_decisions(
    candles: pd.DataFrame,
    decisions: np.ndarray | Decisions,
    rules: Rules,
    bars_per_year: float,
    *,
    seed: int,
    funding: np.ndarray | None = None,
    strategy: str = "strategy",
) -> Robustness:
    """The same of decisions that come without a rule, such as a model's; there is no neighbourhood of them.

    Arguments and errors as ``run`` and ``examine``.
    """
    whole = decisions if isinstance(decisions, Decisions) else Decisions(np.asarray(decisions, dtype=np.float64))
    return _examined(candles, whole, rules, bars_per_year, seed, funding, strategy, None)


def later(decisions: Decisions, bars: int = 1) -> Decisions:
    """Everything decided that many bars later; nothing is wanted before."""
    moved = {}
    for entry in fields(Decisions):
        values = np.asarray(getattr(decisions, entry.name), dtype=np.float64)
        moved[entry.name] = np.roll(values, bars)
        moved[entry.name][:bars] = 0.0 if entry.name == "targets" else math.nan
    return Decisions(**moved)


def order_of_trades(result: BacktestResult, *, seed: int, repeats: int = SHUFFLES) -> TradeOrder:
    """The trades of a result of one symbol in ``repeats`` other orders.

    Raises:
        InvalidRequest: no trades, several symbols, or no repeats.
    """
    if len(result.symbols) != 1 or not len(result.trade_rows) or repeats < 1:
        raise InvalidRequest(
            f"{result.strategy}: {len(result.trade_rows)} trades of {len(result.symbols)} symbols cannot be put in "
            f"{repeats} other orders; one trade of one symbol and one repeat at least"
        )
    pnl = result.trade_rows[:, kernel.T_PNL]
    before = result.start_cash + np.append(0.0, np.cumsum(pnl)[:-1])
    # more than everything is not lost, the broker bears it
    gains = np.maximum(pnl / before, -1.0)
    drawdown, streak = _walked(gains)
    drawdowns, streaks = _shuffled(gains, repeats, np.random.default_rng(seed))
    return TradeOrder(drawdowns, streaks, float(drawdown), int(streak))


def _examined(
    candles: pd.DataFrame,
    decisions: Decisions,
    rules: Rules,
    bars_per_year: float,
    seed: int,
    funding: np.ndarray | None,
    strategy: str,
    around: Neighbourhood | None,
) -> Robustness:
    def traded(rules: Rules, decisions: Decisions = decisions) -> BacktestResult:
        return run(candles, decisions, rules, funding=funding, bars_per_year=bars_per_year, strategy=strategy)

    result = traded(rules)
    by_factor = {
        factor: result if factor == 1 else traded(replace(rules, costs=rules.costs.times(factor))) for factor in FACTORS
    }
    costs = {factor: summarise(one, bars_per_year) for factor, one in by_factor.items()}
    late = summarise(traded(rules, later(decisions)), bars_per_year)
    pnl = np.sort(result.trade_rows[:, kernel.T_PNL])
    found = Robustness(
        costs=pd.DataFrame.from_dict(costs, orient="index").rename_axis("factor"),
        delay=pd.DataFrame.from_dict({0: costs[1.0], 1: late}, orient="index").rename_axis("bars"),
        neighbourhood=around,
        order=order_of_trades(result, seed=seed) if len(pnl) else None,
        parts=sub_periods(result, bars_per_year),
        regimes=regimes(result, candles["close"].to_numpy(), bars_per_year),
        best_five_share=float(costs[1.0]["best_five_share"]),
        without_best_five=float(pnl[:-_BEST].sum()),
        breaks=(),
    )
    return replace(found, breaks=_breaks(found))


def _breaks(found: Robustness) -> tuple[str, ...]:
    """In the order of how little it takes: it is so already, it will be, it may be."""
    total, trades = found.costs["total_return"], int(found.costs["trades"].loc[1])
    if not trades:
        return ("it never traded",)
    own, free = total.loc[1], total.loc[0]
    if not own > 0:
        eaten = f", though free of costs it would earn {free:+.1%}" if free > 0 else ", even free of costs"
        return (f"it loses money as it is ({own:+.1%}){eaten}",)
    breaks = []
    late = found.delay["total_return"].loc[1]
    if not late > 0:
        breaks.append(f"it loses money when everything is decided one bar later ({late:+.1%} instead of {own:+.1%})")
    if not total.loc[2] > 0:
        breaks.append(f"it loses money at twice the costs ({total.loc[2]:+.1%} instead of {own:+.1%})")
    around = found.neighbourhood
    if around is not None and around.share < 0.5:
        breaks.append(
            f"only {around.positive} of {around.neighbours} neighbouring parameter sets have a Sharpe ratio above 0"
        )
    if trades <= _BEST:
        breaks.append(f"its whole profit comes from {trades} trade{'s' if trades > 1 else ''}")
    elif not found.without_best_five > 0:
        breaks.append(f"without its best five trades of {trades} it loses money ({found.without_best_five:,.2f})")
    losing = int((found.parts["total_return"] < 0).sum())
    if 2 * losing >= len(found.parts):
        breaks.append(f"it loses money in {losing} of {len(found.parts)} parts of the time")
    if total.loc[2] > 0 and not total.loc[3] > 0:
        breaks.append(f"it loses money at three times the costs ({total.loc[3]:+.1%} instead of {own:+.1%})")
    return tuple(breaks)


def _around(
    candles: pd.DataFrame,
    rule: Rule,
    full: Parameters,
    heat: Mapping[str, Sequence[Value]] | None,
    rules: Rules,
    bars_per_year: float,
    threads: int | None,
    funding: np.ndarray | None,
) -> Neighbourhood:
    if heat is None:
        declared = neighbourhood(rule, full)
        heat = {name: declared[name] for name in rule.heat}
    if len(heat) != 2 or any(name not in full for name in heat):
        raise InvalidRequest(f"a heat map of {rule.name} needs two of {', '.join(full)}; it was asked for {list(heat)}")
    grid = {name: _nearest(values, full[name]) for name, values in heat.items()}
    one, other = grid
    sets = parameter_sets(rule, {name: [value] for name, value in full.items()} | grid)
    figures = sweep(candles, rule, sets, rules, bars_per_year, threads=threads, funding=funding)
    sharpe, total = (
        figures.pivot(index=one, columns=other, values=figure).reindex(index=grid[one], columns=grid[other])
        for figure in ("sharpe", "total_return")
    )
    others = figures[(figures[one] != full[one]) | (figures[other] != full[other])]
    return Neighbourhood(sharpe, total, (full[one], full[other]), len(others), int((others["sharpe"] > 0).sum()))


def _nearest(values: Sequence[Value], chosen: Value) -> list[Value]:
    """The chosen value among its nearest in order, rising."""
    ordered = sorted({*values, chosen})
    first = max(0, min(ordered.index(chosen) - MOST_VALUES // 2, len(ordered) - MOST_VALUES))
    return ordered[first : first + MOST_VALUES]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _walked(gains: np.ndarray) -> tuple[float, int]:
    """Deepest fall from a peak and longest losing streak of returns (t,), compounded in this order."""
    worth = peak = 1.0
    deepest = 0.0
    streak = longest = 0
    for gain in gains:
        worth *= 1.0 + gain
        if worth > peak:
            peak = worth
        else:
            deepest = min(deepest, worth / peak - 1.0)
        streak = streak + 1 if gain < 0.0 else 0
        longest = max(longest, streak)
    return deepest, longest


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _shuffled(gains: np.ndarray, repeats: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The same of ``repeats`` random orders (Durstenfeld 1964, CACM algorithm 235)."""
    order = gains.copy()
    drawdowns, streaks = np.empty(repeats), np.empty(repeats, dtype=np.int64)
    for repeat in range(repeats):
        for at in range(len(order) - 1, 0, -1):
            other = int(rng.random() * (at + 1))
            order[at], order[other] = order[other], order[at]
        drawdowns[repeat], streaks[repeat] = _walked(order)
    return drawdowns, streaks
