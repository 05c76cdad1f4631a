"""The look-ahead check refuses strategies that peek, however they do it, and lets all others pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from trading.backtest.lookahead import check_lookahead, decisions_of
from trading.backtest.rules import Decisions
from trading.candles import COLUMNS, check, frame_of
from trading.errors import InsufficientHistory, LookAhead, StrategyFailed
from trading.strategies import RULES, Strategy, breakout, buy_and_hold, hold, sma_cross
from trading.strategy_grids import parameter_sets, written

Peeker = Callable[[pd.DataFrame], object]


def market(rows: int, seed: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, rows)))
    opened = np.concatenate([close[:1], close[:-1]])
    high, low = np.maximum(opened, close) * 1.002, np.minimum(opened, close) * 0.998
    values = np.c_[opened, high, low, close, rng.exponential(5, rows)]
    return frame_of(1_600_000_000_000 // 3_600_000 * 3_600_000 + np.arange(rows) * 3_600_000, values)


@pytest.fixture(scope="module")
def hours() -> pd.DataFrame:
    return market(6_000)


def long_where(condition: pd.Series) -> np.ndarray:
    return condition.to_numpy(dtype=bool).astype(np.int8)


def tomorrow(candles: pd.DataFrame) -> np.ndarray:
    return long_where(candles["close"].shift(-1) > candles["close"])


def ten_bars_on(candles: pd.DataFrame) -> np.ndarray:
    return long_where(candles["close"].shift(-10).ffill() > candles["close"])


def centred(candles: pd.DataFrame) -> np.ndarray:
    return long_where(candles["close"].rolling(21, center=True, min_periods=1).mean() > candles["close"])


def normalised(candles: pd.DataFrame) -> np.ndarray:
    close = candles["close"]
    return long_where((close - close.mean()) / close.std() < -0.5)


def below_the_highest(candles: pd.DataFrame) -> np.ndarray:
    return long_where(candles["close"] < 0.8 * candles["high"].max())


def fitted(candles: pd.DataFrame) -> np.ndarray:
    """The line through the whole series."""
    close, at = candles["close"].to_numpy(), np.arange(len(candles))
    slope, level = np.polyfit(at, close, 1)
    return (close < level + slope * at).astype(np.int8)


def knows_the_end(candles: pd.DataFrame) -> np.ndarray:
    """Out of the market before the data end."""
    targets = sma_cross(candles)
    targets[-3:] = 0
    return targets


def knows_the_middle(candles: pd.DataFrame) -> np.ndarray:
    return np.where(np.arange(len(candles)) < len(candles) // 2, 1, -1)


def last_close(candles: pd.DataFrame) -> np.ndarray:
    return long_where(candles["close"] < candles["close"].iloc[-1])


def only_near_the_end(candles: pd.DataFrame) -> np.ndarray:
    """Right everywhere but for the last bar, which looks at its own number."""
    targets = sma_cross(candles)
    targets[-1:] = -1
    return targets


def filled_backwards(candles: pd.DataFrame) -> np.ndarray:
    """What is known every 24 bars, filled back."""
    known = candles["close"].where(np.arange(len(candles)) % 24 == 23)
    return long_where(known.bfill().ffill() > candles["close"])


def unfinished_day(candles: pd.DataFrame) -> np.ndarray:
    """Each hour of a day knows how its day ended."""
    days = candles["close"].resample("1D").last()
    trend = (days > days.rolling(5).mean()).reindex(candles.index, method="ffill")
    return long_where(trend)


def rare(candles: pd.DataFrame) -> np.ndarray:
    """Avoids the worst bars, about one in a hundred."""
    targets = np.ones(len(candles))
    targets[(candles["close"].pct_change().shift(-1) < -0.023).to_numpy()] = 0
    return targets


def tiny(candles: pd.DataFrame) -> np.ndarray:
    """A size that depends on the whole series in its ninth digit."""
    return np.full(len(candles), 0.5 + 1e-9 * np.tanh(candles["close"].to_numpy()[-1] / 100))


def stop_from_the_future(candles: pd.DataFrame) -> Decisions:
    lowest = candles["low"][::-1].rolling(5, min_periods=1).min()[::-1].to_numpy()
    return Decisions(sma_cross(candles), stop_price=lowest)


def edge_from_the_future(candles: pd.DataFrame) -> Decisions:
    return Decisions(sma_cross(candles), edge=candles["close"].pct_change().shift(-1).to_numpy())


def stops_only_where_there_is_a_future(candles: pd.DataFrame) -> Decisions:
    stop = candles["low"].to_numpy() if len(candles) == 6_000 else np.empty(0)
    return Decisions(sma_cross(candles), stop_price=stop)


PEEKERS: list[Peeker] = [
    tomorrow, ten_bars_on, centred, normalised, below_the_highest, fitted, knows_the_end, knows_the_middle, last_close,
    only_near_the_end, filled_backwards, unfinished_day, rare, tiny, stop_from_the_future, edge_from_the_future,
    stops_only_where_there_is_a_future,
]  # fmt: skip


@pytest.mark.parametrize("peeker", PEEKERS, ids=lambda peeker: peeker.__name__)
def test_peeking_is_refused_wherever_the_cuts_fall(peeker: Strategy, hours: pd.DataFrame) -> None:
    for seed in range(3):
        with pytest.raises(LookAhead, match=r"^it looks ahead: its .* is .* and then .* after 20.*; a decision may"):
            check_lookahead("it", peeker, hours, seed=seed)


def test_the_message_names_strategy_bar_and_both_decisions() -> None:
    candles = market(50)

    def peeks(shown: pd.DataFrame) -> np.ndarray:
        targets = np.zeros(len(shown))
        targets[7] = 1.0 if len(shown) == 50 else -0.25
        return targets

    with pytest.raises(LookAhead) as refused:
        check_lookahead("mine", peeks, candles, bars_needed=8)
    said = str(refused.value)
    assert said.startswith(
        f"mine looks ahead: its target is 1 and then -0.25 at {candles.index[7]}, decided first with"
    )
    assert "no shift(-n)" in said


@pytest.mark.parametrize("name", RULES)
def test_every_rule_passes_on_generated_candles(name: str, hours: pd.DataFrame) -> None:
    chosen = RULES[name]
    sets = parameter_sets(chosen)
    some = [chosen.defaults, *(sets[at] for at in np.random.default_rng(0).choice(len(sets), 2))]
    for seed, parameters in enumerate(some):
        needed = chosen.bars_needed(**parameters)
        with_parameters = written(name, parameters)
        candles = hours if seed % 2 else hours.iloc[:700]
        done = check_lookahead(
            with_parameters,
            lambda shown, parameters=parameters: chosen(shown, **parameters),  # type: ignore[misc]
            candles,
            bars_needed=needed,
            seed=seed,
        )
        assert done > 25


def test_every_rule_passes_on_real_candles(shared: Path) -> None:
    rows = pd.read_parquet(shared / "data" / "binance_BTCUSDT_1h.parquet")
    candles = frame_of(rows["timestamp"], rows[list(COLUMNS)])
    for name, chosen in RULES.items():
        assert check_lookahead(name, chosen, candles, bars_needed=chosen.bars_needed()) > 25


def test_positions_by_time_and_no_positions_at_all_pass(hours: pd.DataFrame) -> None:
    signals = pd.Series(np.random.default_rng(2).integers(-1, 2, len(hours)), hours.index)
    check_lookahead("model", lambda shown: hold(signals.loc[shown.index].to_numpy(), 5), hours)
    check_lookahead("buy_and_hold", buy_and_hold, hours)
    check_lookahead("never", lambda shown: np.zeros(len(shown)), hours)

    # rounding of a level is no look-ahead
    def rounded(shown: pd.DataFrame) -> Decisions:
        return Decisions(buy_and_hold(shown), stop_price=shown["low"].to_numpy() * (1 + 1e-13 * len(shown) % 1e-12))

    check_lookahead("rounded", rounded, hours)


@pytest.mark.parametrize("rows", [2, 3, 5, 60, 1_999, 2_001, 9_000])
def test_short_and_long_series_are_checked_within_the_promised_cost(rows: int) -> None:
    candles, asked = market(rows), []

    def counted(shown: pd.DataFrame) -> np.ndarray:
        asked.append(len(shown))
        return buy_and_hold(shown)

    assert check_lookahead("counted", counted, candles) >= 3
    assert len(asked) < 45
    assert sum(asked) <= 7 * rows + max(60_000, rows // 2)
    with pytest.raises(LookAhead):
        check_lookahead("knows", lambda shown: np.full(len(shown), float(len(shown) == rows)), candles)


def test_a_strategy_with_a_long_warm_up_is_checked_where_it_decides() -> None:
    candles = market(20_000)

    def late(shown: pd.DataFrame) -> np.ndarray:
        peeks = tomorrow(shown)
        peeks[:4_000] = 0
        return peeks

    for seed in range(5):
        with pytest.raises(LookAhead):
            check_lookahead("late", late, candles, seed=seed)
    with pytest.raises(InsufficientHistory, match=r"late cannot be checked .* on 20000 candles; it needs 20001"):
        check_lookahead("late", late, candles, bars_needed=20_000)


def test_it_is_not_asked_about_fewer_candles_than_it_needs(hours: pd.DataFrame) -> None:
    def needs(shown: pd.DataFrame) -> np.ndarray:
        if len(shown) < 300:
            raise InsufficientHistory(f"{len(shown)} candles")
        return sma_cross(shown)

    check_lookahead("needs", needs, hours, bars_needed=300)
    with pytest.raises(StrategyFailed, match=r"needs failed on \d+ candles until .*: InsufficientHistory: \d+ candles"):
        check_lookahead("needs", needs, hours)


def test_what_raises_is_named_and_chained() -> None:
    def broken(shown: pd.DataFrame) -> np.ndarray:
        return shown["clsoe"].to_numpy()

    candles = market(30)
    with pytest.raises(StrategyFailed, match=r"^broken failed on 30 candles until 2020-.*: KeyError: 'clsoe'$") as it:
        check_lookahead("broken", broken, candles)
    assert isinstance(it.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (np.zeros(29), r"targets of shape \(29,\) for 30 candles"),
        (np.zeros((30, 1)), r"targets of shape \(30, 1\)"),
        (None, r"targets of shape \(\)"),
        (["long"] * 30, "targets of list; give an array of numbers"),
        (np.r_[np.zeros(7), np.nan, np.zeros(22)], "targets nan at .*07:00.*; it must be a number from -1 to"),
        (np.r_[np.zeros(7), 1.5, np.zeros(22)], "targets 1.5 at .*07:00"),
        (Decisions(np.zeros(30), limit=np.ones(29)), r"limit of shape \(29,\)"),
        (Decisions(np.zeros(30), stop_price=np.zeros(30)), "stop price 0.0 at .*; it must be above zero"),
        (Decisions(np.zeros(30), target_price=np.full(30, np.inf)), "target price inf"),
        (Decisions(np.zeros(30), edge=np.full(30, -np.inf)), "edge -inf at .*; it must be finite"),
    ],
)
def test_an_answer_that_makes_no_sense_is_refused(answer: object, said: str) -> None:
    candles = market(30)
    candles.index = pd.date_range("2024-01-01", periods=30, freq="h", tz="UTC", unit="ms", name=candles.index.name)
    with pytest.raises(StrategyFailed, match=f"odd gave {said}"):
        decisions_of("odd", lambda shown: answer, candles)  # type: ignore[arg-type, return-value]


def test_an_answer_is_given_as_numbers(hours: pd.DataFrame) -> None:
    decided = decisions_of("breakout", breakout, hours)
    assert {values.dtype for values in vars(decided).values()} == {np.dtype(np.float64)}
    edge = np.full(len(hours), -0.1)
    assert (decisions_of("bear", lambda shown: Decisions(-buy_and_hold(shown), edge=edge), hours).edge < 0).all()


def test_randomness_and_memory_are_refused(hours: pd.DataFrame) -> None:
    rng, seen = np.random.default_rng(0), list[int]()
    with pytest.raises(StrategyFailed, match="dice gave two answers to one question: its target is"):
        check_lookahead("dice", lambda shown: rng.integers(-1, 2, len(shown)), hours)

    def remembers(shown: pd.DataFrame) -> np.ndarray:
        seen.append(1)
        return np.full(len(shown), 1.0 / len(seen))

    with pytest.raises(StrategyFailed, match=r"remembers gave two answers .* is 1 and then 0\.5 at"):
        check_lookahead("remembers", remembers, hours)


def test_candles_are_left_as_they_were(hours: pd.DataFrame) -> None:
    def adds(shown: pd.DataFrame) -> np.ndarray:
        shown["fast"] = shown["close"].rolling(5).mean()
        return buy_and_hold(shown)

    def overwrites(shown: pd.DataFrame) -> np.ndarray:
        shown.loc[shown.index[3], "close"] = 1.0
        return buy_and_hold(shown)

    def drops(shown: pd.DataFrame) -> np.ndarray:
        answer = buy_and_hold(shown)
        shown.drop(index=shown.index[0], inplace=True)
        return answer

    before = hours.copy(deep=True)
    for changes in (adds, overwrites, drops):
        with pytest.raises(StrategyFailed, match="it changed the candles it was given"):
            check_lookahead("it", changes, hours)
    pd.testing.assert_frame_equal(hours, before)


def test_another_future_is_a_market_too(hours: pd.DataFrame) -> None:
    asked = 0

    def contract(shown: pd.DataFrame) -> np.ndarray:
        nonlocal asked
        asked += 1
        check(shown)
        return buy_and_hold(shown)

    check_lookahead("contract", contract, hours)
    assert asked > 30
