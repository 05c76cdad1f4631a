"""From a source to the store: nothing missing unseen, nothing invented, nothing changed in silence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tasks import gaps, ledger, quarantine
from tasks.collecting import OpenSource
from tasks.guarding import opened_sources
from tasks.ingestion import Failure, Outcome, Plan, batches, holding, ingest_windows, plan
from tasks.settings import load_settings
from tasks.store import Store, corrections, open_store, read_candles
from trading.errors import BadWindow, ExpectationFailed, SourcesDisagree, SourceUnavailable, UnknownSymbol
from trading.window import Timeframe, Window

# Great Expectations takes seconds to import and a tenth of one to judge
pytestmark = pytest.mark.integration

START, END = datetime(2018, 10, 1, tzinfo=UTC), datetime(2018, 12, 1, tzinfo=UTC)
HOURS = (END - START) // timedelta(hours=1)
NOW = datetime(2019, 1, 1, 0, 2, tzinfo=UTC)


def hour(number: int) -> datetime:
    return START + timedelta(hours=number)


def span(first: int, last: int, symbol: str = "BTCSIM") -> Window:
    return Window(symbol, Timeframe.H1, hour(first), hour(last))


class Bench:
    """A store and the sandbox as a source, with the steps of an ingest between them."""

    def __init__(self, store: Store, sandbox: Any, closing: ExitStack) -> None:
        self.store, self.sandbox, self._closing = store, sandbox, closing

    def opened(self, *kinds: str) -> list[OpenSource]:
        return self._closing.enter_context(opened_sources(load_settings(), self.store, kinds, metered=False))

    def plan(self, symbols: list[str], first: int = 0, last: int = HOURS, **options: Any) -> list[Plan]:
        (source,) = self.opened("exchange")
        return plan(self.store, source(), symbols, Timeframe.H1, hour(first), hour(last), **options)

    def ingest(
        self,
        first: int = 0,
        last: int = HOURS,
        *,
        kinds: tuple[str, ...] = ("exchange",),
        compare: str | None = None,
        bad: float = 0.0,
        symbol: str = "BTCSIM",
        now: datetime = NOW,
        **options: Any,
    ) -> tuple[list[Outcome], list[Failure]]:
        outcomes: list[Outcome] = []
        failures: list[Failure] = []
        for batch in batches(self.plan([symbol], first, last, **options)):
            good, failed = ingest_windows(
                self.store,
                self.opened(*kinds),
                batch,
                now=now,
                max_bad_share=bad,
                flow_run_id=None,
                compare=self.opened(compare)[0] if compare else None,
            )
            outcomes += good
            failures += failed
        return outcomes, failures

    def one(self, *arguments: Any, **options: Any) -> Outcome:
        ([outcome], failures) = self.ingest(*arguments, **options)
        assert not failures
        return outcome

    def failed(self, *arguments: Any, **options: Any) -> Failure:
        (_, [failure]) = self.ingest(*arguments, **options)
        return failure

    def truth(self, first: int = 0, last: int = HOURS) -> pd.DataFrame:
        """What the exchange has, straight from its memory."""
        from trading.candles import between, frame_of

        market = self.sandbox.state.markets["BTCSIM", Timeframe.H1]
        return between(frame_of(market.opens, market.values), span(first, last))

    def held(self, first: int = 0, last: int = HOURS) -> pd.DataFrame:
        return read_candles(self.store, span(first, last))


@pytest.fixture
def bench(tmp_path: Path, sandbox: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("TRADEFLOWS_HOME", str(tmp_path))
    monkeypatch.setenv("TRADEFLOWS_EXCHANGE_URL", sandbox.url)
    monkeypatch.setenv("TRADEFLOWS_SOURCE_PAUSE", "0.001")
    with open_store(tmp_path) as store, ExitStack() as closing:
        yield Bench(store, sandbox, closing)


# --- what is to do -------------------------------------------------------------------------------


@pytest.mark.integration
def test_only_what_is_missing_is_fetched(bench: Bench) -> None:
    assert bench.one(0, 100).added == 100
    assert bench.one(200, 300).added == 100
    outcomes, _ = bench.ingest(0, 400)
    assert [(outcome.window.start, outcome.added) for outcome in outcomes] == [(hour(100), 100), (hour(300), 100)]
    bench.sandbox.forget_requests()
    assert bench.ingest(0, 400) == ([], [])
    assert "klines" not in bench.sandbox.requests()
    pd.testing.assert_frame_equal(bench.held(0, 400), bench.truth(0, 400), check_exact=True)


def test_a_market_that_opened_later_begins_later(bench: Bench) -> None:
    first = datetime(2016, 1, 1, tzinfo=UTC)
    (source,) = bench.opened("exchange")
    [planned] = plan(bench.store, source(), ["BTCSIM"], Timeframe.H1, datetime(2010, 1, 1, tzinfo=UTC), END)
    assert planned.wanted.start == first
    assert planned.missing[0].start == first
    # what is known of the listing serves those who read
    asked = Window("BTCSIM", Timeframe.H1, datetime(2010, 1, 1, tzinfo=UTC), END)
    assert ledger.since_listed(bench.store, asked).start == first


def test_nothing_is_planned_for_a_symbol_that_is_unknown_or_a_window_that_is_not_over(bench: Bench) -> None:
    with pytest.raises(UnknownSymbol):
        bench.plan(["BTCSIM", "NOPE"])
    with pytest.raises(BadWindow, match="is not over"):
        bench.plan(["BTCSIM"], 0, HOURS + 24 * 60)


def test_batches_are_bounded_whatever_the_number_of_symbols(bench: Bench) -> None:
    plans = bench.plan(["BTCSIM", "ETHSIM", "SOLSIM"])
    made = batches(plans, bars=2 * HOURS)
    assert [len(batch) for batch in made] == [2, 1]
    assert all(sum(wanted.window.slots for wanted in batch) <= 2 * HOURS for batch in made)
    assert [wanted.window for batch in made for wanted in batch] == [part for one in plans for part in one.missing]
    assert batches([]) == []


def test_a_batch_that_is_tried_again_does_only_what_is_left(bench: Bench) -> None:
    [batch] = batches(bench.plan(["BTCSIM", "ETHSIM"]))
    options: dict[str, Any] = {"now": NOW, "max_bad_share": 0.0, "flow_run_id": None}
    ingest_windows(bench.store, bench.opened("exchange"), batch[:1], **options)
    again, _ = ingest_windows(bench.store, bench.opened("exchange"), batch, **options)
    assert [outcome.window.symbol for outcome in again] == ["ETHSIM"]


# --- gaps ----------------------------------------------------------------------------------------


def test_a_gap_that_the_source_confirms_is_on_record_and_nothing_is_invented(bench: Bench) -> None:
    bench.sandbox.cut("BTCSIM", "1h", hour(10), hour(15))
    bench.sandbox.cut("BTCSIM", "1h", hour(40), hour(41))
    outcome = bench.one(0, 100)
    assert (outcome.added, outcome.gaps, outcome.waiting) == (94, 6, 0)
    found = [(one.gap.start, one.gap.bars, one.asked) for one in gaps.find(bench.store, "BTCSIM", "1h")]
    assert found == [(hour(10), 5, 1), (hour(40), 1, 1)]
    pd.testing.assert_frame_equal(bench.held(0, 100), bench.truth(0, 100), check_exact=True)
    [entry] = ledger.entries(bench.store, "BTCSIM", "1h")
    assert (entry.status, entry.gaps) == ("approved", 6)
    assert bench.ingest(0, 100) == ([], [])


def test_rows_that_a_reply_lost_are_asked_for_again(bench: Bench) -> None:
    bench.sandbox.set_faults(missing=0.2, seed=5)
    outcome = bench.one(0, 800)
    assert (outcome.added, outcome.gaps) == (800, 0)
    assert gaps.find(bench.store, "BTCSIM", "1h") == []


def test_a_gap_that_is_filled_later_is_repaired_when_asked_for(bench: Bench) -> None:
    bench.sandbox.cut("BTCSIM", "1h", hour(10), hour(15))
    bench.one(0, 100)
    assert (bench.one(0, 100, repair=True).gaps, bench.one(0, 100, repair=True).repaired) == (5, 0)
    assert [one.asked for one in gaps.find(bench.store, "BTCSIM", "1h")] == [3]
    before = holding(bench.store, span(0, 100))
    bench.sandbox.restore()
    assert bench.ingest(0, 100) == ([], [])
    mended = bench.one(0, 100, repair=True)
    assert (mended.added, mended.repaired, mended.gaps) == (5, 5, 0)
    assert len(mended.corrections) == 5
    assert "came late" in mended.corrections[0]
    assert gaps.find(bench.store, "BTCSIM", "1h") == []
    assert [one.status for one in gaps.find(bench.store, "BTCSIM", "1h", None)] == ["repaired"]
    pd.testing.assert_frame_equal(bench.held(0, 100), bench.truth(0, 100), check_exact=True)
    # the record of the whole window knows its candles as they are now
    whole = next(one for one in ledger.entries(bench.store, "BTCSIM", "1h") if one.window == span(0, 100))
    assert whole.digest == holding(bench.store, span(0, 100)).digest != before.digest


def test_bars_that_are_not_there_yet_are_waited_for_and_not_called_a_gap(bench: Bench) -> None:
    bench.sandbox.set_clock(f"{hour(100) + timedelta(minutes=2):%Y-%m-%dT%H:%M:%SZ}")
    bench.sandbox.set_faults(late=2 * 3600)
    outcome = bench.one(0, 100)
    assert (outcome.window, outcome.added, outcome.waiting, outcome.gaps) == (span(0, 98), 98, 2, 0)
    assert ledger.missing(bench.store, span(0, 100)) == [span(98, 100)]
    assert gaps.find(bench.store, "BTCSIM", "1h") == []
    nothing = bench.one(0, 100)
    assert (nothing.added, nothing.waiting, nothing.window) == (0, 2, span(98, 100))
    bench.sandbox.set_faults()
    assert (bench.one(0, 100).added, bench.ingest(0, 100)) == (2, ([], []))


def test_a_bar_that_was_put_aside_at_the_end_of_a_window_is_not_waited_for(bench: Bench) -> None:
    """The source has it, and moved on: no later ingest would bring another."""
    bench.sandbox.correct("BTCSIM", "1h", hour(49), volume=0.0)
    outcome = bench.one(0, 50)
    assert (outcome.window, outcome.added, outcome.waiting, outcome.gaps) == (span(0, 50), 49, 0, 1)
    assert dict(outcome.quarantined) == {"untraded_move": 1}
    assert ledger.missing(bench.store, span(0, 50)) == []
    again = bench.one(0, 50, repair=True)
    assert (again.added, again.waiting, again.gaps) == (0, 0, 1)


def test_a_row_put_aside_in_a_window_that_waited_is_healed_by_the_candle_that_came(bench: Bench) -> None:
    # it is the newest that the source has, which may bring it again
    bench.sandbox.set_clock(f"{hour(100) + timedelta(minutes=2):%Y-%m-%dT%H:%M:%SZ}")
    bench.sandbox.set_faults(late=1)
    traded = float(bench.truth(99, 100)["volume"].iloc[0])
    bench.sandbox.correct("BTCSIM", "1h", hour(99), volume=0.0)
    first = bench.one(99, 100)
    assert (first.waiting, dict(first.quarantined), len(bench.held(99, 100))) == (1, {}, 0)
    [row] = quarantine.find(bench.store, "BTCSIM", "1h")
    assert row["status"] == "held"
    bench.sandbox.correct("BTCSIM", "1h", hour(99), volume=traded)
    assert bench.one(99, 100).added == 1
    [row] = quarantine.find(bench.store, "BTCSIM", "1h")
    assert row["status"] == "healed"


def test_a_whole_window_without_a_candle_is_a_gap_only_if_the_source_has_moved_on(bench: Bench) -> None:
    bench.sandbox.cut("BTCSIM", "1h", hour(0), hour(50))
    outcome = bench.one(10, 20)
    assert (outcome.added, outcome.gaps, outcome.waiting) == (0, 10, 0)
    assert [one.gap.bars for one in gaps.find(bench.store, "BTCSIM", "1h")] == [10]
    bench.sandbox.cut("BTCSIM", "1h", hour(50), NOW + timedelta(days=60))
    outcome = bench.one(60, 70)
    assert (outcome.added, outcome.gaps, outcome.waiting) == (0, 0, 10)
    assert ledger.missing(bench.store, span(60, 70)) == [span(60, 70)]


def test_fifty_eight_minutes_are_missing_and_no_more(
    shared: Path, tmp_path: Path, sandbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deployments.sandbox.markets import from_folder

    folder = tmp_path / "candles"
    folder.mkdir()
    [source] = (shared / "data").glob("jesse_testcandles0_1m.*")
    (folder / f"JESSE_1m{source.suffix}").write_bytes(source.read_bytes())
    sandbox.state.markets = from_folder(folder)
    monkeypatch.setenv("TRADEFLOWS_EXCHANGE_URL", sandbox.url)
    monkeypatch.setenv("TRADEFLOWS_HOME", str(tmp_path))
    with open_store(tmp_path) as store, opened_sources(load_settings(), store, ["exchange"], metered=False) as sources:
        start = datetime(2019, 3, 29, tzinfo=UTC)
        sandbox.set_clock("2019-03-30T00:02:00Z")
        plans = plan(store, sources[0](), ["JESSE"], Timeframe.M1, start, start + timedelta(days=1))
        [batch] = batches(plans)
        ([outcome], []) = ingest_windows(store, sources, batch, now=NOW, max_bad_share=0.0, flow_run_id=None)
        assert (outcome.added, outcome.gaps, dict(outcome.quarantined)) == (1382, 58, {})
        found = gaps.find(store, "JESSE", "1m")
        assert (len(found), sum(one.gap.bars for one in found)) == (52, 58)


# --- late corrections ----------------------------------------------------------------------------


def test_a_late_correction_is_found_recorded_and_reported(bench: Bench) -> None:
    bench.one(0, 100)
    old = bench.truth(50, 51).iloc[0]
    bench.sandbox.correct("BTCSIM", "1h", hour(50), close=float(old["close"]), high=float(old["high"]) + 7)
    assert bench.ingest(0, 100) == ([], [])
    outcome = bench.one(0, 100, recheck=60)
    assert (outcome.window, outcome.changed, outcome.added) == (span(40, 100), 1, 0)
    assert len(outcome.corrections) == 1
    [correction] = corrections(bench.store, "BTCSIM", "1h")
    assert (correction.open_time, correction.revision.at) == (hour(50), NOW)
    assert correction.old is not None
    assert correction.new[1] - correction.old[1] == pytest.approx(7)
    [first, second] = ledger.entries(bench.store, "BTCSIM", "1h")
    assert (first.window, second.window, second.changed) == (span(0, 100), span(40, 100), 1)
    assert first.digest == holding(bench.store, span(0, 100)).digest
    # nothing more to say the next time
    assert bench.one(0, 100, recheck=60).corrections == ()


def test_a_recheck_takes_new_bars_along_and_changes_nothing_that_is_equal(bench: Bench) -> None:
    bench.one(0, 100)
    outcomes, _ = bench.ingest(0, 110, recheck=20)
    assert [(outcome.window, outcome.added, outcome.changed) for outcome in outcomes] == [
        (span(100, 110), 10, 0),
        (span(90, 100), 0, 0),
    ]


def test_a_candle_that_the_source_no_longer_gives_stays(bench: Bench) -> None:
    bench.one(0, 100)
    bench.sandbox.cut("BTCSIM", "1h", hour(95), hour(97))
    outcome = bench.one(0, 100, recheck=20)
    assert (outcome.withdrawn, outcome.changed, outcome.gaps) == (2, 0, 0)
    assert len(bench.held(0, 100)) == 100
    assert gaps.find(bench.store, "BTCSIM", "1h") == []


# --- bad rows ------------------------------------------------------------------------------------


def test_bad_rows_are_listed_and_the_good_ones_come_with_the_next_answer(bench: Bench) -> None:
    bench.sandbox.set_faults(malformed=0.05, duplicated=0.05, shuffled=1.0, seed=11)
    outcome = bench.one(0, 1000, bad=0.2)
    assert outcome.quarantined["inconsistent"] >= 20
    assert outcome.quarantined["duplicate"] >= 20
    pd.testing.assert_frame_equal(bench.held(0, 1000), bench.truth(0, 1000), check_exact=True)
    aside = quarantine.find(bench.store, "BTCSIM", "1h")
    assert len(aside) >= outcome.quarantined["inconsistent"] + outcome.quarantined["duplicate"]
    # each of them is explained by a candle that is stored now
    assert {row["status"] for row in aside} == {"healed"}


def test_too_many_impossible_rows_refuse_the_window_and_no_other(bench: Bench) -> None:
    bench.one(0, 10)
    bench.sandbox.set_faults(malformed=0.3, seed=2)
    failure = bench.failed(0, 500)
    assert isinstance(failure.error, ExpectationFailed)
    assert len(bench.held(0, 500)) == 10
    assert [entry.status for entry in ledger.entries(bench.store, "BTCSIM", "1h")] == ["approved", "refused"]
    bench.sandbox.set_faults()
    assert bench.one(0, 500).added == 490


# --- several sources -----------------------------------------------------------------------------


def test_a_fallback_is_asked_where_the_source_is_down(
    bench: Bench, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.one(0, 100)
    plans = bench.plan(["BTCSIM"], 0, 150)
    monkeypatch.setenv("TRADEFLOWS_MIRROR_URL", bench.sandbox.url)
    monkeypatch.setenv("TRADEFLOWS_EXCHANGE_URL", f"http://127.0.0.1:{closed_port}")
    [batch] = batches(plans)
    options: dict[str, Any] = {"now": NOW, "max_bad_share": 0.0, "flow_run_id": None}
    ([], [failure]) = ingest_windows(bench.store, bench.opened("exchange"), batch, **options)
    assert isinstance(failure.error, SourceUnavailable)
    ([outcome], []) = ingest_windows(bench.store, bench.opened("exchange", "mirror"), batch, **options)
    assert (outcome.added, outcome.source) == (50, "mirror 127.0.0.1")
    assert "did not answer" in outcome.warnings[0]
    assert "differ by 0.000%" in outcome.warnings[0]
    pd.testing.assert_frame_equal(bench.held(0, 150), bench.truth(0, 150), check_exact=True)


@pytest.mark.parametrize(("factor", "agrees"), [(1.005, True), (1.02, False)])
def test_a_fallback_with_other_prices_is_refused(
    bench: Bench, closed_port: int, monkeypatch: pytest.MonkeyPatch, factor: float, agrees: bool
) -> None:
    from dataclasses import replace

    bench.one(0, 100)
    plans = bench.plan(["BTCSIM"], 0, 150)
    markets = dict(bench.sandbox.state.markets)
    market = markets["BTCSIM", Timeframe.H1]
    values = market.values.copy()
    values[:, :4] *= factor
    bench.sandbox.state.markets = {**markets, ("BTCSIM", Timeframe.H1): replace(market, values=values)}
    monkeypatch.setenv("TRADEFLOWS_MIRROR_URL", bench.sandbox.url)
    monkeypatch.setenv("TRADEFLOWS_EXCHANGE_URL", f"http://127.0.0.1:{closed_port}")
    [batch] = batches(plans)
    outcomes, failures = ingest_windows(
        bench.store, bench.opened("exchange", "mirror"), batch, now=NOW, max_bad_share=0.0, flow_run_id=None
    )
    assert len(outcomes) == agrees
    if not agrees:
        assert isinstance(failures[0].error, SourcesDisagree)
        assert "differ by 2.00% (median) from the stored candles" in str(failures[0].error)
        assert len(bench.held(0, 150)) == 100


def test_prices_are_compared_with_another_source(bench: Bench, stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRADEFLOWS_MIRROR_URL", bench.sandbox.url)
    assert bench.one(0, 100, compare="mirror").added == 100


def test_a_compared_source_that_has_none_of_the_bars_refuses_the_window(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    bench.truth(500, 600).reset_index().to_csv(folder / "BTCSIM_1h.csv", index=False)
    monkeypatch.setenv("TRADEFLOWS_CANDLE_FOLDER", str(folder))
    failure = bench.failed(0, 100, compare="files")
    assert isinstance(failure.error, SourcesDisagree)
    assert "nothing can be compared" in str(failure.error)
    assert bench.held(0, 100).empty
    assert bench.one(500, 600, compare="files").added == 100
