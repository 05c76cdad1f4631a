"""Walk-forward: what was best, or was trained, on the past is traded on the bars that follow, fold by fold.

The folds trade as one account: a position is carried from one into the next, and ends there where the new decisions
say so. What is chosen for a fold is known at the close of the last bar it was chosen on; its first decision is that
of the next bar, filled at the open after that. A decision may look at all bars up to its own, however long ago.
(Pardo 2008, The Evaluation and Optimization of Trading Strategies, chapter 11.)

Predictions of a model that are out of sample already (``ml.training.walk_forward``) need nothing of this: hold
their signals (``trading.positions.hold``) and hand them to ``run``, as ``ml.economics.trade`` does. Where a model is
fitted between the folds, ``retrain`` fits it on the candles it is handed and returns what the model decides; no label
reaches beyond them, for there is nothing beyond.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise
from typing import Final, Protocol

import numpy as np
import pandas as pd

from trading.backtest import inputs
from trading.backtest.engine import BacktestResult, run
from trading.backtest.lookahead import decisions_of
from trading.backtest.metrics import summarise
from trading.backtest.periods import part
from trading.backtest.rules import Decisions, Rules
from trading.backtest.sweep import after, sweep
from trading.errors import InsufficientHistory, InvalidRequest
from trading.strategies import Parameters, Rule, Strategy, Value

# figures of which more is better
GOALS: Final = (
    "sharpe", "total_return", "annual_return", "sortino", "calmar", "psr", "max_drawdown", "profit_factor", "payoff",
    "win_rate", "expectancy", "sqn",
)  # fmt: skip


@dataclass(frozen=True)
class Span:
    """One fold, in bars: trained on ``[begin, first)``, traded on ``[first, last)``."""

    number: int
    begin: int
    first: int
    last: int


class Retrain(Protocol):
    """The candles up to the end of a fold's training, and the fold, to what decides in it."""

    def __call__(self, history: pd.DataFrame, span: Span, /) -> Strategy: ...


@dataclass(frozen=True, eq=False)
class WalkForward:
    """What trading out of sample did.

    Attributes:
        result: of the one account of all folds, from the first bar that is out of sample on.
        folds: index ``fold`` from 1 on; columns train_start, test_start (open times of their first bars), test_end
            (of its last), in_sample and out_of_sample (annual Sharpe ratio on the bars trained on and traded on),
            efficiency (the second over the first, NaN where the first is not above 0), and of what was traded
            total_return, max_drawdown, trades (those begun in the fold).
        choices: the parameters chosen for each fold; None: no set traded in its training, so none does after it.
            Empty where nothing was chosen, but trained.
        efficiency: Sharpe ratio of ``result`` over the mean of those in sample that are defined; NaN where that is
            not above 0.
    """

    result: BacktestResult
    folds: pd.DataFrame
    efficiency: float
    choices: tuple[Parameters | None, ...] = ()


def spans(bars: int, folds: int = 4, *, first_train: float = 0.4, rolling: bool = False) -> list[Span]:
    """Folds over ``bars`` bars: the last ``1 - first_train`` of them in ``folds`` parts of about as many bars each.

    Args:
        rolling: each is trained on as many bars as the first; else on all before it.

    Raises:
        InvalidRequest: an argument out of range.
        InsufficientHistory: a fold without bars to train or to trade on.
    """
    if folds < 1 or not 0 < first_train < 1:
        raise InvalidRequest(f"folds={folds} must be at least 1 and first_train={first_train} between 0 and 1")
    train = int(bars * first_train)
    cuts = [train + (bars - train) * fold // folds for fold in range(folds + 1)]
    if train < 1 or any(first >= last for first, last in pairwise(cuts)):
        raise InsufficientHistory(
            f"{bars} bars do not suffice for {folds} folds after a first training part of {first_train:.0%}"
        )
    return [
        Span(number, first - train if rolling else 0, first, last)
        for number, (first, last) in enumerate(pairwise(cuts), 1)
    ]


def walk_forward(
    candles: pd.DataFrame,
    retrain: Retrain,
    folds: Sequence[Span],
    rules: Rules,
    bars_per_year: float,
    *,
    funding: np.ndarray | None = None,
    strategy: str = "walk-forward",
) -> WalkForward:
    """Trade each fold with what ``retrain`` returns for it.

    It is handed the candles up to the end of the fold's training only, and what it returns those up to the end of
    the fold. In sample and out of sample are separate accounts.

    Args:
        folds: from ``spans``, or others that follow one another without a gap.
        funding: rate per bar that a long pays at its open, float64 (n,), of all candles; None: none.

    Raises:
        CandleContractError: the candles break their contract.
        InvalidRequest: folds with gaps or beyond the candles, or decisions that the rules do not allow.
        StrategyFailed: what decides raised, or gave decisions that make no sense; names the fold.
    """
    _check(candles, folds, funding, strategy)
    stitched, rows = [], {}
    for span in folds:
        history, name = candles.iloc[: span.first], f"{strategy}, fold {span.number}"
        decide = retrain(history, span)
        seen = after(decisions_of(name, decide, history), span.begin)
        trained = run(
            history.iloc[span.begin :], seen, rules, funding=_cut(funding, span.begin, span.first),
            bars_per_year=bars_per_year, strategy=name,
        )  # fmt: skip
        stitched.append(after(decisions_of(name, decide, candles.iloc[: span.last]), span.first))
        rows[span.number] = {
            "train_start": candles.index[span.begin],
            "test_start": candles.index[span.first],
            "test_end": candles.index[span.last - 1],
            "in_sample": _sharpe(trained, bars_per_year),
        }
    begin, end = folds[0].first, folds[-1].last
    result = run(
        candles.iloc[begin:end], _joined(stitched), rules, funding=_cut(funding, begin, end),
        bars_per_year=bars_per_year, strategy=strategy,
    )  # fmt: skip
    for span in folds:
        figures = summarise(part(result, span.first - begin, span.last - begin), bars_per_year)
        row = rows[span.number]
        row["out_of_sample"] = figures["sharpe"]
        row["efficiency"] = _ratio(float(figures["sharpe"]), row["in_sample"])
        row |= {name: figures[name] for name in ("total_return", "max_drawdown", "trades")}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("fold")
    return WalkForward(result, table, _ratio(_sharpe(result, bars_per_year), float(table["in_sample"].mean())))


def optimise(
    candles: pd.DataFrame,
    rule: Rule,
    sets: Sequence[Mapping[str, Value]],
    folds: Sequence[Span],
    rules: Rules,
    bars_per_year: float,
    *,
    goal: str = "sharpe",
    threads: int | None = None,
    funding: np.ndarray | None = None,
) -> WalkForward:
    """Trade each fold with the parameter set that had the most of ``goal`` on the bars before it.

    Of equal ones it is the first in the order of ``sets``; one that did not trade there is never it.

    Args:
        goal: one of ``GOALS``.

    Raises: as ``walk_forward`` and ``trading.backtest.sweep.sweep``; a goal of which more is not better.
    """
    if goal not in GOALS:
        raise InvalidRequest(f"{goal!r} cannot be the goal of an optimisation; use one of {', '.join(GOALS)}")
    choices: list[Parameters | None] = []

    def best(history: pd.DataFrame, span: Span) -> Strategy:
        table = sweep(
            history, rule, sets, rules, bars_per_year,
            first=span.begin, threads=threads, funding=_cut(funding, 0, span.first),
        )  # fmt: skip
        # what did nothing also lost nothing; that is no merit
        values = table[goal].where(table["trades"] > 0).to_numpy(dtype=np.float64)
        if np.isnan(values).all():
            choices.append(None)
            return _aside
        chosen = rule.checked(sets[int(np.nanargmax(values))])
        choices.append(chosen)
        return partial(rule.decide, **chosen)

    walked = walk_forward(candles, best, folds, rules, bars_per_year, funding=funding, strategy=rule.name)
    return replace(walked, choices=tuple(choices))


def _check(candles: pd.DataFrame, folds: Sequence[Span], funding: np.ndarray | None, strategy: str) -> None:
    inputs.times_of({"": candles}, strategy)
    if not folds or any(earlier.last != later.first for earlier, later in pairwise(folds)):
        raise InvalidRequest(f"{strategy}: the folds {list(folds)} do not follow one another; use spans")
    if any(not 0 <= span.begin < span.first < span.last <= len(candles) for span in folds):
        raise InvalidRequest(f"{strategy}: the folds {list(folds)} do not lie within {len(candles)} candles")
    if funding is not None and len(funding) != len(candles):
        raise InvalidRequest(f"{strategy}: {len(funding)} funding rates for {len(candles)} candles; give one per bar")


def _aside(candles: pd.DataFrame, /) -> np.ndarray:
    return np.zeros(len(candles))


def _joined(parts: Sequence[Decisions]) -> Decisions:
    """Decisions one after the other; NaN for prices that only others of them give."""
    joined = {}
    for name in (entry.name for entry in fields(Decisions)):
        given = [getattr(one, name) for one in parts]
        if any(len(values) for values in given):
            lengths = [len(one.targets) for one in parts]
            given = [
                values if len(values) else np.full(length, math.nan)
                for values, length in zip(given, lengths, strict=True)
            ]
        joined[name] = np.concatenate(given)
    return Decisions(**joined)


def _cut(funding: np.ndarray | None, first: int, last: int) -> np.ndarray | None:
    return None if funding is None else funding[first:last]


def _sharpe(result: BacktestResult, bars_per_year: float) -> float:
    return float(summarise(result, bars_per_year)["sharpe"])


def _ratio(value: float, base: float) -> float:
    return value / base if base > 0 else math.nan
