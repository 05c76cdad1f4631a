"""Pictures of backtests: of one width, alike for alike input, labelled, and without a hidden extreme."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trading.backtest import plots
from trading.backtest.engine import run
from trading.candles import frame_of
from trading.strategies import buy_and_hold

HOUR = 3_600_000
RNG = np.random.default_rng(3)
CLOSE = 100 * np.exp(np.cumsum(RNG.normal(0, 0.01, 900)))
CANDLES = frame_of(np.arange(900) * HOUR, np.c_[CLOSE, CLOSE * 1.01, CLOSE * 0.99, CLOSE, np.ones(900)])
RESULT = run(CANDLES, np.repeat(RNG.choice([-1, 0, 1], 60), 15), strategy="x")
HEAT = pd.DataFrame([[0.5, -1.0, np.nan], [2.0, 0.1, 0.3]], index=[5, 10], columns=[20, 30, 50])

DRAWN: dict[str, Callable[[Path, str], Path]] = {
    "equity": lambda path, mode: plots.equity_picture(
        {"x": RESULT, "buy_and_hold": run(CANDLES, buy_and_hold(CANDLES))}, "X 1h", path, mode
    ),
    "trades": lambda path, mode: plots.trades_picture(CANDLES, RESULT, "X 1h", path, mode),
    "months": lambda path, mode: plots.monthly_picture(RESULT, "X 1h", path, mode),
    "heat": lambda path, mode: plots.neighbourhood_picture(HEAT, (10, 30), "X 1h", path, mode),
}


@pytest.mark.integration  # matplotlib takes a second to load, and half a second a picture
@pytest.mark.parametrize("name", DRAWN)
def test_pictures_are_as_wide_as_a_page_and_say_what_data_they_show(name: str, tmp_path: Path) -> None:
    drawn = {mode: DRAWN[name](tmp_path / mode / "picture.png", mode).read_bytes() for mode in ("live", "simulated")}
    for content in drawn.values():
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", content[16:24])
        assert width == 1380
        assert 150 < height < 1000
        assert len(content) < 400_000  # or it does not fit into an artifact
    assert drawn["live"] != drawn["simulated"]


@pytest.mark.integration
def test_equal_input_gives_equal_files(tmp_path: Path) -> None:
    one, other = (DRAWN["heat"](tmp_path / f"{at}.png", "live").read_bytes() for at in range(2))
    assert one == other


@pytest.mark.integration
def test_no_trades_and_an_open_one_can_be_drawn(tmp_path: Path) -> None:
    for name, targets in (("idle", np.zeros(900)), ("open", np.ones(900))):
        path = plots.trades_picture(CANDLES, run(CANDLES, targets), name, tmp_path / f"{name}.png", "live")
        assert path.stat().st_size > 5_000


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(4, 50))
def test_thinned_values_keep_both_ends_and_every_extreme(values: list[float], most: int) -> None:
    line = np.array(values)
    kept = plots.extremes(line, most)
    assert (np.diff(kept) > 0).all()
    assert (kept[0], kept[-1]) == (0, len(line) - 1)
    assert (line[kept].min(), line[kept].max()) == (line.min(), line.max())
    assert len(kept) <= max(most + 4, len(line) if len(line) <= most else 0)
