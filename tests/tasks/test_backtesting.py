"""Plans of backtests: what is asked for, what is called what, what is run, and what is made of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.overfitting import overfitting
from tasks import backtest_leaders, backtest_models, backtest_proofs, backtest_runs
from tasks.backtest_leaders import compare, comparisons_of, leaderboard
from tasks.backtest_models import Models, subjects_of
from tasks.backtest_plans import MOST_TOGETHER, Batch, Subject, plan
from tasks.backtest_requests import HOLD, BacktestRequest, WalkForwardModel, candidates, rules_of
from tasks.backtest_runs import outcome, run_batch
from tasks.chunks import Revision
from tasks.datasets import Dataset, select
from tasks.store import RESULTS, Store, get_result, open_store, write_candles
from tests.trainings import stored
from trading import strategies
from trading.backtest.engine import run
from trading.backtest.metrics import bar_returns, summarise
from trading.backtest.rules import Costs, Limits, Protection, Rules, Sizing
from trading.calendars import bars_per_year
from trading.candles import frame_of
from trading.errors import InsufficientHistory, InvalidRequest, LookAhead, StoreError
from trading.strategies import Parameter, Rule, rule, sma_cross
from trading.window import Timeframe, Window

START = datetime(2023, 1, 1, tzinfo=UTC)
BARS = 600
END = START + timedelta(hours=BARS)
CODE = "0" * 64
SYMBOLS = ("AAA", "BBB")


def market(seed: int, bars: int = BARS) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, bars)))
    open_ = np.r_[close[0], close[:-1]]
    high, low = np.maximum(open_, close) * 1.002, np.minimum(open_, close) / 1.002
    stamps = int(START.timestamp() * 1000) + 3_600_000 * np.arange(bars)
    return frame_of(stamps, np.column_stack([open_, high, low, close, rng.uniform(1, 10, bars)]))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "home") as opened:
        for seed, symbol in enumerate(SYMBOLS):
            stored(opened, Window(symbol, Timeframe.H1, START, END), market(seed), "simulated")
        yield opened


def asked(*texts: str, **more: Any) -> BacktestRequest:
    return BacktestRequest(**{"rules": Rules(), "strategies": texts or ("rsi", "macd"), **more})


def subject(symbol: str = "AAA", digest: str = "d", **more: Any) -> Subject:
    window = Window(symbol, Timeframe.H1, START, END)
    return Subject(Dataset((window,), {symbol: BARS}, digest, "simulated", {symbol: "24/7"}, {}), **more)


def planned(store: Store, request: BacktestRequest) -> tuple[Batch, ...]:
    dataset = select(store, SYMBOLS, Timeframe.H1, START, END, now=END)
    subjects = subjects_of(store, None, dataset, request, Models({}, ()), END)  # type: ignore[arg-type]
    return plan(candidates(request), subjects, request, CODE)


# --- what is asked for ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (asked("rsii"), r"'rsii' is not a strategy; use one of champion, walk_forward, rsi, "),
        (asked("rsi(perod=3)"), "rsi has no parameter 'perod'; it takes period, low, high"),
        (asked("rsi(period=1)"), r"rsi: period=1; it is a whole number from 2"),
        (asked("macd(fast=30, slow=20)"), "macd: fast=30 and slow=20; fast is below slow"),
        (asked("champion(x=1)"), "'champion' is not a rule"),
        (asked(HOLD), "there is no strategy to try beside buy_and_hold"),
        (asked("rsi", grids={"macd": {"fast": [5]}}), "there is a grid for 'macd', which is not tried"),
        (asked("rsi(period=7)", grids={"rsi": {"period": [5]}}), "there is a grid for 'rsi', which is not tried"),
        (asked("rsi", grids={"rsi": {"period": []}}), r"rsi: the grid of period is \[\]; give a list of values"),
        (asked("rsi", sweep=True, most_sets=10), "grid of rsi has 288 parameter sets and 10 are allowed"),
        (asked(factors=(-1.0,)), "cost factor -1.0 makes no sense"),
        (asked(factors=(math.nan,)), "cost factor nan makes no sense"),
        (asked(factors=(2000.0,)), "costs times 2000: fee rate is 2"),
        (asked(rules=Rules(limits=Limits(min_edge=1.0))), "rsi gives no edge, and min_edge=1 needs one"),
    ],
)
def test_what_makes_no_sense_is_named(request_: BacktestRequest, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        candidates(request_)


def test_strategies_keep_their_order_and_buy_and_hold_stands_beside_them() -> None:
    found = candidates(asked("champion", "sma_cross(fast=10,slow=30)", "rsi", "rsi()", HOLD, " rsi "))
    label = "sma_cross(fast=10, slow=30, long_only=true)"
    assert [one.label for one in found] == ["champion", label, "rsi", HOLD]
    assert [one.sets for one in found][1:3] == [(label,), ("rsi(period=14, low=30, high=70)",)]


def test_a_sweep_is_of_the_rules_without_parameters() -> None:
    request = asked("rsi", "macd", "sma_cross(fast=10, slow=30)", grids={"macd": {"fast": [5, 8], "slow": [20]}})
    sets = {one.label: len(one.sets) for one in candidates(request)}
    assert list(sets.values()) == [1, 2, 1, 1]
    swept = candidates(dataclasses.replace(request, sweep=True))
    assert [len(one.sets) for one in swept] == [288, 2, 1, 1]


def test_buy_and_hold_pays_the_same_costs_and_has_no_stops() -> None:
    rules = Rules(Costs(0.002), Sizing(fraction=0.5), Protection(stop_loss=0.1), Limits(cooldown_bars=3), cash=5.0)
    own = rules_of(HOLD, rules, 2.0)
    assert (own.costs, own.cash) == (rules.costs.times(2.0), 5.0)
    assert (own.sizing, own.protection, own.limits) == (Sizing(), Protection(), Limits())
    assert rules_of("rsi", rules, 2.0) == dataclasses.replace(rules, costs=rules.costs.times(2.0))


# --- the plan ------------------------------------------------------------------------------------

TEXTS = ("rsi", "macd", "breakout", "rsi(period=7)", "sma_cross(fast=10, slow=30)")


@settings(max_examples=15, deadline=None)
@given(
    texts=st.lists(st.sampled_from(TEXTS), min_size=1, unique=True),
    symbols=st.lists(st.sampled_from(["AAA", "BBB", "CCC"]), min_size=1, unique=True),
    factors=st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), unique=True),
    sweep=st.booleans(),
)
def test_a_plan_holds_every_set_once_and_a_larger_request_shares_its_batches(
    texts: list[str], symbols: list[str], factors: list[float], sweep: bool
) -> None:
    request = asked(*texts, factors=tuple(factors), sweep=sweep)
    subjects = [subject(symbol, symbol) for symbol in symbols]
    found = plan(candidates(request), subjects, request, CODE)
    every = [(one.symbol, one.label, one.factor, text) for one in found for text in one.sets]
    wanted = {
        (symbol, one.label, factor, text)
        for symbol in symbols
        for one in candidates(request)
        for factor in {1.0, *factors}
        for text in one.sets
    }
    assert len(every) == len(wanted)
    assert set(every) == wanted
    assert max(len(one.sets) for one in found) <= MOST_TOGETHER
    # what is another batch is called otherwise; two labels may name one thing
    assert len({one.key for one in found}) == len({(one.symbol, one.factor, one.sets) for one in found})
    assert found == plan(candidates(request), subjects, request, CODE)

    more = dataclasses.replace(request, strategies=(*reversed(texts), *TEXTS), factors=(*factors, 5.0))
    larger = plan(candidates(more), [*reversed(subjects), subject("DDD", "DDD")], more, CODE)
    assert {one.key for one in found} < {one.key for one in larger}


@pytest.mark.parametrize(
    ("other", "rules", "code"),
    [
        (subject(digest="e"), Rules(), CODE),
        (subject(first=1), Rules(), CODE),
        (subject(), Rules(cash=1.0), CODE),
        (subject(), Rules(Costs(borrow_rate=0.1)), CODE),
        (subject(), Rules(protection=Protection(stop_loss=0.1)), CODE),
        (subject(), Rules(), "1" * 64),
    ],
)
def test_whatever_decides_a_result_decides_its_key(other: Subject, rules: Rules, code: str) -> None:
    one, another = asked("rsi"), asked("rsi", rules=rules)
    before = plan(candidates(one), [subject()], one, CODE)[0]
    after = plan(candidates(another), [other], another, code)[0]
    assert before.key != after.key


def test_a_model_has_batches_where_it_has_targets() -> None:
    request = asked("champion", "rsi")
    subjects = [subject("AAA", targets={"champion": "one"}), subject("BBB")]
    found = plan(candidates(request), subjects, request, CODE)
    assert [(one.symbol, one.label) for one in found] == [
        ("AAA", "champion"), ("AAA", "rsi"), ("AAA", HOLD), ("BBB", "rsi"), ("BBB", HOLD),
    ]  # fmt: skip
    again = plan(candidates(request), [subject("AAA", targets={"champion": "two"})], request, CODE)
    # other targets of the champion are nothing to the rule beside it
    assert [one.key == two.key for one, two in zip(found[:3], again, strict=True)] == [False, True, True]


def test_batches_have_names_for_people() -> None:
    request = asked("rsi", sweep=True, factors=(2.0,))
    names = [one.name for one in plan(candidates(request), [subject()], request, CODE)]
    assert names[2:4] == ["rsi AAA, 3 of 3", "rsi AAA, costs x2, 1 of 3"]
    assert names[-2:] == [f"{HOLD} AAA", f"{HOLD} AAA, costs x2"]


# --- what is run ---------------------------------------------------------------------------------


def test_a_batch_stores_what_the_engine_says_and_is_run_once(store: Store) -> None:
    request = asked("sma_cross", grids={"sma_cross": {"fast": [5, 10], "slow": [20]}}, factors=(3.0,))
    batches = planned(store, request)
    assert [(one.symbol, one.label, one.factor) for one in batches[:4]] == [
        ("AAA", "sma_cross", 1.0), ("AAA", "sma_cross", 3.0), ("AAA", HOLD, 1.0), ("AAA", HOLD, 3.0),
    ]  # fmt: skip
    dear = batches[1]
    run_batch(store, dear, END)
    found, candles = outcome(store, dear), market(0)
    for place, fast in enumerate((5, 10)):
        result = run(candles, sma_cross(candles, fast, 20), Rules(Costs(0.003, 0.0015)))
        figures = summarise(result, bars_per_year(Timeframe.H1, "24/7"))
        assert found.figures[place]["sharpe"] == figures["sharpe"]
        assert found.figures[place]["trades"] == figures["trades"]
        np.testing.assert_array_equal(found.returns[:, place], bar_returns(result.equity.to_numpy(), 10_000.0))
    assert found.figures[0]["alpha"] is None
    before = store.documents.get(RESULTS, dear.key)
    run_batch(store, dear, END + timedelta(days=1))
    after = store.documents.get(RESULTS, dear.key)
    assert before is not None
    assert after is not None
    # not run again, and noted as used, which keeps it from maintenance
    assert (after["result"], after["created_at"]) == (before["result"], before["created_at"])
    assert after["used_at"] == END + timedelta(days=1)
    with pytest.raises(StoreError, match="holds nothing of sma_cross AAA"):
        outcome(store, batches[0])


def test_stored_targets_of_a_model_are_traded_from_the_first_bar_on(store: Store) -> None:
    request = asked("champion", "rsi")
    targets, first = np.sign(np.sin(np.arange(BARS) / 9)).astype(np.int8), 200
    key = "targets"
    store.documents.put(
        RESULTS,
        {"_id": key, "kind": "k", "created_at": END, "result": backtest_models._document(targets, first)},
    )
    alone = planned(store, request)[0].subject
    model = dataclasses.replace(alone, first=first, targets={"champion": key})
    batch, ruled, held = plan(candidates(request), [model], request, CODE)
    for one in (batch, ruled, held):
        run_batch(store, one, END)
    candles = market(0)
    wanted = run(candles.iloc[first:], targets[first:], Rules())
    assert outcome(store, batch).figures[0]["final_equity"] == wanted.equity.iloc[-1]
    # a rule has seen the bars before, so its warm-up does not eat the traded span
    rsi = run(candles.iloc[first:], np.asarray(rule("rsi")(candles))[first:], Rules())
    assert outcome(store, ruled).figures[0]["final_equity"] == rsi.equity.iloc[-1]
    starts = {outcome(store, one).figures[0]["start"] for one in (batch, ruled, held)}
    assert starts == {candles.index[first].isoformat()}


def test_targets_that_a_backtest_is_about_to_read_count_as_used(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def walked(frames: dict[str, pd.DataFrame], *_: object) -> dict[str, tuple[np.ndarray, int]]:
        made.append(len(frames))
        return {symbol: (np.ones(len(frame)), 200) for symbol, frame in frames.items()}

    monkeypatch.setattr(backtest_models, "walk_forward_targets", walked)
    dataset = select(store, SYMBOLS, Timeframe.H1, START, END, now=END)
    later = END + timedelta(days=40)
    for now in (END, later):
        subjects = subjects_of(store, None, dataset, asked("walk_forward"), Models({"walk_forward": "m"}, ()), now)  # type: ignore[arg-type]
        assert [one.first for one in subjects] == [200, 200]
    assert made == [2]
    # maintenance, which may come before the batches, goes by that
    for one in subjects:
        document = store.documents.get(RESULTS, one.targets["walk_forward"])
        assert document is not None
        assert (document["created_at"], document["used_at"]) == (END, later)


def test_a_batch_carries_the_revisions_of_its_own_series_and_reads_what_was_frozen(store: Store) -> None:
    [first, *_, last] = planned(store, asked("rsi"))
    assert {name.split("|")[0] for name in first.subject.dataset.revisions} == {"AAA"}
    assert {name.split("|")[0] for name in last.subject.dataset.revisions} == {"BBB"}
    # candles that were corrected after the request was frozen are not those that it is about
    window = Window("AAA", Timeframe.H1, START, END)
    revision = Revision(END, "correction", None)
    write_candles(store, window, market(9), "simulated", revision)
    run_batch(store, first, END)
    wanted = run(market(0), np.asarray(rule("rsi")(market(0))), Rules())
    assert outcome(store, first).figures[0]["final_equity"] == wanted.equity.iloc[-1]


def test_too_few_bars_are_told_before_anything_runs(store: Store) -> None:
    end = START + timedelta(hours=99)
    dataset = select(store, ["AAA"], Timeframe.H1, START, end, now=END)
    with pytest.raises(InsufficientHistory, match="AAA has 99 bars to backtest and 100 are needed"):
        subjects_of(store, None, dataset, asked(), Models({}, ()), END)  # type: ignore[arg-type]


# --- the look-ahead check ------------------------------------------------------------------------


def peeking(candles: pd.DataFrame, strength: float = 1.0) -> np.ndarray:
    return np.asarray(candles["close"].shift(-1) > candles["close"], dtype=np.float64) * strength


def honest(candles: pd.DataFrame, strength: float = 1.0) -> np.ndarray:
    return np.asarray(candles["close"].shift(1) < candles["close"], dtype=np.float64) * strength


def added(monkeypatch: pytest.MonkeyPatch, decide: Any) -> None:
    one = Rule(
        "added", decide, lambda *_, **__: "", lambda **_: 2, {"strength": Parameter(1.0, 0.0, 1.0, (0.5, 1.0))},
        ("strength", "strength"), "For a test.",
    )  # fmt: skip
    monkeypatch.setitem(strategies.RULES, "added", one)  # type: ignore[arg-type]


def test_a_strategy_is_checked_once_for_its_code_and_refused_where_it_peeks(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    added(monkeypatch, honest)
    request = asked("added", "added(strength=0.5)")
    first, second = [one for one in planned(store, request) if one.strategy == "added" and one.symbol == "AAA"]
    assert backtest_proofs.prove_rule(store, first, END) > 10
    # other parameters of the same code
    assert backtest_proofs.prove_rule(store, second, END) == 0
    added(monkeypatch, peeking)
    with pytest.raises(LookAhead, match=r"added\(strength=1\) looks ahead"):
        backtest_proofs.prove_rule(store, first, END)
    # a refusal is no proof
    with pytest.raises(LookAhead):
        backtest_proofs.prove_rule(store, first, END)


# --- the leaderboard -----------------------------------------------------------------------------


def test_the_leaderboard_counts_everything_and_says_how_much_is_luck(store: Store) -> None:
    grids = {"sma_cross": {"fast": [5, 10], "slow": [20, 50]}}
    batches = planned(store, asked("rsi", "sma_cross", grids=grids, factors=(2.0,)))
    for batch in batches:
        run_batch(store, batch, END)
    comparisons = comparisons_of(batches, 0, CODE)
    for one in comparisons:
        compare(store, one, END)
    board = leaderboard(store, batches, comparisons)
    # (1 rsi + 4 sma_cross + buy-and-hold) x 2 symbols x 2 cost factors
    assert len(board.trials) == 24
    at_base = [row["sharpe"] for row in board.trials if row["factor"] == 1.0]
    assert at_base == sorted(at_base, reverse=True)
    assert [(one.subject.symbol, one.label) for one in board.chosen] == [
        (symbol, label) for symbol in SYMBOLS for label in ("rsi", "sma_cross", HOLD)
    ]
    mine = [row for row in board.trials if row["symbol"] == "AAA" and row["factor"] == 1.0 and row["strategy"] != HOLD]
    best = next(row for row in mine if row["strategy"] == "sma_cross")
    assert board.chosen[1].text == best["parameters"]
    assert board.chosen[1].tried == 5
    assert board.chosen[1].variance == pytest.approx(np.var([row["sharpe"] for row in mine], ddof=1))

    columns: dict[str, np.ndarray] = {}
    for one in batches:
        if one.symbol == "AAA" and one.factor == 1.0:
            columns |= dict(zip(one.sets, outcome(store, one).returns.T, strict=True))
    returns = pd.DataFrame(columns)
    direct = overfitting(returns.drop(columns=HOLD), str(mine[0]["parameters"]), seed=0, benchmark=returns[HOLD])
    luck = board.luck[0]
    assert (luck["symbol"], luck["chosen"], luck["trials"]) == ("AAA", mine[0]["parameters"], 5)
    assert (luck["deflated_sharpe"], luck["pbo"], luck["spa"]) == (direct.deflated_sharpe, direct.pbo, direct.spa)
    assert luck["pbo"] is not None
    assert [one["symbol"] for one in board.luck] == [*SYMBOLS, "all symbols"]

    # on all symbols: each strategy on all of them in equal parts
    tried = [backtest_leaders._tried(store, one.batches)[1] for one in comparisons[:2]]
    wanted = (tried[0] + tried[1]) / 2
    together = backtest_leaders._in_equal_parts(tried)
    pd.testing.assert_frame_equal(together, wanted, check_freq=False, rtol=1e-9, atol=1e-12)
    found = get_result(store, comparisons[2].key)
    assert found is not None
    ratios = wanted.drop(columns=HOLD).mean() / wanted.drop(columns=HOLD).std()
    assert found["luck"]["chosen"] == ratios.idxmax()


@settings(max_examples=15, deadline=None)
@given(
    returns=st.lists(st.floats(-1, 1), min_size=2, max_size=30),
    kept=st.lists(st.integers(0, 40), min_size=1, max_size=10, unique=True),
)
def test_the_same_growth_on_another_grid(returns: list[float], kept: list[int]) -> None:
    index = pd.date_range("2023-01-01", periods=len(returns), freq="h", tz="UTC")
    last = pd.date_range("2023-01-01", periods=41, freq="h", tz="UTC")
    grid = pd.DatetimeIndex(sorted({*last[kept], last[-1]}))
    frame = pd.DataFrame({"a": returns}, index=index)
    found = backtest_leaders._regridded(frame, grid)
    assert len(found) == len(grid)
    assert math.prod(1 + found["a"]) == pytest.approx(math.prod(1 + one for one in returns), abs=1e-9)


# --- the model that is trained anew for each fold ------------------------------------------------


@pytest.mark.integration
def test_the_walk_forward_model_knows_nothing_of_what_comes_after() -> None:
    frames = {symbol: market(seed, 2_000) for seed, symbol in enumerate(SYMBOLS)}
    windows = tuple(Window(symbol, Timeframe.H1, START, START + timedelta(hours=2_000)) for symbol in SYMBOLS)
    dataset = Dataset(windows, dict.fromkeys(SYMBOLS, 2_000), "d", "simulated", dict.fromkeys(SYMBOLS, "24/7"), {})
    request = asked("walk_forward", model=WalkForwardModel("logistic", horizon=4, folds=3, buy_threshold=0.002))
    before = backtest_models.walk_forward_targets(frames, dataset, request)
    # another future from inside the last fold on
    changed = {symbol: frame.copy() for symbol, frame in frames.items()}
    for frame in changed.values():
        frame.iloc[1_900:, :4] *= np.linspace(1, 3, 100)[:, None]
    after = backtest_models.walk_forward_targets(changed, dataset, request)
    for symbol in SYMBOLS:
        (targets, first), (others, other_first) = before[symbol], after[symbol]
        assert first == other_first
        assert 1_000 < first < 1_400  # after the warm-up of the features and the first training rows
        assert not targets[:first].any()
        np.testing.assert_array_equal(targets[:1_900], others[:1_900])
        assert (targets[first:] != 0).any()


def test_figures_that_are_not_finite_are_none() -> None:
    found = backtest_runs.defined({"a": np.float64(1.5), "b": math.nan, "c": math.inf, "d": np.int64(3), "e": "x"})
    assert found == {"a": 1.5, "b": None, "c": None, "d": 3, "e": "x"}
    assert [type(value) for value in found.values()] == [float, type(None), type(None), int, str]
