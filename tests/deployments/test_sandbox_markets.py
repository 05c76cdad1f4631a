"""What the sandbox exchange trades: shipped history as it is, generated markets, and the user's own files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from arch.data import nasdaq, sp500

from deployments.sandbox.generator import RECIPES, generate
from deployments.sandbox.markets import GENERATED_AHEAD, GENERATED_START, Market, from_folder, shipped
from tasks.sources import raw_frame
from trading.calendars import expected_opens
from trading.candles import COLUMNS
from trading.errors import MalformedResponse
from trading.masks import screen
from trading.window import Timeframe, Window

CLOCK = datetime(2016, 3, 1, 0, 30, tzinfo=UTC)
HISTORY = {"SP500": sp500, "NASDAQ": nasdaq}
TWENTY_YEARS = (datetime(1999, 1, 1, tzinfo=UTC), datetime(2019, 1, 1, tzinfo=UTC))


@pytest.fixture(scope="module")
def markets() -> dict[tuple[str, Timeframe], Market]:
    return shipped(7, CLOCK)


def test_what_there_is(markets: Any) -> None:
    shown = {name: (market.data_mode, market.calendar, market.quote) for name, market in markets.items()}
    generated = ("simulated", "24/7", "USDT")
    assert shown == {
        ("SP500", Timeframe.D1): ("sample", "XNYS", "USD"),
        ("NASDAQ", Timeframe.D1): ("sample", "XNYS", "USD"),
        ("BTCSIM", Timeframe.H1): generated,
        ("ETHSIM", Timeframe.H1): generated,
        ("SOLSIM", Timeframe.H1): generated,
    }
    for (symbol, timeframe), market in markets.items():
        assert (market.symbol, market.timeframe) == (symbol, timeframe)
        assert market.opens.dtype == np.int64
        assert market.values.shape == (len(market.opens), 5)
        assert (np.diff(market.opens) > 0).all()


@pytest.mark.parametrize("symbol", HISTORY)
def test_history_is_exactly_what_arch_carries(markets: Any, symbol: str) -> None:
    table = HISTORY[symbol].load()
    market = markets[symbol, Timeframe.D1]
    np.testing.assert_array_equal(market.values, table[["Open", "High", "Low", "Close", "Volume"]].to_numpy("float64"))
    dates = pd.to_datetime(market.opens, unit="ms")
    assert dates.strftime("%Y-%m-%d").tolist() == table.index.strftime("%Y-%m-%d").tolist()
    assert (dates.hour == 0).all()


@pytest.mark.parametrize("symbol", HISTORY)
def test_history_has_exactly_the_sessions_of_the_new_york_exchange(markets: Any, symbol: str) -> None:
    market = markets[symbol, Timeframe.D1]
    sessions = expected_opens(Window(symbol, Timeframe.D1, *TWENTY_YEARS), market.calendar)
    assert len(sessions) == 5_031
    np.testing.assert_array_equal(market.opens, sessions)


@pytest.mark.parametrize(("symbol", "aside"), [("SP500", {}), ("NASDAQ", {"untraded_move": 2})])
def test_history_passes_screening(markets: Any, symbol: str, aside: dict[str, int]) -> None:
    market = markets[symbol, Timeframe.D1]
    raw = raw_frame(np.column_stack([market.opens, market.values]))
    screening = screen(raw, Window(symbol, Timeframe.D1, *TWENTY_YEARS), market.calendar)
    assert screening.quarantined == aside
    assert screening.impossible == 0
    assert len(screening.missing) == sum(aside.values())


def test_generated_markets_are_hourly_without_a_gap_and_reach_past_the_clock(markets: Any) -> None:
    bars = generate(RECIPES, len(markets["BTCSIM", Timeframe.H1].opens), 7)
    for recipe in RECIPES:
        market = markets[recipe.symbol, Timeframe.H1]
        end = Timeframe.H1.floor(CLOCK + GENERATED_AHEAD)
        window = Window(recipe.symbol, Timeframe.H1, GENERATED_START, end)
        np.testing.assert_array_equal(market.opens, expected_opens(window, "24/7"))
        assert market.opens[-1] > CLOCK.timestamp() * 1000
        np.testing.assert_array_equal(market.values, bars[recipe.symbol])
        screening = screen(raw_frame(np.column_stack([market.opens, market.values])), window, "24/7")
        assert (screening.quarantined, len(screening.missing)) == ({}, 0)


def test_a_later_clock_only_adds(markets: Any) -> None:
    later = shipped(7, CLOCK + timedelta(days=30))
    for recipe in RECIPES:
        before, after = (found[recipe.symbol, Timeframe.H1] for found in (markets, later))
        count = len(before.opens)
        assert len(after.opens) == count + 30 * 24
        np.testing.assert_array_equal(after.opens[:count], before.opens)
        np.testing.assert_array_equal(after.values[:count], before.values)


def test_a_clock_before_the_start_leaves_one_bar() -> None:
    assert len(shipped(7, datetime(2001, 1, 1, tzinfo=UTC))["BTCSIM", Timeframe.H1].opens) == 1


def test_history_does_not_depend_on_the_seed(markets: Any) -> None:
    other = shipped(8, CLOCK)
    np.testing.assert_array_equal(other["SP500", Timeframe.D1].values, markets["SP500", Timeframe.D1].values)
    assert (other["BTCSIM", Timeframe.H1].values[1:] != markets["BTCSIM", Timeframe.H1].values[1:]).any(axis=1).all()


# --- the user's files ----------------------------------------------------------------------------


def rows(count: int) -> pd.DataFrame:
    table = pd.DataFrame(np.full((count, 5), 10.0), columns=list(COLUMNS))
    table.insert(0, "timestamp", 1_577_836_800_000 + np.arange(count) * 60_000)
    return table


def test_files_become_markets_of_sample_data(tmp_path: Path) -> None:
    rows(3).to_csv(tmp_path / "MY_COIN_1m.csv", index=False)
    rows(4).to_parquet(tmp_path / "XRP_5m.parquet")
    for other in ("README.md", "XRP_1m.txt", "XRP_7m.csv", "XRP.csv", "_1h.csv"):
        (tmp_path / other).write_text("not candles")
    found = from_folder(tmp_path)
    assert set(found) == {("MY_COIN", Timeframe.M1), ("XRP", Timeframe.M5)}
    market = found["MY_COIN", Timeframe.M1]
    assert (market.data_mode, market.calendar, market.symbol) == ("sample", "24/7", "MY_COIN")
    assert market.opens.tolist() == rows(3)["timestamp"].tolist()
    np.testing.assert_array_equal(market.values, np.full((3, 5), 10.0))


def test_a_file_that_is_no_candles_is_refused(tmp_path: Path) -> None:
    (tmp_path / "XRP_1m.csv").write_text("a,b\n1,2\n")
    with pytest.raises(MalformedResponse, match=r"XRP_1m\.csv lacks"):
        from_folder(tmp_path)
