"""The suites see what the masks should have caught, and judge what was lost."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from expectations.candles import judge, require
from trading.errors import ExpectationFailed
from trading.masks import screen
from trading.window import Timeframe, Window

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


def test_a_clean_batch_has_no_findings() -> None:
    screening = screen(raw_rows(), WINDOW, "24/7")
    verdict = judge(screening, max_bad_share=0.0)
    assert verdict.findings == ()
    assert verdict.checked > 15
    require(verdict, screening, WINDOW)


def test_one_impossible_candle_refuses_the_batch_and_says_which_and_what_to_do() -> None:
    raw = raw_rows()
    raw.loc[7, "high"] = raw.loc[7, "low"] - 1
    screening = screen(raw, WINDOW, "24/7")
    with pytest.raises(ExpectationFailed, match=r"1 of 96 .*2024-01-01T07:00Z \(inconsistent.*_SHARE above 0.01"):
        require(judge(screening, max_bad_share=0.0), screening, WINDOW)
    require(judge(screening, max_bad_share=0.02), screening, WINDOW)


def test_an_empty_batch_is_refused() -> None:
    screening = screen(raw_rows().iloc[:0], WINDOW, "24/7")
    with pytest.raises(ExpectationFailed, match="none of the 96 candles"):
        require(judge(screening, max_bad_share=0.0), screening, WINDOW)


def test_gaps_and_copies_are_warnings() -> None:
    raw = pd.concat([raw_rows().drop(index=range(10, 20)), raw_rows().iloc[:5]])
    verdict = judge(screen(raw, WINDOW, "24/7"), max_bad_share=0.0)
    assert {finding.subject for finding in verdict.findings} == {"gap_share", "quarantined_share"}
    assert verdict.critical == ()


@pytest.mark.parametrize(
    ("column", "value"),
    [("high", 1.0), ("low", 1e6), ("open", -1.0), ("close", np.nan), ("volume", -1.0), ("close", np.inf)],
)
def test_the_suite_catches_what_a_forgetful_mask_lets_through(column: str, value: float) -> None:
    screening = screen(raw_rows(), WINDOW, "24/7")
    spoilt = screening.good.copy()
    spoilt.iloc[5, spoilt.columns.get_loc(column)] = value
    assert judge(replace(screening, good=spoilt), max_bad_share=0.0).critical


def test_the_suite_catches_disorder() -> None:
    screening = screen(raw_rows(), WINDOW, "24/7")
    verdict = judge(replace(screening, good=screening.good.iloc[::-1]), max_bad_share=0.0)
    assert any("increasing" in finding.expectation for finding in verdict.critical)
