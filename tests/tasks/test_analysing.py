"""What a run makes of what analysts say: who is heard, what is stored, reused and told, and whose fault stops whom."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.labels import LabelDefinition
from ml.model import Prediction
from tasks import ledger
from tasks.analysing import Ask, conclude, hear
from tasks.analysis_documents import Analysed
from tasks.documents import Collection, Document
from tasks.looks import Look
from tasks.model_analyst import Judged, Models, judge_predictions, sound
from tasks.models import Champion
from tasks.panels import AnalysisRequest, Panel
from tasks.signals import Changed
from tasks.store import ANALYSES, SIGNALS, Store, analyses, open_store, write_candles
from tasks.technical_analyst import selection
from trading.analysis import Abstention, Cost, Opinion, Signal
from trading.candles import frame_of
from trading.errors import CandleGap, InsufficientHistory, StoreUnavailable
from trading.window import Timeframe, Window

START, END = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 11, tzinfo=UTC)
SYMBOLS = ["AAA", "BBB", "CCC"]
GOOD = Prediction(datetime(2024, 1, 10, 23, tzinfo=UTC), Signal.LONG, 0.6, 0.1, 0.3, 0.6, ("it said so",))


def window_of(symbol: str) -> Window:
    return Window(symbol, Timeframe.H1, START, END)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        for at, symbol in enumerate(SYMBOLS):
            window = window_of(symbol)
            rng = np.random.default_rng(at)
            close = 100 * (at + 1) * np.exp(np.cumsum(rng.normal(0, 0.004, window.slots)))
            values = [close, close * 1.001, close * 0.999, close, rng.uniform(1, 10, window.slots)]
            stamps = int(START.timestamp() * 1000) + 3_600_000 * np.arange(window.slots)
            written = write_candles(opened, window, frame_of(stamps, np.column_stack(values)), "simulated")
            ledger.record(
                opened,
                ledger.LedgerEntry(
                    window=window,
                    status=ledger.APPROVED,
                    rows=window.slots,
                    added=written.added,
                    quarantined={},
                    gaps=0,
                    digest=written.digest,
                    suite="2",
                    flow_run_id=None,
                    data_mode="simulated",
                    source="sandbox",
                    calendar="24/7",
                    recorded_at=END,
                ),
            )
        yield opened


@dataclass
class Oracle:
    """A model that says what it was told to say; prices near 100, 200 and 300 tell it the symbol."""

    says: Mapping[str, Prediction | Exception] = field(default_factory=dict)

    label: LabelDefinition = field(default_factory=lambda: LabelDefinition(horizon=4))
    rows_needed: int = 3
    asked: list[str] = field(default_factory=list)

    def row(self, candles: pd.DataFrame, calendar: str | None = None) -> str:
        symbol = SYMBOLS[round(float(candles["close"].iloc[0]) / 100) - 1]
        self.asked.append(symbol)
        said = self.says[symbol]
        if isinstance(said, Exception):
            raise said
        return symbol

    def predictions(self, rows: Sequence[str]) -> list[Prediction]:
        return [said for symbol in rows if isinstance(said := self.says[symbol], Prediction)]


def champion_of(
    says: Mapping[str, Prediction | Exception], degraded: str | None = None, version: str = "7"
) -> Champion:
    model: Any = Oracle(says)
    return Champion(model, "AAA-BBB-CCC-1h", version, "run", "trees", 0, "sha", "http://models/7", degraded)


REQUEST = AnalysisRequest(Timeframe.H1, START, END)
QUIET = Panel(Models(abstention=Abstention("model", "there is no champion")), selection())


@dataclass
class Runs:
    """Runs what the tasks run, on one store; remembers what was told."""

    store: Store
    told: list[Changed] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __call__(
        self,
        panel: Panel | Mapping[str, Prediction | Exception],
        *,
        symbols: Sequence[str] = SYMBOLS,
        request: AnalysisRequest = REQUEST,
        ask: Ask | None = None,
        now: datetime = END,
    ) -> list[Analysed]:
        chosen = panel if isinstance(panel, Panel) else Panel(Models(champion_of(panel)), selection())
        heard, self.errors = hear(self.store, symbols, request, chosen, ask, now=now)
        return conclude(self.store, heard, chosen, now=now, flow_run_id="a run", tell=self.told.append)


@pytest.fixture
def run(store: Store) -> Runs:
    return Runs(store)


def spread(count: int = 3) -> list[Prediction]:
    return [replace(GOOD, p_short=0.1 + at / 100, p_neutral=0.3 - at / 100) for at in range(count)]


def sayings() -> dict[str, Prediction | Exception]:
    return dict(zip(SYMBOLS, spread(), strict=True))


def test_model_and_rules_are_heard_and_what_is_stored_leads_back_to_them(run: Runs, store: Store) -> None:
    rows = run(sayings())
    assert run.errors == []
    assert [row.symbol for row in rows] == SYMBOLS
    assert all(row.model_version == "v7 trees" for row in rows)
    assert all(row.reasons[0].startswith("model: Long (0.60): it said so") for row in rows)
    assert {row.basis for row in rows} == {"all"}
    [stored] = analyses(store, "BBB")
    # what the engine reads
    assert stored["timestamp"] == END
    assert stored["created_at"] == END
    assert stored["analysis"]["signal"] in {"Long", "Short", "Neutral"}
    assert 0 <= stored["analysis"]["confidence"] <= 1
    assert "model: Long (0.60): it said so" in stored["analysis"]["reasoning"]
    # and what leads back
    assert stored["model"] == {
        "name": "AAA-BBB-CCC-1h", "version": "7", "run_id": "run", "degraded": None, "estimator": "trees",
    }  # fmt: skip
    assert stored["analysis"]["absent"] == []
    assert (stored["basis"], stored["horizon"], stored["flow_run_id"]) == ("all", 4, "a run")
    assert len(stored["candles_digest"]) == len(stored["inputs_digest"]) == 64
    model, technical = stored["analysis"]["opinions"]
    assert (model["analyst"], model["horizon"], model["provenance"]["version"]) == ("model", 4, "7")
    assert [part["analyst"] for part in technical["parts"]] == ["rsi", "macd", "volume", "bollinger"]
    assert all(opinion["latency"] >= 0 for opinion in (model, technical))
    assert sum(stored["analysis"]["weights"].values()) == pytest.approx(1)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ({"p_long": float("nan"), "confidence": float("nan")}, "p_long must not be null"),
        ({"p_long": 1.6}, "p_long must be at least .* and at most 1: 1.6"),
        ({"confidence": 1.5}, "confidence must be at least 0 and at most 1: 1.5"),
    ],
)
def test_a_prediction_that_is_none_is_refused_by_name_and_only_that(
    run: Runs, store: Store, broken: dict[str, Any], why: str
) -> None:
    one, two, three = spread()
    rows = run({"AAA": one, "BBB": replace(two, **broken), "CCC": three})
    assert run.errors == []
    assert [row.model_version for row in rows] == ["v7 trees", None, "v7 trees"]
    refused = rows[1]
    assert refused.reasons[0] == "model was not available"
    assert re.search(f"the prediction of AAA-BBB-CCC-1h version 7 was refused: .*{why}", refused.reasons[-1])
    assert refused.absent["model"] == refused.reasons[-1]
    assert refused.basis == "technical"
    [stored] = analyses(store, "BBB")
    assert stored["model"] is None
    assert stored["analysis"]["absent"] == ["model"]
    assert "was refused" in stored["analysis"]["reasoning"]
    assert [opinion["analyst"] for opinion in stored["analysis"]["opinions"]] == ["technical"]


def test_a_model_that_says_the_same_of_all_symbols_is_reported_with_each(run: Runs) -> None:
    rows = run(dict.fromkeys(SYMBOLS, GOOD))
    assert all(row.model_version == "v7 trees" for row in rows)
    assert all(row.reasons[-1] == "warning: distinct predictions must be at least 2: 1 among 3" for row in rows)


def test_where_the_model_has_too_little_to_go_by_the_rules_speak_and_the_analysis_says_why(
    run: Runs, store: Store
) -> None:
    one, _, _ = spread()
    rows = run(
        {"AAA": one, "BBB": InsufficientHistory("a prediction needs more"), "CCC": CandleGap("bars are missing")}
    )
    assert run.errors == []
    assert [row.symbol for row in rows] == SYMBOLS
    assert [row.model_version for row in rows] == ["v7 trees", None, None]
    for row, why in zip(rows[1:], ("a prediction needs more", "bars are missing"), strict=True):
        assert row.reasons[-1] == f"AAA-BBB-CCC-1h version 7 is silent: {why}"
        [stored] = analyses(store, row.symbol)
        assert stored["analysis"]["absent"] == ["model"]
        assert stored["analysis"]["abstentions"] == [{"analyst": "model", "reason": row.reasons[-1], "cost": None}]


def test_the_model_sees_as_many_bars_as_it_needs_however_short_the_request(run: Runs, store: Store) -> None:
    short = replace(REQUEST, start=END - timedelta(hours=5))
    champion = champion_of(sayings())
    cast(Any, champion.model).rows_needed = 40
    run(Panel(Models(champion), selection()), symbols=["AAA"], request=short)
    [stored] = analyses(store, "AAA")
    assert stored["candles_start"] == END - timedelta(hours=50)
    # and without a model what was asked for
    run(QUIET, symbols=["BBB"], request=short)
    [stored] = analyses(store, "BBB")
    assert stored["candles_start"] == short.start


def test_a_symbol_that_cannot_be_looked_at_does_not_stop_the_others(run: Runs, store: Store) -> None:
    rows = run(sayings(), symbols=["AAA", "ZZZ", "CCC"])
    assert [row.symbol for row in rows] == ["AAA", "CCC"]
    [error] = run.errors
    assert error.startswith("ZZZ: the store holds no candles")
    # nor does one whose newest bar is missing pass for analysed
    later = replace(REQUEST, end=END + timedelta(hours=2))
    assert run(sayings(), symbols=["AAA"], request=later) == []
    assert re.match(
        r"AAA: the newest candle .* opened at 2024-01-10T23:00Z and the one of 2024-01-11T01:00Z is due", run.errors[0]
    )
    assert len(analyses(store, "AAA")) == 1


def test_a_degraded_champion_says_so_in_every_analysis(run: Runs, store: Store) -> None:
    said = "version 8 was refused: its scaler was changed; version 7 (previous) takes its place"
    rows = run(Panel(Models(champion_of(sayings(), degraded=said)), selection()))
    assert all(row.reasons[-1] == said for row in rows)
    assert {row.model_version for row in rows} == {"v7 trees, degraded"}
    assert {row.degraded for row in rows} == {said}
    [stored] = analyses(store, "AAA")
    assert stored["model"]["degraded"] == said


def test_with_no_version_that_verifies_the_rules_speak_by_name(run: Runs) -> None:
    why = "no version of AAA-BBB-CCC-1h can be used"
    rows = run(replace(QUIET, models=Models(abstention=Abstention("model", why), refused=True)))
    assert [(row.model_version, row.basis, row.absent) for row in rows] == [(None, "technical", {"model": why})] * 3


def test_a_model_that_never_had_a_champion_is_not_missed_and_not_counted_in(run: Runs, store: Store) -> None:
    why = "model AAA-BBB-CCC-1h has no champion"
    fresh = Panel(Models(), selection(), unconfigured=(Abstention("model", why),))
    rows = run(fresh)
    # nobody is missing, and who spoke is not called all
    assert [(row.absent, row.degraded, row.model_version, row.basis) for row in rows] == [
        ({}, None, None, "technical")
    ] * 3
    assert all(row.reasons[-1] == why and "model was not available" not in row.reasons for row in rows)
    [stored] = analyses(store, "BBB")
    said = stored["analysis"]
    assert (said["absent"], said["unconfigured"], said["basis"]) == ([], ["model"], "technical")
    assert said["abstentions"] == [{"analyst": "model", "reason": why, "cost": None}]
    # the signal is what it is where the model abstains
    missing = run(replace(QUIET, models=Models(abstention=Abstention("model", why))), now=END + timedelta(minutes=1))
    assert [(row.signal, row.confidence) for row in missing] == [(row.signal, row.confidence) for row in rows]
    assert {row.absent["model"] for row in missing} == {why}
    # which is another analysis: the one is not reused for the other
    assert not any(row.reused for row in missing)
    # with an LLM beside the rules it is these two, and with nobody at all neutral
    assert {row.basis for row in run(replace(fresh, llm="stub"), ask=Llm())} == {"technical+llm"}
    [nobody] = run(replace(fresh, strategies=(), disabled=("rsi is disabled",)), symbols=["AAA"])
    assert (nobody.basis, nobody.signal, set(nobody.absent)) == ("neutral", "Neutral", {"technical"})


def test_a_challenger_is_written_down_and_counts_nothing(run: Runs, store: Store) -> None:
    against = {
        symbol: replace(one, signal=Signal.SHORT, p_short=0.9, p_long=0.0, p_neutral=0.1 - at / 1000, confidence=0.9)
        for at, (symbol, one) in enumerate(zip(SYMBOLS, spread(), strict=True))
    }
    against = {symbol: replace(one, p_short=1 - one.p_neutral) for symbol, one in against.items()}
    alone = run(sayings(), now=END)
    both = run(Panel(Models(champion_of(sayings()), champion_of(against, version="9")), selection()), now=END)
    assert [(row.signal, row.confidence) for row in both] == [(row.signal, row.confidence) for row in alone]
    assert {row.said["challenger"] for row in both} == {"Short 0.90"}
    [stored] = analyses(store, "CCC")
    [rival] = stored["analysis"]["compared"]
    assert (rival["analyst"], rival["provenance"]["version"]) == ("challenger", "9")
    assert "challenger" not in stored["analysis"]["weights"]
    # one whose predictions are none is not even written down
    unfit: dict[str, Prediction | Exception] = {**against, "AAA": replace(against["AAA"], p_long=7.0)}
    run(Panel(Models(champion_of(sayings()), champion_of(unfit, version="10")), selection()))
    [stored] = analyses(store, "AAA")
    assert stored["analysis"]["compared"] == []


class Llm:
    """An LLM that costs a cent, and says or raises what it is told to."""

    def __init__(self, says: Signal | Exception | str = Signal.SHORT) -> None:
        self.says = says
        self.asked: list[str] = []

    def __call__(self, shown: Look) -> Opinion | Abstention:
        self.asked.append(shown.window.symbol)
        if isinstance(self.says, Exception):
            raise self.says
        if not isinstance(self.says, Signal):
            return Abstention("llm", self.says)
        return Opinion("llm", self.says, 0.9, ("a hunch",), {"model": "stub"}, cost=Cost(0.01, 100, 20), latency=1.0)


def test_an_analysis_with_the_same_inputs_is_not_bought_again_until_it_is_old(run: Runs, store: Store) -> None:
    llm, panel = Llm(), replace(Panel(Models(champion_of(sayings())), selection()), llm="stub")
    first = run(panel, ask=llm)
    assert (sorted(llm.asked), {row.usd for row in first}) == (SYMBOLS, {0.01})
    again = run(panel, ask=llm, now=END + timedelta(minutes=10))
    assert len(llm.asked) == 3
    assert [replace(row, reused=False, usd=0.01) for row in again] == first
    assert all(row.reused for row in again)
    assert [stored["created_at"] for stored in analyses(store, "AAA")] == [END]
    # older than its time to live, it is made again, and what the bar cost adds up
    run(panel, ask=llm, now=END + timedelta(minutes=15))
    assert len(llm.asked) == 6
    [stored] = analyses(store, "AAA")
    assert (stored["cost"]["usd"], stored["spent"]) == (0.01, {"llm": 0.02})


@pytest.mark.parametrize(
    "change",
    [
        {"models": Models(champion_of(sayings(), version="8"))},
        {"strategies": selection(["rsi"])},
        {"strategies": selection(["rsi", "macd", "volume", "bollinger"], {"rsi": {"period": 9}})},
        {"weights": {("model", "AAA-BBB-CCC-1h 7"): 0.5}},
        {"llm": "another"},
        {"threshold": 0.3},
        {"settings_version": "engine 2"},
    ],
)
def test_other_inputs_are_another_analysis(run: Runs, change: dict[str, Any]) -> None:
    panel = Panel(Models(champion_of(sayings())), selection())
    run(panel)
    assert not any(row.reused for row in run(replace(panel, **change)))
    # and with other candles it is another one, too
    corrected = window_of("AAA")
    held = frame_of([int(START.timestamp() * 1000)], np.array([[101.0, 102.0, 100.0, 101.5, 5.0]]))
    run(panel)
    write_candles(run.store, replace(corrected, end=START + timedelta(hours=1)), held, "simulated")
    assert [row.reused for row in run(panel)] == [False, True, True]


def test_an_llm_that_abstains_or_breaks_is_missing_by_name_and_asked_again(run: Runs, store: Store) -> None:
    panel = replace(Panel(Models(champion_of(sayings())), selection()), llm="stub")
    for says, why in (
        ("no budget is left", "no budget is left"),
        (StoreUnavailable("gone", transient=True), "StoreUnavailable: gone"),
    ):
        llm = Llm(says)
        for _ in range(2):
            rows = run(panel, ask=llm)
            assert run.errors == []
            assert {(row.basis, row.absent["llm"]) for row in rows} == {("model+technical", why)}
        assert len(llm.asked) == 6


def test_an_llm_cannot_outvote_the_others_alone(run: Runs) -> None:
    # no champion and no strategy that may speak: what the LLM says is written down, and nobody follows it
    panel = replace(QUIET, strategies=(), disabled=("rsi is disabled: it lost money",), llm="stub")
    [row] = run(panel, symbols=["AAA"], ask=Llm(Signal.LONG))
    assert (row.signal, row.confidence, row.basis) == ("Neutral", 0.0, "neutral")
    assert row.said == {"llm": "Long 0.90"}
    assert set(row.absent) == {"model", "technical"}


def test_a_changed_signal_is_told_once_and_the_first_one_is_no_change(run: Runs, store: Store) -> None:
    def at(hour: int, side: Signal) -> list[Analysed]:
        one = replace(GOOD, signal=side, confidence=0.99)
        request = replace(REQUEST, end=END - timedelta(hours=hour))
        return run(Panel(Models(champion_of({"AAA": one})), ()), symbols=["AAA"], request=request)

    at(3, Signal.LONG)
    at(2, Signal.LONG)
    assert run.told == []
    at(1, Signal.SHORT)
    at(1, Signal.SHORT)
    [told] = run.told
    assert (told.symbol, told.timeframe, told.before, told.signal) == ("AAA", "1h", "Long", "Short")
    assert told.timestamp == (END - timedelta(hours=1)).isoformat()
    assert (told.confidence, told.basis, told.data_mode) == (0.99, "all", "simulated")
    # looking at the past again changes nothing today
    at(5, Signal.LONG)
    assert len(run.told) == 1
    known = store.documents.get(SIGNALS, "AAA|1h")
    assert known is not None
    assert (known["signal"], known["timestamp"]) == ("Short", END - timedelta(hours=1))
    at(0, Signal.NEUTRAL)
    assert [(one.before, one.signal) for one in run.told] == [("Long", "Short"), ("Short", "Neutral")]


def test_what_was_not_told_for_a_fault_is_told_the_next_time(run: Runs, store: Store) -> None:
    panel = Panel(Models(champion_of(sayings())), selection())
    run(panel, symbols=["AAA"])
    against = {"AAA": replace(GOOD, signal=Signal.SHORT, confidence=0.99)}
    turned = Panel(Models(champion_of(against)), ())
    heard, _ = hear(store, ["AAA"], REQUEST, turned, None, now=END)

    def broken(_: Changed) -> None:
        raise ConnectionError("the server is gone")

    with pytest.raises(ConnectionError):
        conclude(store, heard, turned, now=END, flow_run_id=None, tell=broken)
    run(turned, symbols=["AAA"], now=END + timedelta(hours=1))
    assert [(one.symbol, one.signal) for one in run.told] == [("AAA", "Short")]


def test_weights_belong_to_the_version_that_earned_them(run: Runs, store: Store) -> None:
    loser = {("model", "AAA-BBB-CCC-1h 7"): 0.0}
    panel = Panel(Models(champion_of(sayings())), selection(), weights=loser)
    run(panel)
    [stored] = analyses(store, "AAA")
    assert stored["analysis"]["weights"]["model"] == 0.0
    run(replace(panel, models=Models(champion_of(sayings(), version="8"))))
    [stored] = analyses(store, "AAA")
    assert stored["analysis"]["weights"]["model"] == 0.5


class Failing:
    """A real store whose database is gone from the n-th write on, until it is back."""

    def __init__(self, store: Store, after: int) -> None:
        self.real, self.left = store.documents, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def put(self, collection: Collection, document: Document) -> None:
        if self.left == 0:
            raise StoreUnavailable("the database is gone", transient=True)
        self.left -= 1
        self.real.put(collection, document)


def test_what_was_paid_is_counted_once_however_often_it_is_written(store: Store) -> None:
    panel = replace(Panel(Models(champion_of(sayings())), selection()), llm="stub")
    heard, _ = hear(store, SYMBOLS, REQUEST, panel, Llm(), now=END)
    documents: Any = Failing(store, after=3)
    with pytest.raises(StoreUnavailable):
        conclude(Store(documents), heard, panel, now=END, flow_run_id="a run", tell=lambda _: None)
    for _ in range(2):
        conclude(store, heard, panel, now=END, flow_run_id="a run", tell=lambda _: None)
    assert [one["spent"] for one in store.documents.find(ANALYSES)] == [{"llm": 0.01}] * 3
    # questions that nobody answered are paid for, too
    later, asked = END + timedelta(minutes=1), Abstention("llm", "no usable reply", Cost(0.03, 7, 2))
    heard, _ = hear(store, ["AAA"], REQUEST, replace(panel, llm="another"), lambda _: asked, now=later)
    conclude(store, heard, panel, now=later, flow_run_id="another", tell=lambda _: None)
    [stored] = analyses(store, "AAA")
    assert stored["spent"] == {"llm": pytest.approx(0.04)}
    assert stored["cost"] == {"usd": 0.03, "prompt_tokens": 7, "completion_tokens": 2}


def test_a_store_that_goes_away_is_nobodys_own_failure_and_leaves_nothing_half_written(run: Runs, store: Store) -> None:
    panel = Panel(Models(champion_of(sayings())), selection())
    heard, _ = hear(store, SYMBOLS, REQUEST, panel, None, now=END)
    documents: Any = Failing(store, after=3)  # the analyses of AAA and BBB, and the signal of AAA between them
    with pytest.raises(StoreUnavailable):
        conclude(Store(documents), heard, panel, now=END, flow_run_id=None, tell=run.told.append)
    whole = {one["_id"]: one["analysis"] for one in store.documents.find(ANALYSES)}
    assert len(whole) == 2
    # the task is tried again when the store is back: all of it is there, and what was there is the same
    conclude(store, heard, panel, now=END, flow_run_id=None, tell=run.told.append)
    after = {one["_id"]: one["analysis"] for one in store.documents.find(ANALYSES)}
    assert len(after) == 3
    assert {key: after[key] for key in whole} == whole
    assert len(store.documents.find(SIGNALS)) == 3
    # one that cannot be read from is not taken for a symbol's own failure either
    reading: Any = SimpleNamespace(find=_gone, get=_gone)
    with pytest.raises(StoreUnavailable):
        hear(Store(reading), SYMBOLS, REQUEST, panel, None, now=END)


def _gone(*_: object, **__: object) -> None:
    raise StoreUnavailable("the database is gone", transient=True)


def test_without_predictions_nothing_is_judged() -> None:
    assert judge_predictions({}) == Judged({}, ())


shares = st.floats(-0.2, 1.2) | st.sampled_from([float("nan"), 0.0, 1.0])
predictions = st.builds(
    lambda signal, confidence, short, long, tilt: replace(
        GOOD, signal=signal, confidence=confidence, p_short=short, p_long=long, p_neutral=1 - short - long + tilt
    ),
    st.sampled_from(list(Signal)), shares, shares, shares, st.sampled_from([0.0, 0.0, 0.0, 1e-8, 1e-3]),
)  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(st.lists(predictions, max_size=5))
def test_what_arithmetic_finds_sound_the_suite_has_nothing_to_say_of(said: list[Prediction]) -> None:
    from expectations.predictions import judge

    if said and sound(said):
        verdicts, of_run = judge(said)
        assert not any(verdict.findings for verdict in verdicts)
        assert not of_run.findings
    many = [replace(GOOD, p_short=0.1 + at / 1e4, p_neutral=0.3 - at / 1e4) for at in range(150)]
    assert not sound(many)  # all of one side: the suite must look
    assert sound(many[:50])
    assert not sound([GOOD] * 3)
