"""What analysts say of a symbol, and what follows from it.

Each analyst gives an ``Opinion``, or an ``Abstention`` with its reason; ``combine`` weighs the opinions into
one ``Analysis``. With nobody available, or no agreement, the answer is Neutral, never a default direction.

Who spoke is the ``basis`` of an analysis, in this order of fall-back: ``all`` (everybody who was wanted),
``model+technical``, ``technical``, ``neutral``. Others that can come about are named likewise, such as
``llm+technical``. An analyst of which neither the model nor the rules speak carries nothing: an LLM alone is
Neutral.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from trading.errors import InvalidRequest

MODEL: Final = "model"
TECHNICAL: Final = "technical"
LLM: Final = "llm"
CHALLENGER: Final = "challenger"
ALL: Final = "all"
NOBODY: Final = "neutral"
# in the order that a basis names them
ANALYSTS: Final = (MODEL, TECHNICAL, LLM)


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
class Cost:
    """What asking cost: US dollars, and tokens where tokens were paid for."""

    usd: float
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Abstention:
    """An analyst that was asked and cannot speak, why, and what asking it cost all the same."""

    analyst: str
    reason: str
    cost: Cost | None = None


@dataclass(frozen=True)
class Opinion:
    """One analyst's word on the last bar.

    Attributes:
        analyst: who says it, e.g. ``model`` or ``rsi``.
        signal: the direction.
        confidence: 0 to 1.
        reasons: sentences with the numbers behind it.
        provenance: version, run, digest: whatever leads back to the source.
        horizon: bars after which it can be settled; 0: not said, the analysis' own horizon counts.
        cost: what asking cost, None where it cost nothing to speak of.
        latency: seconds that the answer took, None where nobody measured.
        parts: opinions that it was made of, such as the rules of the technical analyst.
    """

    analyst: str
    signal: Signal
    confidence: float
    reasons: tuple[str, ...]
    provenance: Mapping[str, str] = field(default_factory=dict)
    horizon: int = 0
    cost: Cost | None = None
    latency: float | None = None
    parts: tuple[Opinion, ...] = ()


@dataclass(frozen=True)
class Analysis:
    """The combined word of all analysts that were available.

    Attributes:
        absent: analysts that should have spoken and could not.
        basis: whose word it is; see the module.
        weights: what each opinion counted, by analyst; they sum to 1 at most, to 0 where nobody counts.
        score: the weighted mean of direction x confidence, -1 to 1.
        abstentions: why each of the absent was, where it is known.
        compared: opinions that were taken down to be scored later and count nothing, such as a challenger's.
    """

    signal: Signal
    confidence: float
    reasons: tuple[str, ...]
    opinions: tuple[Opinion, ...]
    absent: tuple[str, ...] = ()
    basis: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)
    score: float = 0.0
    abstentions: tuple[Abstention, ...] = ()
    compared: tuple[Opinion, ...] = ()

    @property
    def degraded(self) -> bool:
        """Whether somebody who should have spoken did not."""
        return bool(self.absent)


def combine(
    opinions: Sequence[Opinion],
    weights: Mapping[str, float],
    *,
    threshold: float = 0.2,
    absent: Sequence[str] = (),
    abstentions: Sequence[Abstention] = (),
    compared: Sequence[Opinion] = (),
) -> Analysis:
    """Weigh the opinions into one analysis.

    The score is the weighted mean of direction x confidence, in [-1, 1]; an analyst without a weight
    counts 1. Opposite opinions cancel, so disagreement lowers confidence. A score within ``threshold``
    of zero is Neutral with confidence ``1 - |score| / threshold`` x 0.5: half sure at most. Weights that are less
    than 1 on average lower the score besides: where everybody has lost money, nobody is followed.

    Args:
        weights: 0 or more by analyst, 1 for one that is not known (``trading.scoring.weight`` measures them).
        absent: analysts that should have spoken and could not; named in the reasons.
        abstentions: the same with their reasons, which come last.
        compared: opinions that count nothing.

    Raises:
        InvalidRequest: a weight or a confidence that is none.
    """
    _require_shares(opinions, weights)
    missing = tuple(dict.fromkeys([*absent, *(one.analyst for one in abstentions)]))
    gone = tuple(f"{name} was not available" for name in missing)
    why = tuple(one.reason for one in abstentions)
    said = tuple(f"{o.analyst}: {o.signal} ({o.confidence:.2f}): {'; '.join(o.reasons)}" for o in opinions)
    counted = [weights.get(opinion.analyst, 1.0) for opinion in opinions]
    # an LLM alone has nobody to correct it
    carried = any(weight > 0 for weight, opinion in zip(counted, opinions, strict=True) if opinion.analyst != LLM)
    total = max(sum(counted), float(len(counted)))
    if carried:
        score = sum(w * o.signal.direction * o.confidence for w, o in zip(counted, opinions, strict=True)) / total
        signal, confidence = judged(score, threshold)
        basis = _basis(opinions, missing)
    else:
        score, signal, confidence, basis = 0.0, Signal.NEUTRAL, 0.0, NOBODY
        said = (*said, "nobody whose word counts has spoken" if opinions else "no analyst was available")
    shares: dict[str, float] = {}
    for weight, opinion in zip(counted, opinions, strict=True):
        shares[opinion.analyst] = shares.get(opinion.analyst, 0.0) + (weight / total if carried else 0.0)
    return Analysis(
        signal=signal,
        confidence=confidence,
        reasons=gone + said + why,
        opinions=tuple(opinions),
        absent=missing,
        basis=basis,
        weights=shares,
        score=score,
        abstentions=tuple(abstentions),
        compared=tuple(compared),
    )


def judged(score: float, threshold: float) -> tuple[Signal, float]:
    """The signal and confidence that a score amounts to: Neutral within ``threshold`` of zero, half sure at most."""
    if abs(score) < threshold:
        return Signal.NEUTRAL, 0.5 * (1 - abs(score) / threshold)
    return Signal.of(score), min(abs(score), 1.0)


def _basis(opinions: Sequence[Opinion], missing: Sequence[str]) -> str:
    if not missing:
        return ALL
    names = {opinion.analyst for opinion in opinions}
    known = [name for name in ANALYSTS if name in names]
    return "+".join([*known, *sorted(names.difference(known))])


def _require_shares(opinions: Sequence[Opinion], weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise InvalidRequest(f"the weight of {name} is {weight}; it is 0 or more")
    for opinion in opinions:
        if not 0 <= opinion.confidence <= 1:
            raise InvalidRequest(f"{opinion.analyst} is {opinion.confidence} sure; it is from 0 to 1")
