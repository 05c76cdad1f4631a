"""Gradient boosting of scikit-learn, kept as numbers.

The trees of ``HistGradientBoostingClassifier`` are laid out as flat arrays, stored as JSON, and walked
here with numpy; a test holds the walk to what scikit-learn predicts. A row goes left where its value is
not above the threshold, and a NaN where the training sent NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from ml.fitted import (
    NUMBERS,
    Fitted,
    absent,
    fixed_threads,
    long_minus_short,
    numbers,
    softmax,
    spread,
    to_json,
)
from ml.parameters import Choice, Groups, Number, Parameter, groups_by_position
from ml.sample import Sample, present, weights_of
from trading.errors import ModelRejected

BOOSTING: Final = "boosting"
_CELLS: Final = 200_000  # rows times trees walked at once: what stays in the processor's cache

SPACE: Final[Mapping[str, Parameter]] = MappingProxyType(
    {
        "rounds": Number(100, 1, 2000, whole=True),  # at most so many; with patience=0 exactly
        "patience": Number(10, 0, 1000, whole=True),  # stop after so many rounds without a better log loss
        "learning_rate": Number(0.1, 1e-4, 1.0, search=(0.01, 0.2), log=True),
        "leaves": Number(15, 2, 255, whole=True, search=(4, 63), log=True),
        "min_leaf_rows": Number(100, 1, 1_000_000, whole=True, search=(20, 1000), log=True),
        "l2": Number(10.0, 0.0, 1e6, search=(0.1, 100.0), log=True),
        "feature_share": Number(0.7, 0.01, 1.0, search=(0.2, 1.0)),
        "bins": Number(63, 2, 255, whole=True),
        "class_weight": Choice("none", ("none", "balanced")),
        "interactions": Groups(),
    }
)


@dataclass(frozen=True, eq=False)
class Forest:
    """Trees as arrays over all their nodes; children follow their parents, a leaf is its own child.

    ``feature``, ``left``, ``right``: int64; ``threshold``: float64, infinite where only NaN goes right;
    ``missing_left``: bool; ``value``: float64, a leaf's score, and for other nodes the mean of the scores
    of the rows they saw; ``gain``: float64; ``roots``: int64 (rounds, columns); ``start``: float64
    (columns,). There is a column of scores for each class, or a single one, of the second of two.
    """

    classes: tuple[int, ...]
    absent: float
    features: int
    start: np.ndarray
    roots: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    missing_left: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    split_gain: np.ndarray
    name: str = BOOSTING

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """See Fitted."""
        some = max(1, _CELLS // self.roots.size)
        scores = [self._scores(rows[at : at + some]) for at in range(0, len(rows), some)]
        if not scores:
            return np.empty((0, 3))
        return spread(softmax(_both(np.concatenate(scores))), self.classes, self.absent)

    def contributions(self, row: np.ndarray) -> np.ndarray:
        """See Fitted. Along each path, what each split adds to the mean (A. Saabas, Interpreting random forests)."""
        shares = np.zeros((len(self.start), self.features))
        columns = np.broadcast_to(np.arange(len(self.start)), self.roots.shape).ravel()
        at = self.roots.ravel()
        while (self.left[at] != at).any():
            down = self._next(row[self.feature[at]], at)
            np.add.at(shares, (columns, self.feature[at]), self.value[down] - self.value[at])
            at = down
        return long_minus_short(_both(shares.T).T, self.classes)

    def gain(self) -> np.ndarray | None:
        """See Fitted."""
        return np.asarray(np.bincount(self.feature, weights=self.split_gain, minlength=self.features))

    def to_files(self) -> dict[str, bytes]:
        """See Fitted."""
        arrays = {key: getattr(self, key).tolist() for key in _ARRAYS if key != "threshold"}
        # JSON knows no infinity
        thresholds = [None if value == np.inf else value for value in self.threshold.tolist()]
        kept = {"classes": list(self.classes), "absent": self.absent, "features": self.features}
        return {NUMBERS: to_json({**kept, **arrays, "threshold": thresholds})}

    def _scores(self, rows: np.ndarray) -> np.ndarray:
        at = np.broadcast_to(self.roots.ravel(), (len(rows), self.roots.size))
        lines = np.arange(len(rows))[:, None]
        while True:
            down = self._next(rows[lines, self.feature[at]], at)
            if (down == at).all():
                break
            at = down
        leaves = self.value[at].reshape(len(rows), *self.roots.shape)
        # a running sum, because the order of a plain one depends on how many rows are asked at once
        return np.asarray(np.cumsum(leaves, axis=1)[:, -1] + self.start)

    def _next(self, values: np.ndarray, at: np.ndarray) -> np.ndarray:
        goes_left = np.where(np.isnan(values), self.missing_left[at], values <= self.threshold[at])
        return np.asarray(np.where(goes_left, self.left[at], self.right[at]))


_ARRAYS: Final[Mapping[str, type]] = MappingProxyType(
    {
        "start": np.float64,
        "roots": np.int64,
        "feature": np.int64,
        "threshold": np.float64,
        "missing_left": np.bool_,
        "left": np.int64,
        "right": np.int64,
        "value": np.float64,
        "split_gain": np.float64,
    }
)


def learn_boosting(
    sample: Sample, seed: int, chosen: Mapping[str, Any], judge: Sample | None
) -> tuple[Fitted, Mapping[str, Any]]:
    """Trees, and the parameters with the number of rounds that was best on ``judge``.

    Raises:
        InsufficientHistory: the rows hold a single class.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    found = present(sample, BOOSTING)
    groups = groups_by_position(chosen["interactions"], sample.names)
    known = np.isin(judge.classes, found) if judge is not None else np.zeros(0, dtype=bool)
    stops = bool(chosen["patience"]) and bool(known.any())
    model = HistGradientBoostingClassifier(
        learning_rate=chosen["learning_rate"],
        max_iter=chosen["rounds"],
        max_leaf_nodes=chosen["leaves"],
        min_samples_leaf=chosen["min_leaf_rows"],
        l2_regularization=chosen["l2"],
        max_features=chosen["feature_share"],
        max_bins=chosen["bins"],
        interaction_cst=groups or None,
        early_stopping=stops,
        n_iter_no_change=max(1, chosen["patience"]),
        tol=0.0,
        random_state=seed,
    )
    unseen: dict[str, Any] = {}
    if judge is not None and stops:
        unseen = {
            "X_val": judge.rows[known],
            "y_val": judge.classes[known],
            "sample_weight_val": judge.weights[known],
        }
    with fixed_threads():
        weights = weights_of(sample, chosen["class_weight"])
        model.fit(sample.rows, sample.classes, sample_weight=weights, **unseen)
    rounds = model.n_iter_
    if stops:  # the first score is that of no trees at all; one round is the least
        rounds = max(1, int(np.argmax(model.validation_score_)))
    return _flat(model, rounds, found, sample), {**chosen, "rounds": rounds, "patience": 0}


def boosting_from_files(files: Mapping[str, bytes]) -> Fitted:
    """A Forest back.

    Raises:
        ModelRejected: the arrays are no trees: a child before its parent, or a feature that does not exist.
    """
    stored = numbers(files, "classes", "absent", "features", *_ARRAYS)
    thresholds = [np.inf if value is None else value for value in stored["threshold"]]
    arrays: dict[str, Any] = {
        key: np.array(thresholds if key == "threshold" else stored[key], dtype=kind) for key, kind in _ARRAYS.items()
    }
    forest = Forest(tuple(stored["classes"]), float(stored["absent"]), int(stored["features"]), **arrays)
    nodes, at = len(forest.value), np.arange(len(forest.value))
    lengths = {len(arrays[key]) for key in _ARRAYS if key not in ("start", "roots")}
    whole = (
        lengths == {nodes}
        and forest.roots.ndim == 2
        and forest.roots.size > 0
        and forest.roots.shape[1:] == forest.start.shape
        and ((forest.roots >= 0) & (forest.roots < nodes)).all()
        and ((forest.feature >= 0) & (forest.feature < forest.features)).all()
        and all(((side >= at) & (side < nodes)).all() for side in (forest.left, forest.right))
        and ((forest.left == at) == (forest.right == at)).all()
    )
    if not whole:
        raise ModelRejected(f"the arrays in {NUMBERS} are no trees; train and save the model again")
    return forest


def _flat(model: Any, rounds: int, found: tuple[int, ...], sample: Sample) -> Forest:
    """The first ``rounds`` rounds of a fitted HistGradientBoostingClassifier."""
    # scikit-learn shows its trees to nobody; the test against its predictions is what holds these names
    trees = [tree.nodes for step in model._predictors[:rounds] for tree in step]
    starts = np.cumsum([0, *[len(nodes) for nodes in trees]])
    nodes = np.concatenate(trees)
    offset, at = np.repeat(starts[:-1], np.diff(starts)), np.arange(len(nodes))
    leaf = nodes["is_leaf"].astype(bool)
    left = np.where(leaf, at, nodes["left"] + offset)
    right = np.where(leaf, at, nodes["right"] + offset)
    value, count = np.where(leaf, nodes["value"], 0.0).tolist(), nodes["count"].tolist()
    for node in np.flatnonzero(~leaf)[::-1].tolist():  # children follow their parents, so this goes upwards
        one, other = left[node], right[node]
        value[node] = (value[one] * count[one] + value[other] * count[other]) / (count[one] + count[other])
    return Forest(
        classes=found,
        absent=absent(len(sample)),
        features=len(sample.names),
        start=np.array(model._baseline_prediction, dtype=np.float64).ravel(),
        roots=starts[:-1].reshape(rounds, -1),
        feature=np.where(leaf, 0, nodes["feature_idx"]).astype(np.int64),
        threshold=np.where(leaf, 0.0, nodes["num_threshold"]),
        missing_left=np.where(leaf, False, nodes["missing_go_to_left"].astype(bool)),
        left=left,
        right=right,
        value=np.array(value),
        split_gain=np.where(leaf, 0.0, nodes["gain"]),
    )


def _both(scores: np.ndarray) -> np.ndarray:
    """Scores (n, classes); a single column is the second of two, and the first is zero."""
    return np.column_stack([np.zeros(len(scores)), scores]) if scores.shape[1] == 1 else scores
