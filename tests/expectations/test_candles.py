"""The suites see what the masks should have caught, and judge each window by what was lost of it alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expectations.candles import ABOVE, BELOW, NULLS, STEP, Verdict, batch_suite, candle_suite, judge, require, worst
from expectations.candles import _rows as candle_rows
from expectations.suites import run
from trading.candles import empty
from trading.errors import ExpectationFailed
from trading.masks import Screening, screen
from trading.window import Timeframe, Window

# Great Expectations takes seconds to import and a tenth of one to judge
pytestmark = pytest.mark.integration

WINDOW = Window("BTCUSDT", Timeframe.H1, datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 5, tzinfo=UTC))


def raw_rows() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    opens = np.arange(WINDOW.slots) * 3_600_000 + int(WINDOW.start.timestamp() * 1000)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.002, WINDOW.slots)))
    open_ = np.r_[100.0, close[:-1]]
    return pd.DataFrame(
        {
            "open_time": opens,
            "open": open_,
            "high": np.maximum(open_, close) * 1.002,
            "low": np.minimum(open_, close) * 0.998,
            "close": close,
            "volume": rng.uniform(1, 10, WINDOW.slots),
        }
    )


def clean() -> Screening:
    return screen(raw_rows(), WINDOW, "24/7")


def alone(screening: Screening, max_bad_share: float = 0.0) -> Verdict:
    (verdict,) = judge([screening], max_bad_share=max_bad_share)
    return verdict


def with_value(column: str, value: float, row: int = 5) -> Screening:
    """A window whose masks forgot one bad value."""
    good = clean().good.copy()
    good.iloc[row, good.columns.get_loc(column)] = value
    return replace(clean(), good=good)


def without_a_time() -> Screening:
    good = clean().good.copy()
    good.index = good.index.where(np.arange(len(good)) != 5)
    return replace(clean(), good=good)


def impossible() -> Screening:
    raw = raw_rows()
    raw.loc[7, "high"] = raw.loc[7, "low"] - 1
    return screen(raw, WINDOW, "24/7")


# what is wrong, and the one expectation that says so
CANDLES: dict[str, tuple[Callable[[], Screening], str, str]] = {
    "no time": (without_a_time, NULLS, "between"),
    "no open": (lambda: with_value("open", np.nan), NULLS, "between"),
    "no high": (lambda: with_value("high", np.nan), NULLS, "between"),
    "no low": (lambda: with_value("low", np.nan), NULLS, "between"),
    "no close": (lambda: with_value("close", np.nan), NULLS, "between"),
    "no volume": (lambda: with_value("volume", np.nan), NULLS, "between"),
    "disorder": (lambda: replace(clean(), good=clean().good.iloc[::-1]), STEP, "between"),
    "a copy": (lambda: replace(clean(), good=clean().good.iloc[[0, 1, 1, *range(2, 96)]]), STEP, "between"),
    "low of zero": (lambda: with_value("low", 0.0), "low", "between"),
    "infinite high": (lambda: with_value("high", np.inf), "high", "between"),
    "high beyond all reason": (lambda: with_value("high", 1e16), "high", "between"),
    "negative volume": (lambda: with_value("volume", -1.0), "volume", "between"),
    "infinite volume": (lambda: with_value("volume", np.inf), "volume", "between"),
    "high inside": (lambda: with_value("high", clean().good["low"].iloc[5] * 1.0001), ABOVE, "between"),
    "open above": (lambda: with_value("open", 1e6), ABOVE, "between"),
    "infinite close": (lambda: with_value("close", np.inf), ABOVE, "between"),
    "negative open": (lambda: with_value("open", -1.0), BELOW, "between"),
    "low inside": (lambda: with_value("low", clean().good["high"].iloc[5] * 0.9999), BELOW, "between"),
    "infinite low": (lambda: with_value("low", np.inf), BELOW, "between"),
}
BATCH: dict[str, tuple[Callable[[], Screening], str, str]] = {
    "text": (lambda: replace(clean(), good=clean().good.astype({"close": str})), "layout", "critical"),
    "column too many": (lambda: replace(clean(), good=clean().good.assign(trades=1.0)), "layout", "critical"),
    "microseconds": (
        lambda: replace(clean(), good=clean().good.set_index(clean().good.index.as_unit("us"))),
        "layout",
        "critical",
    ),
    "gaps": (lambda: screen(raw_rows().drop(index=range(10, 20)), WINDOW, "24/7"), "gap_share", "warning"),
    "nothing": (lambda: screen(raw_rows().iloc[:0], WINDOW, "24/7"), "gap_share", "warning"),
    "copies": (
        lambda: screen(pd.concat([raw_rows(), raw_rows().iloc[:5]]), WINDOW, "24/7"),
        "quarantined_share",
        "warning",
    ),
    "impossible": (impossible, "impossible_share", "critical"),
    "jumps": (lambda: replace(clean(), flags={"jump": 2}), "jumps", "info"),
    "stale": (lambda: replace(clean(), flags={"stale": 30}), "stale", "info"),
}
WINDOWS = {
    "clean": clean,
    "empty and closed": lambda: Screening(empty(), clean().bad, np.empty(0, np.int64), 0, {}),
    **{name: make for name, (make, _, _) in (CANDLES | BATCH).items()},
}


@lru_cache
def judged(name: str) -> tuple[Screening, Verdict]:
    screening = WINDOWS[name]()
    return screening, alone(screening)


def test_a_clean_batch_has_no_findings() -> None:
    screening, verdict = judged("clean")
    assert verdict.findings == ()
    assert verdict.checked == len(candle_suite().expectations) + len(batch_suite(0.0).expectations) > 10
    require(verdict, screening, WINDOW)


@pytest.mark.parametrize("name", CANDLES)
def test_the_suite_catches_what_a_forgetful_mask_lets_through(name: str) -> None:
    _, subject, kind = CANDLES[name]
    screening, verdict = judged(name)
    (finding,) = verdict.findings
    assert (finding.severity, finding.subject) == ("critical", subject)
    assert finding.expectation.endswith(kind)
    with pytest.raises(ExpectationFailed, match=r"critical: .*trading/masks\.py let through"):
        require(verdict, screening, WINDOW)


def test_every_candle_expectation_is_broken_alone_somewhere() -> None:
    broken = {(found.subject, found.expectation) for name in CANDLES for found in judged(name)[1].findings}
    assert broken == {(each.column, each.expectation_type) for each in candle_suite().expectations}


@pytest.mark.parametrize("name", BATCH)
def test_the_batch_suite_judges_the_window_as_a_whole(name: str) -> None:
    _, subject, severity = BATCH[name]
    (finding,) = judged(name)[1].findings
    assert (finding.severity, finding.subject) == (severity, subject)


def test_every_batch_expectation_is_broken_alone_somewhere() -> None:
    broken = {found.subject for name in BATCH for found in judged(name)[1].findings}
    assert broken == {each.column for each in batch_suite(0.0).expectations}


def test_a_finding_says_what_was_wrong_where_and_how_often() -> None:
    screening = with_value("volume", -2.5)
    good = screening.good.copy()
    good.iloc[9, good.columns.get_loc("volume")] = -1.0
    (finding,) = alone(replace(screening, good=good)).findings
    assert str(finding) == "critical: volume must be at least 0 and at most 1e+18: -2.5 at 2024-01-01T05:00Z and 1 more"
    assert str(judged("gaps")[1].findings[0]) == "warning: gap_share must be at most 0.02: 0.104167"


def test_one_impossible_candle_refuses_the_batch_and_says_which_and_what_to_do() -> None:
    screening = impossible()
    with pytest.raises(ExpectationFailed, match=r"1 of 96 .*2024-01-01T07:00Z \(inconsistent.*_SHARE above 0.01"):
        require(alone(screening), screening, WINDOW)
    require(alone(screening, max_bad_share=0.02), screening, WINDOW)


def test_a_broken_contract_is_named_even_where_impossible_rows_are_tolerated() -> None:
    screening = replace(impossible(), good=with_value("low", -1.0).good)
    with pytest.raises(ExpectationFailed, match="low must be above 0: -1 at 2024-01-01T05:00Z"):
        require(alone(screening, max_bad_share=0.02), screening, WINDOW)


def test_no_windows_no_verdicts() -> None:
    assert judge([], max_bad_share=0.0) == []


@pytest.mark.integration
@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(sorted(WINDOWS)), min_size=2, max_size=8))
def test_windows_judged_together_get_the_verdicts_they_get_alone(names: list[str]) -> None:
    together = judge([judged(name)[0] for name in names], max_bad_share=0.0)
    assert together == [judged(name)[1] for name in names]


@pytest.mark.integration
@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "high", "low", "close", "volume"]),
            st.sampled_from([np.nan, np.inf, -np.inf, -1.0, 0.0, 1e16, 1e19]),
            st.integers(0, 95),
        ),
        max_size=4,
    )
)
def test_the_worst_rows_break_what_any_row_breaks(changes: list[tuple[str, float, int]]) -> None:
    good = clean().good.copy()
    for column, value, row in changes:
        good.iloc[row, good.columns.get_loc(column)] = value
    rows = candle_rows([good, clean().good])
    broken, seen = run(candle_suite(), rows), run(candle_suite(), worst(rows))
    assert bool(seen) == bool(broken)
    # and each by itself, where no null hides it
    if not np.isnan(good.to_numpy()).any():
        assert {each.finding.subject for each in seen} == {each.finding.subject for each in broken}


def test_all_windows_without_a_candle() -> None:
    names = ["nothing", "empty and closed", "nothing"]
    together = judge([judged(name)[0] for name in names], max_bad_share=0.0)
    assert together == [judged(name)[1] for name in names]
    assert not any(verdict.critical for verdict in together)


def test_many_rows_are_judged_like_few() -> None:
    names = ["clean"] * 40 + ["negative volume"] + ["clean"] * 40 + ["gaps"]
    together = judge([judged(name)[0] for name in names], max_bad_share=0.0)
    assert together == [judged(name)[1] for name in names]


def test_threads_do_not_get_each_others_verdicts() -> None:
    names = ["clean", "negative volume", "gaps", "disorder"] * 4
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(lambda name: alone(judged(name)[0]), names))
    assert verdicts == [judged(name)[1] for name in names]
