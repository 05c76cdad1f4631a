"""Train: an approved dataset, a purged walk-forward, one registered version, a decision about it."""

from __future__ import annotations

from prefect import flow

from flows.ingest import bring_up_to_date
from flows.parameters import (
    BarrierWidth,
    BuyThreshold,
    Days,
    End,
    EstimatorNames,
    EstimatorParameters,
    FeatureParameters,
    FeeRate,
    Folds,
    Horizon,
    LabelKind,
    Refresh,
    RollingDays,
    Seed,
    SellThreshold,
    SlippageRate,
    Start,
    Symbols,
    TuneMinutes,
    TuneTrials,
)
from tasks import reports
from tasks.learning import TrainingRequest
from tasks.periods import run_moment, span
from tasks.training import Trained, select_task, train_task
from trading.window import Timeframe


@flow(name="train", flow_run_name="train-{timeframe}", retries=0, persist_result=False)
def train(
    symbols: Symbols,
    timeframe: Timeframe = Timeframe.H1,
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
    label: LabelKind = "forward",
    tune_trials: TuneTrials = 0,
    tune_minutes: TuneMinutes = 10,
    estimators: EstimatorNames = (),
    target: BarrierWidth = 1.0,
    stop: BarrierWidth = 1.0,
    rolling_days: RollingDays = None,
    parameters: EstimatorParameters | None = None,
    features: FeatureParameters | None = None,
) -> Trained:
    """Train one model for a set of symbols and register the winner of the walk-forward.

    An equal request (same candles, code and parameters) returns the version it made before. The new
    version becomes ``challenger``; ``champion`` only if it passes the gate.

    Args:
        symbols: Symbols as the source spells them, such as BTCUSDT.
        timeframe: Length of a bar.
        days: How many days to look back where no start is given.
        start: Open time of the first bar (UTC). Empty: so many days back.
        end: End of the last bar (UTC). Empty: the last bar that is over when the run is due.
        refresh: Source to bring the candles up to date from first. Empty: use what is stored.
        horizon: Bars from the fill to the end of the label.
        folds: Folds of the purged walk-forward.
        seed: Seed of everything that draws.
        fee_rate: Fee per side as a share of the notional, 0.001 for 0.1 %.
        slippage_rate: Slippage per side as a share of the price.
        buy_threshold: Forward return above which the label is Long, as a fraction.
        sell_threshold: Forward return below which the label is Short, as a fraction.
        label: What is foreseen: the forward return, or which barrier is touched first (triple_barrier).
        tune_trials: Parameter sets to try for LightGBM before the walk-forward, on earlier rows. 0: none.
        tune_minutes: No further trial begins after so many minutes.
        estimators: Which to try beside the baselines. Empty: all.
        target: Width of the barrier to reach, in volatilities of the horizon (triple_barrier).
        stop: Width of the barrier to stay within, likewise.
        rolling_days: Train each fold on so many days before it. Empty: on all of the past.
        parameters: Fixed parameters by estimator, such as {"lightgbm": {"leaves": 31, "monotone": {"rsi": -1}}}.
        features: Parameters of the feature set that are not its defaults, such as {"rsi": 21, "calendar": []}.
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
    )  # fmt: skip
    trained = train_task(dataset, request, moment)
    _publish(trained)
    return trained


def _publish(trained: Trained) -> None:
    verdict = "promoted to champion" if trained.promoted else "not promoted"
    text = [
        f"# {trained.model} version {trained.version}: {trained.winner}",
        f"Data: **{trained.data_mode}**. {'Reused: an equal training was done before.' if trained.reused else ''}",
        f"[MLflow run]({trained.run_link}) · [model version]({trained.version_link}) · "
        f"[estimators side by side]({trained.compare_link})",
        "## Out of sample, mean over folds",
        reports.markdown_table([_rounded(row) for row in trained.scores]),
        f"## Gate: {verdict}",
        *(f"- {reason}" for reason in trained.decision),
        *(["## Skill or luck", *(f"- {reason}" for reason in trained.luck)] if trained.luck else []),
        *(["## Feature matrix", *(f"- {finding}" for finding in trained.findings)] if trained.findings else []),
        "## Folds",
        reports.markdown_table([_rounded(_flat(row)) for row in trained.folds]),
    ]
    key = f"train-{trained.model}".lower().replace("_", "-").replace(".", "-")
    reports.markdown(key, "\n\n".join(text), f"{trained.winner} version {trained.version}, {verdict}")


def _flat(row: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if not isinstance(value, list)}


def _rounded(row: dict[str, object]) -> dict[str, object]:
    return {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in row.items()}
