"""The leaderboard: everything that was tried, what is best of it, and how much of that may be luck."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import reduce
from typing import TYPE_CHECKING, Any, Final

from tasks.backtest_plans import Batch, Subject, digest_of
from tasks.backtest_requests import BASE, HOLD
from tasks.backtest_runs import BUCKETS, outcome, required
from tasks.store import Store, put_result, touch_result
from trading.backtest.rules import Rules

if TYPE_CHECKING:
    import pandas as pd

EVERYWHERE: Final = "all symbols"
COMPARISON: Final = "backtest comparison"
# of each trial, what a table of thousands shows
SHOWN: Final = (
    "total_return", "annual_return", "sharpe", "sharpe_error", "psr", "sortino", "calmar", "max_drawdown", "turnover",
    "exposure", "trades", "win_rate", "profit_factor", "costs", "cost_of_start",
)  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """The best parameter set of one strategy on one symbol.

    Attributes:
        text: the strategy with its parameters.
        tried: parameter sets and strategies tried on the symbol, this one included.
        variance: of their annual Sharpe ratios.
        luck: ``ml.overfitting.Overfitting`` of the symbol as a mapping; None where only one thing was tried.
    """

    subject: Subject
    label: str
    strategy: str
    text: str
    rules: Rules
    tried: int
    variance: float
    luck: dict[str, Any] | None


@dataclass(frozen=True, eq=False)
class Leaderboard:
    """Everything that was tried.

    Attributes:
        trials: a row per symbol, strategy, parameter set and cost factor, the best first.
        chosen: the best set of each strategy, by symbol in the order of the plan, buy-and-hold last.
        luck: per symbol, and over all of them, how much of the best may be luck.
    """

    trials: list[dict[str, Any]]
    chosen: list[Chosen]
    luck: list[dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """Everything that was tried on one symbol, or on all of them, held against buy-and-hold.

    ``code`` as for ``tasks.backtest_plans.plan``.
    """

    where: str
    batches: tuple[Batch, ...]
    seed: int
    code: str

    @property
    def name(self) -> str:
        """For people."""
        return f"luck on {self.where}"

    @property
    def key(self) -> str:
        """Names what comes out of it."""
        return digest_of(COMPARISON, self.where, [(one.symbol, one.key) for one in self.batches], self.seed, self.code)


def comparisons_of(batches: Sequence[Batch], seed: int, code: str) -> list[Comparison]:
    """One for each symbol, and one for all of them where there are several; costs times one only."""
    compared = [batch for batch in batches if batch.factor == BASE]
    by_symbol: dict[str, list[Batch]] = {}
    for batch in compared:
        by_symbol.setdefault(batch.symbol, []).append(batch)
    found = [Comparison(symbol, tuple(mine), seed, code) for symbol, mine in by_symbol.items()]
    return [*found, Comparison(EVERYWHERE, tuple(compared), seed, code)] if len(found) > 1 else found


def compare(store: Store, comparison: Comparison, now: datetime) -> None:
    """How much of the best may be luck, into the store; nothing is done where it is stored.

    On all symbols: of each strategy on all of them in equal parts, against holding all of them.

    Raises:
        StoreError: the store lacks the outcome of a batch.
    """
    if touch_result(store, comparison.key, now):
        return
    by_symbol: dict[str, list[Batch]] = {}
    for batch in comparison.batches:
        by_symbol.setdefault(batch.symbol, []).append(batch)
    if len(by_symbol) == 1:
        rows, returns = _tried(store, comparison.batches)
        found = _luck(returns, _best(rows), comparison)
    else:
        total = _in_equal_parts([_tried(store, mine)[1] for mine in by_symbol.values()])
        tried = total.drop(columns=HOLD)
        deviation = tried.std(ddof=1)
        ratios = (tried.mean() / deviation.where(deviation > 0)).fillna(-math.inf)
        found = _luck(total, str(ratios.idxmax()), comparison) if len(ratios) else None
    put_result(store, comparison.key, COMPARISON, {"luck": found}, now)


def leaderboard(store: Store, batches: Sequence[Batch], comparisons: Sequence[Comparison]) -> Leaderboard:
    """The leaderboard of batches whose outcomes are stored, and of the comparisons that were made of them.

    Raises:
        StoreError: the store lacks the outcome of a batch, or a comparison.
    """
    luck = {one.where: required(store, one.key, one.name)["luck"] for one in comparisons}
    trials: list[dict[str, Any]] = []
    chosen: list[Chosen] = []
    for symbol in dict.fromkeys(batch.symbol for batch in batches):
        mine = [batch for batch in batches if batch.symbol == symbol]
        rows, _ = _tried(store, mine)
        trials += rows
        chosen += _chosen(mine, rows, luck[symbol])
    trials.sort(key=lambda row: (row["factor"] != BASE, -_rank(row)))
    return Leaderboard(trials, chosen, [one for one in luck.values() if one])


def _tried(store: Store, batches: Sequence[Batch]) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """The rows of one symbol, and the returns at the base costs by text of the strategy."""
    import pandas as pd

    rows, columns = [], {}
    index = None
    for batch in batches:
        found = outcome(store, batch)
        for place, text in enumerate(batch.sets):
            figures = {name: found.figures[place].get(name) for name in SHOWN}
            rows.append(
                {"symbol": batch.symbol, "strategy": batch.label, "parameters": text, "factor": batch.factor, **figures}
            )
            if batch.factor == BASE:
                columns[text] = found.returns[:, place]
        index = pd.DatetimeIndex(pd.to_datetime(found.ends, unit="ms", utc=True))
    return rows, pd.DataFrame(columns, index=index)


def _chosen(batches: Sequence[Batch], rows: Sequence[dict[str, Any]], luck: dict[str, Any] | None) -> list[Chosen]:
    import numpy as np

    from trading.backtest.metrics import trials

    compared = {row["parameters"]: row for row in rows if row["factor"] == BASE and row["strategy"] != HOLD}
    count = trials(
        np.array([math.nan if row["sharpe"] is None else row["sharpe"] for row in compared.values()] or [0.0])
    )
    found = []
    for label in dict.fromkeys(batch.label for batch in batches):
        first = next(batch for batch in batches if batch.label == label and batch.factor == BASE)
        best = _best([row for row in rows if row["strategy"] == label and row["factor"] == BASE])
        found.append(
            Chosen(
                subject=first.subject,
                label=label,
                strategy=first.strategy,
                text=best,
                rules=first.rules,
                tried=count.count,
                variance=count.variance,
                luck=luck if label != HOLD else None,
            )
        )
    return found


def _best(rows: Sequence[dict[str, Any]]) -> str:
    """The text with the highest Sharpe ratio at the base costs, of equals the first; buy-and-hold only if alone."""
    compared = [row for row in rows if row["factor"] == BASE]
    others = [row for row in compared if row["strategy"] != HOLD]
    return str(max(others or compared, key=_rank)["parameters"])


def _rank(row: dict[str, Any]) -> float:
    return -math.inf if row["sharpe"] is None else float(row["sharpe"])


def _luck(returns: pd.DataFrame, best: str, comparison: Comparison) -> dict[str, Any] | None:
    """What ``ml.overfitting`` says of the best, against buy-and-hold; None where nothing was tried beside it."""
    from ml.overfitting import overfitting

    tried = returns.drop(columns=HOLD)
    if tried.empty or best == HOLD:
        return None
    found = overfitting(tried, best, seed=comparison.seed, benchmark=returns[HOLD])
    return {"symbol": comparison.where, **asdict(found), "reasons": list(found.reasons)}


def _in_equal_parts(returns: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The mean over the symbols, of what was tried on all of them, on one grid of times."""
    import numpy as np
    import pandas as pd

    common = [text for text in returns[0].columns if all(text in one.columns for one in returns)]
    # their buckets end at different times where the symbols began at different times
    ends = pd.DatetimeIndex(reduce(pd.Index.union, (one.index for one in returns)))
    grid = ends[np.unique(np.linspace(0, len(ends) - 1, min(len(ends), BUCKETS)).astype(np.int64))]
    total = _regridded(returns[0][common], grid)
    for one in returns[1:]:
        total = total + _regridded(one[common], grid)
    return total / len(returns)


def _regridded(returns: pd.DataFrame, grid: pd.DatetimeIndex) -> pd.DataFrame:
    """The same growth, seen at other times; a symbol that does not trade yet, or no more, is cash."""
    growth = (1 + returns).cumprod().reindex(grid, method="ffill").fillna(1.0)
    before = growth.shift(fill_value=1.0)
    return (growth / before.where(before > 0) - 1).fillna(0.0)
