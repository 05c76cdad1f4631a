"""Tuning: it finds what is better, keeps every trial, and goes on where it was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from ml.estimators import ESTIMATORS
from ml.features import FeatureSet
from ml.labels import LabelDefinition
from ml.parameters import Number
from ml.splits import Fold, walk_forward_folds
from ml.training import TrainingTable, fit_final, out_of_sample, walk_forward
from ml.tuning import Trial, Tuned, search_space, tune
from trading.errors import InvalidRequest

HOUR_MS = 3_600_000
FIXED = {"calibration": "none"}


@pytest.fixture(scope="module")
def table() -> TrainingTable:
    """Thirty features of which the first one tells a little: a strong penalty is better than the default."""
    random = np.random.default_rng(1)
    x = random.normal(size=(900, 30))
    drive = 0.1 * x[:, 0] + random.normal(size=900)
    t0 = HOUR_MS * np.arange(900, dtype=np.int64)
    return TrainingTable(
        feature_set=FeatureSet(), label=LabelDefinition(horizon=2), names=tuple(f"f{at}" for at in range(30)), x=x,
        y=np.where(drive > 0.5, 1, np.where(drive < -0.5, -1, 0)).astype(np.int8), forward_return=0.01 * drive,
        weight=np.ones(900), decided_at=t0 - HOUR_MS, t0=t0, t1=t0 + 2 * HOUR_MS, symbol=np.full(900, "A"), digest="d",
    )  # fmt: skip


@pytest.fixture(scope="module")
def folds(table: TrainingTable) -> list[Fold]:
    return walk_forward_folds(table.t0, table.t1, folds=2)


def _told(tuned: Tuned) -> list[tuple[Any, ...]]:
    return [(one.number, dict(one.parameters), one.scores, one.signals.tolist()) for one in tuned.trials]


@pytest.fixture(scope="module")
def tuned(table: TrainingTable, folds: list[Fold]) -> Tuned:
    return tune(table, folds, "logistic", seed=3, trials=14, parameters=FIXED)


def test_it_starts_with_the_defaults_and_finds_better(table: TrainingTable, folds: list[Fold], tuned: Tuned) -> None:
    assert [one.number for one in tuned.trials] == list(range(14))
    assert dict(tuned.trials[0].parameters) == {"c": 0.01, **FIXED}
    assert tuned.best.log_loss < tuned.trials[0].log_loss
    assert tuned.best.log_loss == min(one.log_loss for one in tuned.trials)
    assert tuned.best.parameters["c"] < 0.01
    # once it has seen some, it looks where it was good
    losses = [one.log_loss for one in tuned.trials]
    assert np.mean(losses[8:]) < np.mean(losses[1:8])
    assert not tuned.exhausted
    assert fit_final(table, "logistic", 3, tuned.best.parameters)[0].to_files()


def test_every_trial_keeps_what_its_walk_gave(table: TrainingTable, folds: list[Fold], tuned: Tuned) -> None:
    for trial in (tuned.trials[0], tuned.best):
        walk = walk_forward(table, folds, estimators={"logistic": trial.parameters}, seed=3)
        assert walk.scores[0] == trial.scores
        said = out_of_sample(walk, "logistic")
        np.testing.assert_array_equal(said["signal"], trial.signals)
        np.testing.assert_array_equal(said["row"], tuned.rows)
    assert tuned.signals.shape == (14, sum(len(fold.test) for fold in folds))
    assert tuned.signals.any()


def test_the_same_seed_gives_the_same_trials_and_another_others(
    table: TrainingTable, folds: list[Fold], tuned: Tuned
) -> None:
    calls: list[tuple[int, int, Trial]] = []
    again = tune(table, folds, "logistic", seed=3, trials=9, parameters=FIXED, report=lambda *call: calls.append(call))
    assert _told(again) == _told(tuned)[:9]
    assert [(done, of, trial.number) for done, of, trial in calls] == [(at + 1, 9, at) for at in range(9)]
    other = tune(table, folds, "logistic", seed=4, trials=2, parameters=FIXED)
    assert other.trials[1].parameters != tuned.trials[1].parameters


class Killed(BaseException):
    """As a signal would come: not an Exception."""


@pytest.mark.integration
def test_an_interrupted_study_ends_as_if_it_had_not_been(
    table: TrainingTable, folds: list[Fold], tuned: Tuned, tmp_path: Path
) -> None:
    storage = f"sqlite:///{tmp_path / 'tuning.db'}"

    def stop(done: int, of: int, trial: Trial) -> None:
        if done == 9:
            raise Killed

    kept: dict[str, Any] = {"seed": 3, "storage": storage, "study_name": "s", "parameters": FIXED}
    with pytest.raises(Killed):
        tune(table, folds, "logistic", trials=14, report=stop, **kept)
    # and a trial that was at work when its process was killed
    left = optuna.load_study(study_name="s", storage=storage)
    left.ask({"c": optuna.distributions.FloatDistribution(1e-5, 1.0, log=True)})
    assert _told(tune(table, folds, "logistic", trials=14, **kept)) == _told(tuned)
    # nothing is left to do, so nothing is done
    assert _told(tune(table, folds, "logistic", trials=14, report=stop, **kept)) == _told(tuned)
    with pytest.raises(InvalidRequest, match="another table, other folds"):
        tune(table, folds[:1], "logistic", trials=14, **kept)
    with pytest.raises(InvalidRequest, match="another table, other folds"):
        tune(table, folds, "logistic", trials=14, **{**kept, "seed": 4})


def test_no_trial_begins_that_would_overrun_the_time(table: TrainingTable, folds: list[Fold]) -> None:
    short = tune(table, folds, "logistic", seed=3, trials=50, seconds=1e-6, parameters=FIXED)
    assert len(short.trials) == 1
    assert short.exhausted


def test_optuna_is_left_as_talkative_as_it_was(table: TrainingTable, folds: list[Fold]) -> None:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        tune(table, folds, "logistic", seed=3, trials=1, parameters=FIXED)
        assert optuna.logging.get_verbosity() == optuna.logging.ERROR
        with pytest.raises(InvalidRequest):
            tune(table, [], "logistic", seed=3, trials=1, parameters=FIXED)
        assert optuna.logging.get_verbosity() == optuna.logging.ERROR
    finally:
        optuna.logging.set_verbosity(before)


@pytest.mark.parametrize("name", ["logistic", "boosting", "lightgbm"])
def test_what_is_searched_is_allowed_and_holds_the_defaults(name: str) -> None:
    assert search_space(name)
    for key, parameter in search_space(name).items():
        if isinstance(parameter, Number):
            assert parameter.search is not None
            low, high = parameter.search
            assert parameter.lowest <= low <= parameter.default <= high <= parameter.highest, key


@pytest.mark.parametrize("name", ["boosting", "lightgbm"])
def test_trees_are_tuned_too(name: str, table: TrainingTable, folds: list[Fold]) -> None:
    few = {**FIXED, "rounds": 1, "patience": 0}
    found = tune(table, folds[:1], name, seed=1, trials=2, parameters=few)
    assert set(found.best.parameters) == set(search_space(name)) | set(few)
    space = ESTIMATORS[name].space
    assert all(found.trials[0].parameters[key] == space[key].default for key in search_space(name))


def test_requests_that_make_no_sense_are_refused(table: TrainingTable, folds: list[Fold]) -> None:
    def asked(name: str = "logistic", **wrong: Any) -> None:
        tune(table, folds, name, **{"seed": 1, "trials": 1, **wrong})

    with pytest.raises(InvalidRequest, match="no parameter left to search"):
        asked("baseline")
    with pytest.raises(InvalidRequest, match="no parameter left to search"):
        asked(parameters={"c": 0.1})
    with pytest.raises(InvalidRequest, match="no parameter depth"):
        asked(parameters={"depth": 3})
    with pytest.raises(InvalidRequest, match="oracle"):
        asked("oracle")
    with pytest.raises(InvalidRequest, match="trials=0"):
        asked(trials=0)
    with pytest.raises(InvalidRequest, match="seconds=0"):
        asked(seconds=0.0)
    with pytest.raises(InvalidRequest, match="study_name"):
        asked(storage="sqlite://")
