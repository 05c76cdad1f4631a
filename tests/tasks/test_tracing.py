"""From a signal to its candles: every digest on the way is the store's, and whatever is wrong on the way is found."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ml.training import dataset_digest
from tasks import chunks, datasets, ledger, model_analyst, registry
from tasks.analysing import conclude, hear
from tasks.analysis_lookup import find_analysis, id_of
from tasks.chunks import Revision
from tasks.mlflow_pages import run_link
from tasks.model_analyst import Models
from tasks.panels import AnalysisRequest, Panel
from tasks.promotions import promote
from tasks.settings import Settings
from tasks.store import ANALYSES, CHUNKS, DATASETS, LEDGER, SIGNALS, Store, open_store, read_candles, write_candles
from tasks.technical_analyst import selection
from tasks.traces import Trace
from tasks.tracing import trace
from tests.registered_models import NOW, Registry, candles, opened
from trading.analysis import Abstention
from trading.candles import digest, frame_of, open_times_ms, values_of
from trading.errors import InvalidRequest, StoreUnavailable
from trading.window import Timeframe, Window

START = datetime(2020, 1, 1, tzinfo=UTC)
END = START + timedelta(hours=1200)
# a record is made of each: the second ends where the analysis does
CUTS = (START, START + timedelta(hours=1000), END)
RUNS = {"AAA": "11111111-1111-4111-8111-111111111111", "BBB": "22222222-2222-4222-8222-222222222222"}
ANALYSIS_RUN = "33333333-3333-4333-8333-333333333333"
SYMBOLS = ["AAA", "BBB"]
REQUEST = AnalysisRequest(Timeframe.H1, START, END, selection())
RULES = Panel(Models(abstention=Abstention("model", "there is no champion")), selection(), settings_version="built-in")


def window_of(symbol: str) -> Window:
    return Window(symbol, Timeframe.H1, START, END)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as made:
        for seed, symbol in enumerate(SYMBOLS, 1):
            for start, end in pairwise(CUTS):
                window = window_of(symbol).within(start, end)
                rows = candles(seed)
                rows = rows[(rows.index >= start) & (rows.index < end)]
                written = write_candles(made, window, rows, "simulated")
                entry = ledger.LedgerEntry(
                    window=window, status=ledger.APPROVED, rows=len(rows), added=written.added, quarantined={}, gaps=0,
                    digest=written.digest, suite="2", flow_run_id=RUNS[symbol], data_mode="simulated",
                    source="sandbox", calendar="24/7", recorded_at=END,
                )  # fmt: skip
                ledger.record(made, entry)
        yield made


def analysed(store: Store, panel: Panel = RULES, run: str | None = ANALYSIS_RUN, now: datetime = NOW) -> dict[str, Any]:
    """The stored analysis of AAA, made as the flow makes it."""
    heard, errors = hear(store, SYMBOLS, REQUEST, panel, None, now=now)
    assert not errors
    conclude(store, heard, panel, now=now, flow_run_id=run, tell=lambda _: None)
    stored = store.documents.get(ANALYSES, f"AAA|1h|{END:%Y-%m-%dT%H:%M:%SZ}")
    assert stored is not None
    return stored


def no_client() -> Any:
    raise AssertionError("MLflow is asked only where a model spoke")


def page_of(run: str) -> str:
    return f"http://prefect/runs/flow-run/{run}"


def traced(store: Store, stored: dict[str, Any], client: Any = no_client, settings: Settings | None = None) -> Trace:
    return trace(store, stored, settings or Settings(), client=client, page_of=page_of)  # type: ignore[call-arg]


def dump(path: Path) -> list[str]:
    with sqlite3.connect(path) as connection:
        return list(connection.iterdump())


def corrected(store: Store, at: datetime, hour: int = 500) -> None:
    """The exchange changes a candle of AAA, as a late correction."""
    window = window_of("AAA").within(START + timedelta(hours=hour), START + timedelta(hours=hour + 1))
    old = read_candles(store, window)
    values = values_of(old).copy()
    values[:, 4] += 1
    write_candles(store, window, frame_of(open_times_ms(old), values), "simulated", Revision(at, "sandbox", "later"))
    ledger.refresh(store, window)


# --- the way -------------------------------------------------------------------------------------


def test_a_signal_of_the_rules_leads_to_the_candles_of_the_store(store: Store, tmp_path: Path) -> None:
    stored = analysed(store)
    before = dump(tmp_path / "store.db")
    found = traced(store, stored)
    assert dump(tmp_path / "store.db") == before
    assert found.findings == ()
    assert (found.id, found.symbol, found.timeframe) == (f"AAA|1h|{END:%Y-%m-%dT%H:%M:%SZ}", "AAA", "1h")
    assert (found.bar_close, found.made_at, found.data_mode) == (END, NOW, "simulated")
    assert found.signal == stored["analysis"]["signal"]
    assert found.run is not None and found.run.link == page_of(ANALYSIS_RUN)
    assert [(one.analyst, one.weight) for one in found.said] == [("technical", 1.0)]
    assert found.absent == {"model": "there is no champion"}
    assert (found.model, found.dataset) == (None, None)

    held = found.candles
    assert held is not None
    assert (held.window, held.rows, held.uncovered) == (window_of("AAA"), 1200, ())
    # worked out here from the candles themselves
    whole = digest(read_candles(store, window_of("AAA")))
    assert held.digest == held.stored_digest == whole == stored["candles_digest"]
    assert held.verdict == "equal"
    assert [one.window for one in held.ledger] == [window_of("AAA").within(*cut) for cut in pairwise(CUTS)]
    assert [one.digest for one in held.ledger] == [digest(read_candles(store, one.window)) for one in held.ledger]
    assert {one.verdict for one in held.ledger} == {"equal"}
    assert [run.id for run in held.runs] == [RUNS["AAA"]]
    chunk = store.documents.get(CHUNKS, "AAA|1h|2020-01-01")
    assert chunk is not None
    assert [(one.id, one.rev, one.rows, one.digest) for one in held.chunks] == [
        ("AAA|1h|2020-01-01", chunk["rev"], 1200, digest(chunks.frame(chunk)))
    ]


def test_a_late_correction_is_undone_to_what_the_analysis_saw(store: Store) -> None:
    stored = analysed(store)
    corrected(store, NOW + timedelta(hours=1))
    corrected(store, NOW + timedelta(hours=2), hour=700)
    found = traced(store, stored)
    assert found.findings == ()
    assert found.candles is not None
    assert found.candles.verdict == "corrected"
    assert found.candles.stored_digest != found.candles.digest == stored["candles_digest"]
    # the ledger follows corrections
    assert {one.verdict for one in found.candles.ledger} == {"equal"}


def test_a_correction_before_the_analysis_is_no_news(store: Store) -> None:
    corrected(store, NOW - timedelta(hours=1))
    stored = analysed(store)
    corrected(store, NOW + timedelta(hours=1), hour=3)
    found = traced(store, stored)
    assert found.findings == () and found.candles is not None and found.candles.verdict == "corrected"


def test_candles_that_were_changed_behind_everybody_s_back_are_found(store: Store) -> None:
    stored = analysed(store)
    window = window_of("AAA")
    whole = read_candles(store, window)
    values = values_of(whole).copy()
    values[10, 4] += 0.5
    # without a revision nothing says what it was
    write_candles(store, window, frame_of(open_times_ms(whole), values), "simulated")
    found = traced(store, stored)
    assert found.candles is not None and found.candles.verdict == "other"
    assert [one.verdict for one in found.candles.ledger] == ["other", "equal"]
    assert len(found.findings) == 2
    assert "late corrections that are on record do not explain it" in found.findings[0]
    assert "is not as the ledger says" in found.findings[1]


def test_a_chunk_whose_digest_is_not_its_candles_is_found(store: Store) -> None:
    stored = analysed(store)
    chunk = store.documents.get(CHUNKS, "AAA|1h|2020-01-01")
    assert chunk is not None
    store.documents.put(CHUNKS, {**chunk, "digest": "0" * 64})
    found = traced(store, stored)
    assert any("does not have the digest that is written in it" in one for one in found.findings)
    store.documents.put(CHUNKS, {**chunk, "candles": chunk["candles"][:-1] + b"x"})
    with pytest.raises(StoreUnavailable, match="damaged"):
        traced(store, stored)


def test_a_part_that_nobody_approved_is_found(store: Store) -> None:
    stored = analysed(store)
    [first, _] = store.documents.find(LEDGER, {"series": "AAA|1h"})
    store.documents.delete(LEDGER, first["_id"])
    found = traced(store, stored)
    assert found.candles is not None
    assert found.candles.uncovered == (window_of("AAA").within(*CUTS[:2]),)
    assert len(found.findings) == 1 and "nothing approved" in found.findings[0]


def test_an_analysis_of_an_older_version_says_what_it_cannot(store: Store) -> None:
    stored = analysed(store)
    del stored["candles_start"]
    found = traced(store, stored)
    assert found.candles is None
    assert len(found.findings) == 1 and "made by an older version" in found.findings[0]


def test_outside_prefect_there_is_no_flow_run(store: Store) -> None:
    assert traced(store, analysed(store, run=None)).run is None


# --- with a model --------------------------------------------------------------------------------


@pytest.fixture
def models_at(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return opened(tmp_path_factory)


@pytest.fixture
def trained(models_at: Registry, store: Store) -> tuple[str, str, str]:
    """A champion of this store's own dataset: its name, version and the dataset's digest."""
    frozen = datasets.select(store, SYMBOLS, Timeframe.H1, START, CUTS[1], now=NOW - timedelta(days=1))
    name = models_at.new_name()
    tags = {"dataset_digest": frozen.digest, "prefect_flow_run": RUNS["BBB"], "code_version": "1.2.3"}
    version = models_at.add(name, "logistic", **tags)
    made = NOW - timedelta(hours=5)
    promote(models_at.client, store, name, version, reason="test", who="flow run x", now=made, key=models_at.key)
    return name, version, frozen.digest


def with_model(store: Store, models_at: Registry, name: str) -> dict[str, Any]:
    used = model_analyst.models(models_at.client, models_at.settings, name, store=store, now=NOW)
    return analysed(store, replace(RULES, models=used))


@pytest.mark.integration
def test_a_signal_of_a_model_leads_to_its_training_and_its_dataset(
    store: Store, models_at: Registry, trained: tuple[str, str, str]
) -> None:
    name, version, frozen = trained
    stored = with_model(store, models_at, name)
    found = traced(store, stored, lambda: models_at.client, models_at.settings)
    assert found.findings == ()
    assert {one.analyst for one in found.said} == {"model", "technical"}

    model = found.model
    assert model is not None and model.training is not None
    assert (model.name, model.version, model.estimator, model.degraded) == (name, version, "logistic", None)
    assert (model.champion_since, model.champion_by) == (NOW - timedelta(hours=5), "flow run x")
    registered = registry.version_at(models_at.client, name, version)
    assert model.training.run_id == registered.run_id
    assert model.manifest_sha256 == registered.tags["manifest_sha256"]
    run = models_at.client.get_run(registered.run_id)
    assert model.training.link == run_link(models_at.settings, run.info.experiment_id, registered.run_id)
    assert model.training.flow is not None and model.training.flow.link == page_of(RUNS["BBB"])
    assert model.training.code_version == "1.2.3"

    learned = found.dataset
    assert learned is not None
    assert (learned.digest, learned.verdict, learned.data_mode) == (frozen, "equal", "simulated")
    # the digest of the dataset, from the store's candles alone
    windows = {one.window.symbol: one.window for one in learned.candles}
    assert dataset_digest({symbol: read_candles(store, window) for symbol, window in windows.items()}) == frozen
    for one in learned.candles:
        assert one.stored_digest == digest(read_candles(store, one.window))
        assert [run.id for run in one.runs] == [RUNS[one.window.symbol]]
        assert [chunk.read_at_rev is not None for chunk in one.chunks] == [True]


@pytest.mark.integration
def test_a_dataset_that_was_corrected_since_is_read_back(
    store: Store, models_at: Registry, trained: tuple[str, str, str]
) -> None:
    stored = with_model(store, models_at, trained[0])
    corrected(store, NOW + timedelta(hours=1))
    found = traced(store, stored, lambda: models_at.client, models_at.settings)
    assert found.findings == ()
    assert found.dataset is not None and found.candles is not None
    assert (found.dataset.verdict, found.candles.verdict) == ("corrected", "corrected")
    assert [one.verdict for one in found.dataset.candles] == ["corrected", "equal"]


@pytest.mark.integration
def test_what_is_gone_is_found(store: Store, models_at: Registry, trained: tuple[str, str, str]) -> None:
    name, version, frozen = trained
    stored = with_model(store, models_at, name)
    client = models_at.client
    run_id = stored["model"]["run_id"]
    client.delete_run(run_id)
    gone = traced(store, stored, lambda: client, models_at.settings)
    # a deleted run is still told of until it is purged; its page says that it is
    assert gone.model is not None and gone.model.training is not None

    store.documents.delete(DATASETS, frozen)
    found = traced(store, stored, lambda: client, models_at.settings)
    assert found.dataset is None
    assert [one for one in found.findings if f"the store knows no dataset {frozen}" in one]

    client.delete_model_version(name, version)
    found = traced(store, stored, lambda: client, models_at.settings)
    assert found.model is not None and found.model.training is None
    assert [one for one in found.findings if f"model {name} has no version {version}" in one]
    # what the store itself has is told all the same
    assert found.candles is not None and found.candles.verdict == "equal"


@pytest.mark.integration
def test_a_registry_that_does_not_answer_is_a_finding(
    store: Store, models_at: Registry, trained: tuple[str, str, str], closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    stored = with_model(store, models_at, trained[0])
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    url = f"http://127.0.0.1:{closed_port}"
    found = traced(store, stored, lambda: MlflowClient(url, registry_uri=url), models_at.settings)
    assert len(found.findings) == 1 and "MLflow does not tell of" in found.findings[0]
    assert found.candles is not None and found.candles.verdict == "equal"


# --- which analysis ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    ["AAA|1h|2020-02-20T00:00:00Z", "AAA/1h/2020-02-20T00:00:00Z", "AAA/1h/2020-02-20T00:00", "AAA/1h/2020-02-20",
     "AAA|1h|2020-02-20T01:00:00+01:00", "AAA"],
)  # fmt: skip
def test_an_id_may_be_spelled_in_several_ways(store: Store, asked: str) -> None:
    stored = analysed(store)
    assert id_of(stored) == "AAA|1h|2020-02-20T00:00:00Z"
    assert find_analysis(store, asked) == stored


def put(store: Store, symbol: str, timeframe: str, close: datetime, run: str) -> None:
    key = f"{symbol}|{timeframe}|{close:%Y-%m-%dT%H:%M:%SZ}"
    document = {"_id": key, "symbol": symbol, "timeframe": timeframe, "timestamp": close, "flow_run_id": run}
    store.documents.put(ANALYSES, document)
    store.documents.put(SIGNALS, {"_id": f"{symbol}|{timeframe}", "signal": "Long", "timestamp": close})


def test_a_symbol_at_a_time_is_what_stood_then(store: Store) -> None:
    for hour in (1, 2, 3):
        put(store, "ETH/USDT", "1h", START + timedelta(hours=hour), "r")
        put(store, "ETH/USDT", "1m", START + timedelta(hours=hour, minutes=1), "r")

    def at(hours: float, timeframe: str | None = None) -> str:
        return id_of(find_analysis(store, "ETH/USDT", at=START + timedelta(hours=hours), timeframe=timeframe))

    assert at(2.5, "1h") == "ETH/USDT|1h|2020-01-01T02:00:00Z"
    assert at(2.0, "1h") == "ETH/USDT|1h|2020-01-01T02:00:00Z"
    assert at(2.5) == "ETH/USDT|1m|2020-01-01T02:01:00Z"
    # a symbol may have a slash of its own
    assert id_of(find_analysis(store, "ETH/USDT/1h/2020-01-01T01:00")) == "ETH/USDT|1h|2020-01-01T01:00:00Z"
    with pytest.raises(InvalidRequest, match=r"ETH/USDT has no analysis of 4h bars; its newest is ETH/USDT\|1m\|"):
        find_analysis(store, "ETH/USDT", timeframe="4h")
    with pytest.raises(InvalidRequest, match="whose bar had closed by 2020-01-01T00:30:00Z"):
        at(0.5)


def test_a_flow_run_leads_to_its_analysis(store: Store) -> None:
    one, two = str(uuid.uuid4()), str(uuid.uuid4())
    put(store, "AAA", "1h", START, one)
    put(store, "BBB", "1h", START, two)
    put(store, "CCC", "1h", START, two)
    assert id_of(find_analysis(store, one)) == "AAA|1h|2020-01-01T00:00:00Z"
    with pytest.raises(InvalidRequest, match=r"made 2 analyses; give the id of one: BBB\|1h\|.*, CCC\|1h\|"):
        find_analysis(store, two.upper())
    with pytest.raises(InvalidRequest, match="made none of the newest 500 analyses"):
        find_analysis(store, str(uuid.uuid4()))


def test_who_asks_for_nothing_is_told_what_there_is(store: Store) -> None:
    with pytest.raises(InvalidRequest, match=r"there is no analysis 'XXX'; there are none yet: run tradeflows analyse"):
        find_analysis(store, "XXX")
    put(store, "AAA", "1h", START, "r")
    with pytest.raises(InvalidRequest, match=r"there are some of AAA\. Give an id such as BTCUSDT/1h/"):
        find_analysis(store, "XXX/1h/2020-01-01")
