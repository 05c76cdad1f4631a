"""Train: an approved dataset, a purged walk-forward, one registered version, a decision about it."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.ingest import bring_up_to_date
from flows.parameters import Days, End, FeeRate, Folds, Horizon, Refresh, Seed, SlippageRate, Start, Symbols
from tasks import reports
from tasks.periods import run_moment, span
from tasks.training import Trained, TrainingRequest, select_task, train_task
from trading.window import Timeframe

Threshold = Annotated[float, Field(title="Threshold", description="Forward return that makes a label, as a fraction")]


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
    buy_threshold: Threshold = 0.005,
    sell_threshold: Threshold = -0.005,
) -> Trained:
    """Train one model for a set of symbols and register the winner of the walk-forward.

    An equal request (same candles, code and parameters) returns the version it made before. The new
    version becomes ``challenger``; ``champion`` only if it passes the gate.
    """
    moment = run_moment()
    first, last = span(timeframe, start, end, days, moment)
    if refresh is not None:
        bring_up_to_date(symbols, timeframe, refresh, first, last, moment)
    dataset = select_task(symbols, timeframe, first, last)
    request = TrainingRequest(horizon, folds, seed, fee_rate, slippage_rate, buy_threshold, sell_threshold)
    trained = train_task(dataset, request, moment)
    _publish(trained)
    return trained


def _publish(trained: Trained) -> None:
    verdict = "promoted to champion" if trained.promoted else "not promoted"
    text = [
        f"# {trained.model} version {trained.version}: {trained.winner}",
        f"Data: **{trained.data_mode}**. {'Reused: an equal training was done before.' if trained.reused else ''}",
        f"[MLflow run]({trained.run_link}) · [model version]({trained.version_link})",
        "## Out of sample, mean over folds",
        reports.markdown_table([_rounded(row) for row in trained.scores]),
        f"## Gate: {verdict}",
        *(f"- {reason}" for reason in trained.decision),
        "## Folds",
        reports.markdown_table([_rounded(row) for row in trained.folds]),
    ]
    key = f"train-{trained.model}".lower().replace("_", "-").replace(".", "-")
    reports.markdown(key, "\n\n".join(text), f"{trained.winner} version {trained.version}, {verdict}")


def _rounded(row: dict[str, object]) -> dict[str, object]:
    return {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in row.items()}
