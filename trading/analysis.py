"""What analysts say of a symbol, and what follows from it.

Each analyst gives an ``Opinion``; ``combine`` weighs them into one. With nobody available, or no
agreement, the answer is Neutral, never a default direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Signal(StrEnum):
    """The direction that an analyst sees."""

    LONG = "Long"
    SHORT = "Short"
    NEUTRAL = "Neutral"

    @classmethod
    def of(cls, target: float) -> Signal:
        """The signal that a strategy's target position (-1, 0, +1) amounts to."""
        return cls.LONG if target > 0 else cls.SHORT if target < 0 else cls.NEUTRAL

    @property
    def direction(self) -> int:
        """+1, -1 or 0."""
        return {Signal.LONG: 1, Signal.SHORT: -1, Signal.NEUTRAL: 0}[self]


@dataclass(frozen=True)
class Opinion:
    """One analyst's word on the last bar.

    Attributes:
        analyst: who says it, e.g. ``model`` or ``rsi``.
        signal: the direction.
        confidence: 0 to 1.
        reasons: sentences with the numbers behind it.
        provenance: version, run, digest: whatever leads back to the source.
    """

    analyst: str
    signal: Signal
    confidence: float
    reasons: tuple[str, ...]
    provenance: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Analysis:
    """The combined word of all analysts that were available."""

    signal: Signal
    confidence: float
    reasons: tuple[str, ...]
    opinions: tuple[Opinion, ...]
    absent: tuple[str, ...] = ()


def combine(
    opinions: Sequence[Opinion],
    weights: Mapping[str, float],
    *,
    threshold: float = 0.2,
    absent: Sequence[str] = (),
) -> Analysis:
    """Weigh the opinions into one analysis.

    The score is the weighted mean of direction x confidence, in [-1, 1]; an analyst without a weight
    counts 1. Opposite opinions cancel, so disagreement lowers confidence. A score within ``threshold``
    of zero is Neutral with confidence ``1 - |score| / threshold`` x 0.5: half sure at most.

    Args:
        absent: analysts that should have spoken and could not; named in the reasons.
    """
    missing = tuple(f"{name} was not available" for name in absent)
    total = sum(weights.get(opinion.analyst, 1.0) for opinion in opinions)
    if total <= 0:
        return Analysis(Signal.NEUTRAL, 0.0, (*missing, "no analyst was available"), tuple(opinions), tuple(absent))
    score = sum(weights.get(o.analyst, 1.0) * o.signal.direction * o.confidence for o in opinions) / total
    if abs(score) < threshold:
        signal, confidence = Signal.NEUTRAL, 0.5 * (1 - abs(score) / threshold)
    else:
        signal, confidence = Signal.of(score), min(abs(score), 1.0)
    reasons = tuple(f"{o.analyst}: {o.signal} ({o.confidence:.2f}): {'; '.join(o.reasons)}" for o in opinions)
    return Analysis(signal, confidence, missing + reasons, tuple(opinions), tuple(absent))
