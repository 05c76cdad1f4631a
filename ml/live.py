"""Live rows: what a model makes of bars that it was not trained on, and how its signals came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd

from ml.features import features
from ml.hits import Trials, trials_of
from ml.labels import labels
from ml.model import Model
from trading.candles import open_times_ms


@dataclass(frozen=True, eq=False)
class Live:
    """Rows of all symbols that the champion was not trained on, in order of time; see ``ml.drift.judge``."""

    x: np.ndarray
    probabilities: np.ndarray
    signals: np.ndarray
    trials: Trials


def live_rows(frames: Mapping[str, pd.DataFrame], model: Model, first: datetime, trained_until_ms: int) -> Live:
    """What the model makes of the bars from ``first`` on whose fill lies after the last label it has seen.

    Args:
        frames: candles by symbol, with the history that features need before ``first``.

    Raises:
        InsufficientHistory: a symbol with fewer candles than one row needs.
    """
    begins = int(first.timestamp() * 1000)
    rows, said, opened, settled = [], [], [], []
    for candles in frames.values():
        opens = open_times_ms(candles)
        table = model.predict_all(candles)
        filled = np.append(opens[1:], opens[-1:])  # the last bar is filled later than it opened
        fresh = (filled > trained_until_ms) & (opens >= begins)
        fresh[: model.rows_needed - 1] = False
        rows.append(features(candles, model.feature_set).to_numpy()[fresh])
        said.append(table[["p_short", "p_neutral", "p_long", "signal"]].to_numpy(dtype=np.float64)[fresh])
        opened.append(opens[fresh])
        known = labels(candles, model.label)
        over = fresh[: len(known)]
        settled.append(
            np.column_stack(
                [
                    table["signal"].to_numpy()[: len(known)][over],
                    known["forward_return"].to_numpy()[over],
                    *(_ms(known[name])[over] for name in ("t0", "t1")),
                ]
            )
        )
    order = np.argsort(np.concatenate(opened), kind="stable")
    answers, outcomes = np.concatenate(said)[order], np.concatenate(settled)
    signals, returns, t0, t1 = outcomes.T
    return Live(
        x=np.concatenate(rows)[order],
        probabilities=answers[:, :3],
        signals=answers[:, 3].astype(np.int8),
        trials=trials_of(signals.astype(np.int8), returns, t0.astype(np.int64), t1.astype(np.int64)),
    )


def _ms(times: pd.Series) -> np.ndarray:
    return np.asarray(pd.DatetimeIndex(times).as_unit("ms").asi8)
