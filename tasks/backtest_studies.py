"""A closer look at the best of each strategy: all figures, intervals, robustness, its months, its page.

A study is stored under a digest of all that decides it, like a batch: whoever runs it, wherever it runs, its page
and its pictures come back through the store.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tasks.backtest_leaders import Chosen
from tasks.backtest_plans import Subject, digest_of, traded_as
from tasks.backtest_requests import HOLD, rules_of
from tasks.backtest_runs import defined, per_year, strategy_of
from tasks.datasets import load
from tasks.store import Store, put_result, touch_result

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from trading.backtest.bootstrap import Intervals
    from trading.backtest.engine import BacktestResult
    from trading.backtest.robustness import Robustness
    from trading.backtest.rules import Decisions
    from trading.strategies import Parameters, Rule

STUDY: Final = "backtest study"
DRAWING: Final = "backtest drawing"


@dataclass(frozen=True)
class Study:
    """One strategy on one symbol, to be looked at; ``code`` as for ``tasks.backtest_plans.plan``."""

    chosen: Chosen
    seed: int
    code: str

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.chosen.label} {self.chosen.subject.symbol}"

    @property
    def key(self) -> str:
        """Names what comes out of it."""
        one = self.chosen
        decided = traded_as(one.subject, one.strategy, one.rules)
        return digest_of(
            STUDY, *decided, one.label, one.text, one.tried, one.variance, one.luck, one.subject.dataset.data_mode,
            self.seed, self.code,
        )  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """The equity of all chosen strategies of one symbol in one picture."""

    chosen: tuple[Chosen, ...]
    code: str

    @property
    def symbol(self) -> str:
        """The symbol."""
        return self.chosen[0].subject.symbol

    @property
    def name(self) -> str:
        """For people."""
        return f"picture of {self.symbol}"

    @property
    def key(self) -> str:
        """Names what comes out of it."""
        parts = [[*traded_as(one.subject, one.strategy, one.rules), one.label, one.text] for one in self.chosen]
        return digest_of(DRAWING, parts, self.chosen[0].subject.dataset.data_mode, self.code)


def studies_of(chosen: Sequence[Chosen], seed: int, code: str) -> tuple[list[Study], list[Drawing]]:
    """A study of each, and a drawing of each symbol."""
    by_symbol: dict[str, list[Chosen]] = {}
    for one in chosen:
        by_symbol.setdefault(one.subject.symbol, []).append(one)
    return [Study(one, seed, code) for one in chosen], [Drawing(tuple(ones), code) for ones in by_symbol.values()]


def run_study(store: Store, study: Study, now: datetime) -> None:
    """Make a study and store it; nothing is done where it is stored.

    Raises:
        DatasetLost: the candles cannot be read back as they were frozen.
    """
    if touch_result(store, study.key, now):
        return
    from trading.backtest.bootstrap import LEAST_BARS, intervals
    from trading.backtest.metrics import Trials, bar_returns, summarise
    from trading.backtest.periods import monthly

    one, subject = study.chosen, study.chosen.subject
    whole = load(store, subject.dataset)[subject.symbol]
    traded, bars = whole.iloc[subject.first :], per_year(subject)
    rule, parameters = strategy_of(store, subject, one.text)
    result, hold = _traded(store, one, whole), _hold(store, one, whole)
    closes = traded["close"].to_numpy()
    # buy-and-hold is what the others are held against, and no trial
    tried = Trials(one.tried, one.variance) if one.strategy != HOLD else None
    figures = summarise(result, bars, benchmark=closes, trials=tried)
    returns = bar_returns(result.equity.to_numpy(), result.start_cash)
    around = intervals(returns, bars, seed=study.seed) if len(returns) >= LEAST_BARS else None
    robust = _examined(study, rule, parameters, whole) if one.strategy != HOLD else None
    months = monthly(result.equity, result.start_cash)
    put_result(
        store,
        study.key,
        STUDY,
        {
            "row": {
                "symbol": subject.symbol, "strategy": one.label, "parameters": one.text, **defined(figures),
                **_interval_row(around),
            },
            "months": [
                {"symbol": subject.symbol, "strategy": one.label, "year": int(year), **defined(row)}
                for year, row in zip(months.index, months.to_dict(orient="records"), strict=True)
            ],
            "robustness": _robustness_row(subject, one, robust) if robust is not None else None,
            "page": zlib.compress(
                _page(study, rule, parameters, traded, result, hold, figures, around, robust).encode()
            ),
        },
        now,
    )  # fmt: skip


def draw(store: Store, drawing: Drawing, now: datetime) -> None:
    """Draw the curves of one symbol and store the picture; nothing is done where it is stored."""
    if touch_result(store, drawing.key, now):
        return
    import tempfile
    from pathlib import Path

    from trading.backtest.plots import equity_picture

    subject = drawing.chosen[0].subject
    whole = load(store, subject.dataset)[subject.symbol]
    results = {one.label: _traded(store, one, whole) for one in drawing.chosen}
    title = f"{subject.symbol} {subject.dataset.timeframe.value}"
    with tempfile.TemporaryDirectory(prefix="tradeflows-") as folder:
        path = equity_picture(results, title, Path(folder) / "equity.png", subject.dataset.data_mode)
        put_result(store, drawing.key, DRAWING, {"picture": path.read_bytes()}, now)


def page_of(study: dict[str, Any]) -> str:
    """The page of a stored study, HTML."""
    return zlib.decompress(study["page"]).decode()


def _traded(store: Store, one: Chosen, whole: pd.DataFrame) -> BacktestResult:
    from trading.backtest.engine import run

    rule, parameters = strategy_of(store, one.subject, one.text)
    first = one.subject.first
    decisions = _with_history(partial(rule.decide, **parameters), whole, first, one.text)
    return run(whole.iloc[first:], decisions, one.rules, bars_per_year=per_year(one.subject), strategy=one.label)


def _hold(store: Store, one: Chosen, whole: pd.DataFrame) -> BacktestResult:
    rules = rules_of(HOLD, one.rules, 1.0)
    return _traded(store, replace(one, label=HOLD, strategy=HOLD, text=HOLD, rules=rules), whole)


def _with_history(decide: Any, whole: pd.DataFrame, first: int, name: str) -> Decisions:
    """What is decided from ``first`` on, with the bars before as history."""
    from trading.backtest.lookahead import decisions_of
    from trading.backtest.sweep import after

    return after(decisions_of(name, decide, whole), first)


def _examined(study: Study, rule: Rule, parameters: Parameters, whole: pd.DataFrame) -> Robustness:
    from trading.backtest.robustness import examine, examine_decisions

    one, first = study.chosen, study.chosen.subject.first
    traded, bars = whole.iloc[first:], per_year(one.subject)
    if not rule.parameters:
        decisions = _with_history(rule.decide, whole, first, one.text)
        return examine_decisions(traded, decisions, one.rules, bars, seed=study.seed, strategy=one.label)

    def decide(_: pd.DataFrame, **values: Any) -> np.ndarray | Decisions:
        return _with_history(partial(rule.decide, **values), whole, first, one.text)

    return examine(
        traded, replace(rule, decide=decide), parameters, one.rules, bars, seed=study.seed, threads=1
    )  # fmt: skip


def _interval_row(around: Intervals | None) -> dict[str, Any]:
    if around is None:
        return {}
    ends = {name: getattr(around, name) for name in ("total_return", "sharpe", "max_drawdown")}
    named = {
        f"{name}_{end}": value for name, pair in ends.items() for end, value in zip(("low", "high"), pair, strict=True)
    }
    return defined(named)


def _robustness_row(subject: Subject, one: Chosen, robust: Robustness) -> dict[str, Any]:
    """What of the robustness fits into a row: the return at each multiple of the costs, a bar late, and a sentence."""
    total = robust.costs["total_return"]
    around = robust.neighbourhood
    return {
        "symbol": subject.symbol,
        "strategy": one.label,
        "verdict": robust.verdict,
        "breaks": list(robust.breaks),
        **defined({f"costs_x{factor:g}": value for factor, value in zip(total.index, total, strict=True)}),
        **defined(
            {
                "one_bar_late": robust.delay["total_return"].loc[1],
                "neighbours_above_0": around.share if around is not None else None,
                "best_five_share": robust.best_five_share,
            }
        ),
    }


def _page(
    study: Study,
    rule: Rule,
    parameters: Parameters,
    traded: pd.DataFrame,
    result: BacktestResult,
    hold: BacktestResult,
    figures: dict[str, Any],
    around: Intervals | None,
    robust: Robustness | None,
) -> str:
    from ml.artifact import code_version
    from trading.backtest.metrics import summarise
    from trading.backtest.page import Page, render

    one, dataset = study.chosen, study.chosen.subject.dataset
    luck = one.luck and {
        **one.luck,
        "trials": one.tried,
        # of this strategy, from its bars; the comparison has that of the symbol's best, from coarser returns
        "deflated_sharpe": defined(figures)["deflated_sharpe"],
        "reasons": [reason for reason in one.luck["reasons"] if not reason.startswith("deflated")],
    }
    return render(
        Page(
            symbol=one.subject.symbol,
            timeframe=dataset.timeframe.value,
            strategy=rule.name,
            sentence=rule.description,
            data_mode=dataset.data_mode,
            candles=traded,
            result=result,
            hold=hold,
            figures=figures,
            hold_figures=summarise(hold, per_year(one.subject), benchmark=traded["close"].to_numpy()),
            parameters=parameters,
            intervals=around,
            robust=robust,
            overfitting=luck,
            origin={
                "dataset digest": dataset.digest,
                "code": f"{study.code}{f' ({code_version()})' if code_version() else ''}",
                "result key": study.key,
            },
        )
    )
