"""Target positions from what others decided: a model's signals, its probabilities, the targets of several."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trading import passes
from trading.errors import InvalidRequest


def hold(signals: np.ndarray, bars: int) -> np.ndarray:
    """Positions that keep each signal for ``bars`` bars, or until the opposite signal.

    Args:
        signals: int8 (n,), -1, 0 or +1 per bar. A signal of the same side starts the count again.
    """
    return np.asarray(passes.kept(np.asarray(signals).astype(np.int8, copy=False), bars))


def from_probabilities(
    short: np.ndarray, long: np.ndarray, bars: int, *, at_least: float = 0.5, edge: float = 0.0
) -> np.ndarray:
    """Positions of a model that gives probabilities: a signal where one side is likelier, held ``bars`` bars.

    For a backtest the probabilities must be out of sample: each from a model fitted on earlier bars only.

    Args:
        short, long: probability per bar that the price falls and rises, float64 (n,); NaN: not known, no signal.
        at_least: what the likelier side's probability must reach.
        edge: by how much it must exceed the other side's.

    Raises:
        InvalidRequest: arrays of different shapes, or probabilities outside 0 to 1.
    """
    if short.shape != long.shape or short.ndim != 1:
        raise InvalidRequest(f"probabilities of shapes {short.shape} and {long.shape}; give one of each per bar")
    for name, values in (("short", short), ("long", long)):
        wrong = (values < 0) | (values > 1)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise InvalidRequest(f"the {name} probability of bar {at} is {values[at]}; it is from 0 to 1")
    buys = (long > short) & (long >= at_least) & (long - short >= edge)
    sells = (short > long) & (short >= at_least) & (short - long >= edge)
    return hold(buys.astype(np.int8) - sells.astype(np.int8), bars)


def combine(targets: Mapping[str, np.ndarray], weights: Mapping[str, float], threshold: float = 0.5) -> np.ndarray:
    """The vote of several strategies: int8 (n,), a side where the weighted mean of the targets reaches ``threshold``.

    Args:
        targets: by strategy, (n,) each, -1 to +1.
        weights: 0 or more; a strategy without one counts 1.
        threshold: above 0, at most 1; 1 needs everybody.

    Raises:
        InvalidRequest: nobody votes, lengths differ, a weight is negative or of a strategy that is not there, or
            the threshold is out of range.
    """
    if not 0 < threshold <= 1:
        raise InvalidRequest(f"threshold={threshold}; it is above 0 and at most 1")
    unknown = sorted(set(weights) - set(targets))
    if unknown:
        raise InvalidRequest(f"there are weights and no targets of {', '.join(unknown)}")
    share = {name: float(weights.get(name, 1.0)) for name in targets}
    if any(not 0 <= weight < np.inf for weight in share.values()) or not sum(share.values()) > 0:
        raise InvalidRequest(f"weights {share}; they are 0 or more, and one of them is above 0")
    shapes = {name: values.shape for name, values in targets.items()}
    if len(set(shapes.values())) > 1:
        raise InvalidRequest(f"targets of different lengths cannot vote together: {shapes}")
    score = np.zeros(next(iter(shapes.values())))
    for name, weight in share.items():
        score += weight * targets[name]
    # votes that make up the threshold exactly reach it, whatever their sum was rounded to
    needed = threshold * sum(share.values()) * (1 - 1e-12)
    return np.asarray((score >= needed).astype(np.int8) - (score <= -needed).astype(np.int8))
