"""Many parameter sets of one rule on one series: the figures of ``summarise`` for each, on all processors.

Candles are checked and laid out once, and each thread trades in one set of arrays, so that a sweep takes the memory
of its table and its returns, however many sets there are. The numbers are those of ``run`` and ``summarise`` to the
last digit, whatever the number of threads: it is the same kernel and the same figures.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from queue import SimpleQueue
from typing import Any, Final

import numpy as np
import pandas as pd

from trading.backtest import inputs, kernel
from trading.backtest.engine import BacktestResult
from trading.backtest.lookahead import decisions_of
from trading.backtest.metrics import summarise
from trading.backtest.rules import Decisions, Rules
from trading.errors import InvalidRequest
from trading.strategies import Parameters, Rule, Value

BUCKETS: Final = 2_000


@dataclass(frozen=True, eq=False)
class Sweep:
    """The figures of every set, and what each earned over time.

    Attributes:
        figures: as ``sweep`` returns them.
        returns: simple returns of the marked equity per bucket of time, compounded over its bars, net of costs;
            float64 (buckets, sets), index ``open_time`` of each bucket's last bar, one column per set, named like
            ``sma_cross(fast=10, slow=30, long_only=True)``. 0 from the bucket on before which nothing was left.
            Fit for ``ml.overfitting.overfitting`` and, as an array, for ``trading.statistics``; the Sharpe ratios
            there are then per bucket, not per bar.
    """

    figures: pd.DataFrame
    returns: pd.DataFrame


def sweep(
    candles: pd.DataFrame,
    rule: Rule,
    sets: Sequence[Mapping[str, Value]],
    rules: Rules,
    bars_per_year: float,
    *,
    first: int = 0,
    threads: int | None = None,
    funding: np.ndarray | None = None,
) -> pd.DataFrame:
    """The figures of every parameter set of a rule.

    Args:
        sets: parameters by name; what a set lacks has its default. See ``trading.strategy_grids.parameter_sets``.
        first: bar that trading begins at. The rule sees those before it, too, as history.
        threads: None: as many as there are processors.
        funding: rate per bar that a long pays at its open, float64 (n,), of all candles; None: none.

    Returns:
        One row per set in the order of ``sets``, index ``set`` from 0 on: a column per parameter, then the figures
        of ``summarise`` (without benchmark and trials), as ``run`` of ``candles[first:]`` gives them.

    Raises:
        CandleContractError: the candles break their contract.
        InvalidRequest: no sets, a parameter or a value that the rule does not take, no bar from ``first`` on, or
            decisions that the rules do not allow; names the set.
        StrategyFailed: the rule raised, or gave decisions that make no sense; names the set.
    """
    return sweep_returns(
        candles, rule, sets, rules, bars_per_year, first=first, threads=threads, funding=funding, buckets=1
    ).figures


def sweep_returns(
    candles: pd.DataFrame,
    rule: Rule,
    sets: Sequence[Mapping[str, Value]],
    rules: Rules,
    bars_per_year: float,
    *,
    first: int = 0,
    threads: int | None = None,
    funding: np.ndarray | None = None,
    buckets: int = BUCKETS,
) -> Sweep:
    """The same, and the returns of every set for the overfitting statistics, out of one pass.

    Args:
        buckets: into how many parts of equal length the time is cut; parts without a bar are left out, and with as
            many parts as evenly spaced bars the returns are those of each bar. 8 bytes per bucket and set.

    Raises: as ``sweep``; fewer than one bucket or thread.
    """
    whole = _checked(rule, sets, threads, buckets)
    inputs.times_of({"": candles}, rule.name)
    if not 0 <= first < len(candles):
        raise InvalidRequest(f"{rule.name}: trading begins at bar {first} of {len(candles)}; begin at one of them")
    traded = candles.iloc[first:]
    times = pd.DatetimeIndex(traded.index)
    if funding is not None and len(funding) != len(candles):
        raise InvalidRequest(f"{rule.name}: {len(funding)} funding rates for {len(candles)} candles; give one per bar")
    rates = {} if funding is None else {"": funding[first:]}
    market = inputs.market_of({"": traded}, times, rules, rates, bars_per_year, rule.name)
    terms = inputs.terms_of(rules, bars_per_year)
    ends = _ends(times, buckets)
    returns = np.empty((len(ends), len(whole)))
    workers = min(threads or os.cpu_count() or 1, len(whole))
    # what is taken out of here is used by one thread at a time
    desks: SimpleQueue[tuple[np.ndarray, np.ndarray, np.ndarray]] = SimpleQueue()
    for _ in range(workers):
        desks.put((np.empty(len(times)), np.empty(len(times)), np.empty((len(times), 1))))

    def one(place: int) -> dict[str, Any]:
        name, decide = named(rule, whole[place]), partial(rule.decide, **whole[place])
        try:
            orders = inputs.orders_of({"": _answer(decide(candles), first)}, {"": traded}, times, rules, name)
        except Exception:
            # says what was wrong, and where; asked beforehand it would cost as much as the decisions
            decisions_of(name, decide, candles)
            raise
        equity, cash, positions = desk = desks.get()
        try:
            trades, fills, written_off = kernel.simulate(market, orders, terms, equity, cash, positions)
            result = BacktestResult(
                strategy=name,
                symbols=("",),
                equity=pd.Series(equity, index=times, copy=False),
                cash=pd.Series(cash, index=times, copy=False),
                positions=positions,
                trade_rows=trades,
                fill_rows=fills,
                written_off=float(written_off),
                rules=rules,
            )
            marks = equity[ends]
            figures = summarise(result, bars_per_year)
        finally:
            desks.put(desk)
        before = np.concatenate([[rules.cash], marks[:-1]])
        returns[:, place] = np.divide(marks, before, out=np.ones(len(marks)), where=before > 0) - 1
        return {**whole[place], **figures}

    with ThreadPoolExecutor(workers, thread_name_prefix="sweep") as pool:
        rows = list(pool.map(one, range(len(whole))))
    names = pd.Index([named(rule, each) for each in whole], name="set")
    return Sweep(
        figures=pd.DataFrame(rows, index=pd.RangeIndex(len(rows), name="set")),
        returns=pd.DataFrame(returns, index=times[ends], columns=names, copy=False),
    )


def named(rule: Rule, parameters: Mapping[str, Value]) -> str:
    """A rule with its parameters, for messages and columns."""
    return f"{rule.name}({', '.join(f'{name}={value}' for name, value in parameters.items())})"


def after(decisions: Decisions, first: int, last: int | None = None) -> Decisions:
    """The decisions of the bars ``[first, last)``."""
    span = slice(first, last)
    return Decisions(**{entry.name: getattr(decisions, entry.name)[span] for entry in fields(Decisions)})


def _answer(given: np.ndarray | Decisions, first: int) -> Decisions:
    """What a rule said of the bars from ``first`` on, converted once."""
    whole = after(given if isinstance(given, Decisions) else Decisions(given), first)
    return replace(whole, targets=np.asarray(whole.targets, dtype=np.float64))


def _checked(rule: Rule, sets: Sequence[Mapping[str, Value]], threads: int | None, buckets: int) -> list[Parameters]:
    if not sets:
        raise InvalidRequest(f"{rule.name}: there are no parameter sets to try; give one or more")
    if buckets < 1 or (threads is not None and threads < 1):
        raise InvalidRequest(f"buckets={buckets} and threads={threads} must be one or more")
    return [rule.checked(each) for each in sets]


def _ends(times: pd.DatetimeIndex, buckets: int) -> np.ndarray:
    """The last bar of each bucket that has one, int64."""
    stamps = times.asi8
    # the last bar is as long as the shortest step; in whole numbers, so that even steps are cut evenly
    length = stamps[-1] - stamps[0] + (np.diff(stamps).min() if len(stamps) > 1 else 1)
    bucket = (stamps - stamps[0]) * buckets // length
    return np.flatnonzero(np.append(np.diff(bucket) > 0, True))
