"""Running batches: candles and targets from the store, through the engine, figures and returns back into it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tasks.backtest_models import stored_targets
from tasks.backtest_plans import Batch, Subject
from tasks.backtest_requests import HOLD, MODELS
from tasks.datasets import load
from tasks.store import Store, get_result, put_result, touch_result
from trading.calendars import bars_per_year
from trading.errors import StoreError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from trading.strategies import Parameters, Rule

BATCH: Final = "backtest batch"
BUCKETS: Final = 2_000


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the parameter sets of a batch did.

    Attributes:
        figures: of each set in its order, those of ``trading.backtest.metrics.summarise``; None: not defined.
        returns: per bucket of time, float64 (buckets, sets) (``trading.backtest.sweep.Sweep``).
        ends: open time of each bucket's last bar, int64 ms UTC.
    """

    figures: tuple[dict[str, Any], ...]
    returns: np.ndarray
    ends: np.ndarray


def run_batch(store: Store, batch: Batch, now: datetime) -> None:
    """Trade every set of a batch and store the outcome; nothing is done where it is stored.

    Raises:
        DatasetLost: the candles cannot be read back as they were frozen.
        StrategyFailed, InvalidRequest: as ``trading.backtest.sweep.sweep_returns``.
    """
    if touch_result(store, batch.key, now):
        return
    from trading.backtest.sweep import sweep_returns

    candles = load(store, batch.subject.dataset)[batch.symbol]
    found = [strategy_of(store, batch.subject, text) for text in batch.sets]
    rule, names = found[0][0], list(found[0][1])
    swept = sweep_returns(
        candles, rule, [parameters for _, parameters in found], batch.rules, per_year(batch.subject),
        first=batch.subject.first, threads=1, buckets=BUCKETS,
    )  # fmt: skip
    figures = swept.figures.drop(columns=names).to_dict(orient="records")
    put_result(
        store,
        batch.key,
        BATCH,
        {
            "name": batch.name,
            "sets": list(batch.sets),
            "figures": [defined(row) for row in figures],
            "returns": zlib.compress(swept.returns.to_numpy().tobytes(), 1),
            "ends": zlib.compress(_milliseconds(swept.returns).tobytes(), 1),
        },
        now,
    )


def outcome(store: Store, batch: Batch) -> Outcome:
    """What a batch left in the store.

    Raises:
        StoreError: nothing.
    """
    import numpy as np

    stored = required(store, batch.key, batch.name)
    ends = np.frombuffer(zlib.decompress(stored["ends"]), dtype=np.int64)
    returns = np.frombuffer(zlib.decompress(stored["returns"]), dtype=np.float64)
    return Outcome(tuple(stored["figures"]), returns.reshape(len(ends), -1), ends)


def required(store: Store, key: str, name: str) -> dict[str, Any]:
    """A result that an earlier step left in the store.

    Raises:
        StoreError: it is not there.
    """
    found = get_result(store, key)
    if found is None:
        raise StoreError(f"the store holds nothing of {name} ({key[:12]}); run the backtest again")
    return found


def strategy_of(store: Store, subject: Subject, text: str) -> tuple[Rule, Parameters]:
    """The rule and the parameters that a text of a batch stands for; stored targets are a rule of their own."""
    from trading.strategies import buy_and_hold, rule
    from trading.strategy_grids import parse

    if text == HOLD:
        return _without_parameters(HOLD, buy_and_hold, "Buys at the first open and keeps it."), {}
    if text in MODELS:
        targets = stored_targets(store, subject.targets[text])
        return _without_parameters(text, partial(_given, targets), _OF_MODELS[text]), {}
    name, parameters = parse(text)
    found: Rule = rule(name)
    return found, parameters


def per_year(subject: Subject) -> float:
    """Bars per year of a symbol's calendar."""
    return bars_per_year(subject.dataset.timeframe, subject.dataset.calendars[subject.symbol])


def defined(figures: Mapping[Any, Any]) -> dict[str, Any]:
    """Plain figures with None for those that are not finite: JSON knows no other numbers."""
    found = {}
    for name, value in figures.items():
        plain = value.item() if hasattr(value, "item") else value
        found[str(name)] = None if isinstance(plain, float) and not math.isfinite(plain) else plain
    return found


_OF_MODELS: Final = {
    "champion": "The registry's champion, on bars that it was not trained on.",
    "walk_forward": "A model that is trained anew for each fold, on bars before it only.",
}


def _without_parameters(name: str, decide: Any, description: str) -> Rule:
    from trading.strategies import Rule

    return Rule(name, decide, lambda *_, **__: description, lambda **_: 1, {}, ("", ""), description)


def _given(targets: np.ndarray, _: pd.DataFrame) -> np.ndarray:
    return targets


def _milliseconds(returns: pd.DataFrame) -> np.ndarray:
    import numpy as np
    import pandas as pd

    return np.asarray(pd.DatetimeIndex(returns.index).as_unit("ms").asi8)
