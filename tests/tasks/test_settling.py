"""Settlements: by hand, once, from finished candles only, without hindsight, on equal terms; and what follows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from tasks import ledger
from tasks.scoreboards import put_scoreboard, scoreboard, scoreboard_at, tally, weights_at
from tasks.settling import SettleRequest, settle_all, settlements
from tasks.store import SETTLEMENTS, Store, analyses, open_store, put_analysis, write_candles
from trading.analysis import Signal
from trading.calendars import expected_opens
from trading.candles import frame_of
from trading.scoring import settle
from trading.window import Timeframe, Window

START = datetime(2024, 1, 1, tzinfo=UTC)
BARS, HORIZON = 120, 4
COST = 0.0015
RNG = np.random.default_rng(6)
OPENS = 100 * np.exp(np.cumsum(RNG.normal(0, 0.01, BARS)))
REQUEST = SettleRequest(Timeframe.H1, START, START + timedelta(hours=BARS))


def at(bar: int) -> datetime:
    return START + timedelta(hours=bar)


def candles_of(bars: list[int]) -> object:
    stamps = [int(at(bar).timestamp() * 1000) for bar in bars]
    prices = OPENS[bars]
    return frame_of(stamps, np.column_stack([prices, prices * 1.02, prices * 0.98, prices, np.full(len(bars), 5.0)]))


def approve(store: Store, symbol: str, bars: list[int], *, upto: int = BARS) -> None:
    window = Window(symbol, Timeframe.H1, START, at(upto))
    written = write_candles(store, window, candles_of(bars), "simulated")  # type: ignore[arg-type]
    ledger.record(
        store,
        ledger.LedgerEntry(
            window=window, status=ledger.APPROVED, rows=len(bars), added=written.added, quarantined={}, gaps=0,
            digest=written.digest, suite="2", flow_run_id=None, data_mode="simulated", source="sandbox",
            calendar="24/7", recorded_at=at(upto),
        ),
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


def say(
    store: Store, bar: int, signal: Signal, *, symbol: str = "AAA", sure: float = 0.6, late: timedelta = timedelta(0),
    llm: Signal | None = None, version: str = "7", horizon: int = 0,
) -> None:  # fmt: skip
    """An analysis of the bar that closes at ``at(bar)``: the model says ``signal`` and RSI the opposite."""
    opposite = {Signal.LONG: Signal.SHORT, Signal.SHORT: Signal.LONG, Signal.NEUTRAL: Signal.NEUTRAL}[signal]

    def opinion(analyst: str, side: Signal, **more: object) -> dict[str, object]:
        return {
            "analyst": analyst, "signal": side.value, "confidence": sure, "provenance": {}, "horizon": 0, "parts": [],
            **more,
        }  # fmt: skip

    opinions = [
        opinion("model", signal, provenance={"model": "AAA-1h", "version": version}, horizon=horizon),
        opinion("technical", opposite, parts=[opinion("rsi", opposite, provenance={"version": "period=14"})]),
    ]
    if llm is not None:
        opinions.append(opinion("llm", llm, provenance={"model": "stub"}))
    put_analysis(
        store,
        {
            "symbol": symbol, "timeframe": "1h", "timestamp": at(bar), "horizon": HORIZON, "price": 1.0,
            "analysis": {
                "signal": signal.value, "confidence": sure, "opinions": opinions,
                "compared": [opinion("challenger", signal, provenance={"model": "AAA-1h", "version": "8"})],
            },
            "spent": {"llm": 0.02} if llm is not None else {}, "data_mode": "simulated",
            "created_at": at(bar) + late,
        },
    )  # fmt: skip


def test_every_opinion_is_settled_by_hand_and_on_equal_terms(store: Store) -> None:
    approve(store, "AAA", list(range(BARS)))
    say(store, 10, Signal.LONG, llm=Signal.SHORT)
    found = settle_all(store, ["AAA"], REQUEST, now=at(BARS))
    assert (found.fresh, found.known, found.early, found.waiting, found.errors) == (1, 0, 0, [], [])
    [one] = settlements(store, Timeframe.H1, START, at(BARS))
    # the bar that closed at 10 is followed by the one that opened at 10, and left at the open of 14
    assert (one["entry_at"], one["exit_at"]) == (at(10), at(14))
    results = {result["analyst"]: result for result in one["results"]}
    assert list(results) == ["combined", "model", "technical", "rsi", "llm", "challenger"]
    moved = OPENS[14] / OPENS[10] - 1
    for result in results.values():
        assert result["moved"] == pytest.approx(moved)
        assert result["profit"] == pytest.approx(settle(Signal(result["signal"]), OPENS[10], OPENS[14], COST))
        assert result["idle"] == (abs(moved) <= COST * (2 + moved))
    assert results["llm"]["profit"] == results["technical"]["profit"]
    assert results["model"]["profit"] + results["llm"]["profit"] == pytest.approx(-2 * COST * (2 + moved))
    assert {name: result["usd"] for name, result in results.items() if result["usd"]} == {"llm": 0.02}
    assert results["model"]["version"] == "AAA-1h 7"
    assert (one["data_mode"], one["hindsight"], one["cost_per_side"]) == ("simulated", False, COST)


def test_a_second_run_settles_nothing_twice(store: Store) -> None:
    approve(store, "AAA", list(range(BARS)))
    for bar in range(5, 30):
        say(store, bar, Signal.LONG if bar % 2 else Signal.SHORT)
    first = settle_all(store, ["AAA"], REQUEST, now=at(BARS))
    before = store.documents.find(SETTLEMENTS)
    again = settle_all(store, ["AAA"], REQUEST, now=at(BARS) + timedelta(days=1))
    assert (first.fresh, again.fresh, again.known) == (25, 0, 25)
    assert store.documents.find(SETTLEMENTS) == before
    assert scoreboard(store, REQUEST).digest == scoreboard(store, REQUEST).digest


@pytest.mark.parametrize(("stored", "fresh"), [(14, 0), (15, 1), (16, 1)])
def test_an_unfinished_candle_is_never_used(store: Store, stored: int, fresh: int) -> None:
    # of bar 14, at whose open the analysis of 10 is left, nothing is known before it is over
    approve(store, "AAA", list(range(stored)), upto=stored)
    say(store, 10, Signal.LONG)
    found = settle_all(store, ["AAA"], replace(REQUEST, end=at(stored)), now=at(stored))
    assert (found.fresh, found.early, found.waiting) == (fresh, 1 - fresh, [])


@pytest.mark.parametrize("gap", [10, 14])
def test_a_missing_candle_is_waited_for_and_said_so(store: Store, gap: int) -> None:
    approve(store, "AAA", [bar for bar in range(BARS) if bar != gap])
    say(store, 10, Signal.LONG)
    say(store, 40, Signal.LONG)
    found = settle_all(store, ["AAA"], REQUEST, now=at(BARS))
    assert found.fresh == 1
    assert found.waiting == [f"AAA|1h|2024-01-01T10:00:00Z waits for the candle of {at(gap):%Y-%m-%dT%H:%MZ}"]
    # it came late; a gap between fill and end matters to nobody
    approve(store, "AAA", [bar for bar in range(BARS) if bar != 12])
    again = settle_all(store, ["AAA"], REQUEST, now=at(BARS))
    assert (again.fresh, again.known, again.waiting) == (1, 1, [])


def test_what_was_said_with_hindsight_is_left_out_or_marked_and_weighs_nothing(store: Store) -> None:
    approve(store, "AAA", list(range(BARS)))
    for bar in range(5, 100, 9):
        # a replay that knew the future, and is always right
        side = Signal.LONG if OPENS[bar + HORIZON] > OPENS[bar] else Signal.SHORT
        say(store, bar, side, late=timedelta(hours=1, seconds=1))
    assert settle_all(store, ["AAA"], REQUEST, now=at(BARS)).late_made == 11
    shown = replace(REQUEST, hindsight=True)
    assert settle_all(store, ["AAA"], shown, now=at(BARS)).fresh == 11
    assert scoreboard(store, REQUEST).settled == 0
    board = scoreboard(store, shown)
    who = ("model", "AAA-1h 7", "analyst")
    assert (board.settled, board.hindsight, board.figures[who].hit_rate) == (11, 11, 1.0)
    assert board.figures[who].weight > 1
    assert set(board.weights.values()) == {1.0}
    # one that came while its fill could still be had is no hindsight
    say(store, 101, Signal.LONG, late=timedelta(hours=1))
    assert settle_all(store, ["AAA"], REQUEST, now=at(BARS)).fresh == 1


def test_a_model_is_settled_over_its_own_horizon_and_nothing_before_the_longest_is_over(store: Store) -> None:
    approve(store, "AAA", list(range(20)), upto=20)
    say(store, 10, Signal.LONG, horizon=12)
    short = settle_all(store, ["AAA"], replace(REQUEST, end=at(20)), now=at(20))
    assert (short.fresh, short.early) == (0, 1)
    approve(store, "AAA", list(range(BARS)))
    settle_all(store, ["AAA"], REQUEST, now=at(BARS))
    [one] = settlements(store, Timeframe.H1, START, at(BARS))
    ends = {result["analyst"]: OPENS[10 + result["horizon"]] / OPENS[10] - 1 for result in one["results"]}
    assert {result["analyst"]: result["horizon"] for result in one["results"]}["model"] == 12
    assert all(result["moved"] == pytest.approx(ends[result["analyst"]]) for result in one["results"])
    assert one["exit_at"] == at(22)


def sessions(store: Store, first: datetime, days: int) -> list[datetime]:
    """Daily candles of New York's sessions, approved; their opens."""
    window = Window("SPX", Timeframe.D1, first, first + timedelta(days=days))
    stamps = expected_opens(window, "XNYS")
    prices = 100.0 + np.arange(len(stamps))
    table = np.column_stack([prices, prices + 2, prices - 2, prices, np.full(len(stamps), 5.0)])
    written = write_candles(store, window, frame_of(stamps, table), "sample")
    ledger.record(
        store,
        ledger.LedgerEntry(
            window=window, status=ledger.APPROVED, rows=len(stamps), added=written.added, quarantined={}, gaps=0,
            digest=written.digest, suite="2", flow_run_id=None, data_mode="sample", source="files", calendar="XNYS",
            recorded_at=window.end,
        ),
    )  # fmt: skip
    return [datetime.fromtimestamp(stamp / 1000, tz=UTC) for stamp in stamps.tolist()]


def said_of(store: Store, opens: datetime, made: datetime, horizon: int) -> None:
    opinion = {"analyst": "technical", "signal": "Long", "confidence": 0.6, "provenance": {}, "horizon": 0, "parts": []}
    put_analysis(
        store,
        {
            "symbol": "SPX", "timeframe": "1d", "timestamp": opens + timedelta(days=1), "horizon": horizon,
            "price": 1.0,
            "analysis": {"signal": "Long", "confidence": 0.6, "opinions": [opinion], "compared": []},
            "spent": {}, "data_mode": "sample", "created_at": made,
        },
    )  # fmt: skip


def test_what_was_said_over_a_weekend_was_said_in_time(store: Store) -> None:
    """Friday's bar is followed by Monday's, however often it is analysed until that is over."""
    friday = datetime(2024, 3, 8, tzinfo=UTC)
    opened = sessions(store, friday - timedelta(days=7), 40)
    monday = friday + timedelta(days=3)
    said_of(store, friday, monday + timedelta(hours=23), 2)
    said_of(store, monday, monday + timedelta(days=2, seconds=1), 2)
    request = SettleRequest(Timeframe.D1, opened[0], opened[-1])
    found = settle_all(store, ["SPX"], request, now=opened[-1])
    assert (found.fresh, found.late_made) == (1, 1)
    [one] = settlements(store, Timeframe.D1, opened[0], opened[-1])
    assert (one["entry_at"], one["exit_at"], one["hindsight"]) == (monday, friday + timedelta(days=5), False)


def test_a_horizon_longer_than_the_days_looked_back_is_settled_when_it_is_over(store: Store) -> None:
    opened = sessions(store, datetime(2024, 1, 2, tzinfo=UTC), 150)
    for opens in opened:
        said_of(store, opens, opens + timedelta(days=1, minutes=2), 12)
    # every day, of the last seven days, as on schedule
    for day in range(150):
        end = opened[0] + timedelta(days=day)
        request = SettleRequest(Timeframe.D1, end - timedelta(days=7), end)
        assert settle_all(store, ["SPX"], request, now=end).fresh == 0
        settle_all(store, ["SPX"], replace(request, reach_back=True), now=end)
    done = [one["timestamp"] for one in settlements(store, Timeframe.D1, opened[0], end)]
    # all but those that are still open
    closes = [opens + timedelta(days=1) for opens in opened]
    assert done == closes[: len(done)]
    assert len([close for close in closes if close <= end]) - len(done) == 13


def test_a_symbol_that_cannot_be_settled_does_not_stop_the_others(store: Store) -> None:
    approve(store, "AAA", list(range(BARS)))
    say(store, 10, Signal.LONG)
    say(store, 10, Signal.LONG, symbol="BBB")  # analysed, and its candles are gone
    found = settle_all(store, ["BBB", "AAA", "CCC"], REQUEST, now=at(BARS))
    assert (found.fresh, len(found.waiting)) == (1, 1)
    assert found.waiting[0].startswith("BBB|1h")
    assert len(analyses(store, "BBB")) == 1


def filled(store: Store) -> None:
    """A model that is always right, rules that are always wrong, and an LLM that says as the rules do."""
    approve(store, "AAA", list(range(BARS)))
    approve(store, "BBB", list(range(BARS)))
    for bar in range(2, 112, 2):
        up = OPENS[bar + HORIZON] > OPENS[bar]
        for symbol in ("AAA", "BBB"):
            say(
                store, bar, Signal.LONG if up else Signal.SHORT, symbol=symbol,
                llm=Signal.SHORT if up else Signal.LONG,
            )  # fmt: skip
    assert settle_all(store, ["AAA", "BBB"], REQUEST, now=at(BARS)).fresh == 110


def test_the_record_weighs_who_earns_over_who_loses_by_version_and_symbol(store: Store) -> None:
    filled(store)
    board = scoreboard(store, REQUEST)
    model, llm, rsi = (
        board.figures[who]
        for who in (("model", "AAA-1h 7", "analyst"), ("llm", "stub", "analyst"), ("rsi", "period=14", "part"))
    )
    assert (model.count, model.signals, model.hit_rate) == (110, 110, 1.0)
    assert model.clusters == len({int(at(bar).timestamp()) // (2 * HORIZON * 3600) for bar in range(2, 112, 2)})
    assert model.weight > 1.5 > 0.5 > llm.weight
    # the LLM said what the rules said, and is scored as they are; it alone was paid for
    assert (llm.profit, llm.brier, llm.weight) == (rsi.profit, rsi.brier, rsi.weight)
    assert llm.usd == pytest.approx(2.2)
    assert rsi.usd == 0
    assert llm.useful == 0
    assert llm.usd_per_useful is None
    # both symbols have the same prices: errors must not shrink for it
    assert board.by_symbol[("model", "AAA-1h 7", "analyst"), "AAA"].profit_error == pytest.approx(
        model.profit_error, rel=1e-9
    )
    moves = [OPENS[bar + HORIZON] / OPENS[bar] - 1 for bar in range(2, 112, 2)]
    assert board.scale == pytest.approx(math.sqrt(float(np.mean(np.square(moves)))))
    # what is not over by the end counts for nobody
    half = scoreboard(store, replace(REQUEST, end=at(60)))
    assert half.settled == 2 * len([bar for bar in range(2, 112, 2) if bar + HORIZON < 60])


def test_what_was_paid_for_no_word_is_borne_by_the_next_one(store: Store) -> None:
    approve(store, "AAA", list(range(BARS)))
    say(store, 10, Signal.LONG)
    [stored] = analyses(store, "AAA")
    put_analysis(store, {**stored, "spent": {"llm": 0.05}})
    say(store, 20, Signal.LONG, llm=Signal.SHORT)
    settle_all(store, ["AAA"], REQUEST, now=at(BARS))
    board = scoreboard(store, REQUEST)
    assert board.figures["llm", "stub", "analyst"].usd == pytest.approx(0.07)
    assert sum(one.usd for one in board.figures.values()) == pytest.approx(0.07)


def test_generated_markets_say_nothing_of_live_ones(store: Store) -> None:
    approve(store, "AAA", list(range(BARS)))
    for bar in range(5, 100, 9):
        say(store, bar, Signal.LONG if OPENS[bar + HORIZON] < OPENS[bar] else Signal.SHORT)
    settle_all(store, ["AAA"], REQUEST, now=at(BARS))
    assert scoreboard(store, REQUEST).modes == ("simulated",)
    # from now on live candles are stored, of which nobody has a record yet
    write_candles(store, Window("BBB", Timeframe.H1, START, at(2)), candles_of([0, 1]), "live")  # type: ignore[arg-type]
    none_yet = scoreboard(store, REQUEST)
    assert (none_yet.settled, none_yet.modes, none_yet.weights) == (0, (), {})
    # candles of another bar change nothing
    other = replace(REQUEST, timeframe=Timeframe.H4)
    assert scoreboard(store, other).settled == 0


def test_an_analysis_of_the_past_weighs_by_what_was_known_then(store: Store) -> None:
    filled(store)
    for end in (40, 80, 120):
        put_scoreboard(store, scoreboard(store, replace(REQUEST, end=at(end))), f"run {end}", at(end))
    assert weights_at(store, Timeframe.H1, at(39)) == {}
    assert weights_at(store, Timeframe.H4, at(130)) == {}
    for moment, run_id in ((40, "run 40"), (79, "run 40"), (80, "run 80"), (500, "run 120")):
        known = scoreboard_at(store, Timeframe.H1, at(moment))
        assert known is not None
        assert known["run_id"] == run_id
    weights = weights_at(store, Timeframe.H1, at(120))
    assert weights["model", "AAA-1h 7"] > 1.5
    assert weights["rsi", "period=14"] < 0.5
    # a challenger that takes over brings the record of its comparison along
    assert weights["model", "AAA-1h 8"] == weights["challenger", "AAA-1h 8"]


def test_without_settlements_there_is_no_record() -> None:
    board = tally([], REQUEST)
    assert (board.figures, board.settled, board.scale, board.modes) == ({}, 0, 1.0, ())
