"""How often the monitor cries wolf, and how often it sees what has changed: measured on generated markets.

python -m deployments.bench_monitor                                       # about a minute on 2 cores
python -m deployments.bench_monitor --seed 8 --models 2 --windows 20      # another draw, and a shorter one

Models learn from markets whose law is known (``deployments.sandbox.generator``: quiet and wild by turns) and are
then shown bars that they have never seen, as the monitor flow does it: of the same market further on, and of
one whose moves are larger. What is said of the former is a false alarm. The test of the hit rate is
measured by drawing hits, beside the power that the monitor states of it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from typing import Any, Final

import numpy as np
import pandas as pd
from rich.console import Console

from deployments import show
from deployments.sandbox.generator import Recipe, generate
from deployments.sandbox.markets import GENERATED_START
from ml.drift import reference_of
from ml.features import FeatureSet
from ml.hits import WORSE, Trials, performance
from ml.labels import LabelDefinition
from ml.live import live_rows
from ml.model import Model
from ml.monitoring import DriftRule, Verdict, judge
from ml.splits import walk_forward_folds
from ml.training import assemble, fit_final, out_of_sample, walk_forward
from trading.candles import frame_of
from trading.window import Timeframe

RECIPES: Final = (Recipe("AAA", 9_000.0, 0.004, 900.0, 6), Recipe("BBB", 700.0, 0.005, 8_000.0, 6))
FEATURES: Final = FeatureSet()
LABEL: Final = LabelDefinition(horizon=12)
RULE: Final = DriftRule()
TRAINED: Final = 6_000
DAYS: Final = (7, 30)
LARGER: Final = (1.0, 1.5, 2.0, 3.0)
# what a training of 6,000 hourly bars has, and what a live window may have
TRAINED_TRIALS: Final = Trials(187, 340)
LIVE_TRIALS: Final = (35, 60, 120, 250)
DRAWS: Final = 20_000


@dataclass(frozen=True)
class Rate:
    """``seen`` alarms in ``of`` windows or draws; ``stated`` is the share that the monitor says there should be."""

    what: str
    seen: int
    of: int
    stated: float | None = None

    @property
    def share(self) -> float:
        """Alarms per window."""
        return self.seen / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share, for independent windows (Wilson 1927)."""
        z = 1.96
        middle = (self.share + z * z / (2 * self.of)) / (1 + z * z / self.of)
        spread = (
            z * math.sqrt(self.share * (1 - self.share) / self.of + (z / (2 * self.of)) ** 2) / (1 + z * z / self.of)
        )
        return max(middle - spread, 0.0), min(middle + spread, 1.0)


def drift_rates(
    seed: int, models: int, windows: int, *, days: Sequence[int] = DAYS, larger: Sequence[float] = LARGER
) -> list[Rate]:
    """Share of live windows that were called drifted, by how much larger the moves are and how long the window is.

    Args:
        models: markets to learn from; ``windows``: of each length and size of moves for each of them, end to end.
    """
    seen = {(size, length): 0 for size in larger for length in days}
    for number in range(models):
        market = seed * 1_000 + number
        model, reference, until = _trained(market)
        for size in larger:
            frames = _candles(market, size, TRAINED + 24 * max(days) * windows)
            for length in days:
                bars = 24 * length
                seen[size, length] += sum(
                    _verdict(frames, model, reference, until, TRAINED + bars * at, bars).retrain
                    for at in range(windows)
                )
    moves = {size: "the same market" if size == 1 else f"moves {size:g} times as large" for size in larger}
    return [Rate(f"{length} days of {moves[size]}", found, models * windows) for (size, length), found in seen.items()]


def hit_rates(
    seed: int, draws: int = DRAWS, *, trained: Trials = TRAINED_TRIALS, live: Sequence[int] = LIVE_TRIALS
) -> list[Rate]:
    """False alarms and power of the test of the hit rate, drawn, beside the level and the power that it states."""
    rng = np.random.default_rng(seed)
    rate = trained.hits / trained.count
    found = []
    for count in live:
        # a training is drawn, too: its hit rate was measured and is not known
        threshold = _threshold(count, trained.count)
        trainings = rng.binomial(trained.count, rate, draws)
        hits = rng.binomial(count, rate, draws)
        wrong = sum(int(one) <= threshold(int(then)) for one, then in zip(hits, trainings, strict=True))
        found.append(Rate(f"hit rate as in training, {count} live trials", wrong, draws, RULE.level))
        worse = rng.binomial(count, rate - RULE.effect, draws)
        stated = performance(Trials(0, count), trained, RULE.level, RULE.effect, RULE.minimum_trials).power
        seen = int((worse <= threshold(trained.hits)).sum())
        found.append(Rate(f"hit rate {RULE.effect:.0%} lower, {count} live trials", seen, draws, stated))
    return found


def _threshold(count: int, trained: int) -> Callable[[int], int]:
    """The most live hits of ``count`` that are called worse, by the hits of the training; -1 where none are."""

    @cache
    def most(hits: int) -> int:
        low, high = -1, count  # called worse up to low, not from high on
        while high - low > 1:
            middle = (low + high) // 2
            found = performance(
                Trials(middle, count), Trials(hits, trained), RULE.level, RULE.effect, RULE.minimum_trials
            )
            low, high = (middle, high) if found.state == WORSE else (low, middle)
        return low

    return most


def _trained(market: int) -> tuple[Model, dict[str, Any], int]:
    """A model of a market's first bars, what the monitor knows of its training, and its last label's end (ms UTC)."""
    table = assemble(_candles(market, 1.0, TRAINED), FEATURES, LABEL)
    folds = walk_forward_folds(table.t0, table.t1, embargo=timedelta(hours=LABEL.horizon))
    walk = walk_forward(table, folds, estimators={"logistic": {}}, seed=market)
    fitted, rule = fit_final(table, "logistic", market)
    reference = json.loads(json.dumps(reference_of(table, out_of_sample(walk, "logistic"), fitted, rule)))
    model = Model(fitted, FEATURES, LABEL, rule, Timeframe.H1, {"metadata": {"data_mode": "simulated"}})
    return model, reference, int(table.t1.max())


def _verdict(
    frames: dict[str, pd.DataFrame], model: Model, reference: dict[str, Any], until: int, start: int, bars: int
) -> Verdict:
    """What the monitor says of ``bars`` bars from bar ``start`` on."""
    cut = {symbol: frame.iloc[start - model.rows_needed : start + bars] for symbol, frame in frames.items()}
    first = GENERATED_START + timedelta(hours=start)
    live = live_rows(cut, model, first, until)
    calendar = set(FEATURES.names) - set(replace(FEATURES, calendar=()).names)
    return judge(
        reference, live.x, FEATURES.names, live.probabilities, live.signals, live.trials, RULE, calendar=calendar
    )


def _candles(market: int, larger: float, bars: int) -> dict[str, pd.DataFrame]:
    recipes = [replace(recipe, hourly_volatility=recipe.hourly_volatility * larger) for recipe in RECIPES]
    stamps = int(GENERATED_START.timestamp() * 1000) + 3_600_000 * np.arange(bars)
    return {symbol: frame_of(stamps, values) for symbol, values in generate(recipes, bars, market).items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--models", type=int, default=6)
    parser.add_argument("--windows", type=int, default=40)
    asked = parser.parse_args()
    rates = [*drift_rates(asked.seed, asked.models, asked.windows), *hit_rates(asked.seed)]
    rows = [
        [
            one.what,
            f"{one.of:,}",
            f"{one.share:.1%}",
            f"{one.interval[0]:.1%} to {one.interval[1]:.1%}",
            "" if one.stated is None else f"{one.stated:.1%}",
        ]
        for one in rates
    ]
    columns = ("live", "looked at", "alarms", "95 % interval", "stated")
    title = f"Alarms of the monitor, seed {asked.seed}, {asked.models} models"
    Console(width=100).print(show.table(title, columns, rows, right=columns[1:]))


if __name__ == "__main__":
    main()
