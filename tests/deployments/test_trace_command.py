"""``tradeflows trace``: the whole way on a page and as JSON, exit codes, and what it says where there is nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from deployments.trace_command import SHOWN, flow_run_page, lines, plain
from tasks import ledger
from tasks.store import SIGNALS, open_store, put_analysis, read_candles, write_candles
from tasks.traces import Candles, Chunk, FrozenDataset, Ingested, ModelVersion, Run, Said, Trace, Training
from trading.candles import digest, frame_of
from trading.window import Timeframe, Window

CHECKOUT = Path(__file__).resolve().parents[2]
START = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = Window("AAA", Timeframe.H1, START, START + timedelta(hours=20))
INGEST = Run("ingest-run", "http://prefect/runs/flow-run/ingest-run")


def candles(records: int = 8) -> Candles:
    entries = tuple(
        Ingested(
            WINDOW.within(START + timedelta(hours=at), START + timedelta(hours=at + 1)), 1, f"{at:064d}", "equal",
            "exchange x", "2", START, INGEST if at else None,
        )
        for at in range(records)
    )  # fmt: skip
    chunk = Chunk("AAA|1h|2026-01-01", 9, 20, START, START, "c" * 64, "equal", 7)
    return Candles(WINDOW, 20, "d" * 64, "e" * 64, "corrected", entries, (chunk,), ())


def found(findings: tuple[str, ...] = ()) -> Trace:
    training = Training("mlrun", "http://mlflow/runs/mlrun", Run("train-run", None), "1.2", "f" * 64, START)
    model = ModelVersion(
        "AAA-1h", "4", "lightgbm", "version 5 was refused", "http://mlflow/4", "a" * 64, START, "flow run y", training
    )
    return Trace(
        id="AAA|1h|2026-01-01T20:00:00Z", symbol="AAA", timeframe="1h", bar_close=WINDOW.end, made_at=WINDOW.end,
        signal="Long", confidence=0.61, price=12.5, basis="all", data_mode="simulated", settings_version="built-in 1",
        inputs_digest="i" * 64, run=Run("analyse-run", "http://prefect/runs/flow-run/analyse-run"),
        said=(Said("model", "Long", 0.7, 1.0, {}, ("up",)), Said("challenger", "Short", 0.5, None, {}, ())),
        absent={"llm": "it is off"}, candles=candles(), model=model,
        dataset=FrozenDataset("f" * 64, "simulated", "equal", (candles(2),)), findings=findings,
    )  # fmt: skip


def test_the_way_is_told_from_the_signal_down_to_the_chunks() -> None:
    told = list(lines(found()))
    text = "\n".join(told)
    assert told[0] == "AAA 1h: Long 0.61 at 12.5 (simulated)"
    names = [line[2:11].strip() for line in told[1:] if line[2:11].strip()]
    assert list(dict.fromkeys(names)) == [
        "id", "bar", "run", "analyst", "absent", "settings", "model", "training", "dataset", "learned", "ledger",
        "chunk", "seen",
    ]  # fmt: skip
    for part in (
        "AAA|1h|2026-01-01T20:00:00Z", "flow run analyse-run  http://prefect/runs/flow-run/analyse-run",
        "model Long 0.70 (weight 1)", "challenger Short 0.50 (compared only)", "llm: it is off",
        "AAA-1h version 4 (lightgbm)  http://mlflow/4", "degraded: version 5 was refused", "by flow run y",
        "MLflow run mlrun  http://mlflow/runs/mlrun", "flow run train-run",
        f"{'f' * 64} (simulated): equal to the store",
        "equal once the late corrections since are undone", "8 approved records, none not as recorded; 1 flow runs",
        "AAA|1h|2026-01-01 revision 9, read at revision 7, 20 rows",
        "Every digest on the way is what was written down.",
    ):  # fmt: skip
        assert part in text, part
    # the newest records, and how many more there are
    assert f"... and {8 - SHOWN} earlier ones; --json has them all" in text
    assert "from exchange x, run outside Prefect" in text


def test_findings_are_told_and_nothing_is_called_well() -> None:
    text = "\n".join(lines(found(("the chunk X is not",))))
    assert "FINDING   the chunk X is not" in text
    assert "Every digest" not in text


def test_as_json_every_record_is_there() -> None:
    told = json.loads(json.dumps(plain(found())))
    assert len(told["candles"]["ledger"]) == 8
    assert told["candles"]["ledger"][3]["window"] == {
        "symbol": "AAA", "timeframe": "1h", "start": "2026-01-01T03:00:00+00:00", "end": "2026-01-01T04:00:00+00:00",
    }  # fmt: skip
    assert told["model"]["training"]["flow"] == {"id": "train-run", "link": None}
    assert told["made_at"] == "2026-01-01T20:00:00+00:00"


@pytest.mark.parametrize(
    ("api", "page"),
    [
        ("http://127.0.0.1:4200/api", "http://127.0.0.1:4200/runs/flow-run/r"),
        ("https://prefect.example/api/", "https://prefect.example/runs/flow-run/r"),
        (None, None),
    ],
)
def test_a_flow_run_has_its_page(api: str | None, page: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_UI_URL", raising=False)
    assert flow_run_page(api, "r") == page
    monkeypatch.setenv("PREFECT_UI_URL", "https://pages")
    assert flow_run_page(api, "r") == "https://pages/runs/flow-run/r"


def tradeflows(*words: str) -> subprocess.CompletedProcess[str]:
    ours = ("PREFECT_", "TRADEFLOWS_", "MONGODB_URL", "MLFLOW_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [sys.executable, "-m", "deployments.command", *words],
        cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.integration
def test_the_command_ends_well_only_where_every_digest_is_right(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        stamps = int(START.timestamp() * 1000) + 3_600_000 * np.arange(20)
        rows = frame_of(stamps, np.column_stack([np.full(20, price) for price in (10.0, 11.0, 9.0, 10.5, 3.0)]))
        written = write_candles(store, WINDOW, rows, "simulated")
        entry = ledger.LedgerEntry(
            window=WINDOW, status=ledger.APPROVED, rows=20, added=20, quarantined={}, gaps=0, digest=written.digest,
            suite="2", flow_run_id="r", data_mode="simulated", source="s", calendar="24/7", recorded_at=WINDOW.end,
        )  # fmt: skip
        ledger.record(store, entry)
        analysis = {
            "signal": "Long",
            "confidence": 0.5,
            "opinions": [],
            "compared": [],
            "absent": [],
            "abstentions": [],
            "weights": {},
        }
        stored = {
            "symbol": "AAA", "timeframe": "1h", "timestamp": WINDOW.end, "analysis": analysis, "basis": "technical",
            "price": 10.5, "candles_digest": written.digest, "candles_start": START, "inputs_digest": "i",
            "settings_version": "", "data_mode": "simulated", "model": None, "flow_run_id": "r",
            "created_at": WINDOW.end,
        }  # fmt: skip
        put_analysis(store, stored)
        store.documents.put(SIGNALS, {"_id": "AAA|1h", "signal": "Long", "timestamp": WINDOW.end})
        expected = digest(read_candles(store, WINDOW))
    home = ("--home", str(tmp_path))
    well = tradeflows("trace", "AAA/1h/2026-01-01T20:00", *home)
    assert well.returncode == 0, well.stderr
    assert well.stdout.startswith("AAA 1h: Long 0.50 at 10.5 (simulated)\n")
    as_json = tradeflows("trace", "AAA", "--at", "2026-01-02", "--json", *home)
    told = json.loads(as_json.stdout)
    assert told["candles"]["digest"] == told["candles"]["chunks"][0]["digest"] == expected
    with open_store(tmp_path) as store:
        put_analysis(store, {**stored, "candles_digest": "0" * 64})
    wrong = tradeflows("trace", "AAA", *home)
    assert wrong.returncode == 1
    assert "FINDING" in wrong.stdout
    nothing = tradeflows("trace", "ZZZ", *home)
    assert nothing.returncode == 1
    assert nothing.stderr.startswith("InvalidRequest: there is no analysis 'ZZZ'; there are some of AAA.")
