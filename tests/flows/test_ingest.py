"""The ingest flow: only what is missing, nothing twice, and bad input leaves the store as it was."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from deployments.sandbox import Sandbox
from flows.ingest import ingest
from tasks import ledger, quarantine
from tasks.store import CHUNKS, open_store
from trading.errors import (
    BadWindow,
    DataModeConflict,
    ExpectationFailed,
    MalformedResponse,
    SourceUnavailable,
    TradeflowsError,
    UnknownSymbol,
)
from trading.window import Timeframe

pytestmark = pytest.mark.integration

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


def test_malformed_json_fails_the_run_and_nothing_is_stored(home: Path, exchange: Sandbox) -> None:
    exchange.set_faults(truncated=1.0)
    state = ingest(["BTCSIM"], Timeframe.H1, start=START, end=END, return_state=True)
    with pytest.raises(MalformedResponse, match="did not answer with JSON"):
        state.result()
    assert chunks(home) == []


def test_an_unreachable_exchange_fails_the_run_after_retries(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRADEFLOWS_EXCHANGE_URL", "http://127.0.0.1:9")
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
