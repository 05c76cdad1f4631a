"""A model in use: what it says, and what it refuses to be asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ml.features import FeatureSet
from ml.labels import LabelDefinition
from ml.model import Model
from ml.serving import PyfuncModel
from ml.training import assemble, fit_final
from trading.analysis import Signal
from trading.errors import CandleContractError, CandleGap, InsufficientHistory, InvalidRequest
from trading.window import Timeframe

SET = FeatureSet(ema=(9, 21), rsi=7, atr=7, adx=5, macd=(5, 10, 4))
LABEL = LabelDefinition(horizon=4)


@pytest.fixture(scope="module")
def model(predictable: pd.DataFrame) -> Model:
    table = assemble({"MOM": predictable.iloc[:2000]}, SET, LABEL)
    fitted, rule = fit_final(table, "lightgbm", 1)
    return Model(fitted, SET, LABEL, rule, Timeframe.H1, manifest={})


def test_a_prediction_reads_like_one(model: Model, predictable: pd.DataFrame) -> None:
    found = [model.predict(predictable.iloc[:end]) for end in range(2000, 2200, 7)]
    assert {one.signal for one in found} == set(Signal)
    for one in found:
        assert one.p_short + one.p_neutral + one.p_long == pytest.approx(1)
        assert one.confidence == {"Short": one.p_short, "Neutral": one.p_neutral, "Long": one.p_long}[one.signal]
        assert one.reasons[0].endswith(one.signal)
        assert len(one.reasons) == 4
    assert found[0].open_time == predictable.index[1999]


def test_shadow_replays_the_backtest(model: Model, predictable: pd.DataFrame) -> None:
    candles = predictable.iloc[1700:2300]
    targets = model.targets(candles)
    assert targets.dtype == np.int8
    assert (targets[: model.rows_needed - 1] == 0).all()
    for at in range(model.rows_needed - 1, len(candles), 5):
        live = model.predict(candles.iloc[at + 1 - model.rows_needed : at + 1])
        assert live.signal.direction == targets[at]
    assert set(targets) == {-1, 0, 1}
    np.testing.assert_array_equal(model.targets(candles, short_allowed=False), np.maximum(targets, 0))


def test_the_future_does_not_change_targets(model: Model, predictable: pd.DataFrame) -> None:
    whole = model.targets(predictable)
    np.testing.assert_array_equal(model.targets(predictable.iloc[:2500]), whole[:2500])


def test_the_last_rows_decide_alone_and_many_are_asked_at_once(model: Model, predictable: pd.DataFrame) -> None:
    ends = range(2000, 2060, 9)
    whole = [model.predict(predictable.iloc[:end]) for end in ends]
    assert whole == [model.predict(predictable.iloc[end - model.rows_needed : end]) for end in ends]
    assert model.predictions([model.row(predictable.iloc[:end]) for end in ends]) == whole
    assert model.predictions([]) == []


Use = Callable[[Model], Callable[[pd.DataFrame], object]]
USES: list[Use] = [lambda m: m.predict, lambda m: m.row, lambda m: m.predict_all, lambda m: m.targets]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.drop(columns="volume"), r"lack the columns \['volume'\]"),
        (lambda c: c.astype({"volume": "int64"}), "must be float64, .*volume.*int64"),
        (lambda c: c.assign(close="1.5"), "must be float64, .*close"),
        (lambda c: c.reset_index(drop=True), "candle index is int64"),
        (lambda c: c.tz_localize(None), r"candle index is datetime64\[ms\]"),
        (lambda c: c.assign(high=c["high"].where(c.index != c.index[5])), "at .* is impossible: .*nan"),
        (lambda c: c.iloc[::-1], "unique and increasing"),
        (lambda c: c.iloc[[*range(400), 399]], "unique and increasing"),
        (lambda c: c.iloc[::2], "1h candles and these are at least 120 minutes apart"),
        (lambda c: c.set_axis(c.index + pd.Timedelta("7min").as_unit("ms")), "does not open on the 1h grid"),
    ],
)
def test_candles_that_do_not_fit_are_refused(
    model: Model, predictable: pd.DataFrame, use: Use, change: Callable[[pd.DataFrame], pd.DataFrame], said: str
) -> None:
    candles = predictable.iloc[: 2 * model.rows_needed + 1]
    assert model.predict(candles)
    with pytest.raises(CandleContractError, match=said):
        use(model)(change(candles).rename_axis("open_time"))


@pytest.mark.parametrize("use", USES)
def test_too_few_rows_are_told_how_many_are_needed(model: Model, predictable: pd.DataFrame, use: Use) -> None:
    needed = model.rows_needed
    assert model.predict(predictable.iloc[:needed])
    for rows in (0, 1, needed - 1):
        with pytest.raises(InsufficientHistory, match=rf"needs {needed} 1h candles and there are {rows};"):
            use(model)(predictable.iloc[:rows])


def test_bars_missing_among_those_needed_are_named_and_older_ones_are_not_missed(
    model: Model, predictable: pd.DataFrame
) -> None:
    candles = predictable.iloc[: 2 * model.rows_needed]
    first = len(candles) - model.rows_needed
    older = candles.drop(index=candles.index[first - 3 : first - 1])
    assert model.predict(older) == model.predict(candles)
    holed = candles.drop(index=candles.index[[first + 10, first + 11]])
    said = f"2 1h bars are missing among the last {model.rows_needed} candles, the first at "
    said += f"{candles.index[first + 10]:%Y-%m-%dT%H:%MZ}"
    with pytest.raises(CandleGap, match=said):
        model.predict(holed)
    assert len(model.predict_all(holed)) == len(holed)  # a long history has gaps, in training too
    assert replace(model, gaps_tolerated=2).predict(holed).open_time == candles.index[-1]
    with pytest.raises(CandleGap, match="tolerates 1"):
        replace(model, gaps_tolerated=1).predict(holed)


def test_nights_and_week_ends_are_no_gaps_on_a_calendar_that_has_them(model: Model, sp500: pd.DataFrame) -> None:
    daily = replace(model, timeframe=Timeframe.D1, calendar="XNYS")
    days = sp500.iloc[-daily.rows_needed :]
    assert daily.predict(days).open_time == days.index[-1]
    with pytest.raises(CandleGap, match="1 1d bars are missing"):
        daily.predict(sp500.iloc[-daily.rows_needed - 1 :].drop(index=days.index[-9]))
    with pytest.raises(CandleGap):
        replace(daily, calendar="24/7").predict(days)
    several = replace(daily, calendar=None)
    with pytest.raises(CandleContractError, match="several calendars"):
        several.predict(days)
    assert several.predict(days, "XNYS") == daily.predict(days)


def test_mlflow_may_ask_with_a_column_of_times_text_or_milliseconds(model: Model, predictable: pd.DataFrame) -> None:
    served = PyfuncModel(model)
    candles = predictable.iloc[:400]
    expected = model.predict(candles)
    plain = candles.reset_index()
    stamps = pd.DatetimeIndex(plain["open_time"])
    asked = [
        candles,
        plain,
        plain.assign(open_time=[stamp.isoformat() for stamp in stamps]),
        plain.assign(open_time=stamps.asi8),
        plain.assign(open_time=stamps.tz_convert("Asia/Tokyo")),
    ]
    for frame in asked:
        row = served.predict(frame)
        assert len(row) == 1
        assert row["signal"].item() == expected.signal.value
        assert row["p_long"].item() == expected.p_long
        assert row["open_time"].item() == expected.open_time.isoformat()
        json.loads(row.to_json(orient="records"))
    for frame, said in (
        (plain.assign(open_time=stamps.tz_localize(None)), "time zone"),
        (plain.drop(columns="open_time"), "no open_time"),
        (plain.drop(columns="close"), "close"),
        (plain.assign(open_time="yesterday or so"), "cannot be read"),
        (plain.assign(open_time=plain["open_time"].where(plain.index > 0)), "missing in some rows"),
    ):
        with pytest.raises(CandleContractError, match=said):
            served.predict(frame)
    with pytest.raises(InvalidRequest, match="temperature"):
        served.predict(candles, {"temperature": 1})
