"""Training: an approved dataset in, a signed and registered version out, and the gate's word on it.

The same dataset, code and parameters give the same version again, without training twice.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prefect import task

from tasks import log, mlflow_pages, model_files, model_pages, promotions, registry, signing, training_runs
from tasks.datasets import Dataset, load, select
from tasks.learning import Learned, TrainingRequest, Tuning, earned_by, features_of, learn, walk_again
from tasks.models import REFERENCE_SHA256, UNSEEN_SHA256
from tasks.retry import REGISTRY, STORE, prefect_options
from tasks.settings import Settings, load_settings
from tasks.store import Store, configured_store
from tasks.sweep_registry import DEATHS
from trading.window import Timeframe

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from ml.combinatorial import PathSpread
    from ml.economics import Economics
    from ml.evaluation import Scores
    from ml.overfitting import Overfitting
    from ml.promotion import Decision, Evidence, Unscored

SUMMARY: Final = "summary.json"
# beside the figures of estimators: what the tables of people show
ECONOMICS: Final = ("total_return", "sharpe", "sharpe_error", "max_drawdown", "turnover", "cost_share", "trades")


@dataclass(frozen=True)
class Trained:
    """What a training left behind.

    ``scores`` has one row per estimator; ``folds`` one per estimator and fold; ``luck`` says in words how much of
    the winner may be luck; ``reused`` says that an equal training had been done before and nothing was
    run; ``findings`` are what was odd about the feature matrix without stopping the training; ``paths`` has a
    row per estimator with its spread over the combinatorial paths (``ml.combinatorial``), none without them.
    """

    model: str
    version: str
    run_id: str
    run_link: str
    version_link: str
    compare_link: str
    winner: str
    promoted: bool
    champion: str | None
    decision: list[str]
    scores: list[dict[str, Any]]
    folds: list[dict[str, Any]]
    luck: list[str]
    dataset_digest: str
    data_mode: str
    pictures: list[str]
    reused: bool
    findings: list[str] = field(default_factory=list)
    paths: list[dict[str, Any]] = field(default_factory=list)


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

    parts = [sorted(dataset.symbols), dataset.digest, asdict(request), features_of(request).version, code_digest()]
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
    """Learn, log it all, register the winner, signed, and let the gate decide.

    Raises:
        InsufficientHistory: too few candles for a row, the folds, or the classes of a fold.
        ExpectationFailed: the feature matrix is not what its features declare.
        RevisionConflict: other trainings of the model kept changing its champion.
    """
    name = model_name(dataset.symbols, dataset.timeframe)
    key = training_key(dataset, request)
    earlier = _earlier(client, settings, name, key)
    if earlier is not None:
        return earlier
    signing_key = signing.signing_key(settings)
    frames = load(store, dataset)
    learned = learn(frames, dataset, request, storage=_trials(settings) if request.tune_trials else None)
    experiment = registry.experiment_id(client, settings, f"train {name} h{request.horizon}")
    training_runs.close_left(client, experiment, key, flow_run_id)
    tags = training_runs.tags_of(dataset, key, flow_run_id)
    with tempfile.TemporaryDirectory(prefix="tradeflows-train-") as temporary:
        folder = Path(temporary)
        manifest_sha256 = training_runs.write_model(folder / model_files.MODEL_FOLDER, learned, dataset, request)
        run_id, pictures = training_runs.log_parent(
            client, experiment, folder, name, learned, dataset, request, tags, now
        )
        try:
            training_runs.log_children(client, experiment, run_id, learned, tags, now)
            model_uri = registry.log_model(client, run_id, folder / model_files.MODEL_FOLDER, learned.example)
            version_tags = {
                **tags,
                **_recipe(learned),
                model_files.MANIFEST_SHA256: manifest_sha256,
                UNSEEN_SHA256: _sha256(folder / training_runs.UNSEEN),
                REFERENCE_SHA256: _sha256(folder / training_runs.REFERENCE),
                "trained_until_ms": str(int(learned.table.t1.max())),
                "skill": f"{learned.winner.skill(learned.baseline):.6f}",
            }
            version = registry.register(client, name, model_uri, run_id, version_tags, key=signing_key)
            registry.set_alias(client, name, registry.CHALLENGER, version)
            decision, _ = promotions.consider(
                client, store, name, version, judge_of(client, name, learned, frames, dataset, request),
                who=promotions.who(), now=now, key=signing_key,
            )  # fmt: skip
            done = Trained(
                model=name,
                version=version,
                run_id=run_id,
                run_link=mlflow_pages.run_link(settings, experiment, run_id),
                version_link=mlflow_pages.version_link(settings, name, version),
                compare_link=mlflow_pages.view_link(settings, experiment, "estimators"),
                winner=learned.winner.estimator,
                promoted=decision.promote,
                champion=_champion_version(client, name),
                decision=list(decision.reasons),
                scores=[_score_row(learned, score) for score in learned.scores],
                folds=[fold.document() for score in learned.scores for fold in score.folds],
                luck=training_runs.luck(learned),
                dataset_digest=dataset.digest,
                data_mode=dataset.data_mode,
                pictures=[path.name for path in pictures],
                reused=False,
                findings=list(learned.findings),
                paths=[_path_row(spread) for spread in learned.spreads],
            )
            training_runs.log_decision(client, run_id, decision)
            training_runs.describe(client, experiment, name, version, done.scores, decision)
            model_pages.describe(
                client, done, version_tags, request.horizon, training_runs.flow_link(tags["prefect_flow_run"])
            )
            client.log_dict(run_id, asdict(done), SUMMARY)
        except BaseException:
            # a run that stays open looks as if it were still at work
            closed = False
            try:
                registry.finish_run(client, run_id, failed=True)
                closed = True
            finally:
                if not closed:
                    # MLflow is away: the sweep closes it
                    store.documents.increment(DEATHS, 1)
            raise
        registry.finish_run(client, run_id)
    return done


def evidence_of(earned: Economics, chosen: Overfitting | None = None, tuning: Tuning | None = None) -> Evidence:
    """What the gate is told: the money of the signals, and how much of it may be luck.

    Args:
        chosen: of the choice among the estimators; ``tuning``: of the choice among its trials. The worse deflated
            Sharpe ratio counts, and the probability of overfitting of the tuning.
    """
    from ml.promotion import Evidence

    figures = earned.pooled
    luck = [one for one in (chosen, tuning.overfitting if tuning else None) if one is not None]
    deflated = [one.deflated_sharpe for one in luck if one.deflated_sharpe is not None]
    return Evidence(
        total_return=figures.total_return,
        sharpe=figures.sharpe,
        sharpe_error=figures.sharpe_error,
        drawdown=-figures.max_drawdown,
        turnover=figures.turnover,
        trades=figures.trades,
        deflated_sharpe=min(deflated) if len(deflated) == len(luck) and deflated else None,
        pbo=tuning.overfitting.pbo if tuning else None,
        spa_p_value=chosen.spa if chosen else None,
    )


def judge_of(
    client: MlflowClient,
    name: str,
    learned: Learned,
    frames: dict[str, pd.DataFrame],
    dataset: Dataset,
    request: TrainingRequest,
) -> Callable[[ModelVersion | None], Decision]:
    """The gate's word on the winner against any champion, whose recipe walks through the same folds.

    The present champion is scored here already: walking takes long, and the lease on promotions is short.
    """
    from ml.promotion import PromotionRule, RiskRule, Unscored, decide

    # Money is judged by the account of the backtest engine: a net return per signal charges a round trip for
    # every overlapping label, which nobody pays. Among three estimators the probability of overfitting is a
    # coin; it speaks where many were tried.
    risk = RiskRule(max_pbo=RiskRule().max_pbo if learned.tuning else None)
    rule = PromotionRule(min_net_return=None, risk=risk)

    until = int(learned.table.t1.max())

    def rival(version: ModelVersion) -> tuple[Scores | Unscored, Evidence | None]:
        theirs = int(version.tags.get("trained_until_ms", 0))
        if theirs > until:
            # whoever wants to go back to older candles says so by hand
            at, mine = (datetime.fromtimestamp(one / 1000, tz=UTC) for one in (theirs, until))
            return Unscored(
                f"version {version.version} was trained until {at:%Y-%m-%d %H:%M} and this one until "
                f"{mine:%Y-%m-%d %H:%M}; promote it by hand if it is to follow"
            ), None
        found = _walked(version, learned, request)
        if not isinstance(found, tuple):
            return found, None
        scores, unseen = found
        return scores, evidence_of(earned_by(unseen, frames, dataset, request))

    present = registry.version_of(client, name, registry.CHAMPION)
    known = {str(present.version): rival(present)} if present is not None else {}
    evidence = evidence_of(learned.economics[learned.winner.estimator], learned.overfitting, learned.tuning)

    def judge(current: ModelVersion | None) -> Decision:
        if current is None:
            return decide(learned.winner, learned.baseline, None, rule, evidence=evidence)
        scores, theirs = known.get(str(current.version)) or rival(current)
        return decide(learned.winner, learned.baseline, scores, rule, evidence=evidence, champion_evidence=theirs)

    return judge


def _recipe(learned: Learned) -> dict[str, str]:
    """What a version says of how it was made, so that it can be made again from other candles."""
    name = learned.winner.estimator
    return {
        "estimator": name,
        "parameters": json.dumps(dict(learned.parameters[name]), sort_keys=True),
        "features": learned.features.version,
        "label": json.dumps(learned.label.definition(), sort_keys=True),
    }


def _walked(
    version: ModelVersion, learned: Learned, request: TrainingRequest
) -> tuple[Scores, pd.DataFrame] | Unscored:
    """The recipe of a version on the folds of this training; Unscored where it cannot be followed."""
    from ml.estimators import ESTIMATORS
    from ml.promotion import Unscored

    mine = _recipe(learned)
    missing = [tag for tag in mine if tag not in version.tags]
    if missing:
        return Unscored(f"version {version.version} does not say its {', '.join(missing)}")
    other = [tag for tag in ("features", "label") if version.tags[tag] != mine[tag]]
    if other or version.tags["estimator"] not in ESTIMATORS:
        what = ", ".join(other) or f"estimator {version.tags['estimator']}"
        return Unscored(
            f"version {version.version} has another {what}; if the new one is to follow it, promote it by hand"
        )
    return walk_again(learned, version.tags["estimator"], json.loads(version.tags["parameters"]), request)


def _champion_version(client: MlflowClient, name: str) -> str | None:
    current = registry.version_of(client, name, registry.CHAMPION)
    return str(current.version) if current is not None else None


def _earlier(client: MlflowClient, settings: Settings, name: str, key: str) -> Trained | None:
    """What an equal training left behind, with the champion as it is now and links to where the pages are now."""
    version = registry.find_version(client, name, {"training_key": key})
    if version is None or client.get_run(version.run_id).info.status != "FINISHED":
        return None
    if SUMMARY not in {file.path for file in client.list_artifacts(version.run_id)}:
        # it died after it was registered, before it was judged
        return None
    summary = json.loads(registry.run_file(client, version.run_id, SUMMARY).read_text())
    links = {link: mlflow_pages.moved(settings, summary[link]) for link in ("run_link", "version_link", "compare_link")}
    return Trained(**{**summary, **links, "champion": _champion_version(client, name), "reused": True})


def _trials(settings: Settings) -> str:
    """Where the trials of tunings are kept until the training is done."""
    settings.home.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{(settings.home / 'tuning.db').resolve()}"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _score_row(learned: Learned, score: Scores) -> dict[str, Any]:
    earned = learned.economics[score.estimator].metrics()
    money: dict[str, float] = {name: earned[name] for name in ECONOMICS if name in earned}
    return {"estimator": score.estimator, **score.metrics(), "skill": score.skill(learned.baseline), **money}


def _path_row(spread: PathSpread) -> dict[str, Any]:
    return {"estimator": spread.estimator, "splits": spread.splits, **spread.metrics()}


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
