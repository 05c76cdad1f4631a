"""Monitoring: is the market still the one that the model was trained on, and does the model still do its work?

Live rows are held against the reference of the training (``ml.drift``), live trials against the
out-of-sample ones (``ml.hits``). Any column that drifted, or a hit rate that is worse than in training,
is a reason to train again; whether the new model is any better is for the promotion gate to say.

How often that is wrong, and how much of a change it takes to be seen, is measured on generated markets by
``python -m deployments.bench_monitor``. A quiet market is called drifted more often than the level of one group of
columns: features, predictions and the hit rate are each asked, and a training shows few long windows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ml.drift import LEAST_WINDOWS, SCHEMA, SHORTEST, answers, require_finite
from ml.hits import TOO_FEW, WORSE, Performance, Trials, performance
from ml.stability import counts_of, null_mean, psi
from trading.errors import InvalidRequest

STABLE: Final = "stable"
DRIFTED: Final = "drifted"
UNKNOWN: Final = "unknown"


@dataclass(frozen=True)
class DriftRule:
    """When a model must be trained again.

    Attributes:
        moderate, large: PSI above which an unusual shift is called so.
        level: how often the hit-rate test may cry wolf.
        effect: drop of the hit rate, as a fraction, that the test's power is stated for.
        minimum_rows, minimum_trials: fewer live rows or settled trials say nothing.

    Raises:
        InvalidRequest: a value out of range.
    """

    moderate: float = 0.1
    large: float = 0.25
    level: float = 0.01
    effect: float = 0.1
    minimum_rows: int = SHORTEST
    minimum_trials: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.moderate <= self.large < math.inf:
            raise InvalidRequest(f"PSI thresholds are {self.moderate} and {self.large}; give 0 <= moderate <= large")
        if not (0 < self.level < 1 and 0 < self.effect < 1):
            raise InvalidRequest(f"level is {self.level} and effect {self.effect}; both are fractions in (0, 1)")
        if self.minimum_rows < SHORTEST or self.minimum_trials < 1:
            raise InvalidRequest(
                f"at least {SHORTEST} rows and 1 trial are needed, not {self.minimum_rows} and {self.minimum_trials}"
            )


@dataclass(frozen=True)
class ColumnDrift:
    """One column: ``expected`` is the mean PSI of as many independent rows without drift, ``limit`` what is usual.

    ``ks`` is the Kolmogorov-Smirnov distance at the edges of the bins, at most one bin's share below the
    exact one. ``size`` is small, moderate or large by the conventional thresholds, ``unusual`` above the limit.
    """

    name: str
    psi: float
    expected: float
    limit: float
    ks: float
    size: str
    unusual: bool

    @property
    def strain(self) -> float:
        """PSI in units of the limit."""
        return self.psi / self.limit

    @property
    def drifted(self) -> bool:
        """Both unusual and large."""
        return self.unusual and self.size == "large"


@dataclass(frozen=True)
class Verdict:
    """What live rows say of a model; ``state`` is stable, drifted or unknown, ``reasons`` are sentences."""

    state: str
    retrain: bool
    reasons: tuple[str, ...]
    rows: int
    columns: tuple[ColumnDrift, ...]
    features_drifted: tuple[str, ...]
    predictions_drifted: tuple[str, ...]
    performance: Performance


def judge(
    training: Mapping[str, Any],
    x: np.ndarray,
    names: Sequence[str],
    probabilities: np.ndarray,
    signals: np.ndarray,
    trials: Trials,
    rule: DriftRule,
    *,
    calendar: Collection[str] = (),
) -> Verdict:
    """Hold live rows, none of which the model was trained on, against a ``reference``.

    Args:
        training: what ``reference`` gave.
        x, names, probabilities, signals: as there, of the live rows.
        trials: of the signals whose horizon is over (``ml.hits.trials_of``).
        calendar: features of the hour, the day or the month. They are left out: they move by themselves,
            and a month that the training never saw is no reason to train again.

    Raises:
        InvalidRequest: another schema, other features, or values that are not finite.
    """
    if training.get("schema") != SCHEMA:
        raise InvalidRequest(f"the drift reference has schema {training.get('schema')!r} and {SCHEMA} is read here")
    known = [column["name"] for column in training["features"][0]["columns"]]
    if known != list(names) or x.shape[1:] != (len(known),):
        raise InvalidRequest(
            f"the reference has the features {', '.join(known)} and the live rows {', '.join(names)} ({x.shape})"
        )
    held = performance(trials, Trials(**training["trials"]), rule.level, rule.effect, rule.minimum_trials)
    columns: list[ColumnDrift] = []
    drifted: dict[str, tuple[str, ...]] = {}
    reasons: list[str] = []
    for title, groups, rows, skipped in (
        ("features", training["features"], x, calendar),
        ("predictions", training["predictions"], answers(probabilities, signals), ()),
    ):
        why = _too_few(title, len(rows), groups, rule)
        found = [] if why else _columns(groups, rows, skipped, rule)
        columns += found
        drifted[title] = tuple(one.name for one in sorted(found, key=lambda one: -one.strain) if one.drifted)
        reasons.append(why or _sentence(title, found, drifted[title], training["level"]))
    retrain = bool(drifted["features"] or drifted["predictions"]) or held.state == WORSE
    nothing = not columns and held.state == TOO_FEW
    return Verdict(
        state=DRIFTED if retrain else UNKNOWN if nothing else STABLE,
        retrain=retrain,
        reasons=(*reasons, held.sentence()),
        rows=len(x),
        columns=tuple(columns),
        features_drifted=drifted["features"],
        predictions_drifted=drifted["predictions"],
        performance=held,
    )


def _too_few(title: str, rows: int, groups: Sequence[Mapping[str, Any]], rule: DriftRule) -> str | None:
    trained = min(int(group["rows"]) for group in groups)
    if trained < SHORTEST * LEAST_WINDOWS:
        needed = SHORTEST * LEAST_WINDOWS
        return f"{title}: the training had {trained} rows and {needed} are needed to know what is usual"
    if rows < rule.minimum_rows:
        return f"{title}: too few live rows to say, {rows} of at least {rule.minimum_rows}"
    return None


def _columns(
    groups: Sequence[Mapping[str, Any]], rows: np.ndarray, skipped: Collection[str], rule: DriftRule
) -> list[ColumnDrift]:
    """Every column against the group that it is most like."""
    found = []
    for at, column in enumerate(groups[0]["columns"]):
        if column["name"] not in skipped:
            # there is no limit for windows longer than the training can show many of
            against = [_column(one["columns"][at], one, rows[-one["lengths"][-1] :, at], rule) for one in groups]
            found.append(min(against, key=lambda drift: drift.strain))
    return found


def _column(column: Mapping[str, Any], group: Mapping[str, Any], values: np.ndarray, rule: DriftRule) -> ColumnDrift:
    require_finite(values, [column["name"]])
    shares = np.array(column["shares"])
    counts = counts_of(values, np.array(column["edges"]))
    index = float(psi(shares, counts))
    rows, trained = len(values), int(group["rows"])
    # between two lengths the higher limit holds: PSI may fall with the length of a window, and may rise
    at = int(np.searchsorted(group["lengths"], rows, side="right")) - 1
    limit = float(max(column["limits"][at : at + 2]))
    return ColumnDrift(
        name=column["name"],
        psi=index,
        expected=null_mean(column["filled"], rows, trained),
        limit=limit,
        ks=float(np.abs(np.cumsum(counts / rows) - np.cumsum(shares))[:-1].max()),
        size="large" if index > rule.large else "moderate" if index > rule.moderate else "small",
        unusual=index > limit,
    )


def _sentence(title: str, found: Sequence[ColumnDrift], drifted: Sequence[str], level: float) -> str:
    if not drifted:
        worst = max(found, key=lambda one: one.strain)
        return (
            f"{title}: none of {len(found)} drifted; nearest to its limit is {worst.name} "
            f"(PSI {worst.psi:.3f}, limit {worst.limit:.3f})"
        )
    by_name = {one.name: one for one in found}
    told = ", ".join(f"{name} (PSI {by_name[name].psi:.2f}, limit {by_name[name].limit:.2f})" for name in drifted[:5])
    more = f" and {len(drifted) - 5} more" if len(drifted) > 5 else ""
    return (
        f"{title}: {len(drifted)} of {len(found)} drifted: {told}{more}; "
        f"{level:.0%} of the training's own windows had one like that"
    )
