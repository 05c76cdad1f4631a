"""The main job on real daily history: what it leaves behind, and that a second run changes none of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from flows.analyse import analyse
from flows.backtest import backtest
from flows.cycle import Group, cycle
from flows.ingest import ingest
from flows.train import train
from tasks import model_files, registry
from tasks.models import champion, unseen_targets
from tasks.settings import load_settings
from tasks.store import CHUNKS, analyses, open_store, read_candles
from tasks.training_runs import UNSEEN
from trading.errors import BadWindow, DataError, InsufficientHistory, ModelNotFound, ModelRejected
from trading.window import Timeframe, Window

pytestmark = pytest.mark.integration

TODAY = datetime(2019, 1, 1, 0, 2, tzinfo=UTC)
END = datetime(2019, 1, 1, tzinfo=UTC)
START = datetime(1999, 1, 1, tzinfo=UTC)
DAILY = Group(symbols=["SP500", "NASDAQ"], timeframe=Timeframe.D1, days=7305, horizon=5)


def test_the_cycle_leaves_evidence_and_a_second_one_changes_nothing(home: Path) -> None:
    [done] = cycle([DAILY], "exchange", TODAY)
    assert [row["added"] for row in done.ingested.rows] == [5031, 5029]
    # real history has volatility that can be foreseen: better than the class frequencies, in most folds
    assert done.trained.winner != "baseline"
    assert done.trained.promoted
    assert {row.signal for row in done.analysed} <= {"Long", "Short", "Neutral"}
    strategies = {(row["symbol"], row["strategy"]) for row in done.backtested.rows}
    assert strategies == {(s, k) for s in DAILY.symbols for k in ("champion", "rsi", "macd", "buy_and_hold")}
    assert all(Path(path).stat().st_size > 20_000 for path in done.backtested.pictures)

    settings = load_settings()
    client = registry.connect(settings)
    version = registry.version_of(client, done.trained.model, registry.CHAMPION)
    assert version is not None
    assert version.tags["data_mode"] == "sample"
    parent = client.get_run(done.trained.run_id)
    assert parent.data.metrics["skill"] > 0
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{done.trained.run_id}'")
    assert {child.data.tags["kind"] for child in children} == {"estimator"}
    assert len(children) == 7
    with open_store(home) as store:
        before = {chunk["_id"]: (chunk["rev"], chunk["digest"]) for chunk in store.documents.find(CHUNKS)}
        [stored] = analyses(store, "SP500")
        assert stored["timestamp"] == END
        assert {"symbol", "timestamp", "analysis", "created_at"} <= set(stored)
        assert {"signal", "confidence", "reasoning"} <= set(stored["analysis"])
        assert stored["data_mode"] == "sample"
        assert stored["model"]["version"] == done.trained.version

    [again] = cycle([DAILY], "exchange", TODAY)
    assert (again.ingested.added, again.ingested.changed) == (0, 0)
    assert (again.trained.reused, again.trained.version) == (True, done.trained.version)
    assert again.backtested.reused
    assert again.backtested.rows == json.loads(json.dumps(done.backtested.rows))
    assert [(row.signal, row.confidence) for row in again.analysed] == [
        (row.signal, row.confidence) for row in done.analysed
    ]
    assert len(client.search_model_versions(f"name = '{done.trained.model}'")) == 1
    with open_store(home) as store:
        assert {chunk["_id"]: (chunk["rev"], chunk["digest"]) for chunk in store.documents.find(CHUNKS)} == before
        assert len(analyses(store, "SP500")) == 1

    # artifacts lie under the home, and the address of one run is no setting of the next
    assert (home / "mlflow" / "artifacts").is_dir()
    assert not (Path.cwd() / "mlruns").exists()
    assert load_settings().mlflow_tracking_uri is None

    _the_champion_trades_only_what_it_has_not_seen(home)
    _a_changed_artifact_is_refused(home)


def _the_champion_trades_only_what_it_has_not_seen(home: Path) -> None:
    settings = load_settings()
    client = registry.connect(settings)
    chosen = champion(client, settings, "NASDAQ-SP500-1d")
    with open_store(home) as store:
        candles = read_candles(store, Window("SP500", Timeframe.D1, START, END))
    targets, first = unseen_targets(client, chosen, "SP500", candles)
    import pandas as pd

    table = pd.read_parquet(registry.run_file(client, chosen.run_id, UNSEEN))
    mine = table[table["symbol"] == "SP500"]
    # nothing is traded before the first test span, and signals there are the walk-forward's own
    assert 0.3 * len(candles) < first < 0.6 * len(candles)
    assert not targets[:first].any()
    assert set(np.unique(targets)) <= {-1, 0, 1}
    in_sample = chosen.model.targets(candles)
    position = {int(stamp): at for at, stamp in enumerate(candles.index.as_unit("ms").asi8)}
    rows = np.array([position[int(stamp)] for stamp in mine["decided_at"]])
    assert (rows >= first).all()
    # the final model, which has seen those bars, would have said something else on some of them
    assert (in_sample[rows] != mine["signal"].to_numpy()).any()


def _a_changed_artifact_is_refused(home: Path) -> None:
    settings = load_settings()
    client = registry.connect(settings)
    version = registry.require_champion(client, "NASDAQ-SP500-1d")
    with model_files.model_folder(client, version) as folder:
        victim = model_files.artifact_folder(folder) / "estimator.json"
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(bytes(content))
    with pytest.raises(ModelRejected, match=r"estimator.json .* it was changed"):
        champion(client, settings, "NASDAQ-SP500-1d")
    # there is no previous version: the rules speak, the analyses say who was missing, and so does the run's state
    state = analyse(["SP500", "NASDAQ"], Timeframe.D1, start=START, end=END, return_state=True)
    assert (state.type.value, state.name) == ("COMPLETED", "Degraded")
    with open_store(home) as store:
        [stored] = analyses(store, "SP500")
        assert stored["analysis"]["absent"] == ["model"]


def test_too_little_history_to_train_is_a_failed_run_without_a_version(home: Path) -> None:
    start = datetime(2018, 1, 1, tzinfo=UTC)
    ingest(["SP500"], Timeframe.D1, start=start, end=END)
    state = train(["SP500"], Timeframe.D1, start=start, end=END, horizon=5, return_state=True)
    with pytest.raises(InsufficientHistory, match=r"SP500 has 251 candles and \d+ are needed"):
        state.result()
    assert registry.connect(load_settings()).search_registered_models() == []


def test_training_reads_only_what_the_ledger_approved(home: Path) -> None:
    state = train(["SP500"], Timeframe.D1, start=START, end=END, return_state=True)
    with pytest.raises(InsufficientHistory, match=r"has not been ingested and approved .*run: tradeflows ingest SP500"):
        state.result()


def test_before_the_first_champion_the_rules_speak_and_the_run_says_so(home: Path) -> None:
    start = datetime(2018, 1, 1, tzinfo=UTC)
    state = analyse(["SP500"], Timeframe.D1, start=start, end=END, refresh="exchange", return_state=True)
    # a model that never was is not missed
    assert (state.name, state.message.partition(";")[0]) == (
        "Completed",
        "without the model: model SP500-1d has no champion",
    )
    [row] = state.result()
    assert row.model_version is None
    assert row.reasons[0].startswith("technical: ")
    with pytest.raises(ModelNotFound):
        registry.require_champion(registry.connect(load_settings()), "SP500-1d")
    found = backtest(["SP500"], Timeframe.D1, start=start, end=END)
    assert {row["strategy"] for row in found.rows} == {"rsi", "macd", "buy_and_hold"}
    assert "has no champion" in found.absent[0]


def test_an_old_bar_is_not_analysed_as_if_it_were_the_newest(home: Path) -> None:
    start = datetime(2018, 1, 1, tzinfo=UTC)
    ingest(["SP500"], Timeframe.D1, start=start, end=datetime(2018, 12, 20, tzinfo=UTC))
    state = analyse(["SP500"], Timeframe.D1, start=start, end=END, return_state=True)
    with pytest.raises(DataError, match="2018-12-31T00:00Z is due; run tradeflows ingest first"):
        state.result()


def test_an_empty_span_is_refused(home: Path) -> None:
    state = backtest(["SP500"], Timeframe.D1, start=END, end=END, return_state=True)
    with pytest.raises(BadWindow, match="the window is empty"):
        state.result()
