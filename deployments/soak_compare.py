"""What a stack has done, as values that two stacks that did the same work must agree in, and where they do not.

Left out is what may differ: times of making, ids of runs, numbers of versions (a training that was killed late leaves
its version, and its repetition makes an equal one), and into which windows the ledger's records are cut.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tasks import gaps, ledger, model_files, promotions, quarantine, registry, signing
from tasks.settings import Settings
from tasks.store import ANALYSES, SETTLEMENTS, Store, read_candles, series
from trading.candles import digest
from trading.errors import ModelRejected
from trading.window import Timeframe, Window

if TYPE_CHECKING:
    from mlflow import MlflowClient

# of an analysis: what somebody would act on, and what it was made of
SAID = ("signal", "confidence", "basis", "score", "weights", "absent")


def snapshot(settings: Settings, store: Store, client: MlflowClient) -> dict[str, Any]:
    """Store, ledger, registry and analyses as plain values."""
    trainings = _trainings(client)
    return {
        "series": {f"{one.symbol} {one.timeframe}": _series(store, one) for one in series(store)},
        "analyses": {
            one["_id"]: {name: one["analysis"][name] for name in SAID}
            | {"candles": one["candles_digest"], "model": _model(one["model"], trainings)}
            for one in store.documents.find(ANALYSES)
        },
        "settlements": {
            one["_id"]: [[each["analyst"], each["signal"], each["moved"], each["profit"]] for each in one["results"]]
            for one in store.documents.find(SETTLEMENTS)
        },
        "registry": {name: _registered(settings, store, client, name, trainings) for name in _models(client)},
        "open MLflow runs": _open_runs(client),
    }


def faults(found: Mapping[str, Any]) -> list[str]:
    """What must not be in any snapshot, as sentences."""
    said = []
    for name, one in found["series"].items():
        said += [f"{name}: {record}" for record in one["wrong records"]]
        said += [f"{name}: {count} windows are refused" for count in [one["refused"]] if count]
    for name, one in found["registry"].items():
        said += [f"{name}: {text}" for text in (*one["not verified"], *one["strayed"])]
    if found["open MLflow runs"]:
        said.append(f"{found['open MLflow runs']} MLflow runs are open, and nothing is at work")
    return said


def differences(calm: Any, storm: Any, path: str = "") -> Iterator[str]:
    """A line for each value that is not the same."""
    if isinstance(calm, dict) and isinstance(storm, dict):
        for key in sorted(calm.keys() | storm.keys()):
            where = f"{path} > {key}" if path else str(key)
            if key not in storm:
                yield f"{where} is missing"
            elif key not in calm:
                yield f"{where} is there, and not in the run without kills"
            else:
                yield from differences(calm[key], storm[key], where)
    elif calm != storm:
        yield f"{path} is {_short(storm)}, and {_short(calm)} without kills"


def _series(store: Store, one: Any) -> dict[str, Any]:
    timeframe = Timeframe(one.timeframe)
    whole = Window(one.symbol, timeframe, one.first, one.last + timeframe.delta)
    records = ledger.entries(store, one.symbol, one.timeframe)
    approved = [record for record in records if record.status == ledger.APPROVED]
    rows = quarantine.find(store, one.symbol, one.timeframe)
    return {
        "rows": one.rows,
        "digest": digest(read_candles(store, whole)),
        "data": one.data_mode,
        "approved": _joined([(record.window.start.isoformat(), record.window.end.isoformat()) for record in approved]),
        "refused": sum(record.status == ledger.REFUSED for record in records),
        "wrong records": [
            f"the record of {record.window} names other candles than the store holds"
            for record in approved
            if record.digest != digest(read_candles(store, record.window))
        ],
        "put aside": sorted(f"{row['open_time'].isoformat()} {','.join(row['reasons'])}" for row in rows),
        "gaps": sorted(f"{known.gap.start.isoformat()} {known.gap.bars}" for known in gaps.within(store, whole)),
    }


def _joined(spans: list[tuple[str, str]]) -> list[list[str]]:
    """Spans that touch, as one: of how they were cut nothing depends."""
    made: list[list[str]] = []
    for start, end in sorted(spans):
        if made and start <= made[-1][1]:
            made[-1][1] = max(made[-1][1], end)
        else:
            made.append([start, end])
    return made


def _models(client: MlflowClient) -> list[str]:
    return sorted(str(model.name) for model in client.search_registered_models())


def _trainings(client: MlflowClient) -> dict[tuple[str, str], str]:
    """By model and version, what names the training; equal trainings have one name."""
    return {
        (name, str(version.version)): str(version.tags.get("training_key", "none"))
        for name in _models(client)
        for version in registry.versions(client, name)
    }


def _registered(
    settings: Settings, store: Store, client: MlflowClient, name: str, trainings: Mapping[tuple[str, str], str]
) -> dict[str, Any]:
    key = signing.signing_key(settings)
    versions = registry.versions(client, name)
    refused = []
    for version in versions:
        try:
            with model_files.verified(client, version, key):
                pass
        except ModelRejected as error:
            refused.append(str(error))
    champion = registry.version_of(client, name, registry.CHAMPION)
    tags = dict(champion.tags) if champion is not None else {}
    facts = ("dataset_digest", "training_key", "estimator", "parameters", "features", "label", "code_digest", "symbols")
    return {
        "champion": {fact: tags.get(fact) for fact in facts},
        "trainings": sorted({trainings[name, str(version.version)] for version in versions}),
        "history": [
            [change.kind, trainings.get((name, change.to_version), "gone")]
            for change in promotions.history(store, name)
        ],
        "not verified": refused,
        "strayed": promotions.strayed(client, store, name),
    }


def _open_runs(client: MlflowClient) -> int:
    experiments = [one.experiment_id for one in client.search_experiments()]
    return len(client.search_runs(experiments, "attributes.status = 'RUNNING'")) if experiments else 0


def _model(model: Mapping[str, Any] | None, trainings: Mapping[tuple[str, str], str]) -> str | None:
    if model is None:
        return None
    return f"{trainings.get((str(model['name']), str(model['version'])), 'gone')} {model['degraded'] or ''}".strip()


def _short(value: Any) -> str:
    text = json.dumps(value, default=str, sort_keys=True)
    return text if len(text) <= 100 else f"{text[:80]}... ({hashlib.sha256(text.encode()).hexdigest()[:8]})"
