"""What flow runs left behind in a store and in MLflow, without what differs from one run to the next by nature."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

from tasks import model_files, registry
from tasks.documents import Collection
from tasks.settings import load_settings
from tasks.store import ANALYSES, CHUNKS, LEDGER, RESULTS, Store, configured_store

# ids of runs and moments of the clock, and where files lie
OF_THE_RUN = frozenset({
    "rev", "flow_run_id", "recorded_at", "created_at", "touched_at", "latency", "run_id", "run_link", "link",
    "pictures", "pages", "page_links", "expires_at", "manifest",
})  # fmt: skip
CHUNK = ("first", "last", "rows", "digest", "data_mode")
MANIFEST = ("estimator", "files", "probe", "features", "label", "signal_rule", "dataset_digest", "code_digest")
OURS = ("PREFECT_", "TRADEFLOWS_", "MLFLOW_", "MONGODB_URL", "DASK_")


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The process environment with these settings, and none of others."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    with mock.patch.dict(os.environ, {**plain, **variables}, clear=True):
        yield


def outcome(variables: Mapping[str, str]) -> dict[str, Any]:
    """Candles by chunk, ledger, analyses, backtests, trainings and model versions, by names that do not depend on the
    stack."""
    with environment(variables):
        settings = load_settings()
        with configured_store(settings) as store:
            found: dict[str, Any] = {
                "candles": {one["_id"]: {name: one[name] for name in CHUNK} for one in store.documents.find(CHUNKS)},
                "ledger": documents(store, LEDGER),
                "analyses": {key: without_version(one) for key, one in documents(store, ANALYSES).items()},
                "backtests": {
                    key: one["result"] for key, one in documents(store, RESULTS).items() if one["kind"] == "backtest"
                },
                "results": sorted(f"{one['kind']} {one['_id']}" for one in store.documents.find(RESULTS)),
            }
        return found | {"runs": runs(settings), "versions": versions(settings)}


def documents(store: Store, collection: Collection) -> dict[str, Any]:
    return {one["_id"]: lasting(one) for one in store.documents.find(collection)}


def lasting(value: Any) -> Any:
    """A value without the names in ``OF_THE_RUN``, however deep."""
    if isinstance(value, dict):
        return {name: lasting(inner) for name, inner in value.items() if name not in OF_THE_RUN}
    return [lasting(inner) for inner in value] if isinstance(value, list) else value


def without_version(analysis: dict[str, Any]) -> dict[str, Any]:
    """The digest of an analysis's inputs holds that of the model's manifest, which names its training run."""
    return {name: value for name, value in analysis.items() if name != "inputs_digest" or analysis["model"] is None}


def runs(settings: Any) -> dict[str, Any]:
    """Every MLflow run by experiment, name and number: parameters and metrics, but for what a clock measured."""
    client = registry.connect(settings)
    found: dict[str, Any] = {}
    for experiment in client.search_experiments():
        told = client.search_runs([experiment.experiment_id], max_results=1000)
        for run in sorted(told, key=lambda one: (one.info.start_time, one.info.run_name)):
            name = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "then", f"{experiment.name}: {run.info.run_name}")
            number = sum(key.startswith(name) for key in found)
            metrics = {name: value for name, value in run.data.metrics.items() if "seconds" not in name}
            found[f"{name} {number}"] = {"params": run.data.params, "metrics": metrics}
    return found


def versions(settings: Any) -> dict[str, Any]:
    """Every registered version: its aliases, and what it is made of, down to the digests of its files."""
    client = registry.connect(settings)
    found = {}
    for name in [model.name for model in client.search_registered_models()]:
        aliases: dict[str, str] = client.get_registered_model(name).aliases
        for version in client.search_model_versions(f"name = '{name}'"):
            with model_files.model_folder(client, version) as folder:
                manifest = json.loads((model_files.artifact_folder(folder) / "manifest.json").read_text())
            found[f"{name} {version.version}"] = {
                "aliases": sorted(alias for alias, number in aliases.items() if int(number) == int(version.version)),
                **{key: manifest[key] for key in MANIFEST},
            }
    return found
