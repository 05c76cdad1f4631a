"""What a training finds out, before anything is written down: tuning, walk-forward, money, luck, the final fit.

Tuning sees only rows before the first test span of the walk-forward, on folds of its own, so that the
scores that the gate compares are of rows which chose nothing. The combinatorial evaluation, where one is asked
for, tests all rows, those that tuned parameters were chosen on among them: they flatter a tuned estimator there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from tasks import progress
from tasks.datasets import Dataset
from trading.calendars import bars_per_year
from trading.errors import InsufficientHistory, InvalidRequest

if TYPE_CHECKING:
    import pandas as pd

    from ml.combinatorial import PathSpread
    from ml.economics import Economics
    from ml.estimators import Fitted
    from ml.evaluation import Scores
    from ml.features import FeatureSet
    from ml.labels import LabelDefinition
    from ml.overfitting import Overfitting
    from ml.signals import SignalRule
    from ml.splits import Fold
    from ml.training import TrainingTable, Walk
    from ml.tuning import Trial, Tuned

TUNED: Final = "lightgbm"
TUNING_FOLDS: Final = 3
NO_PARAMETERS: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True)
class TrainingRequest:
    """Everything, beside the candles and the code, that decides what comes out of a training.

    ``label`` is the kind of ``ml.labels.LabelDefinition``, ``target`` and ``stop`` the widths of its barriers.
    ``tune_trials`` are tried on ``TUNED``, none for 0, and no further one begins after ``tune_seconds``.
    ``estimators``: those to try beside the baselines; none stands for all. ``parameters``: fixed values by
    estimator, and ``features``: those of ``ml.features.FeatureSet`` that are not the defaults. ``rolling_days``:
    train each fold on so many days before it; None for all of the past. ``combinatorial_groups``: cut time into
    so many groups and beside the walk-forward evaluate each estimator on every choice of
    ``combinatorial_test_groups`` of them (``ml.combinatorial``), which costs as many fits of each as there are
    choices; none for 0.
    """

    horizon: int
    folds: int
    seed: int
    fee_rate: float
    slippage_rate: float
    buy_threshold: float
    sell_threshold: float
    label: str = "forward"
    tune_trials: int = 0
    tune_seconds: float = 600.0
    estimators: tuple[str, ...] = ()
    target: float = 1.0
    stop: float = 1.0
    rolling_days: int | None = None
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    features: Mapping[str, Any] = field(default_factory=dict)
    combinatorial_groups: int = 0
    combinatorial_test_groups: int = 2

    @property
    def round_trip_cost(self) -> float:
        """Cost of getting in and out, as a share of the notional."""
        return 2 * (self.fee_rate + self.slippage_rate)


@dataclass(frozen=True, eq=False)
class Tuning:
    """All trials of a tuning, what each would have earned, and how much of the best one may be luck."""

    found: Tuned
    economics: tuple[Economics, ...]
    overfitting: Overfitting


@dataclass(frozen=True, eq=False)
class Learned:
    """What a training found out.

    ``parameters``: of each estimator, the defaults where it has none. ``economics``: by estimator, through the
    backtest engine. ``overfitting``: of the winner among all estimators that could have won. ``unseen`` holds
    the winner's out-of-sample signals (see ``ml.training.out_of_sample``), ``importance`` the rise of its log loss on
    the last fold when a feature is shuffled, ``findings`` what the feature suite had to say without
    stopping the training. ``spreads``: of each estimator over the combinatorial paths; none without them.
    """

    features: FeatureSet
    label: LabelDefinition
    table: TrainingTable
    folds: tuple[Fold, ...]
    walk: Walk
    baseline: Scores
    winner: Scores
    parameters: Mapping[str, Mapping[str, Any]]
    economics: Mapping[str, Economics]
    overfitting: Overfitting
    tuning: Tuning | None
    unseen: pd.DataFrame
    importance: pd.DataFrame
    fitted: Fitted
    rule: SignalRule
    example: pd.DataFrame
    findings: tuple[str, ...]
    spreads: tuple[PathSpread, ...] = ()

    @property
    def scores(self) -> tuple[Scores, ...]:
        """Of every estimator, in the order in which they were walked."""
        return self.walk.scores


def learn(
    frames: Mapping[str, pd.DataFrame], dataset: Dataset, request: TrainingRequest, *, storage: str | None = None
) -> Learned:
    """Tune if asked to, score every estimator in a purged walk-forward, and fit the best one on all rows.

    Args:
        storage: URL of the database that keeps the trials of a tuning, so that it goes on where it was
            interrupted; None keeps them in memory.

    Raises:
        InsufficientHistory: too few candles for a row, the folds, or the classes of a fold.
        ExpectationFailed: the feature matrix is not what its features declare.
        InvalidRequest: an unknown estimator, none that could win, none to tune, or combinatorial groups of
            which none would be left to learn from.
    """
    import expectations.features as feature_suite
    from ml import combinatorial, estimators, evaluation, splits, training
    from ml.importance import permutation_importance

    label, features = label_of(request), features_of(request)
    table = training.assemble(frames, features, label)
    verdict = feature_suite.judge(table)
    feature_suite.require(verdict)
    embargo = request.horizon * dataset.timeframe.delta
    rolling = timedelta(days=request.rolling_days) if request.rolling_days else None
    folds = splits.walk_forward_folds(table.t0, table.t1, folds=request.folds, embargo=embargo, rolling=rolling)
    # made before anything is fitted: a request that cannot be met is told at once
    choices = (
        splits.combinatorial_folds(
            table.t0,
            table.t1,
            groups=request.combinatorial_groups,
            test_groups=request.combinatorial_test_groups,
            embargo=embargo,
        )
        if request.combinatorial_groups
        else []
    )
    tuning = None
    wanted = set(request.estimators or estimators.ESTIMATORS) | estimators.BASELINES
    if wanted == estimators.BASELINES or (request.tune_trials and TUNED not in wanted):
        raise InvalidRequest(
            f"a training of {', '.join(request.estimators)} has nothing that could win, or no {TUNED} to tune"
        )
    for name in (*wanted, *request.parameters):
        estimators.estimator(name)  # refuses one that there is not
    # in the order from simple to rich: of equals the first is chosen
    parameters: dict[str, Mapping[str, Any]] = {
        name: request.parameters.get(name, NO_PARAMETERS) for name in estimators.ESTIMATORS if name in wanted
    }
    if request.tune_trials:
        tuning = _tune(frames, dataset, request, table, folds[0].test_start, storage)
        parameters[TUNED] = tuning.found.best.parameters
    step = f"train {dataset.timeframe.value}"
    walk = training.walk_forward(
        table,
        folds,
        estimators=parameters,
        seed=request.seed,
        progress=lambda done, total, _: progress.report(step, done, total),
    )
    candidates = [score for score in walk.scores if score.estimator not in estimators.BASELINES]
    winner = evaluation.best(candidates)
    economics = {
        score.estimator: earned_by(training.out_of_sample(walk, score.estimator), frames, dataset, request)
        for score in walk.scores
    }
    last = folds[-1]
    fitted, rule = training.fit_final(table, winner.estimator, request.seed, parameters[winner.estimator])
    return Learned(
        features=features,
        label=label,
        table=table,
        folds=tuple(folds),
        walk=walk,
        baseline=walk.scores_of(estimators.BASELINE),
        winner=winner,
        parameters=parameters,
        economics=economics,
        overfitting=_luck(
            {score.estimator: economics[score.estimator] for score in candidates}, winner.estimator, request
        ),
        tuning=tuning,
        unseen=training.out_of_sample(walk, winner.estimator),
        importance=permutation_importance(
            walk.fitted[winner.estimator][-1],
            table.x[last.test],
            table.y[last.test],
            table.names,
            seed=request.seed,
            repeats=3,
            most_rows=1_500,
        ),
        fitted=fitted,
        rule=rule,
        example=next(iter(frames.values())).tail(features.rows_needed).reset_index(),
        findings=tuple(map(str, verdict.findings)),
        spreads=combinatorial.spreads(
            table,
            choices,
            parameters,
            lambda unseen: earned_by(unseen, frames, dataset, request),
            seed=request.seed,
            progress=lambda done, total, _: progress.report(f"combinatorial {dataset.timeframe.value}", done, total),
        ),
    )


def label_of(request: TrainingRequest) -> LabelDefinition:
    """The label that a request asks for."""
    from ml.labels import LabelDefinition

    return LabelDefinition(
        horizon=request.horizon,
        buy_threshold=request.buy_threshold,
        sell_threshold=request.sell_threshold,
        round_trip_cost=request.round_trip_cost,
        kind=request.label,  # type: ignore[arg-type]
        target=request.target,
        stop=request.stop,
    )


def features_of(request: TrainingRequest) -> FeatureSet:
    """The feature set that a request asks for.

    Raises:
        InvalidRequest: an unknown parameter, or one out of range.
    """
    from ml.features import FeatureSet

    return FeatureSet.from_definition({**FeatureSet().definition(), **request.features})


def walk_again(
    learned: Learned, name: str, parameters: Mapping[str, Any], request: TrainingRequest
) -> tuple[Scores, pd.DataFrame]:
    """An estimator with these parameters through the same folds: scores and out-of-sample signals.

    What has been walked is not walked again.
    """
    from ml.training import out_of_sample, walk_forward

    walk = learned.walk
    if name not in learned.parameters or dict(learned.parameters[name]) != dict(parameters):
        walk = walk_forward(learned.table, learned.folds, estimators={name: parameters}, seed=request.seed)
    return walk.scores_of(name), out_of_sample(walk, name)


def _tune(
    frames: Mapping[str, pd.DataFrame],
    dataset: Dataset,
    request: TrainingRequest,
    table: TrainingTable,
    test_start: int,
    storage: str | None,
) -> Tuning:
    from ml.artifact import code_digest
    from ml.tuning import tune

    embargo = request.horizon * dataset.timeframe.delta
    folds = early_folds(table, test_start, embargo)

    def report(done: int, trials: int, trial: Trial) -> None:
        progress.report(f"tune {dataset.timeframe.value}", done, trials)

    found = tune(
        table,
        folds,
        TUNED,
        seed=request.seed,
        trials=request.tune_trials,
        parameters=request.parameters.get(TUNED, NO_PARAMETERS),
        seconds=request.tune_seconds,
        storage=storage,
        study_name=f"{TUNED} {code_digest()} {dataset.digest} {asdict(request)}" if storage else None,
        report=report,
    )
    economics = tuple(earned_by(_unseen(table, folds, trial), frames, dataset, request) for trial in found.trials)
    named = {str(trial.number): earned for trial, earned in zip(found.trials, economics, strict=True)}
    return Tuning(found, economics, _luck(named, str(found.best.number), request))


def early_folds(table: TrainingTable, test_start: int, embargo: timedelta) -> list[Fold]:
    """Walk-forward folds over the rows whose labels ended an embargo before ``test_start`` (ms UTC)."""
    import numpy as np

    from ml.splits import Fold, walk_forward_folds

    early = np.flatnonzero(table.t1 + embargo // timedelta(milliseconds=1) <= test_start)
    if not len(early):
        raise InsufficientHistory(
            "no row ends before the first test span, so nothing can be tuned; use a longer window"
        )
    folds = walk_forward_folds(table.t0[early], table.t1[early], folds=TUNING_FOLDS, embargo=embargo)
    return [Fold(fold.number, early[fold.train], early[fold.test], fold.test_start, fold.test_end) for fold in folds]


def _unseen(table: TrainingTable, folds: list[Fold], trial: Trial) -> pd.DataFrame:
    """The out-of-sample signals of a trial, as far as trading them needs it."""
    import numpy as np
    import pandas as pd

    rows = np.concatenate([fold.test for fold in folds])
    return pd.DataFrame(
        {
            "symbol": table.symbol[rows],
            "decided_at": table.decided_at[rows],
            "fold": np.repeat([fold.number for fold in folds], [len(fold.test) for fold in folds]),
            "signal": trial.signals,
        }
    )


def earned_by(
    unseen: pd.DataFrame, frames: Mapping[str, pd.DataFrame], dataset: Dataset, request: TrainingRequest
) -> Economics:
    """What out-of-sample signals (see ``ml.economics.trade``) would have earned at the costs of the request."""
    from ml.economics import trade
    from trading.backtest.engine import Costs

    costs = Costs(request.fee_rate, request.slippage_rate)
    # of symbols with several calendars, the one that trades most: time in cash is time, too
    per_year = max(bars_per_year(dataset.timeframe, calendar) for calendar in dataset.calendars.values())
    return trade(unseen, frames, costs, bars_per_year=per_year, hold=request.horizon)


def _luck(economics: Mapping[str, Economics], chosen: str, request: TrainingRequest, elsewhere: int = 0) -> Overfitting:
    import pandas as pd

    from ml.overfitting import overfitting

    returns = pd.DataFrame({name: earned.returns for name, earned in economics.items()}).fillna(0.0)
    return overfitting(returns, chosen, seed=request.seed, elsewhere=elsewhere, block=max(2, 2 * request.horizon))
