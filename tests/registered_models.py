"""Models of a random walk in a registry of their own: one SQLite database a test session, a name a test."""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from pydantic import SecretStr

from ml.artifact import save
from ml.estimators import Fitted
from ml.features import FeatureSet
from ml.labels import LabelDefinition
from ml.signals import SignalRule
from ml.training import assemble, fit_final
from tasks import registry, signing
from tasks.settings import Settings
from trading.candles import frame_of
from trading.window import Timeframe

if TYPE_CHECKING:
    from mlflow import MlflowClient

SET = FeatureSet(ema=(9, 21), rsi=7, atr=7, adx=5, macd=(5, 10, 4))
LABEL = LabelDefinition(horizon=4)
NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
KEY = "a key of thirty-two bytes, or so"


@cache
def candles(seed: int = 1) -> pd.DataFrame:
    """Hourly candles of a random walk."""
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, 1200)))
    stamps = 1_577_836_800_000 + 3_600_000 * np.arange(1200)
    return frame_of(stamps, np.column_stack([close, close * 1.002, close * 0.998, close, rng.uniform(1, 10, 1200)]))


@cache
def fitted(estimator: str, seed: int = 1) -> tuple[Fitted, SignalRule, str]:
    """A model, its rule and the digest of what it learned from."""
    table = assemble({"AAA": candles(seed)}, SET, LABEL)
    return *fit_final(table, estimator, 1), table.digest


@dataclass(frozen=True)
class Registry:
    """A home folder with an MLflow database in it."""

    settings: Settings
    client: MlflowClient
    names: list[str] = field(default_factory=list)

    @property
    def key(self) -> bytes:
        return signing.signing_key(self.settings)

    def new_name(self) -> str:
        """A model that nobody has registered."""
        self.names.append(f"MODEL{len(self.names)}-1h")
        return self.names[-1]

    def add(self, name: str, estimator: str, **tags: str) -> str:
        """Register a version as training does; returns its number."""
        model, rule, digest = fitted(estimator)
        folder = self.settings.home / "saved" / uuid.uuid4().hex / "model"
        saved = save(
            folder, model, feature_set=SET, label=LABEL, rule=rule, timeframe=Timeframe.H1, dataset_digest=digest,
            metadata={"data_mode": "simulated"},
        )  # fmt: skip
        experiment = registry.experiment_id(self.client, self.settings, name)
        record = registry.Record(estimator, metrics={"log_loss": 1.05, "skill": 0.01, "signals": 12.0})
        run = registry.log_run(self.client, experiment, record, at_ms=1, finish=False)
        uri = registry.log_model(self.client, run, folder, candles().tail(SET.rows_needed).reset_index())
        registry.finish_run(self.client, run)
        said = {
            "estimator": estimator, "manifest_sha256": saved.sha256, "trained_until_ms": "1580000000000",
            "data_mode": "simulated", "dataset_digest": digest, **tags,
        }  # fmt: skip
        return registry.register(self.client, name, uri, run, said, key=self.key)

    def folder(self, name: str, version: str) -> Path:
        """Where the files of a version are."""
        return Path(self.client.get_model_version_download_uri(name, version).removeprefix("file://"))


def opened(factory: pytest.TempPathFactory) -> Registry:
    """The registry of this test session."""
    return _opened(factory.getbasetemp() / "registered-models")


@cache
def _opened(home: Path) -> Registry:
    shutil.rmtree(home, ignore_errors=True)
    settings = Settings(home=home, signing_key=SecretStr(KEY)).model_copy(update={"mlflow_tracking_uri": None})
    (home / "saved").mkdir(parents=True)
    return Registry(settings, registry.connect(settings))


def aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """Version by alias."""
    return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}


def flipped(data: bytes, at: int) -> bytes:
    """The same bytes but for one bit."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
