"""Backtests: strategies x symbols x parameters x costs over approved candles, logged, drawn and kept.

Prepare (validate, find what is stored), prove that no strategy looks ahead, run the batches that are missing, choose
the best of each strategy, study those, publish. Every step leaves its results in the store under a digest of what
decided them: an identical request returns the stored result, one that adds a strategy computes only that, and a
run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from prefect import task

from tasks import backtest_records, log, mlflow_pages, registry
from tasks.backtest_leaders import Comparison, Leaderboard, compare, comparisons_of, leaderboard
from tasks.backtest_models import models_of, subjects_of
from tasks.backtest_plans import Batch, digest_of, plan
from tasks.backtest_proofs import prove_rule
from tasks.backtest_records import Backtested, Finished
from tasks.backtest_requests import HOLD, MODELS, BacktestRequest, candidates
from tasks.backtest_runs import run_batch
from tasks.backtest_studies import Drawing, Study, draw, run_study, studies_of
from tasks.datasets import Dataset
from tasks.retry import REGISTRY, STORE, prefect_options
from tasks.settings import Settings, load_settings
from tasks.store import Store, configured_store, get_result, put_result, touch_result
from tasks.wide import Group

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "Backtested", "Prepared", "batch_task", "comparison_task", "drawing_task", "finished", "leaders_task", "prepare",
    "prepare_task", "proof_task", "publish", "publish_task", "study_task",
]  # fmt: skip

RESULT: Final = "backtest"


@dataclass(frozen=True)
class Prepared:
    """What is to be done.

    Attributes:
        batches: all of the plan; ``missing`` those of them without a stored outcome.
        proofs: a batch of each rule that is about to be run, to be checked for look-ahead before.
        code: version of the arithmetic.
        comparisons: of everything that is tried, once it was run.
        done: the stored result of an identical request.
    """

    key: str
    code: str
    batches: tuple[Batch, ...]
    missing: tuple[Batch, ...]
    proofs: tuple[Batch, ...]
    comparisons: tuple[Comparison, ...]
    absent: tuple[str, ...]
    done: Backtested | None = None


def prepare(
    store: Store, settings: Settings, client: MlflowClient, dataset: Dataset, request: BacktestRequest, now: datetime
) -> Prepared:
    """Validate a request, and find out what of it is not in the store.

    Raises:
        InvalidRequest: a strategy, parameter, grid or rule that makes no sense; names it.
        InsufficientHistory: too few bars are left to trade for a symbol.
        ModelRejected: the champion is not what was registered, and no other version can take its place.
        LookAhead: the champion's signals change with what comes after them.
    """
    from ml.artifact import code_digest

    wanted = candidates(request)
    code = code_digest()
    models = models_of(store, settings, client, dataset, request, now)
    key = digest_of(
        RESULT, sorted(dataset.symbols), dataset.digest, dataset.data_mode, asdict(request), dict(models.names), code
    )
    stored = get_result(store, key)
    if stored is not None and registry.run_exists(client, stored["run_id"]):
        links = {
            "run_link": mlflow_pages.moved(settings, stored["run_link"]),
            "page_links": [mlflow_pages.moved(settings, link) for link in stored["page_links"]],
        }
        return Prepared(
            key, code, (), (), (), (), models.absent, Backtested(**{**stored, **links, "reused": True, "computed": 0})
        )
    batches = plan(wanted, subjects_of(store, client, dataset, request, models, now), request, code)
    missing = tuple(batch for batch in batches if not touch_result(store, batch.key, now))
    rules = {batch.strategy: batch for batch in reversed(missing) if batch.strategy not in (*MODELS, HOLD)}
    return Prepared(
        key, code, batches, missing, tuple(rules.values()), tuple(comparisons_of(batches, request.seed, code)),
        models.absent,
    )  # fmt: skip


def publish(
    store: Store, settings: Settings, client: MlflowClient, done: Finished, now: datetime, flow_run_id: str | None
) -> Backtested:
    """Log and write what was found, and keep it for an identical request."""
    found = backtest_records.publish(store, settings, client, done, now=now, flow_run_id=flow_run_id)
    put_result(store, done.key, RESULT, asdict(found), now)
    return found


def finished(prepared: Prepared, dataset: Dataset, request: BacktestRequest, board: Leaderboard) -> Finished:
    """What is left to study, draw and publish once everything was traded."""
    studies, drawings = studies_of(board.chosen, request.seed, prepared.code)
    return Finished(
        key=prepared.key,
        code=prepared.code,
        dataset=dataset,
        request=request,
        board=board,
        studies=studies,
        drawings=drawings,
        absent=prepared.absent,
        batches=len(prepared.batches),
        computed=len(prepared.missing),
    )


# --- Prefect tasks -------------------------------------------------------------------------------


@task(name="prepare-backtest", **prefect_options(REGISTRY))
def prepare_task(dataset: Dataset, request: BacktestRequest, now: datetime) -> Prepared:
    """``prepare`` on the configured store and registry."""
    settings = load_settings()
    with log.about(symbols=",".join(dataset.symbols)), configured_store(settings) as store:
        prepared = prepare(store, settings, registry.connect(settings), dataset, request, now)
        log.logger().info(
            "backtest planned", batches=len(prepared.batches), missing=len(prepared.missing),
            reused=prepared.done is not None,
        )  # fmt: skip
        return prepared


@task(name="check-look-ahead", task_run_name="look-ahead of {group.name}", **prefect_options(STORE))
def proof_task(group: Group[Batch], now: datetime) -> None:
    """``tasks.backtest_proofs.prove_rule`` on the configured store."""
    with configured_store(load_settings()) as store:
        for item in group.items:
            prove_rule(store, item, now)


@task(name="backtest-batch", task_run_name="{group.name}", **prefect_options(STORE))
def batch_task(group: Group[Batch], now: datetime) -> None:
    """``tasks.backtest_runs.run_batch`` on the configured store."""
    with configured_store(load_settings()) as store:
        for item in group.items:
            run_batch(store, item, now)


@task(name="compare-trials", task_run_name="{group.name}", **prefect_options(STORE))
def comparison_task(group: Group[Comparison], now: datetime) -> None:
    """``tasks.backtest_leaders.compare`` on the configured store."""
    with configured_store(load_settings()) as store:
        for item in group.items:
            compare(store, item, now)


@task(name="choose-best", **prefect_options(STORE))
def leaders_task(prepared: Prepared) -> Leaderboard:
    """``tasks.backtest_leaders.leaderboard`` on the configured store."""
    with configured_store(load_settings()) as store:
        return leaderboard(store, prepared.batches, prepared.comparisons)


@task(name="study-strategy", task_run_name="study of {group.name}", **prefect_options(STORE))
def study_task(group: Group[Study], now: datetime) -> None:
    """``tasks.backtest_studies.run_study`` on the configured store."""
    with configured_store(load_settings()) as store:
        for item in group.items:
            run_study(store, item, now)


@task(name="draw-equity", task_run_name="{group.name}", **prefect_options(STORE))
def drawing_task(group: Group[Drawing], now: datetime) -> None:
    """``tasks.backtest_studies.draw`` on the configured store."""
    with configured_store(load_settings()) as store:
        for item in group.items:
            draw(store, item, now)


@task(name="publish-backtest", **prefect_options(REGISTRY))
def publish_task(done: Finished, now: datetime) -> Backtested:
    """``publish`` on the configured store and registry."""
    settings = load_settings()
    with log.about(symbols=",".join(done.dataset.symbols)), configured_store(settings) as store:
        found = publish(store, settings, registry.connect(settings), done, now, log.flow_run_id())
        log.logger().info("backtested", rows=len(found.rows), trials=found.trials, computed=found.computed)
        return found
