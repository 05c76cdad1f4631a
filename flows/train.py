"""Train: an approved dataset, a purged walk-forward, one registered version, a decision about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from prefect import flow
from pydantic import Field

from flows.ingest import bring_up_to_date
from flows.parameters import (
    NAME,
    Bar,
    BuyThreshold,
    Days,
    End,
    EstimatorName,
    FeeRate,
    Folds,
    Horizon,
    Refresh,
    RollingDays,
    Seed,
    SellThreshold,
    SlippageRate,
    Start,
    Symbols,
    form,
    names,
)
from tasks import reports, training_tables
from tasks.learning import TrainingRequest
from tasks.periods import run_moment, span
from tasks.training import Trained, select_task, train_task
from trading.window import Timeframe

Label = Annotated[
    Literal["forward", "triple_barrier"],
    form(
        "Label", "What is foreseen: the forward return, or which barrier is touched first (triple_barrier).", "forward"
    ),
]
TuneTrials = Annotated[
    int,
    Field(ge=0, le=1_000),
    form("Tuning trials", "Parameter sets to try for LightGBM before the walk-forward, on earlier rows. 0: none.", 20),
]
TuneMinutes = Annotated[
    int, Field(ge=1, le=1_440), form("Tuning, minutes", "No further trial begins after so many minutes.", 10)
]
Estimators = Annotated[
    Sequence[EstimatorName],
    Field(max_length=3),
    form("Estimators", "Which to try beside the baselines. Empty: all.", ["logistic", "lightgbm"]),
]
Target = Annotated[
    float,
    Field(gt=0, le=100),
    form("Target", "Width of the barrier to reach, in volatilities of the horizon (triple_barrier).", 1.0),
]
Stop = Annotated[
    float,
    Field(gt=0, le=100),
    form("Stop", "Width of the barrier to stay within, in volatilities of the horizon (triple_barrier).", 1.0),
]
EstimatorParameters = Annotated[
    Annotated[dict[str, dict[str, Any]], Field(max_length=3)] | None,
    # not inside: of a choice of types the server does not tell which one a value was meant to be
    names(get_args(EstimatorName)),
    form(
        "Parameters of estimators",
        "Fixed parameters by estimator. Empty: their defaults.",
        {"lightgbm": {"leaves": 31, "monotone": {"rsi": -1}}},
    ),
]
FeatureParameters = Annotated[
    Annotated[dict[str, Any], Field(max_length=50)] | None,
    names(NAME),
    form(
        "Parameters of features",
        "Parameters of the feature set that are not its defaults. Empty: its defaults.",
        {"rsi": 21, "calendar": []},
    ),
]
CombinatorialGroups = Annotated[
    int,
    Field(ge=0, le=16),
    form(
        "Combinatorial groups",
        "Cut time into so many groups and, beside the walk-forward, evaluate each estimator on every choice of some of "
        "them: how steady is its result? 6 of 2 cost 15 fits of each. 0: not at all.",
        6,
    ),
]
CombinatorialTestGroups = Annotated[
    int, Field(ge=1, le=4), form("Combinatorial test groups", "How many of these groups are tested at once.", 2)
]


@flow(name="train", flow_run_name="train-{timeframe}", retries=0, persist_result=False)
def train(
    symbols: Symbols,
    timeframe: Bar = Timeframe.H1,
    days: Days = 730,
    start: Start = None,
    end: End = None,
    refresh: Refresh = None,
    horizon: Horizon = 12,
    folds: Folds = 4,
    seed: Seed = 7,
    fee_rate: FeeRate = 0.001,
    slippage_rate: SlippageRate = 0.0005,
    buy_threshold: BuyThreshold = 0.005,
    sell_threshold: SellThreshold = -0.005,
    label: Label = "forward",
    tune_trials: TuneTrials = 0,
    tune_minutes: TuneMinutes = 10,
    estimators: Estimators = (),
    target: Target = 1.0,
    stop: Stop = 1.0,
    rolling_days: RollingDays = None,
    parameters: EstimatorParameters = None,
    features: FeatureParameters = None,
    combinatorial_groups: CombinatorialGroups = 0,
    combinatorial_test_groups: CombinatorialTestGroups = 2,
) -> Trained:
    """Train one model for a set of symbols and register the winner of the walk-forward.

    An equal request (same candles, code and parameters) returns the version it made before. The new
    version becomes ``challenger``; ``champion`` only if it passes the gate.
    """
    moment = run_moment()
    first, last = span(timeframe, start, end, days, moment)
    if refresh is not None:
        bring_up_to_date(symbols, timeframe, refresh, first, last, moment)
    dataset = select_task(symbols, timeframe, first, last, moment)
    request = TrainingRequest(
        horizon, folds, seed, fee_rate, slippage_rate, buy_threshold, sell_threshold,
        label=label, tune_trials=tune_trials, tune_seconds=60.0 * tune_minutes, estimators=tuple(estimators),
        target=target, stop=stop, rolling_days=rolling_days, parameters=parameters or {}, features=features or {},
        combinatorial_groups=combinatorial_groups, combinatorial_test_groups=combinatorial_test_groups,
    )  # fmt: skip
    trained = train_task(dataset, request, moment)
    _publish(trained)
    return trained


def _publish(trained: Trained) -> None:
    verdict = "promoted to champion" if trained.promoted else "not promoted"
    champion = f"version {trained.champion}" if trained.champion else "none"
    winner = trained.winner
    text = [
        f"# {trained.model} version {trained.version}: {winner}, {verdict}",
        f"Data: **{trained.data_mode}**. Champion: {champion}."
        f"{' Reused: an equal training was done before.' if trained.reused else ''}",
        f"[MLflow run]({trained.run_link}) · [model version]({trained.version_link}) · "
        f"[estimators side by side]({trained.compare_link})",
        *reports.section(f"Gate: {verdict}{'' if trained.promoted else ', what closed it first'}", trained.decision),
        "## Estimators, out of sample and after costs",
        reports.markdown_table(training_tables.side_by_side(trained.scores, winner)),
        "## Log loss by fold",
        reports.markdown_table(training_tables.fold_losses(trained.folds)),
        *_paths(trained),
        *reports.section("Skill or luck", trained.luck),
        *reports.section("Feature matrix", trained.findings),
    ]
    key = f"train-{trained.model}".lower().replace("_", "-").replace(".", "-")
    reports.markdown(key, "\n\n".join(text), f"{winner} version {trained.version}, {verdict}")


def _paths(trained: Trained) -> list[str]:
    """How steady each estimator was over the combinatorial paths, where a training had them."""
    if not trained.paths:
        return []
    first = trained.paths[0]
    return [
        "## Combinatorial paths: least, median, largest",
        reports.markdown_table(training_tables.path_spreads(trained.paths, trained.winner)),
        f"{first['splits']} purged splits make {first['count']:.0f} paths through all the candles. Their models have "
        "seen what came after: this is how steady a result is, not what trading would have earned, and the gate "
        "does not read it.",
    ]
