"""The page of a backtest: it stands alone, escapes what it is given, hides no extreme, says what the figures say."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trading.backtest import words
from trading.backtest.bootstrap import Intervals
from trading.backtest.charts import as_json, chart_data, drawdowns, runs_of
from trading.backtest.engine import BacktestResult, run
from trading.backtest.labels import said
from trading.backtest.metrics import summarise
from trading.backtest.page import Page, render
from trading.backtest.robustness import examine
from trading.backtest.rules import Costs, Execution, FeeTier, Limits, Protection, Rules, Sizing
from trading.candles import frame_of, open_times_ms
from trading.errors import InvalidRequest
from trading.strategies import buy_and_hold, rule

HOUR = 3_600_000
YEAR = 8766.0
START = 1_704_067_200_000
EVIL = '</script><img src=x onerror="alert(1)"><b>&'


def market(count: int, seed: int = 1, wild: float = 0.01) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, wild, count)))
    open_ = np.r_[100.0, close[:-1]]
    high, low = np.maximum(open_, close), np.minimum(open_, close)
    spikes = rng.random(count) < 0.02
    values = np.c_[
        open_, high * np.where(spikes, 1.3, 1.001), low * np.where(spikes, 0.7, 0.999), close, np.ones(count)
    ]
    return frame_of(START + np.arange(count) * HOUR, values)


def both(candles: pd.DataFrame, seed: int = 2, rules: Rules | None = None) -> tuple[BacktestResult, BacktestResult]:
    targets = np.repeat(np.random.default_rng(seed).choice([-1, 0, 1], len(candles) // 7 + 1), 7)[: len(candles)]
    return run(candles, targets, rules, strategy="x"), run(candles, buy_and_hold(candles), rules, strategy="hold")


def page(count: int = 400, **changes: Any) -> Page:
    candles = market(count)
    result, hold = both(candles)
    closes = candles["close"].to_numpy()
    made = Page(
        symbol="BTCUSDT", timeframe="1h", strategy="rsi", sentence="Against the crowd.", data_mode="live",
        candles=candles, result=result, hold=hold, figures=summarise(result, YEAR, benchmark=closes),
        hold_figures=summarise(hold, YEAR, benchmark=closes), parameters={"period": 14, "low": 30.0, "sure": True},
    )  # fmt: skip
    return replace(made, **changes)


class Read(HTMLParser):
    """Elements with their attributes, and the text of each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.said: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.said.setdefault(self.inside[-1], []).append(data)

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.said["script"][0])


def test_the_page_loads_nothing_and_has_every_part() -> None:
    candles = market(400)
    robust = examine(candles, rule("sma_cross"), {}, Rules(), YEAR, seed=1, threads=1)
    tried = {"trials": 24, "deflated_sharpe": 0.3, "pbo": 0.4, "spa": None, "reasons": ("luck is likely",)}
    around = Intervals((-0.5, 0.6), (-2.0, 2.0), (-0.6, -0.2), 0.95, 12.0, 1000)
    whole = page(
        robust=robust, overfitting=tried, intervals=around, origin={"dataset digest": "9f" * 32},
        links={"MLflow run": "http://127.0.0.1:5000/#/runs/1"}, notes=("without the model",),
    )  # fmt: skip
    text = render(whole)
    assert text == render(whole)
    read = Read(text)
    for tag, attributes in read.elements:
        assert not {"src", "srcset", "data", "poster"} & set(attributes), tag
        assert tag not in {"link", "iframe", "object", "img", "base", "form"}
        assert tag == "a" or "href" not in attributes
    assert "url(" not in text.split("</style>")[0]
    assert "@import" not in text
    headings = " ".join(read.said["h2"] + read.said["h3"])
    for part in ("Equity", "month", "Figures", "Costs", "Robustness", "Higher costs", "Later decisions", "Quarters",
                 "Kinds of market", "Other orders", "neighbours", "Luck", "Trades", "Assumptions", "from"):  # fmt: skip
        assert part in headings
    for phrase in ("rsi(period=14, low=30, sure=true) on BTCUSDT, 1h", "-50.0% to +60.0%", "What breaks it first",
                   "Luck is likely.", "without the model", "9f9f", "24"):  # fmt: skip
        assert phrase in text
    assert [attributes["href"] for tag, attributes in read.elements if tag == "a"] == ["http://127.0.0.1:5000/#/runs/1"]


def test_nothing_that_is_given_becomes_markup() -> None:
    plain = Read(render(page(parameters={}, origin={"a": "b"}, links={"c": "d"}, notes=("e",))))
    evil = page(
        symbol=EVIL, timeframe=EVIL, strategy=EVIL, sentence=EVIL, data_mode="live", parameters={},
        origin={EVIL: EVIL}, links={EVIL: "javascript:alert(1)"}, notes=(EVIL,),
    )  # fmt: skip
    read = Read(render(evil))
    assert [tag for tag, _ in read.elements] == [tag for tag, _ in plain.elements]
    assert EVIL in "".join(read.said["dd"])
    assert json.loads(as_json({"a": EVIL})) == {"a": EVIL}
    assert "<" not in as_json({"a": EVIL})


@pytest.mark.parametrize(("mode", "told"), [("live", None), ("sample", "Sample data"), ("simulated", "Simulated data")])
def test_what_is_not_live_says_so_everywhere(mode: str, told: str | None) -> None:
    text = render(page(data_mode=mode))
    read = Read(text)
    assert read.data["mode"] == mode  # written across the charts
    assert f"{mode} data" in text
    assert ('class="banner' in text.split("<header>")[0]) == (told is not None)
    if told:
        assert told in text.split("<header>")[0]
        assert f"({mode} data)" in read.said["title"][0]


def test_other_bars_or_several_symbols_are_refused() -> None:
    whole = page()
    with pytest.raises(InvalidRequest, match="the result has 400 bars and there are 399 candles"):
        render(replace(whole, candles=whole.candles.iloc[1:]))
    with pytest.raises(InvalidRequest, match="trades 2 symbols; a page is about one"):
        render(replace(whole, result=replace(whole.result, symbols=("a", "b"))))


def test_a_strategy_that_never_trades_has_a_page() -> None:
    candles = market(60)
    idle = run(candles, np.zeros(60))
    text = render(page(60, result=idle, figures=summarise(idle, YEAR)))
    assert "It never traded." in text
    assert "nan" not in text.lower().replace("finance", "")
    assert Read(text).data["trades"]["all"] == 0


@settings(max_examples=25, deadline=None)
@given(count=st.integers(2, 300), seed=st.integers(0, 1000), groups=st.integers(1, 60), trades=st.integers(1, 20))
def test_no_extreme_is_hidden_and_no_trade_moves(count: int, seed: int, groups: int, trades: int) -> None:
    candles = market(count, seed)
    result, hold = both(candles, seed)
    found = json.loads(as_json(chart_data(candles, result, hold, groups=groups, trades=trades)))
    every = found["every"]
    assert every == math.ceil(count / groups)
    assert len(found["price"]["close"]) == math.ceil(count / every) <= groups
    for at in range(len(found["price"]["close"])):
        bars = slice(at * every, (at + 1) * every)
        part = candles.iloc[bars]
        expected = part["open"].iloc[0], part["high"].max(), part["low"].min(), part["close"].iloc[-1]
        assert [found["price"][name][at] for name in ("open", "high", "low", "close")] == pytest.approx(expected, 1e-4)
        for name, each in (("equity", result), ("hold", hold)):
            curve = 100 * each.equity.to_numpy()[bars] / each.start_cash
            shown = found[name]
            assert shown["last"][at] == pytest.approx(curve[-1], rel=1e-3)
            assert shown.get("low", shown["last"])[at] == pytest.approx(curve.min(), rel=1e-3)
            assert shown.get("high", shown["last"])[at] == pytest.approx(curve.max(), rel=1e-3)
    fall = drawdowns(100 * result.equity.to_numpy() / result.start_cash)
    assert min(found["fall"]) == pytest.approx(fall.min(), abs=1e-3)
    table = result.trades
    kept = found["trades"]
    assert kept["all"] == len(table)
    assert len(kept["number"]) == min(trades, len(table))
    rows = table.iloc[[number - 1 for number in kept["number"]]]
    assert kept["entry"] == rows["entry_bar"].tolist()
    assert kept["exit"] == rows["exit_bar"].tolist()
    assert kept["pnl"] == pytest.approx(rows["pnl"].tolist(), abs=0.006)
    assert [kept["reasons"][at] for at in kept["why_out"]] == rows["exit_reason"].tolist()
    if len(rows) < len(table):  # those that moved the most money
        assert rows["pnl"].abs().min() >= table.drop(rows.index)["pnl"].abs().max()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=0, max_size=40))
def test_times_are_runs_of_equal_steps(steps: list[int]) -> None:
    stamps = START + HOUR * np.cumsum([0, *steps])
    times = pd.DatetimeIndex(frame_of(stamps, np.ones((len(stamps), 5))).index)
    found = runs_of(times)
    counts, widths = found["runs"][::2], found["runs"][1::2]
    again = np.cumsum(np.r_[found["start"], np.repeat(widths, counts)])
    np.testing.assert_array_equal(again, open_times_ms(pd.DataFrame(index=times)))
    assert all(one != other for one, other in pairwise(widths))


def test_a_hundred_thousand_bars_are_below_two_megabytes() -> None:
    text = render(page(100_000))
    assert 500_000 < len(text.encode()) < 2_000_000
    assert Read(text).data["every"] == 10


FAIR = {
    "total_return": 0.5, "annual_return": 0.5, "sharpe": 2.0, "sharpe_error": 0.5, "psr": 0.99, "max_drawdown": -0.1,
    "drawdown_bars": 9, "exposure": 0.5, "costs": 10.0, "cost_of_start": 0.01, "cost_share": 0.02, "trades": 100,
    "best_five_share": 0.3,
}  # fmt: skip
HELD = FAIR | {"total_return": 0.2, "sharpe": 1.0}


@pytest.mark.parametrize(
    ("changes", "overfitting", "headline", "tone"),
    [
        ({}, None, "luck alone is an unlikely reason", "good"),
        ({}, {"trials": 50, "deflated_sharpe": 0.5}, "luck cannot be ruled out", "mixed"),
        ({"psr": 0.9}, None, "luck cannot be ruled out", "mixed"),
        ({"psr": None}, None, "luck cannot be ruled out", "mixed"),
        ({"trades": 12}, None, "luck cannot be ruled out", "mixed"),
        ({"total_return": 0.1}, None, "less than buying and holding, at a better ratio of return to risk", "mixed"),
        ({"total_return": 0.1, "sharpe": 0.5}, None, "It made money, but less than buying and holding.", "mixed"),
        ({"total_return": -0.005}, None, "after costs: its trades earned less than they cost.", "bad"),
        ({"total_return": -0.3}, None, "It lost money after costs.", "bad"),
        ({"total_return": -1.0}, None, "It lost everything.", "bad"),
        ({"trades": 0}, None, "It never traded.", "mixed"),
    ],
)
def test_the_verdict_follows_from_the_figures(
    changes: dict[str, Any], overfitting: dict[str, Any] | None, headline: str, tone: str
) -> None:
    found = words.verdict(FAIR | changes, HELD, overfitting)
    assert headline in found.headline
    assert found.tone == tone


def test_the_sentences_name_what_speaks_against_it() -> None:
    text = " ".join(
        words.verdict(FAIR | {"trades": 12, "best_five_share": 1.4}, HELD, {"trials": 9, "pbo": 0.6}).sentences
    )
    for part in (
        "30.0 points more",
        "only 12 trades",
        "five best trades earned all",
        "9 were tried",
        "of 60%",
        "± 0.50",
    ):
        assert part in text
    assert "worse than bad luck explains" in words.verdict(FAIR | {"sharpe": -9.0, "psr": 0.0}, HELD).sentences[2]
    lost = words.verdict(FAIR | {"total_return": -0.3}, HELD | {"total_return": -0.5})
    assert "though less than buying and holding" in lost.headline


def test_every_rule_that_is_set_is_said() -> None:
    usual = " ".join(words.assumptions(Rules(), {}))
    for part in (
        "open of the next one",
        "fee of 0.1%",
        "0.05% of slippage",
        "100% of the equity",
        "stays open",
        "10,000",
    ):
        assert part in usual
    rules = Rules(
        Costs(0.001, 0.0, 0.0002, (FeeTier(1e6, 0.0, 0.0005),), 0.0004, 0.1, 0.05),
        Sizing(0.0, 2.0, 0.5, 10.0, 0.01, kelly=0.5, max_volume_share=0.1, leverage=2.0, rebalance=0.2),
        Protection(0.02, 0.04, 0.03, 48), Limits(3, 2, 1.5), Execution("same close", True, 0.05, True), 500.0,
    )  # fmt: skip
    said_ = " ".join(words.assumptions(rules, {"funding": 3.0}))
    for part in ("that same close", "0.02% for limit entries", "1 steps", "half the spread of 0.04%", "up to 10%",
                 "5% a year to borrow", "exchange published", "loses 1% of the equity", "2 times", "0.5 of the Kelly",
                 "lots of 0.5", "worth 10", "10% of a bar", "off by 20%", "stop loss at 2%", "take profit at 4%",
                 "trailing stop at 3%", "after 48 bars", "3 bars of rest", "2 entries", "1.5 round trips",
                 "trades through", "liquidated", "closed at the last close"):  # fmt: skip
        assert part in said_, part


def test_numbers_are_written_for_people() -> None:
    assert said(None, "share") == said(math.nan, "ratio") == words.UNDEFINED
    assert (said(0.1234, "signed"), said(1e9, "signed")) == ("+12.3%", "+1.00e+09")
    assert (said(1234.5, "money"), said(3.0, "times"), said(math.inf, "ratio")) == ("1,234.50", "3.0x", "unbounded")


@pytest.mark.integration
def test_a_browser_draws_the_charts_and_lists_the_trades(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no chromium to open the page with")
    whole = page()
    # what a person would do: log scale, a span, the list by profit, one trade; an error of any kind is told
    probe = """<script>addEventListener("error", e => document.body.dataset.failed = e.message);
      addEventListener("load", () => { document.getElementById("log").click();
        document.querySelectorAll("#trades th")[8].click(); document.querySelector("#trades tbody tr").click();
        document.querySelector("[data-do=out]").click();
        requestAnimationFrame(() => requestAnimationFrame(() => {
          const canvas = document.getElementById("price"), pen = canvas.getContext("2d");
          const pixels = pen.getImageData(0, 0, canvas.width, canvas.height).data;
          document.body.dataset.inked = pixels.filter((value, at) => at % 4 === 3 && value).length;
        })); });</script>"""
    path = tmp_path / "page.html"
    path.write_text(render(whole).replace("<header>", probe + "<header>"), encoding="utf-8")
    shown = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         f"--user-data-dir={tmp_path / 'profile'}", "--disable-background-networking",
         "--disable-component-update", "--disable-sync",
         "--virtual-time-budget=3000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    read = Read(shown)
    (body,) = [attributes for tag, attributes in read.elements if tag == "body"]
    assert "data-failed" not in body
    assert int(body["data-inked"] or 0) > 1000
    trades = whole.result.trades
    assert f"Showing {len(trades)} of {len(trades)} trades." in shown
    best = trades["pnl"].max()
    first = shown.split('<table id="trades">')[1].split("<tbody>")[1].split("</tr>")[0]
    assert f">{best:+,.2f}<" in first


def test_real_candles_make_a_page(shared: Path) -> None:
    rows = pd.read_parquet(shared / "data" / "binance_BTCUSDT_1d.parquet")
    candles = frame_of(rows["timestamp"].to_numpy(), rows[["open", "high", "low", "close", "volume"]].to_numpy())
    found, hold = run(candles, rule("sma_cross")(candles)), run(candles, buy_and_hold(candles))
    text = render(
        page(candles=candles, result=found, hold=hold, figures=summarise(found, 365.25),
             hold_figures=summarise(hold, 365.25), data_mode="sample")
    )  # fmt: skip
    assert "2024-01-01" in text
    assert Read(text).data["bars"] == len(candles)
