"""A prediction that is none has no say, and the others do not suffer for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ml.model import Prediction
from tasks import analysing, ledger
from tasks.models import Champion
from tasks.store import Store, analyses, open_store, write_candles
from trading.analysis import Signal
from trading.candles import frame_of
from trading.errors import CandleGap, InsufficientHistory, ModelRejected
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

    def predict(self, candles: pd.DataFrame, calendar: str | None = None) -> Prediction:
        said = self.says[SYMBOLS[round(float(candles["close"].iloc[0]) / 100) - 1]]
        if isinstance(said, Exception):
            raise said
        return said


Run = Callable[..., tuple[list[analysing.Analysed], list[str]]]


@pytest.fixture
def run(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the task's body with a champion that says so."""

    def task(
        says: Mapping[str, Prediction | Exception], degraded: str | None = None, refused: ModelRejected | None = None
    ) -> tuple[list[analysing.Analysed], list[str]]:
        model: Any = Oracle(says)
        chosen = Champion(model, "AAA-BBB-CCC-1h", "7", "run", "trees", 0, "sha", "http://models/7", degraded)

        def champion(*_: object, **__: object) -> Champion:
            if refused is not None:
                raise refused
            return chosen

        monkeypatch.setattr(analysing, "load_settings", SimpleNamespace)
        monkeypatch.setattr(analysing.registry, "connect", lambda _: None)
        monkeypatch.setattr(analysing, "champion", champion)
        monkeypatch.setattr(analysing, "configured_store", lambda _: open_store(tmp_path))
        return analysing.analyse_task.fn(SYMBOLS, SYMBOLS, Timeframe.H1, START, END, END)

    return task


def spread(count: int = 3) -> list[Prediction]:
    return [replace(GOOD, p_short=0.1 + at / 100, p_neutral=0.3 - at / 100) for at in range(count)]


def test_sound_predictions_are_heard(run: Run, store: Store) -> None:
    rows, errors = run(dict(zip(SYMBOLS, spread(), strict=True)))
    assert errors == []
    assert [row.symbol for row in rows] == SYMBOLS
    assert all(row.model_version == "v7 trees" for row in rows)
    assert all(row.reasons[0].startswith("model: Long (0.60): it said so") for row in rows)
    [stored] = analyses(store, "BBB")
    assert stored["model"]["version"] == "7"
    assert stored["analysis"]["absent"] == []


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ({"p_long": float("nan"), "confidence": float("nan")}, "p_long must not be null"),
        ({"p_long": 1.6}, "p_long must be at least .* and at most 1: 1.6"),
        ({"confidence": 1.5}, "confidence must be at least 0 and at most 1: 1.5"),
    ],
)
def test_a_prediction_that_is_none_is_refused_by_name_and_only_that(
    run: Run, store: Store, broken: dict[str, float], why: str
) -> None:
    one, two, three = spread()
    rows, errors = run({"AAA": one, "BBB": replace(two, **broken), "CCC": three})
    assert errors == []
    assert [row.model_version for row in rows] == ["v7 trees", None, "v7 trees"]
    refused = rows[1]
    assert refused.reasons[0] == "model was not available"
    assert re.search(f"the prediction of AAA-BBB-CCC-1h version 7 was refused: .*{why}", refused.reasons[-1])
    [stored] = analyses(store, "BBB")
    assert stored["model"] is None
    assert stored["analysis"]["absent"] == ["model"]
    assert "was refused" in stored["analysis"]["reasoning"]
    assert [opinion["analyst"] for opinion in stored["analysis"]["opinions"]] == list(analysing.RULE_NAMES)


def test_a_model_that_says_the_same_of_all_symbols_is_reported_with_each(run: Run) -> None:
    rows, _ = run(dict.fromkeys(SYMBOLS, GOOD))
    assert all(row.model_version == "v7 trees" for row in rows)
    assert all(row.reasons[-1] == "warning: distinct predictions must be at least 2: 1 among 3" for row in rows)


def test_where_the_model_has_too_little_to_go_by_the_rules_speak_and_the_analysis_says_why(
    run: Run, store: Store
) -> None:
    one, _, _ = spread()
    silence = {"AAA": one, "BBB": InsufficientHistory("a prediction needs more"), "CCC": CandleGap("bars are missing")}
    rows, errors = run(silence)
    assert errors == []
    assert [row.symbol for row in rows] == SYMBOLS
    assert [row.model_version for row in rows] == ["v7 trees", None, None]
    for row, why in zip(rows[1:], ("a prediction needs more", "bars are missing"), strict=True):
        assert row.reasons[-1] == f"AAA-BBB-CCC-1h version 7 is silent: {why}"
        [stored] = analyses(store, row.symbol)
        assert stored["analysis"]["absent"] == ["model"]


def test_a_symbol_without_candles_does_not_stop_the_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = analysing.read_candles

    def without(store: Store, window: Window) -> pd.DataFrame:
        candles = real(store, window)
        return candles.iloc[:0] if window.symbol == "BBB" else candles

    monkeypatch.setattr(analysing, "read_candles", without)
    rows, errors = run(dict(zip(SYMBOLS, spread(), strict=True)))
    assert [row.symbol for row in rows] == ["AAA", "CCC"]
    assert len(errors) == 1
    assert errors[0].startswith("BBB: the store holds no candles")


def test_a_degraded_champion_says_so_in_every_analysis(run: Run, store: Store) -> None:
    said = "version 8 was refused: its scaler was changed; version 7 (previous) takes its place"
    rows, _ = run(dict(zip(SYMBOLS, spread(), strict=True)), degraded=said)
    assert all(row.reasons[-1] == said for row in rows)
    assert {row.model_version for row in rows} == {"v7 trees, degraded"}
    [stored] = analyses(store, "AAA")
    assert stored["model"]["degraded"] == said


def test_with_no_version_that_verifies_the_rules_speak_and_the_run_fails(run: Run) -> None:
    rows, errors = run({}, refused=ModelRejected("no version of AAA-BBB-CCC-1h can be used"))
    assert [row.model_version for row in rows] == [None, None, None]
    assert errors == ["no version of AAA-BBB-CCC-1h can be used"]


def test_without_predictions_nothing_is_judged() -> None:
    assert analysing.judge_predictions({}) == analysing.Judged({}, ())
