"""The plan of a backtest: which batches there are, and what each is called. Pure: equal requests, equal plans.

A batch is some parameter sets of one strategy on one symbol at one multiple of the costs. Its key is a digest of
all that decides what comes out of it, so that requests share the batches that they have in common.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from tasks.backtest_requests import MODELS, BacktestRequest, Candidate, rules_of
from tasks.datasets import Dataset
from trading.backtest.rules import Rules

FORMAT: Final = 1  # raise it whenever stored results change their meaning
MOST_TOGETHER: Final = 100  # parameter sets of a batch: 2 MB of returns at most


@dataclass(frozen=True)
class Subject:
    """What a symbol is traded on.

    Attributes:
        dataset: of this symbol alone.
        first: bar that trading begins at; the strategies see those before it, too.
        targets: key of the stored targets, by name of the model.
    """

    dataset: Dataset
    first: int = 0
    targets: Mapping[str, str] = field(default_factory=dict)

    @property
    def symbol(self) -> str:
        """The symbol."""
        return self.dataset.symbols[0]


@dataclass(frozen=True)
class Batch:
    """Some parameter sets of one strategy on one symbol at one multiple of the costs.

    Attributes:
        key: names what comes out of it.
        label: what the results are called; no part of the key.
        rules: to trade by, with ``factor`` in them.
    """

    key: str
    subject: Subject
    label: str
    strategy: str
    sets: tuple[str, ...]
    factor: float
    rules: Rules
    number: int = 1
    of: int = 1

    @property
    def symbol(self) -> str:
        """The symbol."""
        return self.subject.symbol

    @property
    def name(self) -> str:
        """For people: ``rsi BTCUSDT, costs x2, 3 of 5``."""
        costs = f", costs x{self.factor:g}" if self.factor != 1 else ""
        part = f", {self.number} of {self.of}" if self.of > 1 else ""
        return f"{self.label} {self.symbol}{costs}{part}"


def plan(
    candidates: Sequence[Candidate], subjects: Iterable[Subject], request: BacktestRequest, code: str
) -> tuple[Batch, ...]:
    """Every batch of a request, by symbol, strategy, cost factor and parameters.

    A model without stored targets for a symbol has no batch there.

    Args:
        code: version of the arithmetic (``ml.artifact.code_digest``).
    """
    return tuple(
        batch
        for subject in subjects
        for one in candidates
        if one.strategy not in MODELS or one.strategy in subject.targets
        for factor in request.cost_factors
        for batch in _batches(subject, one, rules_of(one.strategy, request.rules, factor), factor, code)
    )


def digest_of(*parts: Any) -> str:
    """sha256 of values that JSON knows, whatever the order of their mappings."""
    return hashlib.sha256(json.dumps([FORMAT, *parts], sort_keys=True).encode()).hexdigest()


def traded_as(subject: Subject, strategy: str, rules: Rules) -> list[Any]:
    """What decides, beside parameters and code, what a strategy does on a symbol; for ``digest_of``."""
    dataset = subject.dataset
    return [
        dataset.digest,
        dataset.timeframe.value,
        dict(dataset.calendars),
        subject.first,
        strategy,
        subject.targets.get(strategy),
        asdict(rules),
    ]


def _batches(subject: Subject, one: Candidate, rules: Rules, factor: float, code: str) -> list[Batch]:
    parts = [one.sets[at : at + MOST_TOGETHER] for at in range(0, len(one.sets), MOST_TOGETHER)]
    return [
        Batch(
            key=digest_of("batch", *traded_as(subject, one.strategy, rules), part, code),
            subject=subject,
            label=one.label,
            strategy=one.strategy,
            sets=part,
            factor=factor,
            rules=rules,
            number=number,
            of=len(parts),
        )
        for number, part in enumerate(parts, start=1)
    ]
