"""Figures against worked examples and by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from trading.backtest.engine import BacktestResult, Costs, run
from trading.backtest.metrics import bar_returns, drawdown, sharpe, sortino, summarise
from trading.backtest.plots import equity_picture
from trading.candles import frame_of
from trading.strategies import buy_and_hold


def test_sharpe_of_the_published_example(shared: Path) -> None:
    known = json.loads((shared / "oracles" / "statistics.json").read_text())["returns"]["expected"]
    # its first return is undefined and takes no part
    returns = np.array([1, 10, -4, 2, 3, 2, 1, -10]) / 100
    assert sharpe(returns, 252) == pytest.approx(known["sharpe_annualised_252_ddof1"], rel=1e-12)


def test_drawdown_by_hand() -> None:
    depth, bars = drawdown(np.array([110.0, 99.0, 104.5, 110.0, 55.0, 60.0]), 100.0)
    assert depth == pytest.approx(-0.5)
    assert bars == 2
    assert drawdown(np.array([90.0, 95.0]), 100.0) == (pytest.approx(-0.1), 2)


def test_returns_start_from_the_cash_and_stop_at_nothing() -> None:
    np.testing.assert_allclose(bar_returns(np.array([110.0, 55.0, 0.0, 0.0]), 100.0), [0.1, -0.5, -1.0, 0.0])


def test_figures_without_spread_are_undefined_not_infinite() -> None:
    assert math.isnan(sharpe(np.zeros(10), 252))
    assert math.isnan(sortino(np.full(10, 0.01), 252))


def hold(count: int = 400) -> BacktestResult:
    rng = np.random.default_rng(4)
    close = 100 * np.exp(np.cumsum(rng.normal(0.0005, 0.01, count)))
    open_ = np.r_[100.0, close[:-1]]
    values = np.c_[open_, np.maximum(open_, close), np.minimum(open_, close), close, np.ones(count)]
    candles = frame_of(np.arange(count) * 86_400_000, values)
    return run(candles, buy_and_hold(candles), Costs(0.001, 0.0005), cash=1_000.0)


def test_a_summary_adds_up() -> None:
    result = hold()
    figures = summarise(result, 365.25)
    growth = result.equity.iloc[-1] / 1_000
    assert figures["total_return"] == pytest.approx(growth - 1)
    assert (1 + float(figures["annual_return"])) ** (400 / 365.25) == pytest.approx(growth)
    assert figures["trades"] == 1
    assert figures["exposure"] == pytest.approx(399 / 400)
    assert figures["costs"] == pytest.approx(sum(result.costs.values()))
    assert float(figures["costs"]) / 1_000 == pytest.approx(figures["cost_of_start"])


def test_a_picture_says_what_data_it_shows(tmp_path: Path) -> None:
    results = {"champion": hold(), "buy_and_hold": hold()}
    live = equity_picture(results, "X 1d", tmp_path / "live.png", "live").read_bytes()
    sample = equity_picture(results, "X 1d", tmp_path / "deep" / "sample.png", "sample").read_bytes()
    assert live[:8] == b"\x89PNG\r\n\x1a\n"
    assert live != sample
    width, height = (int.from_bytes(live[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (1380, 768)
    assert isinstance(results["champion"].equity, pd.Series)
