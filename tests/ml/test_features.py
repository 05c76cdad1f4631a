"""Features: no view of the future, no more history than declared, no units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.features import FeatureSet, declared, features
from trading.candles import check, frame_of, open_times_ms
from trading.errors import InvalidRequest

SET = FeatureSet()
# the same families with a short memory, two coarser timeframes
SMALL = FeatureSet(
    rsi=2, stochastic=(3, 2), williams_r=4, roc=3, cci=3, macd=(2, 3, 2), ema=(3,), sma=(4,), adx=2, bollinger=5, atr=2,
    volatility=5, short_over_long=(2, 6), obv=4, vwap=4, volume=5, volume_roc=2, volume_price_trend=4, levels=4,
    coarse=(3, 7), coarse_returns=(1, 2), coarse_period=4,
)  # fmt: skip
TOLERANCE = 1e-9  # the features are of order one
MINUTE_MS = 60_000


def real(folder: Path, name: str) -> pd.DataFrame:
    table = pd.read_parquet(folder / "data" / f"{name}.parquet")
    return frame_of(table["timestamp"], table[["open", "high", "low", "close", "volume"]].to_numpy())


@pytest.fixture(scope="module", params=["sp500", "binance_BTCUSDT_1h", "jesse_testcandles0_1m"])
def market(request: pytest.FixtureRequest) -> pd.DataFrame:
    """Real candles: days with weekends and holidays, hours without gaps, minutes with gaps and flat bars."""
    if request.param == "sp500":
        found: pd.DataFrame = request.getfixturevalue("sp500")
        return found
    return real(request.getfixturevalue("shared"), request.param)


def rough(rows: int, seed: int) -> pd.DataFrame:
    """Candles of a bad market: gaps, bars without trades, flat stretches, leaps, prices of any size."""
    rng = np.random.default_rng(seed)
    moves = rng.standard_t(4, rows) * 0.01
    still = np.zeros(rows, bool)
    for _ in range(int(rng.integers(0, 4))):
        start = int(rng.integers(0, rows))
        still[start : start + int(rng.integers(1, 90))] = True
    still |= rng.random(rows) < rng.choice([0.0, 0.1, 0.5])
    moves[still] = 0
    moves[rng.integers(0, rows, 2)] += rng.choice([-1.5, 1.5])
    close = rng.choice([1e-9, 1e-4, 1.0, 1e5]) * np.exp(np.cumsum(moves))
    open_ = np.r_[close[0], close[:-1]]
    wick = np.where(still, 0, np.abs(rng.normal(0, 0.004, (2, rows))))
    high, low = np.maximum(open_, close) * (1 + wick[0]), np.minimum(open_, close) / (1 + wick[1])
    volume = np.where(still, 0.0, rng.lognormal(5, 2, rows))
    steps = np.where(rng.random(rows) < rng.choice([0.0, 0.1]), rng.integers(2, 40, rows), 1)
    stamps = 1_577_836_800_000 + MINUTE_MS * (int(rng.integers(0, 10_000)) + np.cumsum(steps))
    return check(frame_of(stamps, np.column_stack([open_, high, low, close, volume])))


# --- no view of the future ------------------------------------------------------------------------


def test_a_prefix_of_the_candles_gives_a_prefix_of_the_features(market: pd.DataFrame) -> None:
    whole = features(market, SET)
    for rows in (1, 64, 700, 1234, len(market) - 1):
        step = int(np.diff(open_times_ms(market)).min())
        pd.testing.assert_frame_equal(features(market.iloc[:rows], SET, step), whole.iloc[:rows], check_exact=True)


def test_the_prefix_test_catches_a_feature_that_looks_ahead(sp500: pd.DataFrame) -> None:
    def leaky(candles: pd.DataFrame) -> pd.DataFrame:
        return features(candles, SET).assign(peek=candles["close"].shift(-1))

    with pytest.raises(AssertionError):
        pd.testing.assert_frame_equal(leaky(sp500.iloc[:700]), leaky(sp500).iloc[:700])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000), cut=st.integers(1, 249))
def test_the_future_never_changes_the_past(seed: int, cut: int) -> None:
    candles, other = rough(250, seed), rough(250, seed + 1)
    altered = candles.copy()
    altered.iloc[cut:] = other.iloc[cut:]
    before, after = (features(frame, SMALL, MINUTE_MS).iloc[:cut] for frame in (candles, altered))
    pd.testing.assert_frame_equal(before, after, check_exact=True)


# --- no more history than declared ----------------------------------------------------------------


def test_rows_needed_are_enough_to_compute_the_same_row(market: pd.DataFrame) -> None:
    whole = features(market, SET).to_numpy()
    for at in np.linspace(SET.rows_needed - 1, len(market) - 1, 40).astype(int):
        row = features(market.iloc[at + 1 - SET.rows_needed : at + 1], SET).to_numpy()[-1]
        np.testing.assert_allclose(row, whole[at], rtol=0, atol=TOLERANCE)


def worst_of_each(candles: pd.DataFrame, feature_set: FeatureSet, rows: np.ndarray) -> dict[str, float]:
    """By how much each feature differs when it is given the history that it declares and nothing more."""
    step = int(np.diff(open_times_ms(candles)).min())
    whole = features(candles, feature_set, step).to_numpy()
    worst = dict.fromkeys(feature_set.names, 0.0)
    for look_back in sorted({feature.look_back for feature in declared(feature_set)}):
        for at in rows:
            part = features(candles.iloc[at - look_back : at + 1], feature_set, step).to_numpy()
            for column, feature in enumerate(declared(feature_set)):
                if feature.look_back == look_back:
                    assert np.isnan(part[:-1, column]).all()
                    worst[feature.name] = max(worst[feature.name], abs(part[-1, column] - whole[at, column]))
    return worst


def test_each_feature_depends_on_no_more_history_than_it_declares(market: pd.DataFrame) -> None:
    worst = worst_of_each(market, SET, np.linspace(SET.rows_needed - 1, len(market) - 1, 7).astype(int))
    assert {name: value for name, value in worst.items() if not value < TOLERANCE} == {}


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_nor_does_it_in_a_bad_market(seed: int) -> None:
    candles = rough(250, seed)
    worst = worst_of_each(candles, SMALL, np.linspace(SMALL.rows_needed - 1, 249, 3).astype(int))
    assert {name: value for name, value in worst.items() if not value < TOLERANCE} == {}


def test_a_look_back_that_is_too_short_would_be_noticed(sp500: pd.DataFrame) -> None:
    # half of EMA 50's look-back: the tests above must be able to fail
    import talib

    whole = features(sp500, SET)["ema_50"].to_numpy()
    part = sp500["close"].to_numpy()[2000 - 285 : 2001]
    assert abs(part[-1] / talib.EMA(part, 50)[-1] - 1 - whole[2000]) > TOLERANCE


def test_no_prediction_needs_more_than_seven_hundred_candles() -> None:
    assert SET.rows_needed < 700


# --- no units, no holes ---------------------------------------------------------------------------


def test_values_after_the_warm_up_are_finite_and_without_units(random_candles: Callable[..., pd.DataFrame]) -> None:
    candles = random_candles(900, 1)
    cheap = candles.assign(**{name: candles[name] / 2**50 for name in ("open", "high", "low", "close")})
    thin = cheap.assign(volume=candles["volume"] / 4096)
    table = features(candles, SET)
    assert {str(kind) for kind in table.dtypes} == {"float64"}
    assert tuple(table.columns) == SET.names
    assert np.abs(table.to_numpy()[SET.rows_needed - 1 :]).max() < 20
    pd.testing.assert_frame_equal(table, features(thin, SET), rtol=1e-9, atol=1e-9)


def test_each_column_is_nan_for_exactly_its_look_back(random_candles: Callable[..., pd.DataFrame]) -> None:
    table = features(random_candles(900, 2), SET)
    for feature in declared(SET):
        assert int(table[feature.name].isna().sum()) == feature.look_back
        assert np.isfinite(table[feature.name].iloc[feature.look_back :]).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_values_stay_within_the_declared_bounds(seed: int) -> None:
    table = features(rough(250, seed), SMALL)
    for feature in declared(SMALL):
        values = table[feature.name].to_numpy()[feature.look_back :]
        assert np.isfinite(values).all(), feature.name
        assert values.min() >= feature.lowest - TOLERANCE, feature.name
        assert values.max() <= feature.highest + TOLERANCE, feature.name


def test_too_few_candles_give_nan_and_no_error(random_candles: Callable[..., pd.DataFrame]) -> None:
    for rows in (0, 1, 2, 19, 60):
        assert features(random_candles(60, 5).iloc[:rows], SET).shape == (rows, len(SET.names))


# --- the definition -------------------------------------------------------------------------------


def test_the_version_follows_the_definition() -> None:
    assert FeatureSet().version == SET.version
    assert FeatureSet.from_definition(SET.definition()) == SET
    assert replace(SET, ema=(9, 21)).rows_needed < SET.rows_needed
    assert SET.version == "features-" + SET.version[-12:]
    # a list and a whole number are read as what they stand for
    assert FeatureSet(ema=[9, 21, 50], hammer=2).version == SET.version  # type: ignore[arg-type]


OTHER: dict[str, object] = {
    "stochastic": (14, 2), "macd": (11, 26, 9), "short_over_long": (4, 50), "doji": 0.2, "hammer": 3.0,
    "calendar": ("hour",), "coarse": (6,),
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(FeatureSet)])
def test_every_parameter_is_part_of_the_version_and_every_family_can_be_left_out(name: str) -> None:
    value = getattr(SET, name)
    changed = OTHER[name] if name in OTHER else value + 1 if isinstance(value, int) else (*value, 99)
    assert replace(SET, **{name: changed}).version != SET.version
    if name == "coarse_period":
        return
    fewer = replace(SET, **{name: () if isinstance(value, tuple) else 0})
    assert set(fewer.names) < set(SET.names)
    assert FeatureSet.from_definition(fewer.definition()) == fewer


def test_a_set_of_one_feature_computes_what_the_whole_set_does(random_candles: Callable[..., pd.DataFrame]) -> None:
    candles = random_candles(700, 6)
    off = {field.name: () if isinstance(getattr(SET, field.name), tuple) else 0 for field in fields(FeatureSet)}
    only = FeatureSet(**{**off, "coarse_period": 20, "adx": 14})  # type: ignore[arg-type]
    assert only.names == ("adx", "direction")
    pd.testing.assert_frame_equal(features(candles, only), features(candles, SET)[["adx", "direction"]])
    with pytest.raises(InvalidRequest, match="switched off"):
        replace(only, adx=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rsi": 1}, {"rsi": 2.5}, {"rsi": True}, {"rsi": "14"}, {"returns": (0,)}, {"returns": 5}, {"lags": (1, 1)},
        {"macd": (26, 12, 9)}, {"macd": (12, 26)}, {"ema": (9, -1)}, {"ema": ([9],)}, {"stochastic": (14,)},
        {"short_over_long": (50, 5)}, {"doji": -0.1}, {"hammer": float("nan")}, {"calendar": ("moon",)},
        {"calendar": "hour"}, {"coarse": (1,)}, {"coarse_period": 0},
    ],
)  # fmt: skip
def test_parameters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        FeatureSet(**wrong)  # type: ignore[arg-type]


def test_definitions_with_other_parameters_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="magic"):
        FeatureSet.from_definition({**SET.definition(), "magic": 1})
    with pytest.raises(InvalidRequest, match="exactly"):
        FeatureSet.from_definition({"rsi": 14})
