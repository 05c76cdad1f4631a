"""Markets, decisions and rules for the tests of the backtest: anything that can happen, and more often than it does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from trading.backtest.rules import Costs, Decisions, Execution, FeeTier, Limits, Protection, Rules, Sizing
from trading.candles import frame_of

HOUR = 3_600_000
START = 1_704_067_200_000 + 20 * HOUR
LEVEL = 64  # ticks that a price begins at
CASH = 1024.0


@dataclass(frozen=True, eq=False)
class Scenario:
    """What a backtest is given. ``scale`` is the value of a tick."""

    candles: dict[str, pd.DataFrame]
    decisions: dict[str, Decisions]
    rules: Rules
    funding: dict[str, np.ndarray] | None
    scale: float


def usually(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    """Mostly ``usual``: where every rule is on, nothing is traded."""
    return st.sampled_from([usual] * (2 * len(others)) + list(others))


def candles(rng: np.random.Generator, count: int, step: int, scale: float, gaps: float, volume: float) -> pd.DataFrame:
    """A walk on a coarse grid of ticks: levels are touched exactly, some bars are flat, some open far away."""
    rows, times = [], []
    price = LEVEL
    for bar in range(count):
        kind = rng.random()
        open_ = max(4, price + (int(rng.integers(-24, 25)) if kind < 0.1 else int(rng.integers(-1, 2))))
        if kind > 0.85:
            rows.append((price, price, price, price, 0.0 if kind > 0.95 else volume))
        else:
            close = max(4, open_ + int(rng.integers(-8, 9)))
            high = max(open_, close) + int(rng.integers(0, 5))
            low = max(2, min(open_, close) - int(rng.integers(0, 5)))
            rows.append((open_, high, low, close, volume * float(rng.choice([0.25, 1, 4]))))
            price = close
        times.append(START + bar * step)
    kept = rng.random(count) >= gaps
    kept[int(rng.integers(count))] = True
    values = np.array(rows)[kept]
    values[:, :4] *= scale
    return frame_of(np.array(times)[kept], values)


def decisions(rng: np.random.Generator, market: pd.DataFrame, scale: float, kinds: Sequence[str]) -> Decisions:
    """Targets that often stay for a while, and prices of the ``kinds`` asked for on about half of the bars."""
    count, close = len(market), market["close"].to_numpy()
    targets = np.zeros(count)
    for bar in range(count):
        stays = bar and rng.random() < 0.6
        targets[bar] = targets[bar - 1] if stays else rng.choice([-1, -1, -0.5, -0.25, 0, 0, 0.5, 0.75, 1, 1])
    side = np.sign(targets)

    def prices(away: np.ndarray, given: np.ndarray) -> np.ndarray:
        return np.where(given, np.maximum(close / scale + away, 1) * scale, np.nan)

    said: dict[str, np.ndarray] = {}
    coin = rng.random(count)
    if "limit" in kinds:
        said["limit"] = prices(rng.integers(-6, 4, count) * side, coin < 0.5)
    if "stop_entry" in kinds:
        said["stop_entry"] = prices(rng.integers(-3, 7, count) * side, coin > 0.6)
    if "stop_price" in kinds:
        said["stop_price"] = prices(-side * rng.integers(-1, 12, count), rng.random(count) < 0.7)
    if "target_price" in kinds:
        said["target_price"] = prices(side * rng.integers(-1, 16, count), rng.random(count) < 0.7)
    if "trail_distance" in kinds:
        said["trail_distance"] = np.where(rng.random(count) < 0.6, rng.integers(1, 12, count) * scale, np.nan)
    if "edge" in kinds:
        said["edge"] = np.where(rng.random(count) < 0.9, rng.choice([-0.05, 0.004, 0.05], count), np.nan)
    return Decisions(targets, **said)


costs = st.builds(
    Costs,
    fee_rate=usually(2**-10, 0.0, 0.02),
    slippage_rate=usually(0.0, 2**-11, 2**-6),
    maker_rate=usually(None, 0.0, 2**-12),
    tiers=usually((), (FeeTier(512.0, 0.0, 2**-12), FeeTier(2000.0, 2**-13, 2**-8)), (FeeTier(0.0, 0.01, 0.001),)),
    spread=usually(0.0, 2**-8),
    impact=usually(0.0, 0.125),
    borrow_rate=usually(0.0, 0.5),
)

protections = st.builds(
    Protection,
    stop_loss=usually(0.0, 0.0625, 0.125),
    take_profit=usually(0.0, 0.0625, 0.25),
    trailing_stop=usually(0.0, 0.125),
    max_bars=usually(0, 1, 4),
    reenter=st.booleans(),
)

executions = st.builds(
    Execution,
    fill=usually("next open", "same close"),
    limit_needs_cross=st.booleans(),
    maintenance=usually(0.0, 0.125, 0.5),
    close_at_end=st.booleans(),
)


@st.composite
def sizings(draw: st.DrawFn, unit: float) -> Sizing:
    """``unit``: what the cash buys at the first price."""
    way = draw(st.sampled_from(["fraction", "units", "risk", "volatility"]))
    leverage = draw(usually(1.0, 3.0, 8.0))
    chosen: dict[str, Any] = {
        "units": {"units": draw(st.sampled_from([unit / 4, unit / 2, unit * 2]))},
        "risk": {"risk": draw(st.sampled_from([0.01, 0.0625]))},
        "volatility": {"volatility": draw(st.sampled_from([0.5, 4.0])), "volatility_bars": draw(st.integers(2, 5))},
        "fraction": {},
    }[way]
    return Sizing(
        **chosen,
        fraction=draw(st.sampled_from([0.25, 0.5, 1.0])) * draw(st.sampled_from([1.0, leverage])),
        lot=draw(usually(0.0, unit / 64, unit / 8)),
        min_notional=draw(usually(0.0, CASH / 32, CASH / 4)),
        kelly=draw(usually(0.0, 0.5, 2.0)),
        kelly_trades=draw(st.integers(1, 4)),
        kelly_floor=draw(st.sampled_from([0.0, 0.125])),
        max_volume_share=draw(usually(np.inf, 0.125, 1.0)),
        leverage=leverage,
        rebalance=draw(usually(np.inf, 0.03, 0.2)),
        short_of_cash=draw(st.sampled_from(["skip", "cut"])),
    )


@st.composite
def limits_of(draw: st.DrawFn, symbols: int) -> Limits:
    return Limits(
        cooldown_bars=draw(usually(0, 1, 3)),
        max_trades_per_day=draw(usually(0, 1, 2)),
        min_edge=draw(usually(0.0, 1.0)),
        max_positions=draw(usually(0, 1, 2)) if symbols > 1 else 0,
        max_exposure=draw(usually(np.inf, 0.5, 2.0)),
        max_symbol=draw(usually(np.inf, 0.3, 1.5)),
    )


@st.composite
def scenarios(draw: st.DrawFn, most_bars: int = 40) -> Scenario:
    symbols = draw(st.sampled_from([1, 1, 2, 3]))
    count = draw(st.integers(1, most_bars))
    scale = 2.0 ** draw(usually(0, -20, 14))
    step = draw(st.sampled_from([HOUR, 4 * HOUR, 24 * HOUR]))
    unit = CASH / LEVEL / scale
    rules = Rules(
        costs=draw(costs),
        sizing=draw(sizings(unit)),
        protection=draw(protections),
        limits=draw(limits_of(symbols)),
        execution=draw(executions),
        cash=CASH,
    )
    kinds = draw(st.sets(st.sampled_from(["limit", "stop_entry", "stop_price", "target_price", "trail_distance"])))
    if rules.execution.fill == "same close":
        kinds -= {"limit", "stop_entry"}
    if rules.limits.min_edge:
        kinds |= {"edge"}
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    gaps = draw(st.sampled_from([0.0, 0.2])) if symbols > 1 else 0.0
    markets = {name: candles(rng, count, step, scale, gaps, unit) for name in "abc"[:symbols]}
    funding = None
    if draw(usually(False, True)):
        funding = {name: rng.choice([0.0, 0.0, 2**-7, -(2**-8)], len(frame)) for name, frame in markets.items()}
    wanted = {name: decisions(rng, frame, scale, sorted(kinds)) for name, frame in markets.items()}
    return Scenario(markets, wanted, rules, funding, scale)


def changed(rules: Rules, **parts: dict[str, Any]) -> Rules:
    """``rules`` with fields of its parts replaced: ``changed(rules, costs={"fee_rate": 0.0})``."""
    return dataclasses.replace(
        rules, **{part: dataclasses.replace(getattr(rules, part), **fields) for part, fields in parts.items()}
    )
