"""A feature matrix is held to what its features declare, before anything is fitted on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from expectations.features import OUTLIER_DEVIATIONS, STEP, judge, require, values_suite
from ml.features import FeatureSet, declared, features
from ml.labels import LabelDefinition
from ml.training import TrainingTable, assemble
from trading.candles import frame_of
from trading.errors import ExpectationFailed

# Great Expectations takes seconds to import and a tenth of one to judge
pytestmark = pytest.mark.integration

# one of each kind of bound; each column costs the suite milliseconds, and the last test has them all
SET = FeatureSet(
    stochastic=(),
    williams_r=0,
    roc=0,
    cci=0,
    macd=(),
    sma=(),
    volatility=0,
    short_over_long=(),
    vwap=0,
    volume_roc=0,
    volume_price_trend=0,
    levels=0,
    lags=(),
    coarse=(),
)
NAMES = list(SET.names)


def candles(seed: int, rows: int = 1000) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.standard_t(4, rows) * 0.006))
    open_ = np.r_[100.0, close[:-1]]
    above, below = 1 + rng.uniform(0.0001, 0.008, (2, rows))
    high, low = np.maximum(open_, close) * above, np.minimum(open_, close) / below
    stamps = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp() * 1000) + 3_600_000 * np.arange(rows)
    return frame_of(stamps, np.column_stack([open_, high, low, close, rng.lognormal(5, 1, rows)]))


@pytest.fixture(scope="module")
def table() -> TrainingTable:
    return assemble({"A": candles(1), "B": candles(2)}, SET, LabelDefinition(horizon=4))


def spoilt(table: TrainingTable, spoil: Callable[[np.ndarray], None]) -> TrainingTable:
    x = table.x.copy()
    spoil(x)
    return replace(table, x=x)


def found(table: TrainingTable) -> set[tuple[str, str, str]]:
    return {(each.severity, each.subject, each.expectation) for each in judge(table).findings}


def test_what_the_features_make_of_candles_is_as_declared(table: TrainingTable) -> None:
    verdict = judge(table)
    assert verdict.findings == ()
    assert verdict.checked == 1 + len(values_suite(SET).expectations)
    require(verdict)


def test_a_finding_names_the_symbol_and_the_bar_and_stops_the_training(table: TrainingTable) -> None:
    def spoil(x: np.ndarray) -> None:
        x[7, NAMES.index("rsi")] = 1.2

    verdict = judge(spoilt(table, spoil))
    decided = pd.Timestamp(int(table.decided_at[7]), unit="ms")
    (finding,) = verdict.critical
    assert finding.subject == "rsi"
    assert finding.observed.endswith(f"first 1.2 of {table.symbol[7]} at {decided:%Y-%m-%dT%H:%MZ}")
    with pytest.raises(ExpectationFailed, match=r"rsi must be at least .* and at most 1.*nothing was trained"):
        require(verdict)


def test_every_feature_must_be_finite_and_within_its_own_bounds(table: TrainingTable) -> None:
    def nulls(x: np.ndarray) -> None:
        x[np.arange(len(NAMES)), np.arange(len(NAMES))] = np.nan

    def above(x: np.ndarray) -> None:
        x[np.arange(len(NAMES)), np.arange(len(NAMES))] = [each.highest + 1e-6 for each in declared(SET)]

    def below(x: np.ndarray) -> None:
        x[np.arange(len(NAMES)), np.arange(len(NAMES))] = [each.lowest - 1e-6 for each in declared(SET)]

    not_null, within = "expect_column_values_to_not_be_null", "expect_column_values_to_be_between"
    assert found(spoilt(table, nulls)) == {("critical", name, not_null) for name in NAMES}
    assert found(spoilt(table, above)) == {("critical", name, within) for name in NAMES}
    assert found(spoilt(table, below)) == {("critical", name, within) for name in NAMES}


@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract")  # pandas on infinity
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_is_out_of_all_bounds(table: TrainingTable, value: float) -> None:
    def spoil(x: np.ndarray) -> None:
        x[3, :] = value

    assert {each.subject for each in judge(spoilt(table, spoil)).critical} == set(NAMES)


def test_rounding_is_no_finding(table: TrainingTable) -> None:
    def spoil(x: np.ndarray) -> None:
        x[0, NAMES.index("adx")] = 1 + 1e-12
        x[1, NAMES.index("atr")] = -1e-12

    assert found(spoilt(table, spoil)) == set()


def test_a_constant_column_is_a_warning(table: TrainingTable) -> None:
    returns = {f"return_{bars}" for bars in SET.returns}

    def spoil(x: np.ndarray) -> None:
        for at, name in enumerate(NAMES):
            if name not in returns:
                x[:, at] = 0.0

    kind = "expect_column_unique_value_count_to_be_between"
    assert found(spoilt(table, spoil)) == {("warning", name, kind) for name in NAMES if name not in returns}

    def still(x: np.ndarray) -> None:
        x[:, NAMES.index("return_1")] = 0.0

    assert ("warning", "return_1", kind) in found(spoilt(table, still))


def test_many_outlying_returns_are_a_warning_and_a_few_are_none(table: TrainingTable) -> None:
    def spoil(share: float) -> Callable[[np.ndarray], None]:
        def change(x: np.ndarray) -> None:
            for bars in SET.returns:
                column = x[:, NAMES.index(f"return_{bars}")]
                column[: int(share * len(x))] = 20 * OUTLIER_DEVIATIONS * column.std()

        return change

    kind = "expect_column_value_z_scores_to_be_less_than"
    assert found(spoilt(table, spoil(0.005))) == set()
    assert found(spoilt(table, spoil(0.02))) == {("warning", f"return_{bars}", kind) for bars in SET.returns}


def test_rows_of_a_symbol_must_follow_each_other_in_time(table: TrainingTable) -> None:
    decided = table.decided_at.copy()
    decided[2] = decided[0]  # rows of A and B take turns
    assert table.symbol[0] == table.symbol[2] != table.symbol[1]
    (finding,) = judge(replace(table, decided_at=decided)).findings
    assert (finding.severity, finding.subject) == ("critical", STEP)
    assert "1 of" in finding.observed


@pytest.mark.parametrize("names", [NAMES[::-1], [*NAMES[:-1], "moon"]])
def test_the_columns_are_those_of_the_feature_set_in_order(table: TrainingTable, names: list[str]) -> None:
    (finding,) = judge(replace(table, names=tuple(names))).findings
    assert (finding.severity, finding.expectation) == ("critical", "expect_table_columns_to_match_ordered_list")


def test_a_column_too_few_is_found_too(table: TrainingTable) -> None:
    (finding,) = judge(replace(table, names=table.names[1:], x=table.x[:, 1:])).findings
    assert (finding.severity, finding.subject) == ("critical", "table")


@pytest.mark.parametrize("seed", range(4))
def test_no_market_leaves_the_declared_bounds(seed: int) -> None:
    """Dead markets, crashes to a hundredth, spikes, single trades: the bounds are of the arithmetic."""
    rng = np.random.default_rng(seed)
    frame = candles(seed).copy()
    shock = np.exp(np.cumsum(rng.choice([0.0, 0.0, -4.6, 4.6], len(frame), p=[0.5, 0.48, 0.01, 0.01])))
    for name in ("open", "high", "low", "close"):
        frame[name] = frame[name].to_numpy() * shock
    quiet = slice(300, 420)
    frame.iloc[quiet, :4] = float(frame["close"].iloc[300])
    frame.iloc[quiet, 4] = 0.0
    frame.iloc[350, 4] = 1e9
    every = FeatureSet()
    values = features(frame, every)
    for feature in declared(every):
        column = values[feature.name].dropna()
        assert column.min() >= feature.lowest - 1e-9, feature.name
        assert column.max() <= feature.highest + 1e-9, feature.name
