"""How a training looks in MLflow: a parent run to compare, a child per fold, the artifact's folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tasks import registry
from tasks.datasets import Dataset

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from ml.evaluation import Scores
    from tasks.training import Learned, TrainingRequest

UNSEEN: Final = "out_of_sample.parquet"


def tags_of(dataset: Dataset, key: str, flow_run_id: str | None) -> dict[str, str]:
    """What leads from a run or a version back to its candles, its code and its flow run."""
    from ml.artifact import code_digest

    window = dataset.windows[0]
    return {
        "data_mode": dataset.data_mode,
        "training_key": key,
        "dataset_digest": dataset.digest,
        "code_digest": code_digest(),
        "symbols": ",".join(dataset.symbols),
        "timeframe": dataset.timeframe.value,
        "window": f"{window.start:%Y-%m-%dT%H:%MZ}/{window.end:%Y-%m-%dT%H:%MZ}",
        "prefect_flow_run": flow_run_id or "",
    }


def write_model(folder: Path, learned: Learned, dataset: Dataset, request: TrainingRequest) -> str:
    """Write the artifact; returns the sha256 of its manifest."""
    from ml.artifact import save

    metadata = {"data_mode": dataset.data_mode, "symbols": list(dataset.symbols), "seed": request.seed}
    return save(
        folder,
        learned.fitted,
        feature_set=learned.features,
        label=learned.label,
        rule=learned.rule,
        timeframe=dataset.timeframe,
        dataset_digest=dataset.digest,
        metadata=metadata,
    ).sha256


def log_parent(
    client: MlflowClient,
    experiment: str,
    folder: Path,
    name: str,
    learned: Learned,
    dataset: Dataset,
    request: TrainingRequest,
    tags: dict[str, str],
    now: datetime,
) -> tuple[str, list[Path]]:
    """Open the parent run with everything there is to compare; returns its id and the pictures in it."""
    from ml.plots import fold_losses

    learned.unseen.to_parquet(folder / UNSEEN)
    title = f"{name}: log loss out of sample"
    pictures = [fold_losses(learned.scores, title, folder / "fold_losses.png", dataset.data_mode)]
    winner = learned.winner
    record = registry.Record(
        name=f"{winner.estimator} {now:%Y-%m-%d %H:%M}",
        params={**asdict(request), "estimator": winner.estimator, "features": learned.features.version},
        metrics={
            **winner.metrics(),
            "skill": winner.skill(learned.baseline),
            "baseline_log_loss": learned.baseline.log_loss,
            "rows": float(len(learned.table)),
        },
        # a run without the tag was not judged; MLflow takes 5,000 characters
        tags={**tags, "feature_findings": ("; ".join(learned.findings) or "none")[:5000]},
        files=[folder / UNSEEN, *pictures],
    )
    run_id = registry.log_run(client, experiment, record, at_ms=_ms(now), finish=False)
    _log_inputs(client, run_id, dataset)
    return run_id, pictures


def log_folds(
    client: MlflowClient, experiment: str, parent: str, scores: list[Scores], tags: dict[str, str], now: datetime
) -> None:
    """One child run per fold, with the figures of every estimator on it."""
    for number in range(len(scores[0].folds)):
        record = registry.Record(f"fold {number + 1}", metrics=_fold_metrics(scores, number), tags=tags)
        registry.log_run(client, experiment, record, at_ms=_ms(now), parent=parent)


def _fold_metrics(scores: list[Scores], number: int) -> dict[str, float]:
    figures = {}
    for score in scores:
        fold = score.folds[number].document()
        for metric in ("log_loss", "accuracy", "auc", "hit_rate", "net_return", "signals", "test_rows"):
            if fold[metric] is not None:
                figures[f"{score.estimator}.{metric}"] = float(fold[metric])
    return figures


def _log_inputs(client: MlflowClient, run_id: str, dataset: Dataset) -> None:
    from mlflow.entities import Dataset as LoggedDataset
    from mlflow.entities import DatasetInput

    windows = [
        {"symbol": window.symbol, "start": window.start.isoformat(), "end": window.end.isoformat()}
        for window in dataset.windows
    ]
    logged = LoggedDataset(
        name=f"{'-'.join(dataset.symbols)} {dataset.timeframe.value}"[:200],
        # MLflow keeps 36 characters; the whole digest is in the run's tags
        digest=dataset.digest[:32],
        source_type="tradeflows",
        source=json.dumps({"digest": dataset.digest, "windows": windows, "rows": dict(dataset.rows)}),
    )
    client.log_inputs(run_id, [DatasetInput(logged)])


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
