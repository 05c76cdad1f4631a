"""What ``tasks.tracing`` finds behind a signal, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from trading.window import Window

# equal: as it was; corrected: as it was, once late corrections are undone; other: neither; unknown: nobody wrote down
Verdict = Literal["equal", "corrected", "other", "unknown"]


@dataclass(frozen=True)
class Run:
    """A flow run and its page; None where no address of Prefect's pages is known."""

    id: str
    link: str | None


@dataclass(frozen=True)
class Said:
    """What one analyst said; ``weight`` is None for those that were only compared."""

    analyst: str
    signal: str
    confidence: float
    weight: float | None
    provenance: Mapping[str, str]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Ingested:
    """A record of the ledger; ``verdict`` holds its digest against the candles as they are stored now."""

    window: Window
    rows: int
    digest: str
    verdict: Verdict
    source: str
    suite: str
    recorded_at: datetime
    run: Run | None


@dataclass(frozen=True)
class Chunk:
    """A stored chunk; ``read_at_rev`` is the revision that a dataset was read from, where it was."""

    id: str
    rev: int
    rows: int
    first: datetime
    last: datetime
    digest: str
    verdict: Verdict
    read_at_rev: int | None = None


@dataclass(frozen=True)
class Candles:
    """The candles of one window, and where they came from.

    Attributes:
        rows: as they are stored now.
        digest: as it was written down; empty where it was not.
        stored_digest: of what is stored now.
        uncovered: parts of the window that no approved record covers.
    """

    window: Window
    rows: int
    digest: str
    stored_digest: str
    verdict: Verdict
    ledger: tuple[Ingested, ...]
    chunks: tuple[Chunk, ...]
    uncovered: tuple[Window, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """The flow runs that ingested them, in the order of the windows."""
        return tuple(dict.fromkeys(one.run for one in self.ledger if one.run is not None))


@dataclass(frozen=True)
class Training:
    """The MLflow run that made a model, and the flow run around it."""

    run_id: str
    link: str | None
    flow: Run | None
    code_version: str
    dataset_digest: str
    trained_until: datetime | None


@dataclass(frozen=True)
class ModelVersion:
    """The model version that spoke, and how it became champion."""

    name: str
    version: str
    estimator: str
    degraded: str | None
    link: str
    manifest_sha256: str
    champion_since: datetime | None
    champion_by: str
    training: Training | None


@dataclass(frozen=True)
class FrozenDataset:
    """What the model learned from; ``verdict``: whether it can be read back exactly."""

    digest: str
    data_mode: str
    verdict: Verdict
    candles: tuple[Candles, ...]


@dataclass(frozen=True)
class Trace:
    """A signal and everything behind it. ``findings`` are sentences; none: the whole way was gone and held."""

    id: str
    symbol: str
    timeframe: str
    bar_close: datetime
    made_at: datetime
    signal: str
    confidence: float
    price: float
    basis: str
    data_mode: str
    settings_version: str
    inputs_digest: str
    run: Run | None
    said: tuple[Said, ...]
    absent: Mapping[str, str]
    candles: Candles | None
    model: ModelVersion | None
    dataset: FrozenDataset | None
    findings: tuple[str, ...] = ()
