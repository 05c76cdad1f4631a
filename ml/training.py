"""Training: candles of several symbols become one table, walk-forward scores, and a final model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from ml.estimators import ESTIMATORS, Fitted, estimator
from ml.evaluation import FoldScore, Scores, score_fold
from ml.features import FeatureSet, features
from ml.labels import LabelDefinition, labels
from ml.signals import SignalRule, default_rule, signals
from ml.splits import Fold
from trading import candles as candle_frames
from trading.errors import InsufficientHistory, InvalidRequest

MINIMUM_ROWS: Final = 500

Progress = Callable[[int, int, FoldScore], None]


@dataclass(frozen=True, eq=False)
class TrainingTable:
    """Rows of all symbols, ordered by ``t0`` and then by symbol.

    ``x``: float64 (n, k), its columns ``names`` in order (those of the feature set); ``y``: int8 (n,), -1, 0 or +1;
    ``forward_return``: float64 (n,), before costs; ``decided_at``, ``t0`` and ``t1``: int64 ms UTC (n,),
    open of the bar decided on, fill, and end of the label; ``symbol``: str (n,). ``digest`` names the
    candles the table was made of.
    """

    feature_set: FeatureSet
    label: LabelDefinition
    names: tuple[str, ...]
    x: np.ndarray
    y: np.ndarray
    forward_return: np.ndarray
    decided_at: np.ndarray
    t0: np.ndarray
    t1: np.ndarray
    symbol: np.ndarray
    digest: str

    def __len__(self) -> int:
        return len(self.y)


def assemble(
    frames: Mapping[str, pd.DataFrame],
    feature_set: FeatureSet,
    label: LabelDefinition,
    *,
    minimum_rows: int = MINIMUM_ROWS,
) -> TrainingTable:
    """One table of features and labels out of candle frames by symbol.

    Rows in the warm-up of a feature or without a full future are left out.

    Raises:
        InsufficientHistory: a symbol with too few candles for a single row, or fewer than
            ``minimum_rows`` rows in all; says how many there are and how many are needed.
        CandleContractError: a frame breaks the candle contract.
    """
    if not frames:
        raise InsufficientHistory(f"there are no candles to train on; at least {minimum_rows} labelled rows are needed")
    spent = feature_set.rows_needed - 1 + label.future_rows
    parts = {}
    for symbol in sorted(frames):
        candles = candle_frames.check(frames[symbol])
        if len(candles) <= spent:
            raise InsufficientHistory(
                f"{symbol} has {len(candles)} candles and {spent + 1} are needed for one training row "
                f"({feature_set.rows_needed} for the features, {label.future_rows} for the label); "
                "use a longer window or leave the symbol out"
            )
        parts[symbol] = (
            features(candles, feature_set).iloc[feature_set.rows_needed - 1 : -label.future_rows],
            labels(candles, label).iloc[feature_set.rows_needed - 1 :],
        )
    rows = sum(len(known) for _, known in parts.values())
    if rows < minimum_rows:
        raise InsufficientHistory(
            f"{', '.join(parts)} give {rows} labelled rows and {minimum_rows} are needed; "
            f"use a longer window or more symbols (each symbol spends {spent} candles on warm-up and future)"
        )
    known = pd.concat([part for _, part in parts.values()])
    symbols = np.repeat(list(parts), [len(part) for _, part in parts.values()])
    t0, t1 = (_ms(known[name]) for name in ("t0", "t1"))
    order = np.lexsort((symbols, t0))
    return TrainingTable(
        feature_set=feature_set,
        label=label,
        names=tuple(next(iter(parts.values()))[0].columns),
        x=np.concatenate([part.to_numpy() for part, _ in parts.values()])[order],
        y=known["label"].to_numpy(dtype=np.int8)[order],
        forward_return=known["forward_return"].to_numpy(dtype=np.float64)[order],
        decided_at=np.asarray(pd.DatetimeIndex(known.index).as_unit("ms").asi8)[order],
        t0=t0[order],
        t1=t1[order],
        symbol=symbols[order],
        digest=dataset_digest(frames),
    )


def dataset_digest(frames: Mapping[str, pd.DataFrame]) -> str:
    """sha256 over the symbols and the digests of their candles, whatever the order of the mapping."""
    hashed = hashlib.sha256(b"tradeflows dataset 1\0")
    for symbol in sorted(frames):
        hashed.update(f"{symbol}\0{candle_frames.digest(frames[symbol])}\0".encode())
    return hashed.hexdigest()


def walk_forward(
    table: TrainingTable,
    folds: Sequence[Fold],
    *,
    estimators: Iterable[str] = tuple(ESTIMATORS),
    seed: int,
    progress: Progress | None = None,
) -> list[Scores]:
    """Scores of each estimator over ``folds`` (see ``ml.splits.walk_forward_folds``), in the order named.

    For each fold the estimator and its signal rule are made from the fold's training rows alone.
    A champion is compared by walking its estimator, features and label through the same folds: the
    champion itself may have been trained on some of the test rows.

    Args:
        progress: called after each fold with the number of fits done, of fits in all, and the score.

    Raises:
        InvalidRequest: an unknown estimator, or none.
        InsufficientHistory: the training rows of a fold hold a single class; names the fold.
    """
    chosen = [estimator(name) for name in dict.fromkeys(estimators)]
    if not chosen or not folds:
        raise InvalidRequest(f"walk-forward needs an estimator and a fold; it got {len(chosen)} and {len(folds)}")
    scores: list[Scores] = []
    for at, candidate in enumerate(chosen):
        found: list[FoldScore] = []
        for fold in folds:
            rows, classes = table.x[fold.train], table.y[fold.train]
            try:
                fitted = candidate.fit(rows, classes, seed)
            except InsufficientHistory as error:
                raise InsufficientHistory(f"fold {fold.number}: {error}") from error
            found.append(score_on(fitted, default_rule(classes), table, fold))
            if progress is not None:
                progress(at * len(folds) + len(found), len(chosen) * len(folds), found[-1])
        scores.append(Scores(candidate.name, tuple(found)))
    return scores


def score_on(fitted: Fitted, rule: SignalRule, table: TrainingTable, fold: Fold) -> FoldScore:
    """The score of a fitted estimator on the test rows of a fold."""
    return score_fold(
        fitted.predict_proba(table.x[fold.test]),
        table.y[fold.test],
        table.forward_return[fold.test],
        rule=rule,
        round_trip_cost=table.label.round_trip_cost,
        estimator=fitted.name,
        fold=fold.number,
        span=(fold.test_start, fold.test_end),
        train_rows=len(fold.train),
    )


def out_of_sample(table: TrainingTable, folds: Sequence[Fold], name: str, seed: int) -> pd.DataFrame:
    """What models of earlier rows said of the rows of all test spans, in the order of the folds.

    Returns:
        Columns ``row`` (position in the table), ``symbol``, ``decided_at`` (int64 ms UTC, open of the bar
        decided on), ``fold``, ``label`` and ``signal`` (int8), ``forward_return``, ``p_short``,
        ``p_neutral``, ``p_long`` (float64). Each fold has the signal rule of its own training rows.

    Raises: as ``walk_forward``.
    """
    chosen = estimator(name)
    parts = []
    for fold in folds:
        classes = table.y[fold.train]
        probabilities = chosen.fit(table.x[fold.train], classes, seed).predict_proba(table.x[fold.test])
        columns = {
            "row": fold.test,
            "symbol": table.symbol[fold.test],
            "decided_at": table.decided_at[fold.test],
            "fold": fold.number,
            "label": table.y[fold.test],
            "signal": signals(probabilities, default_rule(classes)),
            "forward_return": table.forward_return[fold.test],
            **dict(zip(("p_short", "p_neutral", "p_long"), probabilities.T, strict=True)),
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def fit_final(table: TrainingTable, name: str, seed: int) -> tuple[Fitted, SignalRule]:
    """The estimator of that name fitted on every row, and the signal rule of their class frequencies.

    Raises:
        InvalidRequest: an unknown estimator.
        InsufficientHistory: the rows hold a single class.
    """
    return estimator(name).fit(table.x, table.y, seed), default_rule(table.y)


def _ms(times: pd.Series) -> np.ndarray:
    return np.asarray(pd.DatetimeIndex(times).as_unit("ms").asi8)
