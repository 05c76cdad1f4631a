"""Training in MLflow: one parent run, one child per fold, the winner as a registered version.

The same dataset, code and parameters give the same version again, without training twice.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prefect import task

from tasks import log, progress, registry
from tasks.datasets import Dataset, load, select
from tasks.retry import REGISTRY, STORE, prefect_options
from tasks.settings import Settings, load_settings
from tasks.store import Store, configured_store
from trading.window import Timeframe

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from ml.evaluation import Scores

SUMMARY: Final = "summary.json"
UNSEEN: Final = "out_of_sample.parquet"


@dataclass(frozen=True)
class TrainingRequest:
    """Everything, beside the candles and the code, that decides what comes out of a training."""

    horizon: int
    folds: int
    seed: int
    fee_rate: float
    slippage_rate: float
    buy_threshold: float
    sell_threshold: float

    @property
    def round_trip_cost(self) -> float:
        """Cost of getting in and out, as a share of the notional."""
        return 2 * (self.fee_rate + self.slippage_rate)


@dataclass(frozen=True)
class Trained:
    """What a training left behind.

    ``scores`` has one row per estimator; ``folds`` one per estimator and fold; ``reused`` says that an
    equal training had been done before and nothing was run.
    """

    model: str
    version: str
    run_id: str
    run_link: str
    version_link: str
    winner: str
    promoted: bool
    champion: str | None
    decision: list[str]
    scores: list[dict[str, Any]]
    folds: list[dict[str, Any]]
    dataset_digest: str
    data_mode: str
    pictures: list[str]
    reused: bool


def model_name(symbols: tuple[str, ...] | list[str], timeframe: Timeframe) -> str:
    """The registered model's name for a symbol set: readable when short, else with a digest of the set."""
    ordered = sorted(symbols)
    label = "-".join(ordered)
    if len(label) > 40:
        label = f"{len(ordered)}-symbols-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
    return f"{label}-{timeframe.value}".replace("/", "_")


def training_key(dataset: Dataset, request: TrainingRequest) -> str:
    """Names a training: equal keys give equal models."""
    from ml.artifact import code_digest
    from ml.features import FeatureSet

    parts = [sorted(dataset.symbols), dataset.digest, asdict(request), FeatureSet().version, code_digest()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def train(
    store: Store,
    settings: Settings,
    client: MlflowClient,
    dataset: Dataset,
    request: TrainingRequest,
    *,
    now: datetime,
    flow_run_id: str | None,
) -> Trained:
    """Walk forward, choose the winner, log it all, register the winner and let the gate decide.

    Raises:
        InsufficientHistory: too few candles for a row, the folds, or the classes of a fold.
    """
    name = model_name(dataset.symbols, dataset.timeframe)
    key = training_key(dataset, request)
    earlier = _earlier(client, name, key)
    if earlier is not None:
        return earlier
    from ml import artifact, estimators, evaluation, promotion, splits, training
    from ml.features import FeatureSet
    from ml.labels import LabelDefinition

    label = LabelDefinition(request.horizon, request.buy_threshold, request.sell_threshold, request.round_trip_cost)
    features = FeatureSet()
    frames = load(store, dataset.windows)
    table = training.assemble(frames, features, label)
    folds = splits.walk_forward_folds(
        table.t0, table.t1, folds=request.folds, embargo=request.horizon * dataset.timeframe.delta
    )
    scores = training.walk_forward(
        table,
        folds,
        seed=request.seed,
        progress=lambda done, total, _: progress.report(f"train {dataset.timeframe.value}", done, total),
    )
    baseline = next(score for score in scores if score.estimator == estimators.BASELINE)
    winner = evaluation.best(scores)
    champion_version = registry.version_of(client, name, registry.CHAMPION)
    champion = next((score for score in scores if champion_version and score.estimator == champion_version.tags.get("estimator")), None)  # fmt: skip # noqa: E501
    # skill at foreseeing volatility is not yet money: the signals must pay for their costs too
    decision = promotion.decide(winner, baseline, champion, promotion.PromotionRule(min_net_return=0.0))
    unseen = training.out_of_sample(table, folds, winner.estimator, request.seed)
    fitted, rule = training.fit_final(table, winner.estimator, request.seed)

    with tempfile.TemporaryDirectory(prefix="tradeflows-train-") as temporary:
        folder = Path(temporary)
        experiment = registry.experiment_id(client, settings, f"train {name} h{request.horizon}")
        saved = artifact.save(
            folder / registry.MODEL_FOLDER,
            fitted,
            feature_set=features,
            label=label,
            rule=rule,
            timeframe=dataset.timeframe,
            dataset_digest=dataset.digest,
            metadata={"data_mode": dataset.data_mode, "symbols": list(dataset.symbols), "seed": request.seed},
        )
        tags = {
            "data_mode": dataset.data_mode,
            "training_key": key,
            "dataset_digest": dataset.digest,
            "code_digest": artifact.code_digest(),
            "symbols": ",".join(dataset.symbols),
            "timeframe": dataset.timeframe.value,
            "window": f"{dataset.windows[0].start:%Y-%m-%dT%H:%MZ}/{dataset.windows[0].end:%Y-%m-%dT%H:%MZ}",
            "prefect_flow_run": flow_run_id or "",
        }
        unseen.to_parquet(folder / UNSEEN)
        pictures = _pictures(folder, name, scores, dataset.data_mode)
        parent = registry.log_run(
            client,
            experiment,
            registry.Record(
                name=f"{winner.estimator} {now:%Y-%m-%d %H:%M}",
                params={**asdict(request), "estimator": winner.estimator, "features": features.version},
                metrics=_metrics(winner, baseline) | {"rows": float(len(table))},
                tags=tags,
                files=[folder / UNSEEN, *pictures],
            ),
            at_ms=int(now.timestamp() * 1000),
            finish=False,
        )
        try:
            _log_inputs(client, parent, dataset)
            for number in range(len(folds)):
                registry.log_run(
                    client,
                    experiment,
                    registry.Record(f"fold {number + 1}", metrics=_fold_metrics(scores, number), tags=tags),
                    at_ms=int(now.timestamp() * 1000),
                    parent=parent,
                )
            example = next(iter(frames.values())).tail(features.rows_needed).reset_index()
            model_uri = registry.log_model(client, parent, folder / registry.MODEL_FOLDER, example)
            version = registry.register(
                client,
                name,
                model_uri,
                parent,
                {
                    **tags,
                    "estimator": winner.estimator,
                    "manifest_sha256": saved.sha256,
                    "trained_until_ms": str(int(table.t1.max())),
                    "skill": f"{winner.skill(baseline):.6f}",
                },
            )
            client.set_registered_model_alias(name, registry.CHALLENGER, version)
            if decision.promote:
                registry.promote(client, name, version)
            current = registry.version_of(client, name, registry.CHAMPION)
            done = Trained(
                model=name,
                version=version,
                run_id=parent,
                run_link=registry.run_link(settings, experiment, parent),
                version_link=registry.version_link(settings, name, version),
                winner=winner.estimator,
                promoted=decision.promote,
                champion=str(current.version) if current is not None else None,
                decision=list(decision.reasons),
                scores=[_score_row(score, baseline) for score in scores],
                folds=[fold.document() for score in scores for fold in score.folds],
                dataset_digest=dataset.digest,
                data_mode=dataset.data_mode,
                pictures=[path.name for path in pictures],
                reused=False,
            )
            client.log_dict(parent, asdict(done), SUMMARY)
        except BaseException:
            # a run that stays open looks as if it were still at work
            registry.finish_run(client, parent, failed=True)
            raise
        registry.finish_run(client, parent)
    return done


def _earlier(client: MlflowClient, name: str, key: str) -> Trained | None:
    """What an equal training left behind, with the champion as it is now."""
    version = registry.find_version(client, name, {"training_key": key})
    if version is None or client.get_run(version.run_id).info.status != "FINISHED":
        return None
    summary = json.loads(registry.run_file(client, version.run_id, SUMMARY).read_text())
    current = registry.version_of(client, name, registry.CHAMPION)
    return Trained(**{**summary, "champion": str(current.version) if current is not None else None, "reused": True})


def _metrics(winner: Scores, baseline: Scores) -> dict[str, float]:
    return {**winner.metrics(), "skill": winner.skill(baseline), "baseline_log_loss": baseline.log_loss}


def _fold_metrics(scores: list[Scores], number: int) -> dict[str, float]:
    figures = {}
    for score in scores:
        fold = score.folds[number].document()
        for metric in ("log_loss", "accuracy", "auc", "hit_rate", "net_return", "signals", "test_rows"):
            if fold[metric] is not None:
                figures[f"{score.estimator}.{metric}"] = float(fold[metric])
    return figures


def _score_row(score: Scores, baseline: Scores) -> dict[str, Any]:
    return {"estimator": score.estimator, **score.metrics(), "skill": score.skill(baseline)}


def _log_inputs(client: MlflowClient, run_id: str, dataset: Dataset) -> None:
    from mlflow.entities import Dataset as LoggedDataset
    from mlflow.entities import DatasetInput

    window = dataset.windows[0]
    logged = LoggedDataset(
        name=f"{'-'.join(dataset.symbols)} {dataset.timeframe.value}"[:200],
        # MLflow keeps 36 characters; the whole digest is in the run's tags
        digest=dataset.digest[:32],
        source_type="tradeflows",
        source=json.dumps(
            {"start": window.start.isoformat(), "end": window.end.isoformat(), "rows": dict(dataset.rows)}
        ),
    )
    client.log_inputs(run_id, [DatasetInput(logged)])


def _pictures(folder: Path, name: str, scores: list[Scores], data_mode: str) -> list[Path]:
    from ml.plots import fold_losses

    return [fold_losses(scores, f"{name}: log loss out of sample", folder / "fold_losses.png", data_mode)]


# --- Prefect tasks -------------------------------------------------------------------------------


@task(name="select-dataset", **prefect_options(STORE))
def select_task(symbols: list[str], timeframe: Timeframe, start: datetime, end: datetime) -> Dataset:
    """``tasks.datasets.select`` on the configured store."""
    settings = load_settings()
    with configured_store(settings) as store:
        return select(store, symbols, timeframe, start, end)


@task(name="train-models", **prefect_options(REGISTRY))
def train_task(dataset: Dataset, request: TrainingRequest, now: datetime) -> Trained:
    """``train`` on the configured store and registry."""
    settings = load_settings()
    with log.about(symbols=",".join(dataset.symbols)), configured_store(settings) as store:
        client = registry.connect(settings)
        trained = train(store, settings, client, dataset, request, now=now, flow_run_id=log.flow_run_id())
        log.logger().info(
            "trained", model=trained.model, version=trained.version, winner=trained.winner, reused=trained.reused
        )
        return trained
