"""Features: no view of the future, no more history than declared, no units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.features import FeatureSet, declared, features
from trading.errors import InvalidRequest

SET = FeatureSet()
TOLERANCE = 1e-9  # the features are of order one


def test_a_prefix_of_the_candles_gives_a_prefix_of_the_features(sp500: pd.DataFrame) -> None:
    whole = features(sp500, SET)
    for rows in (700, 1234, 3000, len(sp500) - 1):
        pd.testing.assert_frame_equal(features(sp500.iloc[:rows], SET), whole.iloc[:rows], check_exact=True)


def test_the_prefix_test_catches_a_feature_that_looks_ahead(sp500: pd.DataFrame) -> None:
    def leaky(candles: pd.DataFrame) -> pd.DataFrame:
        return features(candles, SET).assign(peek=candles["close"].shift(-1))

    with pytest.raises(AssertionError):
        pd.testing.assert_frame_equal(leaky(sp500.iloc[:700]), leaky(sp500).iloc[:700])


def test_rows_needed_are_enough_to_compute_the_same_row(sp500: pd.DataFrame) -> None:
    whole = features(sp500, SET).to_numpy()
    for at in range(SET.rows_needed - 1, len(sp500), 61):
        row = features(sp500.iloc[at + 1 - SET.rows_needed : at + 1], SET).to_numpy()[-1]
        np.testing.assert_allclose(row, whole[at], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("feature", declared(SET), ids=lambda feature: feature.name)
def test_each_feature_depends_on_no_more_history_than_it_declares(sp500: pd.DataFrame, feature: object) -> None:
    name, look_back = feature.name, feature.look_back  # type: ignore[attr-defined]
    whole = features(sp500, SET)[name].to_numpy()
    for at in range(SET.rows_needed, len(sp500), 397):
        part = features(sp500.iloc[at - look_back : at + 1], SET)[name].to_numpy()
        assert part[-1] == pytest.approx(whole[at], rel=0, abs=TOLERANCE)
        assert np.isnan(part[:-1]).all()


def test_a_look_back_that_is_too_short_would_be_noticed(sp500: pd.DataFrame) -> None:
    # half of EMA 50's look-back: the truncation test above must be able to fail
    whole = features(sp500, SET)["ema_50"].to_numpy()
    import talib

    part = sp500["close"].to_numpy()[2000 - 285 : 2001]
    assert abs(part[-1] / talib.EMA(part, 50)[-1] - 1 - whole[2000]) > TOLERANCE


def test_values_after_the_warm_up_are_finite_and_without_units(random_candles: Callable[..., pd.DataFrame]) -> None:
    candles = random_candles(900, 1)
    cheap = candles.assign(**{name: candles[name] / 4096 for name in ("open", "high", "low", "close")})
    table = features(candles, SET)
    assert {str(kind) for kind in table.dtypes} == {"float64"}
    assert tuple(table.columns) == SET.names
    assert np.isfinite(table.to_numpy()[SET.rows_needed - 1 :]).all()
    assert np.abs(table.to_numpy()[SET.rows_needed - 1 :]).max() < 20
    pd.testing.assert_frame_equal(table, features(cheap, SET), rtol=1e-6, atol=1e-9)


def test_each_column_is_nan_for_exactly_its_look_back(random_candles: Callable[..., pd.DataFrame]) -> None:
    table = features(random_candles(900, 2), SET)
    for feature in declared(SET):
        assert int(table[feature.name].isna().sum()) == feature.look_back


def test_values_agree_with_the_ta_package(sp500: pd.DataFrame) -> None:
    import ta

    table = features(sp500, SET)
    close, after = sp500["close"], SET.rows_needed
    rsi = ta.momentum.RSIIndicator(close, 14).rsi() / 100
    np.testing.assert_allclose(table["rsi"].iloc[after:], rsi.iloc[after:], rtol=1e-9)
    bands = ta.volatility.BollingerBands(close, 20, 2)
    width = (bands.bollinger_hband() - bands.bollinger_lband()) / bands.bollinger_mavg()
    np.testing.assert_allclose(table["bollinger_width"].iloc[after:], width.iloc[after:], rtol=1e-9)
    macd = ta.trend.MACD(close).macd_diff() * 100 / close
    np.testing.assert_allclose(table["macd_histogram"].iloc[after:], macd.iloc[after:], rtol=0, atol=1e-9)


def test_a_market_that_stands_still_is_neither_strong_nor_weak(random_candles: Callable[..., pd.DataFrame]) -> None:
    candles = random_candles(800, 3)
    still = candles.assign(open=100.0, high=100.0, low=100.0, close=100.0, volume=0.0)
    last = features(still, SET).iloc[-1]
    assert last["rsi"] == 0.5
    assert last["bollinger_position"] == 0
    assert last["volatility"] == 0
    assert last["volume_ratio"] == pytest.approx(np.log(2))
    assert np.isfinite(last).all()


def test_hour_and_weekday_go_round(random_candles: Callable[..., pd.DataFrame]) -> None:
    table = features(random_candles(24 * 15, 4), SET)[["hour_sin", "hour_cos", "weekday_sin", "weekday_cos"]].to_numpy()
    np.testing.assert_allclose(table[: -24 * 7], table[24 * 7 :], atol=1e-9)
    assert len(np.unique(table[: 24 * 7].round(9), axis=0)) == 24 * 7
    sunday = features(random_candles(24 * 7, 4), SET).loc["2020-01-05 00:00:00+00:00"]
    assert sunday["weekday_sin"] == pytest.approx(0)
    assert sunday["weekday_cos"] == pytest.approx(1)


def test_too_few_candles_give_nan_and_no_error(random_candles: Callable[..., pd.DataFrame]) -> None:
    for rows in (0, 1, 2, 19, 60):
        assert features(random_candles(60, 5).iloc[:rows], SET).shape == (rows, len(SET.names))


def test_the_version_follows_the_definition() -> None:
    assert FeatureSet().version == SET.version
    assert FeatureSet.from_definition(SET.definition()) == SET
    assert replace(SET, rsi=15).version != SET.version
    assert replace(SET, ema=(9, 21)).rows_needed < SET.rows_needed
    assert SET.version == "features-" + SET.version[-12:]


@pytest.mark.parametrize(
    "wrong", [{"rsi": 1}, {"rsi": 2.5}, {"returns": (0,)}, {"macd": (26, 12, 9)}, {"macd": (12, 26)}, {"ema": (9, -1)}]
)
def test_periods_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        FeatureSet(**wrong)  # type: ignore[arg-type]


def test_definitions_with_other_parameters_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="magic"):
        FeatureSet.from_definition({**SET.definition(), "magic": 1})


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 199))
def test_the_future_never_changes_the_past(random_candles: Callable[..., pd.DataFrame], seed: int, cut: int) -> None:
    small = FeatureSet(rsi=2, macd=(2, 3, 2), atr=2, adx=2, ema=(3,), bollinger=5, volume=5, volatility=5)
    candles = random_candles(200, seed)
    altered = candles.copy()
    altered.iloc[cut:] = random_candles(200, seed + 1).iloc[cut:]
    assert small.rows_needed < 150
    pd.testing.assert_frame_equal(
        features(candles, small).iloc[:cut], features(altered, small).iloc[:cut], check_exact=True
    )
