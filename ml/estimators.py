"""Estimators: what learns the classes -1, 0 and +1 from rows of features, side by side under one interface.

Where an estimator stops early or is calibrated, the last ``validation_share`` of its training rows is
kept back first, purged and embargoed. The estimator learns from the earlier rows; the rows kept back say
how many rounds were enough and how to scale the probabilities; then it learns once more from all rows
with that number of rounds. The newest rows are the most like the future, and too dear to leave out.
The scaling is thus that of a model of the earlier rows, and of rows that also chose the number of rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from ml import baselines, boosting, linear, trees
from ml.baselines import BASELINE
from ml.calibration import METHODS, Calibrated, fit_scaling, scaling_from_files
from ml.fitted import Fitted
from ml.parameters import Choice, Number, Parameter, settle
from ml.sample import Sample
from trading.errors import InvalidRequest

__all__ = ["BASELINE", "BASELINES", "ESTIMATORS", "Estimator", "Fitted", "Sample", "estimator"]

# never to be promoted, whatever their scores
BASELINES: Final = frozenset({BASELINE, baselines.NEUTRAL, baselines.HOLD, baselines.PERSISTENCE})

# learns from a sample with a seed and all its parameters; the second sample is there to stop by.
# Gives the fitted estimator, and the parameters with which it would get as far without stopping.
Learn = Callable[[Sample, int, Mapping[str, Any], Sample | None], tuple[Fitted, Mapping[str, Any]]]


@dataclass(frozen=True)
class Estimator:
    """How to fit one and how to have it back; ``space`` names its parameters."""

    name: str
    space: Mapping[str, Parameter]
    learn: Learn
    read: Callable[[Mapping[str, bytes]], Fitted]

    def fit(self, sample: Sample, seed: int, parameters: Mapping[str, Any] = MappingProxyType({})) -> Fitted:
        """Fitted on ``sample``: the same bytes for the same sample, seed and parameters.

        Raises:
            InvalidRequest: an unknown parameter or feature, or a value out of bounds.
            InsufficientHistory: the rows hold a single class, or are too few to keep some back.
        """
        chosen = settle(self.name, self.space, parameters, sample.names)
        method = chosen.get("calibration", "none")
        if method == "none" and not chosen.get("patience"):
            return self.learn(sample, seed, chosen, None)[0]
        earlier, judge = sample.kept_back(chosen["validation_share"])
        trial, settled = self.learn(earlier, seed, chosen, judge)
        fitted, _ = self.learn(sample, seed, settled, None)
        # the bias of a class that the earlier rows lack would say that the trial never saw it, and nothing of the rest
        if method == "none" or not np.array_equal(np.unique(earlier.classes), np.unique(sample.classes)):
            return fitted
        return Calibrated(fitted, fit_scaling(trial.predict_proba(judge.rows), judge.classes, method))

    def from_files(self, files: Mapping[str, bytes]) -> Fitted:
        """What ``Fitted.to_files`` gave.

        Raises:
            ModelRejected: a file is missing or cannot be read.
        """
        fitted, scaling = self.read(files), scaling_from_files(files)
        return fitted if scaling is None else Calibrated(fitted, scaling)


def estimator(name: str) -> Estimator:
    """The estimator of that name.

    Raises:
        InvalidRequest: there is none; the message lists those that exist.
    """
    if name not in ESTIMATORS:
        raise InvalidRequest(f"{name!r} is not an estimator; use one of {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]


def _learned(name: str, space: Mapping[str, Parameter], learn: Learn, read: Callable[..., Fitted]) -> Estimator:
    kept: dict[str, Parameter] = {
        "calibration": Choice("temperature", METHODS),
        "validation_share": Number(0.2, 0.05, 0.5),
    }
    return Estimator(name, MappingProxyType({**space, **kept}), learn, read)


def _constant(name: str, learn: Learn) -> Estimator:
    return Estimator(name, MappingProxyType({}), learn, partial(baselines.constant_from_files, name))


# From simple to rich: where two score the same, the first is preferred.
ESTIMATORS: Final[Mapping[str, Estimator]] = MappingProxyType(
    {
        made.name: made
        for made in (
            _constant(BASELINE, baselines.learn_baseline),
            _constant(baselines.NEUTRAL, baselines.learn_neutral),
            _constant(baselines.HOLD, baselines.learn_hold),
            Estimator(
                baselines.PERSISTENCE,
                MappingProxyType({}),
                baselines.learn_persistence,
                baselines.persistence_from_files,
            ),
            _learned(linear.LOGISTIC, linear.SPACE, linear.learn_logistic, linear.logistic_from_files),
            _learned(boosting.BOOSTING, boosting.SPACE, boosting.learn_boosting, boosting.boosting_from_files),
            _learned(trees.LIGHTGBM, trees.SPACE, trees.learn_lightgbm, trees.lightgbm_from_files),
        )
    }
)
