"""``tradeflows backtest``: stored results in 80 columns, keys by their start, and ``run`` where no word is given."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from deployments.backtest_command import backtest
from tasks.backtest_runs import defined
from tasks.settings import load_settings
from tasks.store import configured_store, put_result
from trading.backtest.engine import run
from trading.backtest.metrics import summarise
from trading.candles import frame_of
from trading.strategies import buy_and_hold

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LONG = "sma_cross(fast=10, slow=30, long_only=false)"


def stored_result(folder: Path, data_mode: str) -> dict[str, Any]:
    """What the flow stores, of real figures."""
    rng = np.random.default_rng(1)
    rows, pages, robustness, months = [], [], [], []
    for symbol in ("BTCUSDT", "ETHUSDT"):
        close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, 500)))
        candles = frame_of(np.arange(500) * 3_600_000, np.c_[close, close, close, close, np.ones(500)])
        for name, targets in (
            ("rsi", np.repeat(rng.choice([-1, 0, 1], 50), 10)),
            (LONG, np.zeros(500)),
            ("buy_and_hold", buy_and_hold(candles)),
        ):
            figures = summarise(run(candles, targets), 8766.0)
            plain = defined(figures)
            rows.append({"symbol": symbol, "strategy": name, "parameters": f"{name}()", **plain, "sharpe_low": -1.0,
                         "sharpe_high": 2.0})  # fmt: skip
            pages.append(str(folder / f"{symbol}-{len(pages)}.html"))
            Path(pages[-1]).write_text("<!doctype html>")
            months.append({"symbol": symbol, "strategy": name, "year": 1970, "1": -0.123, "2": 0.004, "total": -0.12})
            robustness.append(
                {"symbol": symbol, "strategy": name, "verdict": "it loses money at twice the costs", "breaks": [],
                 "costs_x0": 0.2, "costs_x2": -0.1, "one_bar_late": 0.01, "neighbours_above_0": None,
                 "best_five_share": 0.6}
            )  # fmt: skip
    luck = [{"symbol": "BTCUSDT", "trials": 24, "deflated_sharpe": 0.31, "pbo": 0.42, "spa": None, "reasons": []}]
    return {"rows": rows, "absent": ["there is no model [BTCUSDT-1h]"], "run_id": "", "run_link": "", "pictures": [],
            "data_mode": data_mode, "reused": False, "pages": pages, "luck": luck, "robustness": robustness,
            "months": months, "trials": 24}  # fmt: skip


Tradeflows = Callable[..., Result]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with three backtests, the oldest of which is of a version that kept less."""
    folder = tmp_path_factory.mktemp("home")
    before = dict(os.environ)
    os.environ["TRADEFLOWS_HOME"] = str(folder)
    result = stored_result(folder, "simulated")
    old = {name: result[name] for name in ("rows", "absent", "run_id", "run_link", "pictures", "data_mode", "reused")}
    with configured_store(load_settings()) as store:
        put_result(store, "aa11" * 16, "backtest", old, NOW - timedelta(days=2))
        put_result(store, "aa22" * 16, "backtest", result, NOW)
        put_result(store, "bb33" * 16, "backtest", result | {"data_mode": "sample"}, NOW - timedelta(days=1))
        put_result(store, "cc44" * 16, "backtest batch", {"figures": []}, NOW)
    os.environ.clear()
    os.environ.update(before)
    return folder


@pytest.fixture
def tradeflows(home: Path) -> Iterator[Tradeflows]:
    before = dict(os.environ)

    def call(*words: str, at: Path = home) -> Result:
        done = CliRunner(env={"COLUMNS": "80", "TRADEFLOWS_HOME": str(at)}).invoke(backtest, list(words))
        assert all(len(line) <= 80 for line in done.stdout.splitlines() if "│" in line or "──" in line), done.stdout
        return done

    yield call
    os.environ.clear()
    os.environ.update(before)


def test_the_stored_ones_are_listed_the_newest_first(tradeflows: Tradeflows) -> None:
    shown = tradeflows("show").stdout
    places = [shown.index(key) for key in ("aa22aa22", "bb33bb33", "aa11aa11")]
    assert places == sorted(places)
    assert "cc44" not in shown
    for word in ("simulated", "sample", "BTCUSDT, ETHUSDT", "24", "rsi BTCUSDT"):
        assert word in shown


def test_one_is_shown_as_a_leaderboard_with_its_luck_and_its_pages(tradeflows: Tradeflows, home: Path) -> None:
    done = tradeflows("show", "bb")
    assert done.exit_code == 0
    for part in ("sample data", "buy & hold", "vs hold", "±", "24 tried; deflated Sharpe 31.0%, PBO 42.0%",
                 "it loses money at twice the costs", "there is no model [BTCUSDT-1h]", "key       bb33bb33bb33",
                 f"page      {home / 'BTCUSDT-0.html'}"):  # fmt: skip
        assert part in done.stdout
    assert "SPA" not in done.stdout  # not defined
    only = tradeflows("show", "bb", "--symbol", "ETHUSDT").stdout
    assert "BTCUSDT-0.html" not in only
    assert "ETHUSDT-3.html" in only
    assert "PBO" not in only


def test_one_strategy_is_shown_in_detail(tradeflows: Tradeflows) -> None:
    shown = tradeflows("show", "--symbol", "BTCUSDT", "--strategy", "rsi").stdout
    for part in ("rsi() on BTCUSDT, simulated data", "Sharpe ratio", "-1.00 to 2.00", "profit factor", "Costs: fees",
                 "1970", "-12", "+0.4", "costs x2", "-10.0%", "one bar later"):  # fmt: skip
        assert part in shown
    assert "ETHUSDT" not in shown
    never = tradeflows("show", "aa22", "--symbol", "BTCUSDT", "--strategy", LONG).stdout
    assert "It never traded." in never


def test_a_result_of_an_older_version_is_shown_as_far_as_it_goes(tradeflows: Tradeflows) -> None:
    assert "buy & hold" in tradeflows("show", "aa11").stdout
    assert "profit factor" in tradeflows("show", "aa11", "-s", "rsi").stdout
    assert "this backtest has no pages" in tradeflows("open", "aa11").stderr


def test_a_key_that_is_not_enough_or_unknown_is_told(tradeflows: Tradeflows, tmp_path: Path) -> None:
    several = tradeflows("show", "aa")
    assert several.exit_code == 1
    assert "2 backtests have a key that starts with 'aa': aa22aa22aa22, aa11aa11aa11; give more" in several.stderr
    assert "no backtest has a key that starts with 'zz'" in tradeflows("show", "zz").stderr
    assert "has no macd on any symbol; it has rsi on BTCUSDT" in tradeflows("show", "bb", "-s", "macd").stderr
    assert "No backtests yet" in tradeflows("show", at=tmp_path / "empty").stdout


def test_open_prints_paths_that_are_there(tradeflows: Tradeflows, home: Path) -> None:
    paths = tradeflows("open").stdout.split("\n")[:-1]
    assert len(paths) == 4  # buy-and-hold has a page, but nobody asks for it
    assert all(Path(path).is_file() for path in paths)
    assert tradeflows("open", "-s", "rsi", "--symbol", "ETHUSDT").stdout == f"{home / 'ETHUSDT-3.html'}\n"


def test_run_is_meant_where_no_word_is_given(tradeflows: Tradeflows, tmp_path: Path) -> None:
    for words in (("run", "BTCUSDT", "-t", "7m"), ("BTCUSDT", "-t", "7m"), ("-t", "7m", "BTCUSDT")):
        ended = tradeflows(*words, at=tmp_path)
        assert ended.exit_code == 1
        assert ended.stderr.startswith("BadTimeframe: '7m' is not a timeframe")
    assert "Usage" in tradeflows("--help").output
    for word in ("run", "show", "open"):
        assert "Usage" in tradeflows(word, "--help").output
