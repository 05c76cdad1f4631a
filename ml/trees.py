"""Gradient-boosted trees of LightGBM.

Ke et al., LightGBM: A Highly Efficient Gradient Boosting Decision Tree (NIPS 2017). Stored as LightGBM's text.

Monotone constraints need a model of their own. With one softmax over three classes LightGBM would hold
the score of every class to the same direction, which bounds no odds. So where directions are asked
for, each class gets a booster against the rest, Long in the direction given, Short against it, Neutral
free; the three probabilities are divided by their sum, and the odds of Long against Short keep the direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ml.fitted import NUMBERS, THREADS, Fitted, absent, long_minus_short, numbers, spread, to_json
from ml.parameters import Choice, Directions, Groups, Number, Parameter, groups_by_position
from ml.sample import Sample, present, weights_of
from trading.errors import ModelRejected

if TYPE_CHECKING:
    from lightgbm import Booster

LIGHTGBM: Final = "lightgbm"

SPACE: Final[Mapping[str, Parameter]] = MappingProxyType(
    {
        "rounds": Number(200, 1, 5000, whole=True),  # at most so many; with patience=0 exactly
        "patience": Number(20, 0, 1000, whole=True),  # stop after so many rounds without a better log loss
        "learning_rate": Number(0.04, 1e-4, 1.0, search=(0.01, 0.15), log=True),
        "leaves": Number(15, 2, 255, whole=True, search=(4, 63), log=True),
        "min_leaf_rows": Number(100, 1, 1_000_000, whole=True, search=(20, 1000), log=True),
        "l2": Number(10.0, 0.0, 1e6, search=(0.1, 100.0), log=True),
        "feature_share": Number(0.7, 0.01, 1.0, search=(0.2, 1.0)),
        "row_share": Number(0.7, 0.01, 1.0, search=(0.4, 1.0)),
        "bins": Number(63, 2, 255, whole=True),
        "class_weight": Choice("none", ("none", "balanced")),
        "monotone": Directions(),
        "interactions": Groups(),
    }
)


@dataclass(frozen=True, eq=False)
class Trees:
    """LightGBM's text models, parsed at first use: one over all classes, or one for each class."""

    classes: tuple[int, ...]
    absent: float
    texts: tuple[str, ...]
    name: str = LIGHTGBM

    @cached_property
    def boosters(self) -> tuple[Booster, ...]:
        """The models in LightGBM's hands."""
        import lightgbm

        return tuple(lightgbm.Booster(model_str=text) for text in self.texts)

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """See Fitted."""
        found = [np.asarray(booster.predict(rows, num_threads=THREADS)) for booster in self.boosters]
        if len(found) == 1:
            return spread(found[0], self.classes, self.absent)
        each = np.maximum(np.column_stack(found), np.finfo(np.float64).tiny)
        return spread(each / each.sum(axis=1, keepdims=True), self.classes, self.absent)

    def contributions(self, row: np.ndarray) -> np.ndarray:
        """See Fitted. SHAP values of the trees; with a booster for each class, of its log odds against the rest."""
        shares = np.concatenate(
            [np.asarray(one.predict(row[None, :], pred_contrib=True, num_threads=THREADS))[0] for one in self.boosters]
        )
        return long_minus_short(shares.reshape(len(self.classes), -1)[:, :-1], self.classes)

    def gain(self) -> np.ndarray | None:
        """See Fitted."""
        return np.asarray(sum(booster.feature_importance("gain") for booster in self.boosters), dtype=np.float64)

    def to_files(self) -> dict[str, bytes]:
        """See Fitted."""
        kept = {"classes": list(self.classes), "absent": self.absent, "boosters": len(self.texts)}
        return {NUMBERS: to_json(kept), **{_file(at): text.encode() for at, text in enumerate(self.texts)}}


def learn_lightgbm(
    sample: Sample, seed: int, chosen: Mapping[str, Any], judge: Sample | None
) -> tuple[Fitted, Mapping[str, Any]]:
    """Trees, and the parameters with the number of rounds that was best on ``judge``.

    Raises:
        InsufficientHistory: the rows hold a single class.
    """
    found = present(sample, LIGHTGBM)
    asked = _native(sample.names, chosen, seed)
    if not chosen["monotone"]:
        kinds = [{**asked, "objective": "multiclass", "num_class": len(found), "metric": "multi_logloss"}]
        targets = [np.searchsorted(found, sample.classes)]
        known = np.isin(judge.classes, found) if judge is not None else None
        judged = [np.searchsorted(found, judge.classes[known])] if judge is not None else None
    else:
        signs = np.array([chosen["monotone"].get(name, 0) for name in sample.names])
        kinds = [
            {**asked, "objective": "binary", "metric": "binary_logloss", "monotone_constraints": (one * signs).tolist()}
            for one in found
        ]
        targets = [(sample.classes == one).astype(np.int64) for one in found]
        known = np.ones(len(judge), dtype=bool) if judge is not None else None
        judged = [(judge.classes == one).astype(np.int64) for one in found] if judge is not None else None
    rounds = chosen["rounds"] if isinstance(chosen["rounds"], list) else [chosen["rounds"]] * len(kinds)
    weights = weights_of(sample, chosen["class_weight"])
    texts, best = [], []
    for at, parameters in enumerate(kinds):
        unseen = None
        if judge is not None and judged is not None and chosen["patience"]:
            unseen = (judge.rows[known], judged[at], judge.weights[known])
        text, count = _boosted(parameters, sample.rows, targets[at], weights, rounds[at], unseen, chosen["patience"])
        texts.append(text)
        best.append(count)
    return Trees(found, absent(len(sample)), tuple(texts)), {**chosen, "rounds": best, "patience": 0}


def lightgbm_from_files(files: Mapping[str, bytes]) -> Fitted:
    """Trees back."""
    stored = numbers(files, "classes", "absent", "boosters")
    if stored["boosters"] not in (1, len(stored["classes"])):
        raise ModelRejected(f"{stored['boosters']} boosters for {len(stored['classes'])} classes; train it again")
    missing = [_file(at) for at in range(stored["boosters"]) if _file(at) not in files]
    if missing:
        raise ModelRejected(f"the model has no {', '.join(missing)}; train and save it again")
    texts = tuple(files[_file(at)].decode() for at in range(stored["boosters"]))
    return Trees(tuple(stored["classes"]), float(stored["absent"]), texts)


def _boosted(
    parameters: dict[str, Any],
    rows: np.ndarray,
    target: np.ndarray,
    weights: np.ndarray,
    rounds: int,
    judge: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
    patience: int,
) -> tuple[str, int]:
    """Text of a booster, and its number of rounds."""
    import lightgbm

    data = lightgbm.Dataset(np.ascontiguousarray(rows), label=target, weight=weights, params=parameters)
    if judge is None or not len(judge[1]):
        return lightgbm.train(parameters, data, num_boost_round=rounds).model_to_string(), rounds
    booster = lightgbm.train(
        parameters,
        data,
        num_boost_round=rounds,
        valid_sets=[data.create_valid(judge[0], label=judge[1], weight=judge[2], params=parameters)],
        callbacks=[lightgbm.early_stopping(patience, verbose=False)],
    )
    return booster.model_to_string(num_iteration=booster.best_iteration), booster.best_iteration


def _native(names: tuple[str, ...], chosen: Mapping[str, Any], seed: int) -> dict[str, Any]:
    native = {
        "learning_rate": chosen["learning_rate"],
        "num_leaves": chosen["leaves"],
        "min_data_in_leaf": chosen["min_leaf_rows"],
        "lambda_l2": chosen["l2"],
        "feature_fraction": chosen["feature_share"],
        "bagging_fraction": chosen["row_share"],
        "bagging_freq": 1,
        "max_bin": chosen["bins"],
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": THREADS,
        "verbosity": -1,
    }
    groups = groups_by_position(chosen["interactions"], names)
    return {**native, "interaction_constraints": groups} if groups else native


def _file(at: int) -> str:
    return "booster.txt" if at == 0 else f"booster_{at}.txt"
