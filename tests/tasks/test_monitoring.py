"""The monitor on stored candles: what it says, that it says it once, and what it may not look at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deployments.sandbox.generator import Recipe, generate
from ml.drift import reference
from ml.features import FeatureSet
from ml.hits import Trials
from ml.labels import LabelDefinition, labels
from ml.live import live_rows
from ml.model import Model
from ml.monitoring import DRIFTED, STABLE, UNKNOWN, DriftRule
from ml.signals import signals
from ml.training import TrainingTable, assemble, fit_final
from tasks import ledger
from tasks.models import Champion
from tasks.monitoring import Monitored, monitor
from tasks.store import RESULTS, Store, open_store, write_candles
from trading.candles import frame_of, open_times_ms
from trading.errors import InsufficientHistory
from trading.window import Timeframe, Window

START = datetime(2024, 1, 1, tzinfo=UTC)
TRAINED, LIVE = 1800, 300
SYMBOLS = ["AAA", "BBB"]
FEATURES = FeatureSet()
LABEL = LabelDefinition(horizon=6)


def at(bar: int) -> datetime:
    return START + timedelta(hours=bar)


def candles(symbol: str, *, wild: bool) -> pd.DataFrame:
    """Quiet hours to train on and 300 more; ``wild`` triples the moves of these."""
    first, second = (
        generate([Recipe(symbol, 100.0, volatility, 900.0, 4)], count, seed)[symbol]
        for volatility, count, seed in ((0.004, TRAINED, 1), (0.012 if wild else 0.004, LIVE, 2))
    )
    second[:, :4] *= first[-1, 3] / second[0, 0]
    stamps = int(START.timestamp() * 1000) + 3_600_000 * np.arange(TRAINED + LIVE)
    return frame_of(stamps, np.concatenate([first, second]))


@pytest.fixture(scope="module")
def table() -> TrainingTable:
    return assemble({symbol: candles(symbol, wild=False).iloc[:TRAINED] for symbol in SYMBOLS}, FEATURES, LABEL)


@pytest.fixture(scope="module")
def chosen(table: TrainingTable) -> Champion:
    fitted, rule = fit_final(table, "logistic", 1)
    model = Model(fitted, FEATURES, LABEL, rule, Timeframe.H1, {"metadata": {"data_mode": "simulated"}})
    until = int(table.t1.max())
    return Champion(model, "AAA-BBB-1h", "3", "run", "logistic", until, "sha", "http://models/3")


@pytest.fixture(scope="module")
def trained(table: TrainingTable, chosen: Champion) -> str:
    probabilities = chosen.model.fitted.predict_proba(table.x)
    made = reference(table.x, table.names, probabilities, signals(probabilities, chosen.model.rule), Trials(120, 200))
    return json.dumps(made)


def filled(home: Path, *, wild: bool, until: int = TRAINED + LIVE) -> Store:
    store = open_store(home)
    for symbol in SYMBOLS:
        window = Window(symbol, Timeframe.H1, START, at(until))
        written = write_candles(store, window, candles(symbol, wild=wild).iloc[:until], "simulated")
        ledger.record(
            store,
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
                recorded_at=at(until),
            ),
        )
    return store


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[Store]:
    with filled(tmp_path, wild=False) as store:
        yield store


@pytest.fixture
def wild(tmp_path: Path) -> Iterator[Store]:
    with filled(tmp_path, wild=True) as store:
        yield store


def look(
    store: Store,
    home: Path,
    chosen: Champion,
    trained: str | None,
    *,
    end: int = TRAINED + LIVE,
    announce: Callable[[Monitored, str], None] | None = None,
) -> tuple[Monitored, list[str]]:
    """What the monitor found, and the keys it announced."""
    announced: list[str] = []
    settings: Any = SimpleNamespace(home=home)
    found = monitor(
        store, settings, chosen, trained, SYMBOLS, Timeframe.H1, at(0), at(end), DriftRule(),
        now=at(end), announce=announce or (lambda _, key: announced.append(key)),
    )  # fmt: skip
    return found, announced


def test_a_quiet_market_needs_nothing(quiet: Store, tmp_path: Path, chosen: Champion, trained: str) -> None:
    found, announced = look(quiet, tmp_path, chosen, trained)
    assert (found.state, found.retrain, announced) == (STABLE, False, [])
    assert (found.model, found.version, found.data_mode, found.timeframe) == ("AAA-BBB-1h", "3", "simulated", "1h")
    # every bar after the last label of the training, of both symbols
    assert found.rows == 2 * (LIVE + 1)
    assert {column["name"] for column in found.columns} == {
        name for name in (*FEATURES.names, "p_long", "p_short", "signal") if not name.endswith(("_sin", "_cos"))
    }
    assert found.picture is not None
    assert Path(found.picture).stat().st_size > 5_000


@pytest.mark.integration
def test_three_times_the_volatility_is_drift_and_is_told_once(
    wild: Store, tmp_path: Path, chosen: Champion, trained: str
) -> None:
    def dies(*_: object) -> None:
        raise ConnectionError("no server")

    # what could not be announced is not stored as done
    with pytest.raises(ConnectionError):
        look(wild, tmp_path, chosen, trained, announce=dies)
    found, announced = look(wild, tmp_path, chosen, trained)
    assert (found.state, found.retrain, found.reused, len(announced)) == (DRIFTED, True, False, 1)
    assert {"atr", "volatility"} <= {column["name"] for column in found.columns if column["drifted"]}
    before = wild.documents.find(RESULTS)
    again, announced = look(wild, tmp_path, chosen, trained)
    assert announced == []
    assert again == replace(found, reused=True)
    assert wild.documents.find(RESULTS) == before


def test_unknown_has_reasons(quiet: Store, tmp_path: Path, chosen: Champion, trained: str) -> None:
    none, announced = look(quiet, tmp_path, chosen, None)
    assert (none.state, none.retrain, none.data_mode, announced) == (UNKNOWN, False, "simulated", [])
    assert none.reasons == [
        "run run has no drift_reference.json: the model was trained before there was one; train it again"
    ]
    old, _ = look(quiet, tmp_path, chosen, trained, end=TRAINED - 10)
    assert old.state == UNKNOWN
    assert old.reasons[0].endswith("no bar is news to it")
    early, _ = look(quiet, tmp_path, chosen, trained, end=TRAINED + 5)
    assert (early.state, early.picture) == (UNKNOWN, None)
    assert "too few live rows to say, 12 of at least 24" in early.reasons[0]


def test_bars_that_were_not_approved_are_not_looked_at(tmp_path: Path, chosen: Champion, trained: str) -> None:
    with (
        filled(tmp_path, wild=False, until=TRAINED + 100) as store,
        pytest.raises(InsufficientHistory, match="tradeflows ingest AAA"),
    ):
        look(store, tmp_path, chosen, trained)
    with (
        open_store(tmp_path / "empty") as store,
        pytest.raises(InsufficientHistory, match="holds no 1h candles of AAA; run: tradeflows ingest AAA -t 1h"),
    ):
        look(store, tmp_path, chosen, trained)


def test_live_rows_are_news_and_only_settled_signals_count(chosen: Champion) -> None:
    frames = {symbol: candles(symbol, wild=False) for symbol in SYMBOLS}
    until = int(at(TRAINED + 50).timestamp() * 1000)
    live = live_rows(frames, chosen.model, at(TRAINED), until)
    # the bar that opens at the end of the training's last label is filled one bar later: it is the first
    assert len(live.x) == 2 * (LIVE - 50)
    # counted again, bar by bar: earliest settled signals of both symbols, none before the last is over
    known = {symbol: labels(frame, LABEL) for symbol, frame in frames.items()}
    said = {symbol: chosen.model.predict_all(frame)["signal"] for symbol, frame in frames.items()}
    hits = count = 0
    free = 0
    for bar in range(TRAINED + 50, TRAINED + LIVE - LABEL.future_rows):
        moves = {symbol: said[symbol].iloc[bar] * known[symbol]["forward_return"].iloc[bar] for symbol in SYMBOLS}
        if bar < free or not any(said[symbol].iloc[bar] for symbol in SYMBOLS):
            continue
        hits, count, free = hits + (sum(moves.values()) > 0), count + 1, bar + LABEL.horizon
    assert count > 10
    assert live.trials == Trials(hits, count)
    # bars after the end change nothing of what is known before it
    longer = {symbol: frame.iloc[: TRAINED + 200] for symbol, frame in frames.items()}
    part = live_rows(longer, chosen.model, at(TRAINED), until)
    np.testing.assert_allclose(live.x[: len(part.x)], part.x, rtol=1e-9, atol=1e-9)
    assert open_times_ms(longer["AAA"])[-1] > until
