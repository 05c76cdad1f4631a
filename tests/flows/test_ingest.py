"""The ingest flow: only what is missing, nothing twice, and bad input leaves the store as it was."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

from deployments.sandbox import Sandbox, running_sandbox
from flows.ingest import ingest
from tasks import ledger, quarantine
from tasks.store import CHUNKS, open_store
from trading.errors import (
    BadWindow,
    CircuitOpen,
    DataError,
    DataModeConflict,
    ExpectationFailed,
    MalformedResponse,
    SourceUnavailable,
    TradeflowsError,
    UnknownSymbol,
)
from trading.window import Timeframe

pytestmark = pytest.mark.integration

CHECKOUT = Path(__file__).resolve().parents[2]
START, END = datetime(2018, 6, 1, tzinfo=UTC), datetime(2018, 12, 1, tzinfo=UTC)


def chunks(home: Path) -> list[tuple[str, int, str]]:
    with open_store(home) as store:
        return [(chunk["_id"], chunk["rev"], chunk["digest"]) for chunk in store.documents.find(CHUNKS)]


def newest_report(key: str) -> str:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
        return str(max(found, key=lambda artifact: artifact.created).data)


def test_a_second_run_fetches_nothing_and_touches_nothing(home: Path, exchange: Sandbox) -> None:
    first = ingest(["BTCSIM", "ETHSIM"], Timeframe.H1, start=START, end=END)
    hours = (END - START).days * 24
    assert [row["added"] for row in first.rows] == [hours, hours]
    before = chunks(home)
    # were anything asked for again, this would be noticed
    exchange.set_faults(truncated=1.0)
    again = ingest(["BTCSIM", "ETHSIM"], Timeframe.H1, start=START, end=END)
    assert (again.added, again.changed) == (0, 0)
    assert [row["stored"] for row in again.rows] == [hours, hours]
    assert chunks(home) == before
    assert "nothing new" in newest_report("ingest-1h")


def test_the_clock_moves_and_only_the_new_bars_are_fetched(home: Path, exchange: Sandbox) -> None:
    exchange.set_clock("2018-12-01T00:30:00+00:00")
    ingest(["BTCSIM"], Timeframe.H1, start=START, end=END)
    exchange.set_clock("2018-12-01T05:02:00+00:00")
    more = ingest(["BTCSIM"], Timeframe.H1, start=START, end=datetime(2018, 12, 1, 5, tzinfo=UTC))
    assert (more.rows[0]["received"], more.added) == (5, 5)


def test_the_report_names_what_was_put_aside_and_the_kind_of_data(home: Path) -> None:
    result = ingest(
        ["NASDAQ"], Timeframe.D1, start=datetime(2015, 1, 1, tzinfo=UTC), end=datetime(2019, 1, 1, tzinfo=UTC)
    )
    assert result.rows[0]["quarantined"] == "2 untraded_move"
    report = newest_report("ingest-1d")
    assert "sample" in report
    assert "2 untraded_move" in report
    with open_store(home) as store:
        days = [row["open_time"].date().isoformat() for row in quarantine.find(store, "NASDAQ", "1d")]
        assert days == ["2015-05-12", "2018-01-09"]


@pytest.mark.parametrize(
    ("symbols", "end", "kind", "said"),
    [
        (["BTCSMI"], END, UnknownSymbol, "does not trade 'BTCSMI'; did you mean BTCSIM"),
        (
            ["BTCSIM"],
            datetime(2019, 1, 2, tzinfo=UTC),
            BadWindow,
            "the source's clock says 2019-01-01T00:02:00Z; end it",
        ),
        (
            ["BTCSIM"],
            datetime(2099, 1, 1, tzinfo=UTC),
            BadWindow,
            "2099-01-01T00:00Z, in the future of this run",
        ),
    ],
)
def test_bad_requests_fail_the_run_and_leave_the_store(
    home: Path, symbols: list[str], end: datetime, kind: type[TradeflowsError], said: str
) -> None:
    ingest(["BTCSIM"], Timeframe.H1, start=START, end=END)
    before = chunks(home)
    state = ingest(symbols, Timeframe.H1, start=START, end=end, return_state=True)
    assert state.is_failed()
    with pytest.raises(kind, match=said):
        state.result()
    assert chunks(home) == before


def test_a_candle_with_high_below_low_fails_the_run_and_is_kept_aside(home: Path, exchange: Sandbox) -> None:
    exchange.set_faults(malformed=0.002, seed=3)
    state = ingest(["BTCSIM"], Timeframe.H1, start=START, end=END, return_state=True)
    assert state.is_failed()
    with pytest.raises(ExpectationFailed, match=r"are impossible, first 2018-.*inconsistent.*nothing was"):
        state.result()
    assert chunks(home) == []
    with open_store(home) as store:
        assert quarantine.counts(store)["BTCSIM|1h"]["inconsistent"] >= 1
        assert [entry.status for entry in ledger.entries(store, "BTCSIM", "1h")] == ["refused"]
    # once the exchange is well, the same request heals it
    exchange.set_faults()
    assert ingest(["BTCSIM"], Timeframe.H1, start=START, end=END).added == (END - START).days * 24


def test_malformed_json_fails_the_run_and_nothing_is_stored(
    home: Path, exchange: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRADEFLOWS_SOURCE_PAUSE", "0.01")
    exchange.set_faults(truncated=1.0)
    state = ingest(["BTCSIM"], Timeframe.H1, start=START, end=END, return_state=True)
    # asked again and again, until the circuit breaker has heard enough: its error carries the source's own
    with pytest.raises((MalformedResponse, CircuitOpen), match="did not answer with JSON"):
        state.result()
    assert chunks(home) == []


def test_an_unreachable_exchange_fails_the_run_after_retries(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRADEFLOWS_EXCHANGE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("TRADEFLOWS_SOURCE_PAUSE", "0.01")
    state = ingest(["BTCSIM"], Timeframe.H1, start=START, end=END, return_state=True)
    with pytest.raises(SourceUnavailable, match=r"no answer from 127.0.0.1:9 .*TRADEFLOWS_EXCHANGE_URL is right"):
        state.result()
    assert chunks(home) == []


def test_one_symbol_s_failure_does_not_stop_the_others(home: Path, exchange: Sandbox) -> None:
    with open_store(home) as store:
        store.documents.insert(open_series(), {"_id": "BTCSIM|1h", "data_mode": "live"})
    state = ingest(["BTCSIM", "ETHSIM"], Timeframe.H1, start=START, end=END, return_state=True)
    with pytest.raises(DataModeConflict, match="BTCSIM 1h holds live candles and these are simulated"):
        state.result()
    assert [name for name, _, _ in chunks(home)] == ["ETHSIM|1h|2018-01-01"]


def open_series() -> object:
    from tasks.store import SERIES

    return SERIES


def test_log_lines_carry_run_symbol_and_window(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    from tasks import log

    log.configure("json")
    with caplog.at_level(logging.INFO, logger="tradeflows"):
        ingest(["BTCSIM"], Timeframe.H1, start=START, end=END)
    lines = [record.getMessage() for record in caplog.records if '"stored"' in record.getMessage()]
    assert lines
    for part in ('"flow_run_id"', '"symbol": "BTCSIM"', '"window": "2018-06-01T00:00Z/2018-12-01T00:00Z"'):
        assert part in lines[0]


def test_a_late_correction_is_in_the_report(home: Path, exchange: Sandbox) -> None:
    ingest(["BTCSIM"], Timeframe.H1, start=START, end=END)
    try:
        exchange.correct("BTCSIM", "1h", datetime(2018, 11, 30, 20, tzinfo=UTC), volume=12345.0)
        result = ingest(["BTCSIM"], Timeframe.H1, start=START, end=END, recheck=48)
    finally:
        exchange.restore()
    assert (result.added, result.changed) == (0, 1)
    assert "Late corrections\n\n- BTCSIM 1h 2018-11-30 20:00" in newest_report("ingest-1h")
    page = Path(result.page).read_text()
    assert "12345.0" in page
    assert (Path(result.page).parent / "index.html").exists()


def test_the_quality_report_says_what_is_missing_and_put_aside(home: Path, exchange: Sandbox) -> None:
    try:
        exchange.cut("BTCSIM", "1h", datetime(2018, 11, 1, tzinfo=UTC), datetime(2018, 11, 1, 6, tzinfo=UTC))
        ingest(["BTCSIM"], Timeframe.H1, start=START, end=END)
    finally:
        exchange.restore()
    report = newest_report("data-quality-1h")
    hours = (END - START).days * 24
    assert f"{(hours - 6) / hours:.3%}" in report
    assert "1 (6 bars, longest 6)" in report
    assert "KS" in report


def test_coarser_candles_are_made_of_finer_ones(home: Path) -> None:
    result = ingest(["BTCSIM"], Timeframe.H1, start=START, end=END, derive=[Timeframe.H4, Timeframe.D1])
    days = (END - START).days
    assert [(row["timeframe"], row["added"]) for row in result.rows] == [
        ("1h", 24 * days),
        ("4h", 6 * days),
        ("1d", days),
    ]
    with open_store(home) as store:
        [entry] = ledger.entries(store, "BTCSIM", "4h")
        assert entry.source == "resampled from 1h (exchange 127.0.0.1)"
    again = ingest(["BTCSIM"], Timeframe.H1, start=START, end=END, derive=[Timeframe.H4, Timeframe.D1])
    assert again.added == 0


def test_the_mirror_says_what_coarser_candles_are_where_the_exchange_is_down(
    home: Path, exchange: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRADEFLOWS_MIRROR_URL", exchange.url)
    monkeypatch.setenv("TRADEFLOWS_EXCHANGE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("TRADEFLOWS_SOURCE_PAUSE", "0.01")
    result = ingest(
        ["BTCSIM"], Timeframe.H1, start=START, end=END, fallback=["mirror"], derive=[Timeframe.H4, Timeframe.D1]
    )
    days = (END - START).days
    assert [row["added"] for row in result.rows] == [24 * days, 6 * days, days]


def test_coarser_candles_that_no_source_answers_for_are_in_the_report(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import resampling

    def away(*_: object) -> None:
        raise SourceUnavailable("no answer from the exchange")

    monkeypatch.setattr(resampling, "collect_checked", away)
    state = ingest(["BTCSIM", "ETHSIM"], Timeframe.H1, start=START, end=END, derive=[Timeframe.H4], return_state=True)
    with pytest.raises(SourceUnavailable, match="no answer from the exchange"):
        state.result()
    report = newest_report("ingest-1h")
    for symbol in ("BTCSIM", "ETHSIM"):
        assert f"- {symbol} 4h [2018-06-01T00:00Z, 2018-12-01T00:00Z): no answer from the exchange" in report
    with open_store(home) as store:
        assert [entry.status for entry in ledger.entries(store, "ETHSIM", "1h")] == ["approved"]


def test_a_late_correction_reaches_the_coarser_candles(home: Path, exchange: Sandbox) -> None:
    again = {"start": START, "end": END, "derive": [Timeframe.H4, Timeframe.D1]}
    ingest(["BTCSIM"], Timeframe.H1, **again)
    try:
        exchange.correct("BTCSIM", "1h", datetime(2018, 11, 30, 20, tzinfo=UTC), volume=12345.0)
        result = ingest(["BTCSIM"], Timeframe.H1, **again, recheck=48)
    finally:
        exchange.restore()
    assert [(row["timeframe"], row["changed"]) for row in result.rows] == [("1h", 1), ("4h", 1), ("1d", 1)]
    made = "- BTCSIM 4h [2018-11-30T20:00Z, 2018-12-01T00:00Z): 1 made anew of corrected 1h candles"
    assert made in newest_report("ingest-1h")


def test_the_mirror_takes_over_where_the_exchange_is_down(
    home: Path, exchange: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRADEFLOWS_MIRROR_URL", exchange.url)
    monkeypatch.setenv("TRADEFLOWS_EXCHANGE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("TRADEFLOWS_SOURCE_PAUSE", "0.01")
    result = ingest(["BTCSIM"], Timeframe.H1, start=START, end=END, fallback=["mirror"])
    assert result.rows[0]["source"] == "mirror 127.0.0.1"
    assert result.added == (END - START).days * 24
    assert "exchange 127.0.0.1:9 is left alone" in newest_report("ingest-1h")


def test_a_symbol_that_no_longer_trades_fails_the_run_and_keeps_what_there_is(home: Path, exchange: Sandbox) -> None:
    try:
        exchange.cut("BTCSIM", "1h", datetime(2018, 11, 1, tzinfo=UTC), datetime(2019, 3, 1, tzinfo=UTC))
        state = ingest(["BTCSIM"], Timeframe.H1, start=START, end=END, return_state=True)
    finally:
        exchange.restore()
    with pytest.raises(DataError, match="has none of the newest 720 bars of BTCSIM 1h"):
        state.result()
    with open_store(home) as store:
        [entry] = ledger.entries(store, "BTCSIM", "1h")
        assert (entry.status, entry.window.end) == ("approved", datetime(2018, 11, 1, tzinfo=UTC))


def test_every_worker_draws_from_one_limit(home: Path) -> None:
    ingest(["BTCSIM"], Timeframe.H1, start=START, end=END)
    with get_client(sync_client=True) as client:
        limit = client.read_global_concurrency_limit_by_name("tradeflows-exchange")
    assert (limit.limit, limit.slot_decay_per_second) == (3000, 50.0)
    assert limit.active_slots > 0


def test_new_candles_start_an_analysis_of_them_and_old_ones_do_not(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = deployed("analyse", tmp_path)
    ingest(["BTCSIM"], Timeframe.H1, start=START, end=END)
    with running_sandbox(clock="now") as exchange:
        monkeypatch.setenv("TRADEFLOWS_EXCHANGE_URL", exchange.url)
        monkeypatch.setenv("TRADEFLOWS_HOME", str(tmp_path / "live"))
        fresh = ingest(["BTCSIM", "ETHSIM"], Timeframe.H1, days=3)
        # nothing new, so that nobody is told
        assert (fresh.added, ingest(["BTCSIM", "ETHSIM"], Timeframe.H1, days=3).added) == (2 * 72, 0)
    # the server starts the analysis that the event asks for; an event before it would have started one by then
    deadline = time.monotonic() + 60
    while not (runs := runs_of(deployment)) and time.monotonic() < deadline:
        time.sleep(0.2)
    [run] = runs
    assert (run.parameters["symbols"], run.parameters["timeframe"]) == (["BTCSIM", "ETHSIM"], "1h")
    with get_client(sync_client=True) as client:
        client.delete_deployment(deployment)


def test_a_symbol_that_fails_does_not_keep_the_others_from_being_analysed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import events

    told: list[tuple[object, ...]] = []
    monkeypatch.setattr(events, "candles_ingested", lambda *said: told.append(said))
    with open_store(home) as store:
        store.documents.insert(open_series(), {"_id": "BTCSIM|1h", "data_mode": "live"})
    with running_sandbox(clock="now") as exchange:
        monkeypatch.setenv("TRADEFLOWS_EXCHANGE_URL", exchange.url)
        state = ingest(["BTCSIM", "ETHSIM"], Timeframe.H1, days=3, return_state=True)
    with pytest.raises(DataModeConflict, match="BTCSIM 1h holds live candles"):
        state.result()
    [(symbols, timeframe, mode, _)] = told
    assert (symbols, timeframe, mode) == (["ETHSIM"], "1h", "simulated")


def deployed(name: str, folder: Path) -> UUID:
    """One deployment of prefect.yaml with its triggers, without schedules; nobody works on its runs."""
    content = yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())
    [wanted] = [one for one in content["deployments"] if one["name"] == name]
    content["deployments"] = [{**wanted, "schedules": []}]
    (folder / "prefect.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    address = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PREFECT_HOME": str(PREFECT_HOME.value())}
    pool = content["deployments"][0]["work_pool"]["name"]
    for words in (
        ["work-pool", "create", pool, "--type", "process", "--overwrite"],
        ["deploy", "--all", "--prefect-file", str(folder / "prefect.yaml")],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *words],
            cwd=CHECKOUT, env={**os.environ, **address}, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(f"{name}/{name}").id


def runs_of(deployment: UUID) -> list[FlowRun]:
    wanted = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(deployment_filter=wanted)
