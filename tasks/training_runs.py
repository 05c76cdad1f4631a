"""How a training looks in MLflow: a parent run to compare with others, and children for what it is made of.

The parent has the winner's figures, few and named alike in every training, and says in its description why
it was promoted or not. Its children are one run per estimator (with a child per fold) and, after a
tuning, one per trial; the tag ``kind`` tells them apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tasks import mlflow_pages, registry, reports, training_tables
from tasks.datasets import Dataset

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from ml.evaluation import FoldScore
    from ml.promotion import Decision
    from tasks.learning import Learned, TrainingRequest

UNSEEN: Final = "out_of_sample.parquet"
REFERENCE: Final = "drift_reference.json"
IMPORTANCE: Final = "importance.csv"
FOLD_METRICS: Final = (
    "log_loss", "accuracy", "auc", "brier", "calibration_error", "information_coefficient", "hit_rate", "net_return",
    "signals", "test_rows", "train_rows",
)  # fmt: skip


def tags_of(dataset: Dataset, key: str, flow_run_id: str | None) -> dict[str, str]:
    """What leads from a run or a version back to its candles, its code and its flow run."""
    from ml.artifact import code_digest, code_version, lock_digest

    window = dataset.windows[0]
    return {
        "data_mode": dataset.data_mode,
        "training_key": key,
        "dataset_digest": dataset.digest,
        "code_digest": code_digest(),
        "code_version": code_version() or "",
        "lock_digest": lock_digest() or "",
        "symbols": ",".join(dataset.symbols),
        "timeframe": dataset.timeframe.value,
        "window": f"{window.start:%Y-%m-%dT%H:%MZ}/{window.end:%Y-%m-%dT%H:%MZ}",
        "prefect_flow_run": flow_run_id or "",
    }


def close_left(client: MlflowClient, experiment: str, key: str, flow_run_id: str | None) -> list[str]:
    """Close what an earlier attempt of this flow run at this training left open; ids of those runs.

    One that could not reach MLflow when it failed closed nothing. A flow run is at work once, so they are nobody's.
    """
    if flow_run_id is None:
        return []
    query = f"attributes.status = 'RUNNING' and tags.training_key = '{key}' and tags.prefect_flow_run = '{flow_run_id}'"
    left = [str(run.info.run_id) for run in client.search_runs([experiment], query, max_results=1_000)]
    for run_id in left:
        client.set_terminated(run_id, "KILLED")
    return left


def write_model(folder: Path, learned: Learned, dataset: Dataset, request: TrainingRequest) -> str:
    """Write the artifact; returns the sha256 of its manifest."""
    from ml.artifact import save

    calendars = set(dataset.calendars.values())
    return save(
        folder,
        learned.fitted,
        feature_set=learned.features,
        label=learned.label,
        rule=learned.rule,
        timeframe=dataset.timeframe,
        dataset_digest=dataset.digest,
        calendar=calendars.pop() if len(calendars) == 1 else None,
        # the training has had its confirmed gaps, too
        gaps_tolerated=learned.features.rows_needed // 100,
        metadata={"data_mode": dataset.data_mode, "symbols": list(dataset.symbols), "seed": request.seed},
    ).sha256


def log_parent(
    client: MlflowClient,
    experiment: str,
    folder: Path,
    name: str,
    learned: Learned,
    dataset: Dataset,
    request: TrainingRequest,
    tags: Mapping[str, str],
    now: datetime,
) -> tuple[str, list[Path]]:
    """Open the parent run with everything there is to compare; returns its id and the pictures in it."""
    from ml.drift import reference_of

    winner = learned.winner
    learned.unseen.to_parquet(folder / UNSEEN)
    learned.importance.to_csv(folder / IMPORTANCE)
    reference = reference_of(learned.table, learned.unseen, learned.fitted, learned.rule)
    (folder / REFERENCE).write_text(json.dumps(reference, allow_nan=False))
    pictures = draw(learned, name, dataset.data_mode, folder)
    record = registry.Record(
        name=f"{winner.estimator} {now:%Y-%m-%d %H:%M}",
        params={
            **asdict(request),
            "estimators": ", ".join(request.estimators) or "all",
            "rolling_days": request.rolling_days or "all",
            "estimator": winner.estimator,
            "features": learned.features.version,
            **{f"{winner.estimator}.{key}": value for key, value in learned.parameters[winner.estimator].items()},
        },
        metrics={
            **winner.metrics(),
            **learned.economics[winner.estimator].metrics(),
            **learned.overfitting.metrics(),
            **_tuning_metrics(learned),
            **_path_metrics(learned, winner.estimator),
            "skill": winner.skill(learned.baseline),
            "baseline_log_loss": learned.baseline.log_loss,
            "rows": float(len(learned.table)),
        },
        # a run without the tag was not judged; MLflow takes 5,000 characters
        tags={
            **tags,
            "kind": "training",
            "flow_run": flow_link(tags["prefect_flow_run"]),
            "feature_findings": ("; ".join(learned.findings) or "none")[:5000],
        },
        files=[folder / UNSEEN, folder / IMPORTANCE, folder / REFERENCE, *pictures],
    )
    run_id = registry.log_run(client, experiment, record, at_ms=_ms(now), finish=False)
    _log_inputs(client, run_id, dataset)
    return run_id, pictures


def log_children(
    client: MlflowClient, experiment: str, parent: str, learned: Learned, tags: Mapping[str, str], now: datetime
) -> None:
    """A run per estimator with one per fold under it, and one per trial of the tuning."""

    def log(name: str, kind: str, under: str, metrics: Mapping[str, float], params: Mapping[str, Any]) -> str:
        record = registry.Record(name, params, metrics, {**tags, "kind": kind})
        return registry.log_run(client, experiment, record, at_ms=_ms(now), parent=under)

    for score in learned.scores:
        estimator = score.estimator
        figures = {
            **score.metrics(),
            **learned.economics[estimator].metrics(),
            **_path_metrics(learned, estimator),
            "skill": score.skill(learned.baseline),
        }
        run_id = log(estimator, "estimator", parent, figures, dict(learned.parameters[estimator]))
        for fold in score.folds:
            log(f"{estimator} fold {fold.fold}", "fold", run_id, _fold_metrics(fold), {"fold": fold.fold})
    if learned.tuning is None:
        return
    for trial, earned in zip(learned.tuning.found.trials, learned.tuning.economics, strict=True):
        figures = {**trial.scores.metrics(), **earned.metrics(), "seconds": trial.seconds}
        log(f"trial {trial.number}", "trial", parent, figures, dict(trial.parameters))


def log_decision(client: MlflowClient, run_id: str, decision: Decision) -> None:
    """The gate's word on the parent run: as a tag to filter by, and in the description that its page shows."""
    verdict = "promoted" if decision.promote else "not promoted"
    client.set_tag(run_id, "gate", verdict)
    text = "\n".join([f"**{verdict}**", "", *(f"- {reason}" for reason in decision.reasons)])
    client.set_tag(run_id, "mlflow.note.content", text[:5000])


def describe(
    client: MlflowClient, experiment: str, name: str, version: str, scores: list[dict[str, Any]], decision: Decision
) -> None:
    """What the experiment's page says above its runs: the newest training, its estimators side by side, the gate.

    Args:
        scores: one row per estimator, as in ``tasks.training.Trained``.
    """
    for kind in ("training", "estimator"):
        mlflow_pages.share_view(client, experiment, f"{kind}s", kind=kind, metrics=training_tables.SHOWN)
    verdict = "is the champion" if decision.promote else "was not promoted"
    reasons = "\n".join(f"- {reason}" for reason in decision.reasons)
    text = (
        f"{name} version {version} {verdict}. Out of sample, after costs; each estimator is a run below the newest "
        f"training, with its folds.\n\n{reports.markdown_table(training_tables.side_by_side(scores))}\n\n{reasons}"
    )
    client.set_experiment_tag(experiment, "mlflow.note.content", text[:5000])


def luck(learned: Learned) -> list[str]:
    """How much of the winner may be luck, in words."""
    said = list(learned.overfitting.reasons)
    if learned.tuning is not None:
        found = learned.tuning.found
        many = f"{len(found.trials)} trials of {found.estimator}"
        said += [f"tuning, {many}: {reason}" for reason in learned.tuning.overfitting.reasons]
        if found.exhausted:
            said.append(f"tuning ended after {many}: its time was up")
    return said


def draw(learned: Learned, name: str, data_mode: str, folder: Path) -> list[Path]:
    """The pictures of a training, into ``folder``."""
    from ml import plots

    winner = learned.winner.estimator
    unseen = learned.unseen
    probabilities = unseen[["p_short", "p_neutral", "p_long"]].to_numpy()
    gain = learned.fitted.gain()
    gains = dict(zip(learned.table.names, gain.tolist(), strict=True)) if gain is not None else None
    lines = {
        score.estimator: learned.economics[score.estimator].returns
        for score in learned.scores
        if score.estimator != winner
    }
    return [
        plots.fold_losses(learned.scores, f"{name}: log loss out of sample", folder / "fold_losses.png", data_mode),
        plots.reliability_curve(
            probabilities, unseen["label"].to_numpy(), f"{name}: reliability of {winner}", folder / "reliability.png",
            data_mode,
        ),
        plots.importance_chart(
            learned.importance, gains, f"{name}: what {winner} leans on", folder / "importance.png", data_mode
        ),
        plots.fold_equity(
            lines,
            learned.economics[winner].returns,
            f"{name}: equity of {winner} and the others",
            folder / "equity.png",
            data_mode,
            fold_starts=[fold.test_start for fold in learned.folds],
            pooled_name=winner,
        ),
    ]  # fmt: skip


def _fold_metrics(fold: FoldScore) -> dict[str, float]:
    document = fold.document()
    return {name: float(document[name]) for name in FOLD_METRICS if document[name] is not None}


def _tuning_metrics(learned: Learned) -> dict[str, float]:
    if learned.tuning is None:
        return {}
    return {f"tuning.{name}": value for name, value in learned.tuning.overfitting.metrics().items()}


def _path_metrics(learned: Learned, estimator: str) -> dict[str, float]:
    """The spread of an estimator over the combinatorial paths, where there are any."""
    found = {one.estimator: one.metrics() for one in learned.spreads}.get(estimator, {})
    return {f"paths.{name}": value for name, value in found.items()}


def flow_link(flow_run_id: str) -> str:
    """The page of a flow run, where there is a Prefect server that stays."""
    from prefect.settings import PREFECT_API_URL
    from prefect.utilities.urls import url_for

    if not (flow_run_id and PREFECT_API_URL.value()):
        return ""
    return url_for("flow-run", obj_id=flow_run_id) or ""


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
