"""Training in MLflow: one parent run, one child per fold, the winner as a registered version.

The same dataset, code and parameters give the same version again, without training twice.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prefect import task

from tasks import log, progress, registry, training_runs
from tasks.datasets import Dataset, load, select
from tasks.retry import REGISTRY, STORE, prefect_options
from tasks.settings import Settings, load_settings
from tasks.store import Store, configured_store
from trading.window import Timeframe

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

    from ml.estimators import Fitted
    from ml.evaluation import Scores
    from ml.features import FeatureSet
    from ml.labels import LabelDefinition
    from ml.promotion import Decision
    from ml.signals import SignalRule
    from ml.training import TrainingTable

SUMMARY: Final = "summary.json"


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
    equal training had been done before and nothing was run; ``findings`` are what was odd about the
    feature matrix without stopping the training.
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
    findings: list[str] = field(default_factory=list)


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


@dataclass(frozen=True, eq=False)
class Learned:
    """What the walk-forward and the final fit gave, before anything is written down.

    ``unseen`` holds the winner's out-of-sample signals (see ``ml.training.out_of_sample``), ``findings``
    what the feature suite had to say without stopping the training.
    """

    features: FeatureSet
    label: LabelDefinition
    table: TrainingTable
    scores: list[Scores]
    baseline: Scores
    winner: Scores
    unseen: pd.DataFrame
    fitted: Fitted
    rule: SignalRule
    example: pd.DataFrame
    findings: tuple[str, ...]


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
        ExpectationFailed: the feature matrix is not what its features declare.
    """
    name = model_name(dataset.symbols, dataset.timeframe)
    key = training_key(dataset, request)
    earlier = _earlier(client, name, key)
    if earlier is not None:
        return earlier
    learned = learn(load(store, dataset), dataset, request)
    decision = _decide(client, name, learned)
    experiment = registry.experiment_id(client, settings, f"train {name} h{request.horizon}")
    tags = training_runs.tags_of(dataset, key, flow_run_id)
    with tempfile.TemporaryDirectory(prefix="tradeflows-train-") as temporary:
        folder = Path(temporary)
        manifest_sha256 = training_runs.write_model(folder / registry.MODEL_FOLDER, learned, dataset, request)
        run_id, pictures = training_runs.log_parent(
            client, experiment, folder, name, learned, dataset, request, tags, now
        )
        try:
            training_runs.log_folds(client, experiment, run_id, learned.scores, tags, now)
            model_uri = registry.log_model(client, run_id, folder / registry.MODEL_FOLDER, learned.example)
            version_tags = {
                **tags,
                "estimator": learned.winner.estimator,
                "manifest_sha256": manifest_sha256,
                "trained_until_ms": str(int(learned.table.t1.max())),
                "skill": f"{learned.winner.skill(learned.baseline):.6f}",
            }
            version = registry.register(client, name, model_uri, run_id, version_tags)
            client.set_registered_model_alias(name, registry.CHALLENGER, version)
            if decision.promote:
                registry.promote(client, name, version)
            done = Trained(
                model=name,
                version=version,
                run_id=run_id,
                run_link=registry.run_link(settings, experiment, run_id),
                version_link=registry.version_link(settings, name, version),
                winner=learned.winner.estimator,
                promoted=decision.promote,
                champion=_champion_version(client, name),
                decision=list(decision.reasons),
                scores=[_score_row(score, learned.baseline) for score in learned.scores],
                folds=[fold.document() for score in learned.scores for fold in score.folds],
                dataset_digest=dataset.digest,
                data_mode=dataset.data_mode,
                pictures=[path.name for path in pictures],
                reused=False,
                findings=list(learned.findings),
            )
            client.log_dict(run_id, asdict(done), SUMMARY)
        except BaseException:
            # a run that stays open looks as if it were still at work
            registry.finish_run(client, run_id, failed=True)
            raise
        registry.finish_run(client, run_id)
    return done


def learn(frames: dict[str, pd.DataFrame], dataset: Dataset, request: TrainingRequest) -> Learned:
    """Score every estimator in a purged walk-forward and fit the best one on all rows.

    Raises: as ``train``.
    """
    import expectations.features as feature_suite
    from ml import estimators, evaluation, splits, training
    from ml.features import FeatureSet
    from ml.labels import LabelDefinition

    label = LabelDefinition(request.horizon, request.buy_threshold, request.sell_threshold, request.round_trip_cost)
    features = FeatureSet()
    table = training.assemble(frames, features, label)
    verdict = feature_suite.judge(table)
    feature_suite.require(verdict)
    embargo = request.horizon * dataset.timeframe.delta
    folds = splits.walk_forward_folds(table.t0, table.t1, folds=request.folds, embargo=embargo)
    step = f"train {dataset.timeframe.value}"
    scores = training.walk_forward(
        table, folds, seed=request.seed, progress=lambda done, total, _: progress.report(step, done, total)
    )
    winner = evaluation.best(scores)
    fitted, rule = training.fit_final(table, winner.estimator, request.seed)
    return Learned(
        features=features,
        label=label,
        table=table,
        scores=scores,
        baseline=next(score for score in scores if score.estimator == estimators.BASELINE),
        winner=winner,
        unseen=training.out_of_sample(table, folds, winner.estimator, request.seed),
        fitted=fitted,
        rule=rule,
        example=next(iter(frames.values())).tail(features.rows_needed).reset_index(),
        findings=tuple(map(str, verdict.findings)),
    )


def _decide(client: MlflowClient, name: str, learned: Learned) -> Decision:
    """The gate's word on the winner. The champion's recipe was walked through the same folds."""
    from ml.promotion import PromotionRule, decide

    current = registry.version_of(client, name, registry.CHAMPION)
    recipe = current.tags.get("estimator") if current is not None else None
    champion = next((score for score in learned.scores if score.estimator == recipe), None)
    # skill at foreseeing volatility is not yet money: the signals must pay for their costs too
    return decide(learned.winner, learned.baseline, champion, PromotionRule(min_net_return=0.0))


def _champion_version(client: MlflowClient, name: str) -> str | None:
    current = registry.version_of(client, name, registry.CHAMPION)
    return str(current.version) if current is not None else None


def _earlier(client: MlflowClient, name: str, key: str) -> Trained | None:
    """What an equal training left behind, with the champion as it is now."""
    version = registry.find_version(client, name, {"training_key": key})
    if version is None or client.get_run(version.run_id).info.status != "FINISHED":
        return None
    summary = json.loads(registry.run_file(client, version.run_id, SUMMARY).read_text())
    return Trained(**{**summary, "champion": _champion_version(client, name), "reused": True})


def _score_row(score: Scores, baseline: Scores) -> dict[str, Any]:
    return {"estimator": score.estimator, **score.metrics(), "skill": score.skill(baseline)}


# --- Prefect tasks -------------------------------------------------------------------------------


@task(name="select-dataset", **prefect_options(STORE))
def select_task(symbols: list[str], timeframe: Timeframe, start: datetime, end: datetime, now: datetime) -> Dataset:
    """``tasks.datasets.select`` on the configured store."""
    settings = load_settings()
    with configured_store(settings) as store:
        return select(store, symbols, timeframe, start, end, now=now)


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
