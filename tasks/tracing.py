"""From a signal back to its candles: the analysis, who spoke, the model, its training, its dataset, ledger and chunks.

Nothing is written. Every digest on the way is worked out again from what the store holds now; one that is not what was
written down is a finding, and so is a part of the way that is gone. Candles that a late correction changed since are
undone to what they were then: if that gives the digest, the analysis stands as it was made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from tasks import chunks, datasets, ledger, mlflow_pages, promotions
from tasks.analysis_lookup import id_of
from tasks.documents import Document, Span
from tasks.settings import Settings
from tasks.store import CHUNKS, Store, read_candles_at, series_key
from tasks.traces import (
    Candles,
    Chunk,
    FrozenDataset,
    Ingested,
    ModelVersion,
    Run,
    Said,
    Trace,
    Training,
    Verdict,
)
from trading.candles import between, digest
from trading.errors import DatasetLost, ModelNotFound
from trading.window import Timeframe, Window, period_start, subtract

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

# late changes that are undone one after the other until the digest is the one that was written down
MOST_UNDONE: Final = 200


def trace(
    store: Store,
    stored: Mapping[str, Any],
    settings: Settings,
    *,
    client: Callable[[], MlflowClient],
    page_of: Callable[[str], str | None],
) -> Trace:
    """Go back from a stored analysis to its candles.

    Args:
        client: MLflow's; called only where a model spoke.
        page_of: the page of a flow run.
    """
    findings: list[str] = []
    way = _Way(store, settings, client, page_of, findings)
    analysis = stored["analysis"]
    seen = _seen_candles(way, stored)
    model = _model(way, stored) if stored["model"] is not None else None
    dataset = None
    if model is not None and model.training is not None and model.training.dataset_digest:
        dataset = _dataset(way, model.training.dataset_digest)
    reasons = {one["analyst"]: one["reason"] for one in analysis["abstentions"]}
    return Trace(
        id=id_of(stored),
        symbol=stored["symbol"],
        timeframe=stored["timeframe"],
        bar_close=stored["timestamp"],
        made_at=stored["created_at"],
        signal=analysis["signal"],
        confidence=float(analysis["confidence"]),
        price=float(stored["price"]),
        basis=stored["basis"],
        data_mode=stored["data_mode"],
        settings_version=stored["settings_version"],
        inputs_digest=stored["inputs_digest"],
        run=way.run(stored["flow_run_id"]),
        said=(
            *(_said(one, analysis["weights"].get(one["analyst"], 0.0)) for one in analysis["opinions"]),
            *(_said(one, None) for one in analysis["compared"]),
        ),
        absent={name: reasons.get(name, "") for name in analysis["absent"]},
        candles=seen,
        model=model,
        dataset=dataset,
        findings=tuple(findings),
    )


@dataclass(frozen=True)
class _Way:
    """What is asked on the way, and what was found."""

    store: Store
    settings: Settings
    client: Callable[[], MlflowClient]
    page_of: Callable[[str], str | None]
    findings: list[str]

    def run(self, identifier: str | None) -> Run | None:
        return Run(identifier, self.page_of(identifier)) if identifier else None


def _said(opinion: Mapping[str, Any], weight: float | None) -> Said:
    return Said(
        opinion["analyst"],
        opinion["signal"],
        float(opinion["confidence"]),
        weight,
        {name: str(value) for name, value in opinion["provenance"].items()},
        tuple(opinion["reasons"]),
    )


def _seen_candles(way: _Way, stored: Mapping[str, Any]) -> Candles | None:
    """The candles that the analysts were shown."""
    start = stored.get("candles_start")
    if start is None:
        way.findings.append("the analysis does not say from which candle on it looked: it was made by an older version")
        return None
    window = Window(stored["symbol"], Timeframe(stored["timeframe"]), start, stored["timestamp"])
    return _candles(way, window, stored["candles_digest"], f"the candles of the analysis, {window}")


def _candles(way: _Way, window: Window, written: str, what: str, revisions: Mapping[str, int] | None = None) -> Candles:
    """A window, held against the digest that was ``written`` down where there is one; ``what`` names it in findings."""
    stored = _chunks(way.store, window)
    held = chunks.frames(stored)
    inside = between(held, window)
    now = digest(inside)
    verdict: Verdict = "unknown" if not written else "equal" if now == written else "other"
    if verdict == "other":
        verdict = "corrected" if _undone(way.store, window, stored, written) else "other"
    if verdict == "other":
        way.findings.append(
            f"{what}, have the digest {now[:12]} in the store and {written[:12]} was written down; late corrections "
            "that are on record do not explain it"
        )
    entries = ledger.approved(way.store, window)
    records = tuple(_ingested(way, entry, held) for entry in entries)
    for one in records:
        if one.verdict == "other":
            way.findings.append(f"{one.window} is not as the ledger says: {one.digest[:12]} was recorded")
    uncovered = tuple(_uncovered(window, entries))
    if uncovered:
        way.findings.append(f"{what}: nothing approved {', '.join(map(str, uncovered[:3]))}")
    told = tuple(_chunk(way, one, revisions) for one in stored)
    return Candles(window, len(inside), written, now, verdict, records, told, uncovered)


def _uncovered(window: Window, entries: Sequence[ledger.LedgerEntry]) -> list[Window]:
    return subtract(window, [(entry.window.start, entry.window.end) for entry in entries])


def _ingested(way: _Way, entry: ledger.LedgerEntry, held: pd.DataFrame) -> Ingested:
    # a record lies within one period, so its candles are all in the chunks that were read
    same = digest(between(held, entry.window)) == entry.digest
    return Ingested(
        entry.window, entry.rows, entry.digest, "equal" if same else "other", entry.source, entry.suite,
        entry.recorded_at, way.run(entry.flow_run_id),
    )  # fmt: skip


def _chunk(way: _Way, stored: Document, revisions: Mapping[str, int] | None) -> Chunk:
    verdict: Verdict = "equal" if digest(chunks.frame(stored)) == stored["digest"] else "other"
    if verdict == "other":
        way.findings.append(f"the chunk {stored['_id']} does not have the digest that is written in it")
    return Chunk(
        stored["_id"], int(stored["rev"]), int(stored["rows"]), stored["first"], stored["last"], stored["digest"],
        verdict, (revisions or {}).get(stored["_id"]),
    )  # fmt: skip


def _undone(store: Store, window: Window, stored: Sequence[Document], written: str) -> bool:
    """Whether undoing late changes, the newest first, gives the candles with that digest."""
    moments = sorted({entry["at"] for chunk in stored for entry in chunk.get("undo", [])}, reverse=True)
    for moment in moments[:MOST_UNDONE]:
        revisions = {}
        for chunk in stored:
            later = [int(entry["rev"]) for entry in chunk.get("undo", []) if entry["at"] >= moment]
            revisions[chunk["_id"]] = min(later) - 1 if later else int(chunk["rev"])
        try:
            if digest(read_candles_at(store, window, revisions)) == written:
                return True
        except DatasetLost:
            return False
    return False


def _chunks(store: Store, window: Window) -> list[Document]:
    key = series_key(window.symbol, window.timeframe.value)
    span = Span("start", period_start(window.timeframe, window.start), window.end)
    return store.documents.find(CHUNKS, {"series": key}, span)


def _model(way: _Way, stored: Mapping[str, Any]) -> ModelVersion:
    """The version that spoke, its training, and how it came to be the champion."""
    told = stored["model"]
    name, version = str(told["name"]), str(told["version"])
    made = [
        change
        for change in promotions.history(way.store, name)
        if change.kind != "fallback" and change.to_version == version and change.at <= stored["created_at"]
    ]
    tags, training = _registered(way, name, version, str(told["run_id"]))
    return ModelVersion(
        name=name,
        version=version,
        estimator=str(told["estimator"]),
        degraded=told["degraded"],
        link=mlflow_pages.version_link(way.settings, name, version),
        manifest_sha256=tags.get("manifest_sha256", ""),
        champion_since=made[-1].at if made else None,
        champion_by=made[-1].who if made else "",
        training=training,
    )


def _registered(way: _Way, name: str, version: str, run_id: str) -> tuple[Mapping[str, str], Training | None]:
    from mlflow.exceptions import MlflowException

    from tasks import registry

    try:
        client = way.client()
        found = registry.version_at(client, name, version)
        run = client.get_run(str(found.run_id)) if registry.run_exists(client, str(found.run_id)) else None
    except ModelNotFound as error:
        way.findings.append(str(error))
        return {}, None
    except MlflowException as error:
        way.findings.append(f"MLflow does not tell of {name} version {version}: {error}")
        return {}, None
    tags = dict(found.tags)
    if str(found.run_id) != run_id:
        way.findings.append(f"{name} version {version} is of MLflow run {found.run_id} now, and was of {run_id}")
    link = mlflow_pages.run_link(way.settings, str(run.info.experiment_id), str(found.run_id)) if run else None
    if run is None:
        way.findings.append(f"MLflow run {found.run_id}, which {name} version {version} came from, is gone")
    until = tags.get("trained_until_ms")
    return tags, Training(
        run_id=str(found.run_id),
        link=link,
        flow=way.run(tags.get("prefect_flow_run")),
        code_version=tags.get("code_version", ""),
        dataset_digest=tags.get("dataset_digest", ""),
        trained_until=datetime.fromtimestamp(int(until) / 1000, UTC) if until else None,
    )


def _dataset(way: _Way, name: str) -> FrozenDataset | None:
    """The dataset of that digest: read back, and its windows down to their chunks."""
    try:
        found = datasets.find(way.store, name)
    except DatasetLost as error:
        way.findings.append(str(error))
        return None
    verdict: Verdict = "equal"
    try:
        frames = datasets.load(way.store, found)
    except DatasetLost as error:
        way.findings.append(str(error))
        verdict, frames = "other", {}
    held = []
    for window in found.windows:
        # the dataset's digest is over all of its series; of one of them it is worked out from what was read back
        written = digest(frames[window.symbol]) if window.symbol in frames else ""
        told = _candles(way, window, written, f"the dataset's candles, {window}", found.revisions)
        if told.verdict == "corrected" and verdict == "equal":
            verdict = "corrected"
        held.append(told)
    return FrozenDataset(found.digest, found.data_mode, verdict, tuple(held))
