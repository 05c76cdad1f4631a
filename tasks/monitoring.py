"""Monitoring: does the champion still know the market that it trades?

What it says of the live bars is computed again from the stored candles: a prediction is a function of the
verified model and of candles that the ledger approved, so this is what was said at the time, on every bar,
also on those where no analysis ran, and a second look gives it again (after a late correction of a candle:
what would have been said). Stored analyses would have gaps, and no probabilities. Live are only bars that
the champion was not trained on; a signal counts towards the hit rate once its horizon is over.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prefect import task

from ml.monitoring import UNKNOWN, DriftRule
from tasks import ledger, log, registry
from tasks.datasets import Dataset, load, select
from tasks.models import Champion, champion, signed_file
from tasks.periods import reach
from tasks.retry import REGISTRY, prefect_options
from tasks.settings import Settings, load_settings
from tasks.store import Store, configured_store, get_result, put_result
from tasks.training import model_name
from tasks.training_runs import REFERENCE
from trading.errors import InsufficientHistory, ModelNotFound
from trading.window import Timeframe

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

    from ml.monitoring import Verdict

EVENT: Final = "tradeflows.model.drifted"


@dataclass(frozen=True)
class Monitored:
    """What a look at the champion found; ``state`` is stable, drifted or unknown.

    ``columns`` has one row per feature and prediction column, ``performance`` the test of the hit rate
    (both empty where there was nothing to compare); ``live`` is the span of live bars, UTC; ``reused`` says
    that the same bars had been looked at before.
    """

    model: str
    version: str | None
    symbols: list[str]
    timeframe: str
    state: str
    retrain: bool
    reasons: list[str]
    rows: int
    live: str
    columns: list[dict[str, Any]]
    performance: dict[str, Any]
    link: str
    dataset_digest: str
    data_mode: str
    picture: str | None
    reused: bool


def monitor(
    store: Store,
    settings: Settings,
    chosen: Champion,
    reference: str | None,
    symbols: Sequence[str],
    timeframe: Timeframe,
    start: datetime,
    end: datetime,
    rule: DriftRule,
    *,
    now: datetime,
    announce: Callable[[Monitored, str], None],
) -> Monitored:
    """Hold the bars of ``[start, end)`` that are news to the champion against its training.

    Without a reference or live bars the answer is ``unknown`` and says why. The same bars and rule give
    the stored answer again, and nothing is announced twice.

    Args:
        reference: the text of the champion's ``REFERENCE``, or None where its run has none.
        announce: told what was found, and the key of it, when the model must be trained again; before the
            answer is stored, so that a process that dies in between tells it again rather than never.

    Raises:
        InsufficientHistory: the ledger has not approved the bars, or the history that features need before them.
    """
    name = chosen.name
    if reference is None:
        why = f"run {chosen.run_id} has no {REFERENCE}: the model was trained before there was one; train it again"
        return _unknown(name, symbols, timeframe, chosen, why)
    first = max(start, timeframe.floor(_moment(chosen.trained_until_ms)))
    if first >= end:
        why = f"the model was trained until {_moment(chosen.trained_until_ms):%Y-%m-%dT%H:%MZ}: no bar is news to it"
        return _unknown(name, symbols, timeframe, chosen, why)
    before = _warm_up(store, symbols, timeframe, chosen.model.rows_needed)
    dataset = select(store, symbols, timeframe, timeframe.floor(first - before), end, now=now)
    key = _key(dataset, first, chosen, reference, rule)
    stored = get_result(store, key)
    if stored is not None:
        return Monitored(**{**stored, "reused": True})
    verdict = _verdict(load(store, dataset), chosen, json.loads(reference), first, rule)
    found = Monitored(
        model=name,
        version=chosen.version,
        symbols=list(symbols),
        timeframe=timeframe.value,
        state=verdict.state,
        retrain=verdict.retrain,
        reasons=[*([chosen.degraded] if chosen.degraded else []), *verdict.reasons],
        rows=verdict.rows,
        live=f"{first:%Y-%m-%dT%H:%MZ}/{end:%Y-%m-%dT%H:%MZ}",
        columns=[{**asdict(column), "drifted": column.drifted} for column in verdict.columns],
        performance=asdict(verdict.performance),
        link=chosen.link,
        dataset_digest=dataset.digest,
        data_mode=dataset.data_mode,
        picture=_draw(settings, verdict, f"{name} version {chosen.version}", key, dataset.data_mode, rule),
        reused=False,
    )
    if found.retrain:
        announce(found, key)
    put_result(store, key, "monitor", asdict(found), now)
    return found


def _verdict(
    frames: dict[str, pd.DataFrame], chosen: Champion, reference: dict[str, Any], first: datetime, rule: DriftRule
) -> Verdict:
    from ml.live import live_rows
    from ml.monitoring import judge

    live = live_rows(frames, chosen.model, first, chosen.trained_until_ms)
    features = chosen.model.feature_set
    calendar = set(features.names) - set(replace(features, calendar=()).names)
    return judge(
        reference, live.x, features.names, live.probabilities, live.signals, live.trials, rule, calendar=calendar
    )


def reference_text(client: MlflowClient, chosen: Champion) -> str | None:
    """The text of the champion's reference, or None where its run has none.

    Raises:
        ModelRejected: it is not the one that was registered.
    """
    known = {found.path for found in client.list_artifacts(chosen.run_id)}
    if chosen.reference_sha256 is None and REFERENCE not in known:
        return None
    return signed_file(client, chosen, REFERENCE, chosen.reference_sha256).decode()


def _warm_up(store: Store, symbols: Sequence[str], timeframe: Timeframe, rows: int) -> timedelta:
    """How far before the first live bar candles are needed."""
    spans = []
    for symbol in symbols:
        entries = ledger.entries(store, symbol, timeframe)
        if not entries:
            raise InsufficientHistory(
                f"the store holds no {timeframe} candles of {symbol}; run: tradeflows ingest {symbol} -t {timeframe}"
            )
        spans.append(reach(rows, timeframe, entries[-1].calendar))
    return max(spans)


def _key(dataset: Dataset, first: datetime, chosen: Champion, reference: str, rule: DriftRule) -> str:
    from ml.artifact import code_digest

    parts = [
        sorted(dataset.symbols),
        dataset.digest,
        first.isoformat(),
        chosen.version,
        chosen.manifest_sha256,
        hashlib.sha256(reference.encode()).hexdigest(),
        asdict(rule),
        code_digest(),
    ]
    return hashlib.sha256(json.dumps(["monitor", *parts], sort_keys=True).encode()).hexdigest()


def _draw(settings: Settings, verdict: Verdict, title: str, key: str, data_mode: str, rule: DriftRule) -> str | None:
    """The picture of the features' drift; None where there was nothing to compare."""
    from ml.drift import PREDICTIONS
    from ml.plots import drift_chart

    columns = [column for column in verdict.columns if column.name not in PREDICTIONS]
    if not columns:
        return None
    shifts = {column.name: column.psi for column in columns}
    limits = {column.name: column.limit for column in columns}
    folder: Path = settings.home / "reports" / "monitor" / key[:12]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "drift.png"
    return str(drift_chart(shifts, limits, f"{title}: {verdict.state}", path, data_mode, act=rule.large))


def _unknown(name: str, symbols: Sequence[str], timeframe: Timeframe, chosen: Champion | None, why: str) -> Monitored:
    return Monitored(
        model=name,
        version=chosen.version if chosen is not None else None,
        symbols=list(symbols),
        timeframe=timeframe.value,
        state=UNKNOWN,
        retrain=False,
        reasons=[why],
        rows=0,
        live="",
        columns=[],
        performance={},
        link=chosen.link if chosen is not None else "",
        dataset_digest="",
        data_mode=str(chosen.model.manifest["metadata"]["data_mode"]) if chosen is not None else "none",
        picture=None,
        reused=False,
    )


def _moment(stamp_ms: int) -> datetime:
    return datetime.fromtimestamp(stamp_ms / 1000, tz=UTC)


# --- Prefect tasks -------------------------------------------------------------------------------


@task(name="monitor-champion", **prefect_options(REGISTRY))
def monitor_task(
    symbols: list[str], timeframe: Timeframe, start: datetime, end: datetime, rule: DriftRule, now: datetime
) -> Monitored:
    """``monitor`` on the configured store and registry; a model to train again is announced by an event."""
    settings = load_settings()
    with log.about(symbols=",".join(symbols)), configured_store(settings) as store:
        client = registry.connect(settings)
        name = model_name(symbols, timeframe)
        try:
            chosen = champion(client, settings, name, store=store, now=now)
        except ModelNotFound as error:
            # nothing to monitor, which is no failure of the monitor; the state says so
            return _unknown(name, symbols, timeframe, None, str(error))
        reference = reference_text(client, chosen)
        found = monitor(
            store, settings, chosen, reference, symbols, timeframe, start, end, rule, now=now, announce=emit
        )
        log.logger().info("monitored", model=found.model, state=found.state, retrain=found.retrain, reused=found.reused)
        return found


def emit(found: Monitored, key: str) -> None:
    """Tell Prefect that a model has drifted: the ``train`` deployment waits for it (prefect.yaml).

    The id follows from the key, so that the same finding told twice is the same event.
    """
    from prefect.events import emit_event

    emit_event(
        EVENT,
        resource={"prefect.resource.id": f"tradeflows.model.{found.model}", "prefect.resource.name": found.model},
        payload={
            "model": found.model,
            "version": found.version,
            "symbols": found.symbols,
            "timeframe": found.timeframe,
            "data_mode": found.data_mode,
            "reasons": found.reasons,
            "flow_run_id": log.flow_run_id(),
        },
        id=uuid.uuid5(uuid.NAMESPACE_URL, f"{EVENT}/{key}"),
    )
