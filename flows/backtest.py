"""Backtest: strategies x symbols x parameters x costs over approved candles, buy-and-hold beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

from prefect import flow
from pydantic import Field

from flows.backtest_rules import (
    NO_FURTHER_COSTS,
    NO_LIMITS,
    NO_PROTECTION,
    USUAL_EXECUTION,
    USUAL_MODEL,
    USUAL_SIZING,
    ExecutionRules,
    FurtherCosts,
    LimitRules,
    Model,
    ProtectionRules,
    SizingRules,
)
from flows.ingest import bring_up_to_date
from flows.parameters import (
    LARGEST_CASH,
    NAME,
    Bar,
    Days,
    End,
    FeeRate,
    Refresh,
    Seed,
    SlippageRate,
    Start,
    Symbols,
    form,
    names,
)
from flows.rule_names import NAMES, StrategyText
from tasks import backtesting, reports, wide
from tasks.backtest_requests import HOLD, MOST_SETS, USUAL, BacktestRequest, candidates
from tasks.backtesting import Backtested
from tasks.datasets import Dataset
from tasks.periods import run_moment, span
from tasks.settings import load_settings
from tasks.training import select_task
from trading.backtest.rules import Rules
from trading.window import Timeframe

# symbols with pictures and links of their own: each is kept in Prefect's database, and all are in the MLflow run
MOST_SHOWN: Final = 10

Cash = Annotated[
    float,
    Field(gt=0, le=LARGEST_CASH),
    form("Cash", "Starting cash of each strategy in the quote currency.", 10_000.0),
]
Strategies = Annotated[
    Sequence[StrategyText],
    Field(min_length=1, max_length=200),
    form(
        "Strategies",
        "Rules, with parameters or without; champion; walk_forward. Buy-and-hold always stands beside them.",
        ["champion", "rsi", "sma_cross(fast=10, slow=30)"],
    ),
]
Sweep = Annotated[bool, form("Sweep", "Try the grid of every rule that is given without parameters.")]
Value = bool | int | float
Grids = Annotated[
    dict[
        str,
        Annotated[
            dict[str, Annotated[list[Value], Field(min_length=1, max_length=1_000)]], Field(max_length=50), names(NAME)
        ],
    ],
    Field(max_length=50),
    names(NAMES),
    form(
        "Grids",
        "Values to try by rule and parameter, instead of the rule's own grid.",
        {"rsi": {"period": [7, 14, 21]}},
    ),
]
MostSets = Annotated[
    int, Field(ge=1, le=100_000), form("Most sets", "How many parameter sets one rule may have.", 2_000)
]
CostFactors = Annotated[
    Sequence[Annotated[float, Field(ge=0, le=100)]],
    Field(max_length=20),
    form("Cost factors", "Multiples of all costs to trade at as well.", [2.0]),
]
Costs = Annotated[FurtherCosts, form("Further costs", "Further costs, beside fee and slippage.")]
Sizing = Annotated[SizingRules, form("Sizing", "How much a position is.")]
Protection = Annotated[ProtectionRules, form("Protection", "Stops, targets and the like.")]
Limits = Annotated[LimitRules, form("Limits", "What is not allowed.")]
Execution = Annotated[ExecutionRules, form("Execution", "How orders are filled, and when a position is liquidated.")]
WalkForward = Annotated[Model, form("Model", "What walk_forward is.")]
BootstrapSeed = Annotated[Seed, form("Seed", "Seed of the bootstraps.", 0)]


@flow(name="backtest", flow_run_name="backtest-{timeframe}", retries=0, persist_result=False)
def backtest(
    symbols: Symbols,
    timeframe: Bar = Timeframe.H1,
    days: Days = 730,
    start: Start = None,
    end: End = None,
    refresh: Refresh = None,
    fee_rate: FeeRate = 0.001,
    slippage_rate: SlippageRate = 0.0005,
    cash: Cash = 10_000.0,
    strategies: Strategies = USUAL,
    sweep: Sweep = False,
    grids: Grids = {},  # noqa: B006 - Prefect's form shows it; nobody changes it
    most_sets: MostSets = MOST_SETS,
    cost_factors: CostFactors = (),
    costs: Costs = NO_FURTHER_COSTS,
    sizing: Sizing = USUAL_SIZING,
    protection: Protection = NO_PROTECTION,
    limits: Limits = NO_LIMITS,
    execution: Execution = USUAL_EXECUTION,
    model: WalkForward = USUAL_MODEL,
    seed: BootstrapSeed = 0,
) -> Backtested:
    """Decide on the close, fill on the next open, pay all costs, compare with buy-and-hold.

    The champion trades only bars that it was not trained on. A strategy that looks ahead is refused. An
    identical request returns its stored result, and what requests have in common is run once.
    """
    moment = run_moment()
    request = BacktestRequest(
        rules=Rules(
            costs.costs(fee_rate, slippage_rate),
            sizing.sizing(),
            protection.protection(),
            limits.limits(),
            execution.execution(),
            cash,
        ),
        strategies=tuple(strategies),
        factors=tuple(cost_factors),
        sweep=sweep,
        grids=grids,
        most_sets=most_sets,
        seed=seed,
        model=model.model(),
    )
    candidates(request)  # refuses what makes no sense before anything is fetched
    first, last = span(timeframe, start, end, days, moment)
    if refresh is not None:
        bring_up_to_date(symbols, timeframe, refresh, first, last, moment)
    dataset = select_task(symbols, timeframe, first, last, moment)
    prepared = backtesting.prepare_task(dataset, request, moment)
    found = prepared.done or _run(prepared, dataset, request, moment)
    _publish(timeframe, found)
    return found


def _run(prepared: backtesting.Prepared, dataset: Dataset, request: BacktestRequest, moment: datetime) -> Backtested:
    bar = dataset.timeframe.value
    with wide.runner(load_settings()) as workers:

        def run_all(task: Any, items: Sequence[Any], step: str) -> None:
            wide.run_all(workers, task, items, moment, step=f"{step} {bar}", key=f"backtest-progress-{bar}")

        run_all(backtesting.proof_task, prepared.proofs, "check")
        run_all(backtesting.batch_task, prepared.missing, "backtest")
        run_all(backtesting.comparison_task, prepared.comparisons, "compare")
        board = backtesting.leaders_task(prepared)
        done = backtesting.finished(prepared, dataset, request, board)
        run_all(backtesting.study_task, done.studies, "study")
        run_all(backtesting.drawing_task, done.drawings, "draw")
    return backtesting.publish_task(done, moment)


def _publish(timeframe: Timeframe, found: Backtested) -> None:
    from prefect.artifacts import create_link_artifact

    bar = timeframe.value
    table = [
        {
            "symbol": row["symbol"],
            "strategy": f"[{row['parameters']}]({link})",
            "return": f"{row['total_return']:+.1%}",
            "Sharpe": _number(row["sharpe"], ".2f"),
            "deflated": _number(row["deflated_sharpe"], ".0%"),
            "max drawdown": f"{row['max_drawdown']:.1%}",
            "trades": row["trades"],
            "exposure": f"{row['exposure']:.0%}",
        }
        for row, link in zip(found.rows, found.page_links, strict=True)
    ]
    first, last = min(str(row["start"]) for row in found.rows)[:10], max(str(row["end"]) for row in found.rows)[:10]
    covered = f"{first} to {last}, {found.data_mode} data"
    many = len(found.pictures) > MOST_SHOWN
    text = [
        f"# Backtest {bar}",
        f"{first} to {last}, **{found.data_mode} data**, after costs."
        f"{' Reused: an identical request was answered before.' if found.reused else ''}",
        f"[MLflow run]({found.run_link}); each strategy leads to its page. Luck and robustness: artifact "
        f"`leaderboard-{bar}`.",
        *([f"Pictures among the artifacts: the {MOST_SHOWN} symbols with the highest Sharpe ratios."] if many else []),
        reports.markdown_table(table),
        *(f"- {reason}" for reason in found.absent),
    ]
    reports.markdown(f"backtest-{bar}", "\n\n".join(text), f"{len(table)} strategy runs, {covered}")
    reports.markdown(f"leaderboard-{bar}", _leaderboard(bar, found), f"{found.trials} trials, {found.data_mode} data")
    reports.table(f"strategies-{bar}", [*map(_rounded, found.rows)], f"every figure, {covered}")
    best = best_symbols(found.rows)
    for row, link in zip(found.rows, found.page_links, strict=True):
        if row["strategy"] != HOLD and row["symbol"] in best:
            key = f"page-{_key(row['symbol'])}-{_key(row['strategy'])}-{bar}"
            name = f"{row['strategy']} on {row['symbol']}"
            about = f"{name}: charts, trades, costs, robustness; {found.data_mode} data"
            create_link_artifact(link, link_text=name, key=key, description=about)
    pictured = {_key(symbol) for symbol in best}
    for path in found.pictures:
        if _key(Path(path).stem) in pictured:
            reports.picture(f"equity-{_key(Path(path).stem)}-{bar}", Path(path), f"Equity of {Path(path).stem}")


def best_symbols(rows: Sequence[Mapping[str, Any]], most: int = MOST_SHOWN) -> list[str]:
    """The symbols on which some strategy has the highest Sharpe ratios; buy-and-hold counts after all others."""

    def rank(row: Mapping[str, Any]) -> tuple[bool, float]:
        return row["strategy"] != HOLD, -math.inf if row["sharpe"] is None else row["sharpe"]

    return list(dict.fromkeys(row["symbol"] for row in sorted(rows, key=rank, reverse=True)))[:most]


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of five digits: a table of people's."""
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in row.items()}


def _leaderboard(bar: str, found: Backtested) -> str:
    rows = [
        {
            "symbol": row["symbol"],
            "strategy": row["parameters"],
            "costs": f"x{row['factor']:g}",
            "return": f"{row['total_return']:+.1%}",
            "Sharpe": _number(row["sharpe"], ".2f"),
            "max drawdown": f"{row['max_drawdown']:.1%}",
            "trades": row["trades"],
        }
        for row in found.leaderboard
    ]
    luck = [
        {
            "symbol": one["symbol"],
            "best": one["chosen"],
            "trials": one["trials"],
            "deflated Sharpe": _number(one["deflated_sharpe"], ".0%"),
            "PBO": _number(one["pbo"], ".0%"),
            "SPA p": _number(one["spa"], ".2f"),
        }
        for one in found.luck
    ]
    robust = [
        {"symbol": one["symbol"], "strategy": one["strategy"], "what breaks it": one["verdict"]}
        for one in found.robustness
    ]
    parts = [
        f"# Leaderboard {bar}",
        f"Data: **{found.data_mode}**. {found.trials} trials, the best {len(rows)} of them:",
        reports.markdown_table(rows),
        "## How much of the best may be luck",
        reports.markdown_table(luck),
        "## How robust it is",
        reports.markdown_table(robust),
    ]
    return "\n\n".join(parts)


def _key(text: str) -> str:
    """A text as part of an artifact's key."""
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower()).strip("-")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
