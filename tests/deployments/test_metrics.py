"""The metrics endpoint: the exposition, sources that fail or hang, bounded labels, and values equal to the truth."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from deployments import metrics, metrics_store
from deployments import metrics_catalogue as catalogue
from deployments.metrics_catalogue import CATALOGUE, Metric
from deployments.metrics_prefect import PrefectRuns
from deployments.metrics_sources import MOST, Distribution, Reading, Since, Source, Sources, candles_per_second
from deployments.metrics_stack import StackReader
from deployments.metrics_store import StoreReader
from deployments.stack_state import PartState, StackState
from deployments.stack_state import write as write_state
from tasks import ledger
from tasks import store as stores
from tasks.circuit import Breaker, Rule
from tasks.llm_budget import Budget
from tasks.resampling import DISAGREES
from tasks.settings import Settings
from tasks.store import ENGINE_SETTINGS, PROMOTIONS, Store, open_store, put_analysis
from trading.errors import ConfigurationError, SourceUnavailable, StoreError
from trading.masks import Reason
from trading.window import Timeframe, Window

NOW = datetime(2026, 11, 21, 12, 30, tzinfo=UTC)
FOLDER = Path(__file__).resolve().parents[2]
GRAFANA = FOLDER / "deployments" / "grafana"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    """Every sample of an exposition by name and labels, as Prometheus' own parser reads them."""
    return {
        (one.name, frozenset(one.labels.items())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


def scraped(*sources: Source, clock: Callable[[], float] = time.time, patience: float = 30.0) -> Samples:
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import generate_latest

    made = CollectorRegistry(auto_describe=False)
    made.register(Sources(sources, patience=patience, clock=clock))
    return samples(generate_latest(made).decode())


# --- the catalogue -------------------------------------------------------------------------------


def test_names_are_as_prometheus_wants_them() -> None:
    names = [one.name for one in CATALOGUE]
    assert len(set(names)) == len(names)
    declared = {one.name for one in vars(catalogue).values() if isinstance(one, Metric)}
    assert declared == set(names)
    for one in CATALOGUE:
        assert re.fullmatch(r"tradeflows_[a-z]+(_[a-z]+)*", one.name), one.name
        assert (one.kind == "counter") == one.name.endswith("_total"), one.name
        assert not one.name.endswith(("_count", "_sum", "_bucket", "_info_total"))
        assert one.kind != "histogram" or one.name.endswith("_seconds")
        assert one.help.endswith(".") and len(one.help.split()) > 3, one.name
        assert not re.search(r"_(ms|milliseconds|minutes|hours|usd|percent|mb|kb)(_|$)", one.name), one.name
        # words that Prometheus gives a meaning of its own
        assert not {"le", "quantile", "job", "instance"} & set(one.labels)


def test_the_manual_has_the_catalogue() -> None:
    manual = (FOLDER / "docs" / "metrics.md").read_text()
    assert catalogue.table() in manual, "renew it with deployments.metrics_catalogue.table()"


def expressions() -> Iterator[tuple[str, str]]:
    """Every PromQL expression of the dashboard and the alerts, with where it stands."""
    dashboard = json.loads((GRAFANA / "tradeflows.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']}", target["expr"]
    for one in dashboard["templating"]["list"]:
        if one["type"] == "query":
            yield f"variable {one['name']}", one["definition"]
    for group in yaml.safe_load((GRAFANA / "alerts.example.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"]


def named(expression: str) -> set[str]:
    """The metrics in a PromQL expression: words that are no function, keyword, label or text."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"\[[^\]]*\]|\b\d[\w.]*", "", bare)
    bare = re.sub(r"label_values\(\s*(\w+)\s*,\s*\w+\s*\)", r"\1", bare)
    words = re.finditer(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\s*\()\b", bare)
    return {one.group() for one in words if not re.match(r"\s*\(", bare[one.end() :])} - {"and", "or", "unless", "bool"}


def exported() -> dict[str, tuple[str, ...]]:
    """Every sample's name that the endpoint can have, with its labels."""
    found: dict[str, tuple[str, ...]] = {"up": ("job", "instance"), "process_resident_memory_bytes": ("job",)}
    for one in CATALOGUE:
        ends = ("_bucket", "_sum", "_count") if one.kind == "histogram" else ("",)
        found |= {f"{one.name}{end}": (*one.labels, *(("le",) if end == "_bucket" else ())) for end in ends}
    return found


def test_dashboard_and_alerts_name_what_is_exported_with_its_labels() -> None:
    known, used = exported(), set()
    count = 0
    for where, expression in expressions():
        names = named(expression)
        assert names, where
        assert names <= known.keys(), f"{where}: {sorted(names - known.keys())}"
        used |= names
        labels = {label for name in names for label in known[name]}
        matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", "".join(re.findall(r"\{([^}]*)\}", expression)))
        grouped = ",".join(re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression)).replace(" ", "")
        wanted = {*matched, *filter(None, grouped.split(","))}
        assert wanted <= labels, f"{where}: {sorted(wanted - labels)}"
        count += 1
    assert count > 60
    told = {
        re.sub(r"_(bucket|sum|count)$", "", name) if name not in {one.name for one in CATALOGUE} else name
        for name in used
    }
    assert {one.name for one in CATALOGUE} <= told, "the dashboard does not show all of them"


def test_the_names_in_an_expression_are_found() -> None:
    given_ = 'sum by (a, b) (increase(x_total{c="d and e", f=~"g|h"}[1h])) / on (i) y_seconds > 0 and z'
    assert named(given_) == {"x_total", "y_seconds", "z"}
    assert named("label_values(tradeflows_series, data_mode)") == {"tradeflows_series"}
    assert named("histogram_quantile(0.95, sum by (le) (rate(q_bucket[5m])))") == {"q_bucket"}


def test_the_dashboard_is_one_that_grafana_loads() -> None:
    dashboard = json.loads((GRAFANA / "tradeflows.json").read_text())
    panels = dashboard["panels"]
    assert dashboard["id"] is None and dashboard["schemaVersion"] >= 36 and dashboard["uid"] == "tradeflows"
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    [source] = [one for one in dashboard["templating"]["list"] if one["type"] == "datasource"]
    assert (source["name"], source["query"]) == ("datasource", "prometheus")
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["description"] and panel["title"]
        assert {panel["datasource"]["uid"], *(one["datasource"]["uid"] for one in panel["targets"])} == {
            "${datasource}"
        }
        assert len({one["refId"] for one in panel["targets"]}) == len(panel["targets"])
        if panel["type"] != "table":
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None


# --- the exposition ------------------------------------------------------------------------------


def fixed(reading: Reading) -> Callable[[float], Reading]:
    return lambda _: reading


def test_families_have_their_help_type_and_samples() -> None:
    reading = Reading()
    reading.set(catalogue.RUNS, 3.0, "ingest", "completed")
    reading.set(
        catalogue.RUN_DURATION, Distribution((1.0, 10.0)).with_value(0.5).with_value(10.0).with_value(11.0), "ingest"
    )
    reading.set(catalogue.CANDLE_AGE, Since(940.0), 'A"\\\n', "1h", "live")
    text = metrics.text([Source("one", fixed(reading))])
    told = {family.name: family for family in text_string_to_metric_families(text)}
    assert told["tradeflows_flow_runs"].type == "counter"
    assert told["tradeflows_flow_runs"].documentation == catalogue.RUNS.help
    assert told["tradeflows_flow_run_duration_seconds"].type == "histogram"
    assert "process_resident_memory_bytes" in told
    found = scraped(Source("one", fixed(reading)), clock=lambda: 1000.0)
    name = "tradeflows_flow_run_duration_seconds"
    buckets = {bound: value(found, f"{name}_bucket", deployment="ingest", le=bound) for bound in ("1", "10", "+Inf")}
    assert buckets == {"1": 1.0, "10": 2.0, "+Inf": 3.0}
    assert value(found, f"{name}_sum", deployment="ingest") == 21.5
    # ages are of the scrape, and labels come back as they were
    assert value(found, "tradeflows_candles_age_seconds", symbol='A"\\\n', timeframe="1h", data_mode="live") == 60.0


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1e6, allow_nan=False), max_size=50))
def test_buckets_are_what_counting_gives(values: list[float]) -> None:
    bounds = (1.0, 60.0, 3600.0)
    held = Distribution(bounds)
    for one in values:
        held = held.with_value(one)
    reading = Reading()
    reading.set(catalogue.RUN_DURATION, held, "x")
    found = scraped(Source("one", fixed(reading)))
    for bound in bounds:
        counted = sum(one <= bound for one in values)
        assert value(found, f"{catalogue.RUN_DURATION.name}_bucket", deployment="x", le=f"{bound:g}") == counted
    assert value(found, f"{catalogue.RUN_DURATION.name}_count", deployment="x") == len(values)


def test_a_metric_that_is_not_in_the_catalogue_is_refused() -> None:
    reading = Reading()
    reading.set(Metric("tradeflows_stray", "Not declared."), 1.0)
    with pytest.raises(KeyError, match="tradeflows_stray"):
        scraped(Source("one", fixed(reading)))


def test_a_source_that_fails_is_down_and_takes_nobody_with_it(caplog: pytest.LogCaptureFixture) -> None:
    well = Reading()
    well.set(catalogue.FREE, 5.0)

    def fail(_: float) -> Reading:
        raise ConfigurationError("the Prefect server cannot be reached")

    with caplog.at_level("INFO", "tradeflows"):
        broken = Source("prefect", fail, every=0.0)
        for _ in range(3):
            found = scraped(Source("stack", fixed(well)), broken)
    assert value(found, "tradeflows_source_up", source="prefect") == 0.0
    assert value(found, "tradeflows_source_up", source="stack") == 1.0
    assert value(found, "tradeflows_home_free_bytes") == 5.0
    assert value(found, "tradeflows_source_age_seconds", source="prefect") is None
    # told once, with the reason
    assert [record.message.count("metrics source is down") for record in caplog.records] == [1]
    assert "cannot be reached" in caplog.text


def test_what_a_source_said_before_it_failed_is_not_told_on() -> None:
    reading = Reading()
    reading.set(catalogue.FREE, 5.0)
    answers: list[Reading | Exception] = [reading, OSError("gone"), reading]

    def read(_: float) -> Reading:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    ticks = [0.0]
    source = Source("one", read, ticks=lambda: ticks[0])
    seen = []
    for moment in (0.0, 100.0, 200.0):
        ticks[0] = moment
        seen.append(value(scraped(source), "tradeflows_home_free_bytes"))
    assert seen == [5.0, None, 5.0]


def test_a_source_that_hangs_is_not_waited_for_and_the_reading_before_stands_in() -> None:
    ticks = [0.0]
    go = threading.Event()
    hangs = [False]
    reading = Reading()
    reading.set(catalogue.FREE, 5.0)

    def read(_: float) -> Reading:
        if hangs[0]:
            assert go.wait(30)
        return reading

    source = Source("slow", read, every=10.0, ticks=lambda: ticks[0])
    assert value(scraped(source), "tradeflows_home_free_bytes") == 5.0
    hangs[0], ticks[0] = True, 20.0
    # under way for some seconds only: what was read before is still good
    assert value(scraped(source, patience=0.01), "tradeflows_home_free_bytes") == 5.0
    ticks[0] = 200.0
    found = scraped(source, patience=0.01)
    assert value(found, "tradeflows_source_up", source="slow") == 0.0
    assert value(found, "tradeflows_home_free_bytes") is None
    go.set()
    assert value(scraped(source), "tradeflows_source_up", source="slow") == 1.0
    # however long it took, it is asked again within five minutes
    hangs[0], ticks[0] = False, 501.0
    assert value(scraped(source), "tradeflows_source_read_duration_seconds", source="slow") == 0.0


def test_a_source_is_not_read_at_every_scrape_and_a_slow_one_more_seldom() -> None:
    ticks, took, read_at = [0.0], [0.0], []

    def read(_: float) -> Reading:
        read_at.append(ticks[0])
        ticks[0] += took[0]
        return Reading()

    source = Source("one", read, every=15.0, ticks=lambda: ticks[0])
    for moment in (0.0, 5.0, 14.9, 15.0, 29.0, 30.0):
        ticks[0] = moment
        scraped(source)
    assert read_at == [0.0, 15.0, 30.0]
    # a reading of two seconds is followed by forty without one
    ticks[0], took[0] = 50.0, 2.0
    scraped(source)
    for moment in (70.0, 91.9, 92.0):
        ticks[0] = moment
        scraped(source)
    assert read_at == [0.0, 15.0, 30.0, 50.0, 92.0]


def test_scrapes_at_the_same_time_read_once() -> None:
    both = threading.Barrier(2)
    count = []

    def read(_: float) -> Reading:
        count.append(1)
        time.sleep(0)
        return Reading()

    source = Source("one", read, every=60.0)

    def scrape() -> None:
        both.wait(10)
        scraped(source)

    threads = [threading.Thread(target=scrape) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert count == [1]


def test_candles_per_second_are_of_runs_that_both_know() -> None:
    store, prefect = Reading(), Reading()
    store.candles_of = {
        "a": ("live", 1000),
        "b": ("live", 500),
        "c": ("simulated", 90),
        "unknown": ("live", 9),
        "e": ("live", 0),
    }
    prefect.seconds_of = {"a": 10.0, "b": 5.0, "c": 3.0, "d": 7.0, "e": 4.0}
    assert candles_per_second([store, prefect]) == {"live": 100.0, "simulated": 30.0}
    assert candles_per_second([prefect]) == {}
    # the newest ten count
    store.candles_of = {str(at): ("live", 100 if at < 10 else 10) for at in range(20)}
    prefect.seconds_of = {str(at): 1.0 for at in range(20)}
    assert candles_per_second([store, prefect]) == {"live": 10.0}


# --- the store -----------------------------------------------------------------------------------


def test_the_declarations_are_those_of_the_store() -> None:
    """The endpoint has its own, to be spared pandas."""
    theirs = {one.name: one for one in stores.COLLECTIONS}
    assert {one.name: one for one in metrics_store.COLLECTIONS} == {
        one.name: theirs[one.name] for one in metrics_store.COLLECTIONS
    }
    assert metrics_store.FORMAT == stores.FORMAT
    assert set(metrics_store.REASONS) == {*(one.value for one in Reason), DISAGREES}


@pytest.mark.integration
def test_the_endpoint_imports_neither_pandas_nor_prefect_nor_mlflow() -> None:
    import subprocess
    import sys

    code = (
        "import sys, deployments.metrics, deployments.running, tasks.sqlite_documents, bson\n"
        "heavy = {'pandas', 'numpy', 'pyarrow', 'prefect', 'mlflow', 'lightgbm', 'sqlalchemy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=FOLDER)
    assert found.stdout.strip() == "[]"


def record(
    store: Store, symbol: str, start: datetime, bars: int, *, at: datetime, status: str = ledger.APPROVED,
    timeframe: Timeframe = Timeframe.H1, calendar: str = "24/7", run: str | None = "run-1", mode: str = "simulated",
    **counts: Any,
) -> None:  # fmt: skip
    window = Window(symbol, timeframe, start, start + bars * timeframe.delta)
    values = {"rows": bars, "added": bars, "quarantined": {}, "gaps": 0, **counts}
    entry = ledger.LedgerEntry(
        window=window, status=status, digest="d", suite="2", flow_run_id=run, data_mode=mode, source="sandbox",
        calendar=calendar, recorded_at=at, **values,
    )  # fmt: skip
    ledger.record(store, entry)
    store.documents.put(stores.SERIES, {"_id": f"{symbol}|{timeframe.value}", "data_mode": mode})


def analysis(
    store: Store,
    symbol: str,
    close: datetime,
    signal: str,
    said: dict[str, str],
    *,
    made: datetime,
    absent: tuple[str, ...] = (),
) -> None:
    opinions = [{"analyst": name, "signal": word} for name, word in said.items() if name != "challenger"]
    compared = [{"analyst": name, "signal": word} for name, word in said.items() if name == "challenger"]
    stored = {
        "symbol": symbol, "timeframe": "1h", "timestamp": close, "data_mode": "simulated", "created_at": made,
        "analysis": {"signal": signal, "opinions": opinions, "compared": compared, "absent": list(absent)},
    }  # fmt: skip
    put_analysis(store, stored)
    store.documents.put(stores.SIGNALS, {"_id": f"{symbol}|1h", "signal": signal, "timestamp": close})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


def settings_of(home: Path, **changes: Any) -> Settings:
    return Settings(home=home).model_copy(update={"mongodb_url": None, "engine_url": None, **changes})  # type: ignore[call-arg]


def fill(store: Store) -> None:
    """Two hourly series and a daily one, a refusal, bad rows, two analyses, calls of the LLM, promotions."""
    hour = NOW.replace(minute=0)
    yesterday, today = NOW - timedelta(days=1), NOW - timedelta(hours=2)
    record(store, "AAA", hour - timedelta(hours=50), 40, at=yesterday, run="old")
    record(store, "AAA", hour - timedelta(hours=10), 8, at=today, quarantined={"null": 2, "duplicate": 1}, changed=1)
    record(
        store,
        "AAA",
        hour - timedelta(hours=2),
        2,
        at=NOW,
        status=ledger.REFUSED,
        rows=1,
        added=0,
        quarantined={"null": 1},
    )
    record(store, "BBB", hour - timedelta(hours=12), 12, at=NOW, run="run-2")
    record(
        store,
        "STOCK",
        hour.replace(hour=0) - timedelta(days=9),
        8,
        at=NOW,
        timeframe=Timeframe.D1,
        calendar="XNYS",
        mode="live",
    )
    made = NOW - timedelta(minutes=7)
    analysis(store, "AAA", hour, "Long", {"model": "Long", "technical": "Neutral", "challenger": "Short"}, made=made)
    analysis(store, "AAA", hour - timedelta(hours=1), "Short", {"technical": "Short"}, made=made - timedelta(hours=1))
    store.documents.put(stores.SIGNALS, {"_id": "AAA|1h", "signal": "Long", "timestamp": hour})
    analysis(store, "BBB", hour, "Neutral", {"technical": "Neutral"}, made=made, absent=("model", "llm"))
    for number, kind, version in ((1, "promote", "3"), (2, "promote", "4"), (3, "fallback", "3"), (4, "rollback", "3")):
        at = NOW - timedelta(days=5 - number)
        entry = {
            "_id": f"M|{number:06d}",
            "model": "M",
            "number": number,
            "kind": kind,
            "to_version": version,
            "at": at,
        }
        store.documents.insert(PROMOTIONS, entry)
    store.documents.put(
        ENGINE_SETTINGS, {"_id": "reading", "last": 1, "read_at": NOW - timedelta(hours=1), "failures": 4}
    )


def budget_of(store: Store, at: datetime, daily: float = 1.0, monthly: float = 10.0) -> Budget:
    return Budget(store.documents, daily, monthly, clock=lambda: at)


def spend(store: Store) -> None:
    """Calls of two days, and one under way."""
    about = {
        "model": "m",
        "purpose": "opinion",
        "symbol": "AAA",
        "data_mode": "live",
        "question": "q",
        "flow_run_id": None,
    }
    for at, nano, tokens in (
        (NOW - timedelta(days=1), 2_000_000, (50, 5)),
        (NOW, 3_000_000, (100, 10)),
        (NOW, 1_000_000, None),
    ):
        budget = budget_of(store, at)
        reservation = budget.reserve(10_000_000, about)
        budget.settle(reservation, "answered" if tokens else "failed", nano=nano, latency=0.5, tokens=tokens)
    budget_of(store, NOW).reserve(7_000_000, about)


def dump(path: Path) -> list[str]:
    with sqlite3.connect(path) as connection:
        return list(connection.iterdump())


def test_the_store_is_told_as_it_is_and_not_written(store: Store, tmp_path: Path) -> None:
    fill(store)
    spend(store)
    Breaker(store.documents, "exchange x", Rule(failures=1), clock=lambda: NOW).heard(SourceUnavailable("down"))
    before = dump(tmp_path / "store.db")
    settings = settings_of(tmp_path, engine_url="http://127.0.0.1:1")
    clock = NOW.timestamp
    found = scraped(Source("store", StoreReader(settings), clock=clock), clock=clock)
    assert dump(tmp_path / "store.db") == before

    hourly = {"timeframe": "1h", "data_mode": "simulated"}
    assert value(found, "tradeflows_series", **hourly) == 2
    assert value(found, "tradeflows_series", timeframe="1d", data_mode="live") == 1
    # of today alone; a refusal is a window, and its good rows were received
    assert value(found, "tradeflows_candles_received_total", **hourly) == 8 + 1 + 12
    assert value(found, "tradeflows_candles_added_total", **hourly) == 20
    assert value(found, "tradeflows_candles_changed_total", **hourly) == 1
    assert value(found, "tradeflows_candles_quarantined_total", reason="null", **hourly) == 3
    assert value(found, "tradeflows_candles_quarantined_total", reason="duplicate", **hourly) == 1
    assert value(found, "tradeflows_candles_quarantined_total", reason="infinite", **hourly) == 0
    assert value(found, "tradeflows_windows_total", status="refused", **hourly) == 1
    assert value(found, "tradeflows_windows_total", status="refused", timeframe="1d", data_mode="live") == 0

    # freshness as the ledger's own summary sees it
    for one in ledger.summary(store):
        assert one.approved_until is not None
        labels = {"symbol": one.symbol, "timeframe": one.timeframe, "data_mode": one.data_mode}
        age = (NOW - one.approved_until).total_seconds()
        assert value(found, "tradeflows_candles_age_seconds", **labels) == pytest.approx(age)
        behind = one.bars_behind(NOW) if one.symbol != "STOCK" else None
        assert value(found, "tradeflows_candles_behind_bars", **labels) == behind

    def signals(analyst: str, signal: str) -> float | None:
        return value(found, "tradeflows_signals", analyst=analyst, signal=signal, **hourly)

    assert [signals("combined", one) for one in ("Long", "Short", "Neutral")] == [1, None, 1]
    assert (signals("technical", "Neutral"), signals("model", "Long"), signals("challenger", "Short")) == (2, 1, 1)
    assert value(found, "tradeflows_analysts_absent", analyst="model", **hourly) == 1
    assert value(found, "tradeflows_analysis_age_seconds", symbol="AAA", **hourly) == 420

    spent = budget_of(store, NOW).spent()
    assert (
        value(found, "tradeflows_llm_spent_dollars", period="day") == pytest.approx(spent.day) == pytest.approx(0.004)
    )
    assert value(found, "tradeflows_llm_spent_dollars", period="month") == pytest.approx(spent.month)
    assert value(found, "tradeflows_llm_reserved_dollars") == pytest.approx(spent.under_way)
    assert value(found, "tradeflows_llm_budget_left_dollars", period="day") == pytest.approx(spent.day_left)
    assert value(found, "tradeflows_llm_budget_left_dollars", period="month") == pytest.approx(spent.month_left)
    of_model = {"model": "m", "data_mode": "live"}
    assert value(found, "tradeflows_llm_calls_total", outcome="answered", **of_model) == 1
    assert value(found, "tradeflows_llm_tokens_total", kind="prompt", **of_model) == 100
    assert value(found, "tradeflows_llm_cost_dollars_total", **of_model) == pytest.approx(0.004)

    assert value(found, "tradeflows_champion_version", model="M") == 3
    assert value(found, "tradeflows_champion_reign_seconds", model="M") == 86_400
    assert value(found, "tradeflows_champion_changes_total", model="M", kind="promote") == 2
    assert value(found, "tradeflows_engine_settings_age_seconds") == 3600
    assert value(found, "tradeflows_engine_settings_failures") == 4
    assert value(found, "tradeflows_market_circuit_open", market="exchange x") == 1


def test_refusals_after_the_newest_approval_hide_nothing(store: Store) -> None:
    start = NOW.replace(minute=0) - timedelta(hours=200)
    record(store, "AAA", start, 100, at=NOW)
    for at in range(60):
        record(store, "AAA", start + timedelta(hours=100 + at), 1, at=NOW, status=ledger.REFUSED)
    newest = metrics_store._newest_approved(store.documents, "AAA|1h")
    assert newest is not None and newest["end"] == start + timedelta(hours=100)
    record(store, "BBB", start, 1, at=NOW, status=ledger.REFUSED)
    assert metrics_store._newest_approved(store.documents, "BBB|1h") is None


def test_a_counter_never_falls_within_a_day_and_begins_anew_at_midnight(store: Store, tmp_path: Path) -> None:
    start = NOW.replace(minute=0) - timedelta(hours=10)
    reader = StoreReader(settings_of(tmp_path))

    def added(now: datetime) -> float | None:
        found = scraped(Source("store", reader, every=0.0, clock=now.timestamp))
        return value(found, "tradeflows_candles_added_total", timeframe="1h", data_mode="simulated")

    record(store, "AAA", start, 5, at=NOW)
    assert added(NOW) == 5
    # the same window again, of which nothing was new: its record is replaced
    record(store, "AAA", start, 5, at=NOW, added=0)
    assert added(NOW) == 5
    record(store, "AAA", start + timedelta(hours=5), 3, at=NOW + timedelta(minutes=1))
    assert added(NOW + timedelta(minutes=2)) == 5
    tomorrow = NOW + timedelta(days=1)
    assert added(tomorrow) == 0
    record(store, "AAA", start + timedelta(hours=8), 2, at=tomorrow)
    assert added(tomorrow) == 2


def test_labels_are_bounded_and_what_is_beyond_is_counted(store: Store, tmp_path: Path) -> None:
    hour = NOW.replace(minute=0)
    for at in range(MOST + 30):
        record(store, f"S{at:03d}", hour - timedelta(hours=1), 1, at=NOW)
        if at < 20:
            said = {"technical": "Long", f"stranger{at}": "Short"}
            analysis(store, f"S{at:03d}", hour, "Long", said, made=NOW)
    for at in range(metrics_store.MOST_MODELS + 5):
        entry = {
            "_id": f"M{at}|000001",
            "model": f"M{at}",
            "number": 1,
            "kind": "promote",
            "to_version": "1",
            "at": NOW,
        }
        store.documents.insert(PROMOTIONS, entry)
    found = scraped(Source("store", StoreReader(settings_of(tmp_path)), clock=NOW.timestamp))
    told = {dict(labels)["symbol"] for name, labels in found if name == "tradeflows_candles_age_seconds"}
    assert len(told) == MOST
    assert value(found, "tradeflows_source_left_out", source="store") == 30 + 5
    # the sums have all of them; strangers share one name
    assert value(found, "tradeflows_series", timeframe="1h", data_mode="simulated") == MOST + 30
    assert value(found, "tradeflows_candles_added_total", timeframe="1h", data_mode="simulated") == MOST + 30
    analysts = {dict(labels)["analyst"] for name, labels in found if name == "tradeflows_signals"}
    assert analysts == {"combined", "technical", "others"}
    assert len(found) < 5 * MOST


def test_records_beyond_the_bound_are_counted_as_left_out(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_store, "MOST_RECORDS", 3)
    for at in range(5):
        record(store, "AAA", NOW.replace(minute=0) - timedelta(hours=9 - at), 1, at=NOW + timedelta(seconds=at))
    found = scraped(Source("store", StoreReader(settings_of(tmp_path)), clock=NOW.timestamp))
    assert value(found, "tradeflows_source_left_out", source="store") == 1


def test_before_the_first_flow_there_is_nothing_and_nothing_is_made(tmp_path: Path) -> None:
    found = scraped(Source("store", StoreReader(settings_of(tmp_path / "home"))))
    assert value(found, "tradeflows_source_up", source="store") == 1
    assert not (tmp_path / "home").exists()


def test_a_store_of_another_version_or_damaged_is_down(store: Store, tmp_path: Path) -> None:
    store.documents.put(stores.SERIES, {"_id": "format", "version": 1})
    with pytest.raises(StoreError, match="of format 1"):
        StoreReader(settings_of(tmp_path))(NOW.timestamp())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "store.db").write_bytes(b"no database" * 100)
    found = scraped(Source("store", StoreReader(settings_of(tmp_path / "other"))))
    assert value(found, "tradeflows_source_up", source="store") == 0


@pytest.mark.integration
def test_a_store_on_mongodb_is_told_alike(store: Store, tmp_path: Path, mongo_url: str, mongo_database: str) -> None:
    from tasks.mongo_documents import MongoDocuments

    url = f"{mongo_url.rstrip('/')}/{mongo_database}"
    with Store(MongoDocuments(url, stores.COLLECTIONS)) as remote:
        for each in (store, remote):
            fill(each)
            spend(each)
    clock = NOW.timestamp
    here = scraped(Source("store", StoreReader(settings_of(tmp_path)), clock=clock), clock=clock)
    there_settings = settings_of(tmp_path, mongodb_url=SecretStr(url))
    there = scraped(Source("store", StoreReader(there_settings), clock=clock), clock=clock)
    assert len(there) > 60
    for one in (here, there):
        for key in [key for key in one if key[0].startswith("tradeflows_source_")]:
            del one[key]
    assert here == there


# --- Prefect, by a server that answers like it ---------------------------------------------------


class FakePrefect:
    """Answers the questions of ``PrefectRuns`` over a list of runs, and counts them."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []
        self.deployments = {"d1": "ingest", "d2": "analyse"}
        self.asked: list[tuple[str, int]] = []

    def ask(self, method: str, path: str, body: dict[str, Any]) -> Any:
        self.asked.append((path, body.get("offset", 0)))
        if path == "/flow_runs/count":
            return len(self._ended(body))
        if path.startswith("/work_pools/"):
            return [{"name": "local", "last_heartbeat_time": (NOW - timedelta(seconds=5)).isoformat()}]
        state = body["flow_runs"].get("state", {})
        if "name" in state:
            under_way = ("PENDING", "RUNNING", "CANCELLING")
            return [one for one in self.runs if one["state_type"] in under_way or one["state_name"] == "Late"]
        if "type" in state:
            [wanted] = body["deployments"]["id"]["any_"]
            done = [one for one in self.runs if one["deployment_id"] == wanted and one["state_type"] == "COMPLETED"]
            return sorted(done, key=lambda one: str(one["end_time"]), reverse=True)[:1]
        ended = sorted(self._ended(body), key=lambda one: str(one["end_time"]), reverse=True)
        return ended[body["offset"] : body["offset"] + body["limit"]]

    def all(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        assert (path, query["deployments"]) == ("/deployments/filter", {"tags": {"all_": ["tradeflows"]}})
        yield from ({"id": key, "name": name} for key, name in self.deployments.items())

    def _ended(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        after = datetime.fromisoformat(body["flow_runs"]["end_time"]["after_"])
        return [one for one in self.runs if one["end_time"] and datetime.fromisoformat(one["end_time"]) >= after]

    def add(self, identifier: str, deployment: str | None, state: str, **changes: Any) -> None:
        """A run that was due ten minutes before NOW, started 4 s later and ran for 20 s."""
        due = NOW - timedelta(minutes=10)
        ended = state in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
        run = {
            "id": identifier, "name": identifier, "deployment_id": deployment, "state_type": state,
            "state_name": state.capitalize(), "expected_start_time": due.isoformat(),
            "start_time": (due + timedelta(seconds=4)).isoformat(), "total_run_time": 20.0,
            "end_time": (due + timedelta(seconds=24)).isoformat() if ended else None,
        }  # fmt: skip
        self.runs = [one for one in self.runs if one["id"] != identifier] + [{**run, **changes}]


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> FakePrefect:
    from contextlib import contextmanager

    fake = FakePrefect()

    @contextmanager
    def connected(url: str, *, timeout: float) -> Iterator[FakePrefect]:
        yield fake

    monkeypatch.setattr("deployments.metrics_prefect.connected", connected)
    return fake


def told(reader: PrefectRuns, now: datetime = NOW) -> Samples:
    return scraped(Source("prefect", reader, every=0.0, clock=now.timestamp), clock=now.timestamp)


def test_runs_that_ended_today_are_counted_once_by_deployment_and_state(prefect: FakePrefect) -> None:
    prefect.add("ingest-1h", "d1", "COMPLETED")
    prefect.add("b", "d2", "COMPLETED", state_name="Degraded", total_run_time=100.0)
    prefect.add("c", "d2", "FAILED")
    prefect.add("d", None, "COMPLETED")
    prefect.add("e", "elsewhere", "CRASHED")
    prefect.add("f", "d1", "CANCELLED", start_time=None, total_run_time=0.0)
    prefect.add("g", "d1", "COMPLETED", end_time=(NOW - timedelta(days=1)).isoformat())
    reader = PrefectRuns("http://unused/api")
    for _ in range(2):
        found = told(reader)
        runs = {
            (dict(labels)["deployment"], dict(labels)["state"]): count
            for (name, labels), count in found.items()
            if name == "tradeflows_flow_runs_total" and count
        }
        assert runs == {
            ("ingest", "completed"): 1, ("analyse", "degraded"): 1, ("analyse", "failed"): 1,
            ("none", "completed"): 1, ("others", "crashed"): 1, ("ingest", "cancelled"): 1,
        }  # fmt: skip
    assert value(found, "tradeflows_flow_run_duration_seconds_sum", deployment="analyse") == 120
    assert value(found, "tradeflows_flow_run_lateness_seconds_sum", deployment="ingest") == 4
    assert value(found, "tradeflows_flow_run_lateness_seconds_count", deployment="ingest") == 1
    assert value(found, "tradeflows_flow_run_success_age_seconds", deployment="ingest") == 576
    assert value(found, "tradeflows_worker_heartbeat_age_seconds", worker="local") == 5
    assert value(found, "tradeflows_flow_runs_total", deployment="ingest", state="failed") == 0


def test_a_run_that_is_started_again_counts_under_both_its_ends(prefect: FakePrefect) -> None:
    prefect.add("a", "d1", "CRASHED")
    reader = PrefectRuns("http://unused/api")
    told(reader)
    prefect.add("a", "d1", "COMPLETED", end_time=NOW.isoformat())
    found = told(reader)
    states = ("crashed", "completed")
    assert [value(found, "tradeflows_flow_runs_total", deployment="ingest", state=one) for one in states] == [1, 1]


def test_a_new_start_of_the_endpoint_counts_the_same(prefect: FakePrefect) -> None:
    for at in range(7):
        prefect.add(f"r{at}", "d1", "COMPLETED", end_time=(NOW - timedelta(minutes=at)).isoformat())
    first = PrefectRuns("http://unused/api")
    told(first)
    prefect.add("late", "d2", "FAILED", end_time=NOW.isoformat())
    kinds = ("tradeflows_flow_runs_total", "tradeflows_flow_run_duration_seconds_bucket")
    grown, fresh = (
        {key: count for key, count in told(reader).items() if key[0] in kinds and count}
        for reader in (first, PrefectRuns("http://unused/api"))
    )
    assert grown == fresh


def test_midnight_begins_anew(prefect: FakePrefect) -> None:
    prefect.add("a", "d1", "FAILED")
    reader = PrefectRuns("http://unused/api")
    assert value(told(reader), "tradeflows_flow_runs_total", deployment="ingest", state="failed") == 1
    tomorrow = NOW + timedelta(days=1)
    assert value(told(reader, tomorrow), "tradeflows_flow_runs_total", deployment="ingest", state="failed") == 0
    prefect.add("b", "d1", "FAILED", end_time=tomorrow.isoformat())
    assert value(told(reader, tomorrow), "tradeflows_flow_runs_total", deployment="ingest", state="failed") == 1


def test_what_is_late_or_running_now(prefect: FakePrefect) -> None:
    for at, minutes in enumerate((3, 12)):
        due = (NOW - timedelta(minutes=minutes)).isoformat()
        late = {"state_name": "Late", "expected_start_time": due, "start_time": None}
        prefect.add(f"late{at}", "d1", "SCHEDULED", **late)
    prefect.add("running", "d2", "RUNNING", start_time=(NOW - timedelta(seconds=90)).isoformat())
    found = told(PrefectRuns("http://unused/api"))
    assert value(found, "tradeflows_flow_runs", deployment="ingest", state="late") == 2
    assert value(found, "tradeflows_flow_runs", deployment="analyse", state="running") == 1
    assert value(found, "tradeflows_flow_runs", deployment="analyse", state="late") == 0
    assert value(found, "tradeflows_flow_run_overdue_seconds", deployment="ingest") == 720
    assert value(found, "tradeflows_flow_run_overdue_seconds", deployment="analyse") == 0
    assert value(found, "tradeflows_flow_run_running_seconds", deployment="analyse") == 90


def test_later_readings_ask_for_what_is_new_and_strangers_are_learned_once(prefect: FakePrefect) -> None:
    for at in range(450):
        prefect.add(f"r{at}", "elsewhere", "COMPLETED", end_time=(NOW - timedelta(seconds=60 * at)).isoformat())
    reader = PrefectRuns("http://unused/api")
    assert value(told(reader), "tradeflows_flow_runs_total", deployment="others", state="completed") == 450
    pages = [offset for path, offset in prefect.asked if path == "/flow_runs/filter" and offset]
    assert pages == [200, 400]
    prefect.asked.clear()
    told(reader)
    assert len(prefect.asked) == 3, prefect.asked


def test_runs_beyond_the_bound_are_left_out_and_said(prefect: FakePrefect) -> None:
    for at in range(700):
        prefect.add(f"r{at}", "d1", "COMPLETED", end_time=(NOW - timedelta(seconds=at)).isoformat())
    found = told(PrefectRuns("http://unused/api", most_runs=400))
    assert value(found, "tradeflows_flow_runs_total", deployment="ingest", state="completed") == 400
    assert value(found, "tradeflows_source_left_out", source="prefect") == 300


def test_deployments_beyond_the_bound_are_others(prefect: FakePrefect) -> None:
    prefect.deployments = {f"d{at}": f"name{at:03d}" for at in range(60)}
    prefect.add("a", "d59", "COMPLETED")
    found = told(PrefectRuns("http://unused/api"))
    assert len({dict(labels)["deployment"] for name, labels in found if name == "tradeflows_flow_runs"}) == 50
    assert value(found, "tradeflows_flow_runs_total", deployment="others", state="completed") == 1
    assert value(found, "tradeflows_source_left_out", source="prefect") == 10


def test_a_prefect_that_does_not_answer_is_down(closed_port: int) -> None:
    found = scraped(Source("prefect", PrefectRuns(f"http://127.0.0.1:{closed_port}/api")))
    assert value(found, "tradeflows_source_up", source="prefect") == 0


# --- MLflow and the stack ------------------------------------------------------------------------


def test_the_registry_is_asked_with_mlflow_s_credentials(
    stub: Any, http_reply: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deployments.metrics_registry import RegistryReader

    for name, word in (("USERNAME", "tradeflows"), ("PASSWORD", "not-shown-anywhere")):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", word)
    models = [
        {"name": "M", "aliases": [{"alias": "champion", "version": "7"}, {"alias": "challenger", "version": "8"}]},
        {"name": "N"},
    ]
    made = {
        "creation_timestamp": int((NOW - timedelta(days=2)).timestamp() * 1000),
        "tags": [
            {"key": "data_mode", "value": "sample"},
            {"key": "trained_until_ms", "value": str(int((NOW - timedelta(days=3)).timestamp() * 1000))},
        ],
    }
    root = "/api/2.0/mlflow"
    server = stub(
        {
            f"{root}/registered-models/search": http_reply(json.dumps({"registered_models": models})),
            f"{root}/model-versions/get": http_reply(json.dumps({"model_version": made})),
        }
    )
    found = scraped(Source("mlflow", RegistryReader(server.url)), clock=NOW.timestamp)
    assert value(found, "tradeflows_registry_champion_version", model="M") == 7
    assert value(found, "tradeflows_champion_age_seconds", model="M", data_mode="sample") == 2 * 86_400
    assert value(found, "tradeflows_champion_data_age_seconds", model="M", data_mode="sample") == 3 * 86_400
    assert not [key for key in found if ("model", "N") in key[1]]
    assert [path.partition("?")[0].rpartition("/")[2] for path in server.paths] == ["search", "get"]


def test_a_registry_that_refuses_is_down(stub: Any, http_reply: Callable[..., bytes]) -> None:
    from deployments.metrics_registry import RegistryReader

    server = stub({"/api/2.0/mlflow/registered-models/search": http_reply("no", status=401)})
    with pytest.raises(ConfigurationError, match=r"MLflow refused /registered-models/search \(401\)"):
        RegistryReader(server.url)(0.0)


def test_the_stack_s_parts_and_files(tmp_path: Path) -> None:
    parts = {"prefect": PartState("ready", 1.0, restarts=2), "worker": PartState("failed", 1.0)}
    write_state(tmp_path, StackState("id", 1, 0.0, 1.0, "ready", sandbox=True, parts=parts))
    (tmp_path / "store.db").write_bytes(b"x" * 1000)
    (tmp_path / "store.db-wal").write_bytes(b"x" * 24)
    found = scraped(Source("stack", StackReader(tmp_path)))
    up = {dict(labels)["part"]: one for (name, labels), one in found.items() if name == "tradeflows_part_up"}
    assert up == {"stack": 0, "prefect": 1, "worker": 0}
    assert value(found, "tradeflows_part_restarts_total", part="prefect") == 2
    assert value(found, "tradeflows_stack_info", sandbox="true", warm="false") == 1
    assert value(found, "tradeflows_database_bytes", database="store") == 1024
    assert value(found, "tradeflows_database_bytes", database="mlflow") is None
    assert (value(found, "tradeflows_home_free_bytes") or 0) > 0


# --- over HTTP -----------------------------------------------------------------------------------


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with metrics.served(metrics.sources(settings_of(tmp_path), None, None), 0) as (url, server):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield url
        server.shutdown()
        thread.join(10)


def asked(url: str, path: str, method: str = "GET", host: str | None = None) -> tuple[int, str, str]:
    parts = urlparse(url)
    connection = HTTPConnection(str(parts.hostname), parts.port, timeout=30)
    connection.request(method, path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.headers["Content-Type"] or "", answer.read().decode()


def test_the_endpoint_is_on_loopback_and_serves_prometheus_text(address: str) -> None:
    assert urlparse(address).hostname == "127.0.0.1"
    status, kind, text = asked(address, "/metrics")
    assert (status, kind.partition(";")[0]) == (200, "text/plain")
    found = samples(text)
    assert {dict(labels)["source"] for name, labels in found if name == "tradeflows_source_up"} == {"stack", "store"}
    assert asked(address, "/")[0] == 200
    assert asked(address, "/other")[0] == 404
    assert asked(address, "/metrics", "POST")[0] == 405


def test_a_page_of_another_site_cannot_read_it(address: str) -> None:
    """Its name may be made to resolve to this machine; then the request says so."""
    port = urlparse(address).port
    assert asked(address, "/metrics", host=f"evil.example:{port}")[0] == 403
    assert asked(address, "/metrics", host=f"localhost:{port}")[0] == 200


def test_a_port_that_is_taken_is_told(address: str, tmp_path: Path) -> None:
    port = urlparse(address).port
    with (
        pytest.raises(ConfigurationError, match=f"port {port} of 127.0.0.1 cannot be had"),
        metrics.served([], port or 0),
    ):
        pass


def test_the_sources_are_those_that_there_are(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)

    def names(prefect: str | None, mlflow: str | None) -> list[str]:
        return [one.name for one in metrics.sources(settings, prefect, mlflow)]

    assert names("http://127.0.0.1:1/api", "http://127.0.0.1:2") == ["stack", "store", "prefect", "mlflow"]
    assert names(None, "sqlite:////x/mlflow.db") == ["stack", "store"]
