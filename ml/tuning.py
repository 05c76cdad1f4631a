"""Tuning: which parameters of an estimator foresee best, and every trial that it took to find out.

Whoever looks at many trials finds a good one by luck. So each trial keeps its score on each fold and its
out-of-sample signals, and the deflated Sharpe ratio and the probability of backtest overfitting are asked over
all of them. For the same reason no trial is pruned: one without signals on the later folds fits into no such
matrix. The log loss of the best trial on the folds it was chosen by flatters; give ``tune`` folds that
end before the rows a champion is compared on.

A study that lives in a database goes on where it was interrupted, and ends as if it had not been: what
trial n tries follows from the seed, n and the finished trials, not from the state of a generator that
died with its process.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ml.estimators import Estimator, estimator
from ml.evaluation import FoldScore, Scores, Third
from ml.parameters import Choice, Number, settle
from ml.splits import Fold
from ml.training import TrainingTable, out_of_sample, walk_forward
from trading.errors import InvalidRequest

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

_SCORES: Final = "fold_scores"
_SIGNALS: Final = "signals"
_FINGERPRINT: Final = "fingerprint"
_AT_RANDOM: Final = 8  # trials before the sampler trusts what it has seen


@dataclass(frozen=True, eq=False)
class Trial:
    """One set of parameters on all folds; ``number`` counts finished trials from 0, the defaults.

    ``scores`` has its score on each fold; ``signals``: int8 (m,), of the test rows of all folds one after
    the other; ``seconds`` of wall clock.
    """

    number: int
    parameters: Mapping[str, Any]
    scores: Scores
    signals: np.ndarray
    seconds: float

    @property
    def log_loss(self) -> float:
        """Mean out-of-sample log loss over folds: what is minimised."""
        return self.scores.log_loss


@dataclass(frozen=True, eq=False)
class Tuned:
    """All finished trials in order; ``rows``: int64 (m,), positions in the table that their signals belong to.

    ``exhausted`` says that the time ran out before all trials were done.
    """

    estimator: str
    trials: tuple[Trial, ...]
    rows: np.ndarray
    exhausted: bool

    @property
    def best(self) -> Trial:
        """The lowest log loss; of equals the first."""
        return min(self.trials, key=lambda trial: trial.log_loss)

    @property
    def signals(self) -> np.ndarray:
        """Signals of all trials: int8 (trials, m)."""
        return np.stack([trial.signals for trial in self.trials])


Report = Callable[[int, int, Trial], None]


def tune(
    table: TrainingTable,
    folds: Sequence[Fold],
    name: str,
    *,
    seed: int,
    trials: int,
    seconds: float | None = None,
    storage: str | None = None,
    study_name: str | None = None,
    parameters: Mapping[str, Any] = MappingProxyType({}),
    report: Report | None = None,
) -> Tuned:
    """Search the parameters of an estimator with the tree-structured Parzen estimator.

    Minimised is the mean over ``folds`` of the out-of-sample log loss, as in ``ml.training.walk_forward``. Where to
    search is written beside each parameter (``ml.parameters.Number.search``). Trial 0 has the defaults.
    Bergstra et al., Algorithms for Hyper-Parameter Optimization (NIPS 2011).

    Args:
        trials: how many trials the study shall have, those of earlier calls included.
        seconds: no further trial begins when the finished ones took so long that one more of their mean
            length would go beyond it; trial 0 always runs. Earlier calls count. None for no limit.
        storage: URL of a database, such as ``sqlite:////path/tuning.db``, which keeps the trials; one
            process at a time for one study. None keeps them in memory.
        study_name: names the study in the database; needed with ``storage``.
        parameters: fixed values, which are not searched.
        report: called after each finished trial with the number done, of all, and the trial.

    Raises:
        InvalidRequest: an unknown estimator or parameter, nothing to search, a number out of range, or a
            study in the database that was made of another table, other folds or another search.
        InsufficientHistory: as ``ml.training.walk_forward``.
    """
    import optuna

    chosen = estimator(name)
    searched = _searched(chosen, parameters)
    settle(name, chosen.space, parameters, table.names)
    if not folds:
        raise InvalidRequest("tuning needs a fold to judge its trials by, and got none")
    if trials < 1 or (seconds is not None and seconds <= 0):
        raise InvalidRequest(f"trials={trials} must be at least 1 and seconds={seconds} positive, or None for no limit")
    if storage is not None and not study_name:
        raise InvalidRequest("a study in a database needs a study_name, to be found again")
    with _quiet():
        study = optuna.create_study(
            storage=storage, study_name=study_name, direction="minimize", load_if_exists=storage is not None
        )
        _require_same(study, _fingerprint(table, folds, chosen, searched, parameters, seed))
        _discard_unfinished(study)
        rows = np.concatenate([fold.test for fold in folds])
        done = _finished(study, name, parameters, len(rows))
        exhausted = False
        while len(done) < trials:
            if seconds is not None and done and _spent(done) * (1 + 1 / len(done)) > seconds:
                exhausted = True
                break
            _run(study, table, folds, chosen, searched, parameters, seed, len(done))
            done = _finished(study, name, parameters, len(rows))
            if report is not None:
                report(len(done), trials, done[-1])
    return Tuned(name, tuple(done[:trials]), rows, exhausted)


def search_space(name: str) -> dict[str, Number | Choice]:
    """The parameters of an estimator that tuning varies, with their bounds.

    Raises:
        InvalidRequest: an unknown estimator.
    """
    return {
        key: found
        for key, found in estimator(name).space.items()
        if isinstance(found, Number | Choice) and found.search
    }


def _searched(chosen: Estimator, fixed: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for name, parameter in search_space(chosen.name).items():
        if name in fixed:
            continue
        if isinstance(parameter, Choice):
            found[name] = CategoricalDistribution(parameter.options)
        elif parameter.search is not None and parameter.whole:
            found[name] = IntDistribution(int(parameter.search[0]), int(parameter.search[1]), log=parameter.log)
        elif parameter.search is not None:
            found[name] = FloatDistribution(*parameter.search, log=parameter.log)
    if not found:
        raise InvalidRequest(f"{chosen.name} has no parameter left to search; tune another estimator or fix fewer")
    return found


def _run(
    study: Study,
    table: TrainingTable,
    folds: Sequence[Fold],
    chosen: Estimator,
    searched: dict[str, BaseDistribution],
    fixed: Mapping[str, Any],
    seed: int,
    number: int,
) -> None:
    """One trial, the one after ``number`` finished ones, from asking to telling."""
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    if number == 0 and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.enqueue_trial({key: chosen.space[key].default for key in searched})
    # a generator of its own for each trial, so that a study taken up again draws what it would have drawn
    state = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    study.sampler = TPESampler(seed=state, n_startup_trials=_AT_RANDOM, constant_liar=False)
    trial = study.ask(searched)
    try:
        walk = walk_forward(table, folds, estimators={chosen.name: {**fixed, **trial.params}}, seed=seed)
    except BaseException:
        study.tell(trial, state=TrialState.FAIL)
        raise
    score = walk.scores[0]
    trial.set_user_attr(_SCORES, [fold.document() for fold in score.folds])
    trial.set_user_attr(_SIGNALS, _packed(out_of_sample(walk, chosen.name)["signal"].to_numpy(dtype=np.int8)))
    study.tell(trial, score.log_loss)


def _discard_unfinished(study: Study) -> None:
    """Trials that were running when their process died count for nothing."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)


def _finished(study: Study, name: str, fixed: Mapping[str, Any], rows: int) -> list[Trial]:
    from optuna.trial import TrialState

    kept = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [_trial(at, found, name, fixed, rows) for at, found in enumerate(kept)]


def _trial(number: int, found: FrozenTrial, name: str, fixed: Mapping[str, Any], rows: int) -> Trial:
    folds = tuple(_fold_score(document) for document in found.user_attrs[_SCORES])
    sides = np.frombuffer(zlib.decompress(base64.b64decode(found.user_attrs[_SIGNALS])), dtype=np.int8)
    if len(sides) != rows:
        raise InvalidRequest(f"trial {found.number} of {name} kept {len(sides)} signals for {rows} rows; tune anew")
    seconds = found.duration.total_seconds() if found.duration is not None else 0.0
    return Trial(number, MappingProxyType({**fixed, **found.params}), Scores(name, folds), sides, seconds)


def _fold_score(document: Mapping[str, Any]) -> FoldScore:
    """What ``FoldScore.document`` wrote down."""
    return FoldScore(**{**document, "thirds": tuple(Third(**third) for third in document["thirds"])})


def _spent(done: Sequence[Trial]) -> float:
    return sum(trial.seconds for trial in done)


def _packed(sides: np.ndarray) -> str:
    """Signals as text: a hundred bytes for a thousand rows or so."""
    return base64.b64encode(zlib.compress(sides.tobytes(), 9)).decode()


def _require_same(study: Study, fingerprint: str) -> None:
    known = study.user_attrs.get(_FINGERPRINT)
    if known is None:
        study.set_user_attr(_FINGERPRINT, fingerprint)
    elif known != fingerprint:
        raise InvalidRequest(
            f"study {study.study_name!r} was made of another table, other folds, or with another estimator, seed or "
            "search space; its trials compare with nothing here: choose another study_name"
        )


def _fingerprint(
    table: TrainingTable,
    folds: Sequence[Fold],
    chosen: Estimator,
    searched: Mapping[str, BaseDistribution],
    fixed: Mapping[str, Any],
    seed: int,
) -> str:
    """Names all that a trial depends on but its parameters and the code."""
    described = {
        "dataset": table.digest,
        "features": table.feature_set.version,
        "label": table.label.definition(),
        "rows": len(table),
        "estimator": chosen.name,
        "defaults": {key: parameter.default for key, parameter in chosen.space.items()},
        "searched": {key: repr(bounds) for key, bounds in searched.items()},
        "fixed": dict(fixed),
        "seed": seed,
    }
    hashed = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for fold in folds:
        hashed.update(np.ascontiguousarray(fold.train, dtype=np.int64).tobytes() + b"|")
        hashed.update(np.ascontiguousarray(fold.test, dtype=np.int64).tobytes() + b";")
    return hashed.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna speaks of warnings only, and as before afterwards."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
