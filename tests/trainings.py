"""For tests of trainings: candles stored as approved, and labels that chance has dealt out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

import ml.training
from ml.training import TrainingTable
from tasks import ledger
from tasks.store import Store, write_candles
from trading.candles import between
from trading.window import Window, split_by_period


def stored(store: Store, window: Window, candles: pd.DataFrame, mode: str, calendar: str = "24/7") -> None:
    """The candles of a window, written and approved."""
    for part in split_by_period(window):
        rows = between(candles, part)
        written = write_candles(store, part, rows, mode)
        entry = ledger.LedgerEntry(
            window=part, status=ledger.APPROVED, rows=len(rows), quarantined={}, gaps=0, suite="test", flow_run_id=None,
            data_mode=mode, source="test", calendar=calendar, recorded_at=window.end, findings=(), added=len(rows),
            digest=written.digest,
        )  # fmt: skip
        ledger.record(store, entry)


def shuffled(seed: int, real: Callable[..., TrainingTable] = ml.training.assemble) -> Callable[..., TrainingTable]:
    """``ml.training.assemble``, but for labels that belong to other rows: nothing can be learned from its tables."""

    def assemble(*args: Any, **kwargs: Any) -> TrainingTable:
        table = real(*args, **kwargs)
        order = np.random.default_rng(seed).permutation(len(table))
        return dataclasses.replace(table, y=table.y[order], forward_return=table.forward_return[order])

    return assemble
