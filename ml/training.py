"""Training: candles of several symbols become one table, walk-forward scores, and a final model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import pandas as pd

from ml.estimators import ESTIMATORS, Fitted, Sample, estimator
from ml.evaluation import FoldScore, Scores, score_fold
from ml.features import FeatureSet, features
from ml.labels import LabelDefinition, labels
from ml.signals import SignalRule, default_rule, signals
from ml.splits import Fold
from ml.weights import uniqueness
from trading import candles as candle_frames
from trading.errors import InsufficientHistory, InvalidRequest

MINIMUM_ROWS: Final = 500
# every estimator with its default parameters
DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType({name: MappingProxyType({}) for name in ESTIMATORS})

Progress = Callable[[int, int, FoldScore], None]


@dataclass(frozen=True, eq=False)
class TrainingTable:
    """Rows of all symbols, ordered by ``t0`` and then by symbol.

    ``x``: float64 (n, k), its columns ``names`` in order (those of the feature set); ``y``: int8 (n,), -1, 0 or +1;
    ``forward_return``: float64 (n,), before costs; ``weight``: float64 (n,), average uniqueness of the label
    among those of its symbol (``ml.weights.uniqueness``) over the mean of all; ``decided_at``, ``t0`` and
    ``t1``: int64 ms UTC (n,), open of the bar decided on, fill, and end of the label; ``symbol``: str (n,).
    ``digest`` names the candles the table was made of.
    """

    feature_set: FeatureSet
    label: LabelDefinition
    names: tuple[str, ...]
    x: np.ndarray
    y: np.ndarray
    forward_return: np.ndarray
    weight: np.ndarray
    decided_at: np.ndarray
    t0: np.ndarray
    t1: np.ndarray
    symbol: np.ndarray
    digest: str

    def __len__(self) -> int:
        return len(self.y)

    def sample(self, positions: np.ndarray | None = None) -> Sample:
        """What an estimator learns from: the rows at ``positions``, or all, with weights of mean one."""
        whole = Sample(self.x, self.y, self.weight, self.t0, self.t1, self.names)
        return whole if positions is None else whole.take(positions)


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
    first = max(feature_set.rows_needed - 1, label.past_rows)
    spent = first + label.future_rows
    parts = {}
    for symbol in sorted(frames):
        candles = candle_frames.check(frames[symbol])
        if len(candles) <= spent:
            raise InsufficientHistory(
                f"{symbol} has {len(candles)} candles and {spent + 1} are needed for one training row "
                f"({first + 1} for the features and the label's past, {label.future_rows} for its future); "
                "use a longer window or leave the symbol out"
            )
        parts[symbol] = (
            features(candles, feature_set).iloc[first : -label.future_rows],
            labels(candles, label).iloc[first:],
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
    t0, t1, symbols = t0[order], t1[order], symbols[order]
    unique = uniqueness(t0, t1, symbols)
    return TrainingTable(
        feature_set=feature_set,
        label=label,
        names=tuple(next(iter(parts.values()))[0].columns),
        x=np.concatenate([part.to_numpy() for part, _ in parts.values()])[order],
        y=known["label"].to_numpy(dtype=np.int8)[order],
        forward_return=known["forward_return"].to_numpy(dtype=np.float64)[order],
        weight=unique / unique.mean(),
        decided_at=np.asarray(pd.DatetimeIndex(known.index).as_unit("ms").asi8)[order],
        t0=t0,
        t1=t1,
        symbol=symbols,
        digest=dataset_digest(frames),
    )


def dataset_digest(frames: Mapping[str, pd.DataFrame]) -> str:
    """sha256 over the symbols and the digests of their candles, whatever the order of the mapping."""
    hashed = hashlib.sha256(b"tradeflows dataset 1\0")
    for symbol in sorted(frames):
        hashed.update(f"{symbol}\0{candle_frames.digest(frames[symbol])}\0".encode())
    return hashed.hexdigest()


@dataclass(frozen=True, eq=False)
class Walk:
    """What a walk through ``folds`` gave, by estimator in the order asked for; nothing has to be fitted again.

    ``scores``: of each estimator; ``rules``: the signal rule of each fold, from the classes of its training
    rows; ``fitted``: the models of the folds by estimator; ``probabilities``: float64 (m, 3) by estimator, for the
    test rows of all folds one after the other.
    """

    table: TrainingTable
    folds: tuple[Fold, ...]
    scores: tuple[Scores, ...]
    rules: tuple[SignalRule, ...]
    fitted: Mapping[str, tuple[Fitted, ...]]
    probabilities: Mapping[str, np.ndarray]

    def scores_of(self, name: str) -> Scores:
        """The scores of one estimator.

        Raises:
            InvalidRequest: it did not take part.
        """
        for score in self.scores:
            if score.estimator == name:
                return score
        raise InvalidRequest(f"{name!r} was not walked forward; there are {', '.join(self.fitted)}")


def walk_forward(
    table: TrainingTable,
    folds: Sequence[Fold],
    *,
    estimators: Mapping[str, Mapping[str, Any]] = DEFAULTS,
    seed: int,
    progress: Progress | None = None,
) -> Walk:
    """Each estimator through ``folds`` (see ``ml.splits.walk_forward_folds``), fitted once for each fold.

    For each fold the estimator and its signal rule are made from the fold's training rows alone.
    A champion is compared by walking its estimator, features and label through the same folds: the
    champion itself may have been trained on some of the test rows.

    Args:
        estimators: parameters by name of estimator; an empty mapping stands for the defaults.
        progress: called after each fit with the number of fits done, of fits in all, and the score.

    Raises:
        InvalidRequest: an unknown estimator, parameter or feature, or no estimator or fold.
        InsufficientHistory: the training rows of a fold hold a single class or are too few; names the fold.
    """
    chosen = [(estimator(name), parameters) for name, parameters in estimators.items()]
    if not chosen or not folds:
        raise InvalidRequest(f"walk-forward needs an estimator and a fold; it got {len(chosen)} and {len(folds)}")
    found: dict[str, list[FoldScore]] = {name: [] for name in estimators}
    fitted: dict[str, list[Fitted]] = {name: [] for name in estimators}
    said: dict[str, list[np.ndarray]] = {name: [] for name in estimators}
    rules = tuple(default_rule(table.y[fold.train]) for fold in folds)
    for at, (fold, rule) in enumerate(zip(folds, rules, strict=True)):
        sample = table.sample(fold.train)
        for place, (candidate, parameters) in enumerate(chosen, start=1):
            try:
                model = candidate.fit(sample, seed, parameters)
            except InsufficientHistory as error:
                raise InsufficientHistory(f"fold {fold.number}: {error}") from error
            probabilities = model.predict_proba(table.x[fold.test])
            score = _score(probabilities, candidate.name, rule, table, fold)
            fitted[candidate.name].append(model)
            said[candidate.name].append(probabilities)
            found[candidate.name].append(score)
            if progress is not None:
                progress(at * len(chosen) + place, len(chosen) * len(folds), score)
    return Walk(
        table=table,
        folds=tuple(folds),
        scores=tuple(Scores(name, tuple(scores)) for name, scores in found.items()),
        rules=rules,
        fitted={name: tuple(models) for name, models in fitted.items()},
        probabilities={name: np.concatenate(parts) for name, parts in said.items()},
    )


def score_on(fitted: Fitted, rule: SignalRule, table: TrainingTable, fold: Fold) -> FoldScore:
    """The score of a fitted estimator on the test rows of a fold."""
    return _score(fitted.predict_proba(table.x[fold.test]), fitted.name, rule, table, fold)


def out_of_sample(walk: Walk, name: str) -> pd.DataFrame:
    """What models of earlier rows said of the rows of all test spans, in the order of the folds.

    Returns:
        Columns ``row`` (position in the table), ``symbol``, ``decided_at`` (int64 ms UTC, open of the bar
        decided on), ``fold``, ``label`` and ``signal`` (int8), ``forward_return``, ``p_short``,
        ``p_neutral``, ``p_long`` (float64). Each fold has the signal rule of its own training rows.

    Raises:
        InvalidRequest: the estimator did not take part in the walk.
    """
    walk.scores_of(name)
    table, probabilities = walk.table, walk.probabilities[name]
    rows = np.concatenate([fold.test for fold in walk.folds])
    sizes = [len(fold.test) for fold in walk.folds]
    parts = np.split(probabilities, np.cumsum(sizes)[:-1])
    return pd.DataFrame(
        {
            "row": rows,
            "symbol": table.symbol[rows],
            "decided_at": table.decided_at[rows],
            "fold": np.repeat([fold.number for fold in walk.folds], sizes),
            "label": table.y[rows],
            "signal": np.concatenate([signals(part, rule) for part, rule in zip(parts, walk.rules, strict=True)]),
            "forward_return": table.forward_return[rows],
            **dict(zip(("p_short", "p_neutral", "p_long"), probabilities.T, strict=True)),
        }
    )


def fit_final(
    table: TrainingTable, name: str, seed: int, parameters: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Fitted, SignalRule]:
    """The estimator of that name fitted on every row, and the signal rule of their class frequencies.

    Raises:
        InvalidRequest: an unknown estimator, parameter or feature.
        InsufficientHistory: the rows hold a single class or are too few.
    """
    return estimator(name).fit(table.sample(), seed, parameters), default_rule(table.y)


def _score(probabilities: np.ndarray, name: str, rule: SignalRule, table: TrainingTable, fold: Fold) -> FoldScore:
    return score_fold(
        probabilities,
        table.y[fold.test],
        table.forward_return[fold.test],
        rule=rule,
        round_trip_cost=table.label.round_trip_cost,
        estimator=name,
        fold=fold.number,
        span=(fold.test_start, fold.test_end),
        train_rows=len(fold.train),
    )


def _ms(times: pd.Series) -> np.ndarray:
    return np.asarray(pd.DatetimeIndex(times).as_unit("ms").asi8)
