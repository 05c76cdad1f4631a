"""The backtest flow on shipped daily history: what it leaves, what it does not do twice, what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flows.backtest import backtest
from flows.ingest import ingest
from tasks import registry
from tasks.backtest_records import Backtested
from tasks.settings import load_settings
from tasks.store import RESULTS, open_store
from trading import strategies
from trading.errors import InsufficientHistory, InvalidRequest, LookAhead
from trading.strategies import Parameter, Rule
from trading.window import Timeframe

pytestmark = pytest.mark.integration

START = datetime(2015, 1, 1, tzinfo=UTC)
END = datetime(2019, 1, 1, tzinfo=UTC)
SYMBOLS = ["SP500", "NASDAQ"]
RULES = ["rsi", "sma_cross(fast=10, slow=30)"]


def asked(symbols: list[str] = SYMBOLS, strategies: list[str] = RULES, **more: Any) -> Backtested:
    return backtest(symbols, Timeframe.D1, start=START, end=END, strategies=strategies, **more)


@pytest.fixture
def stocked(home: Path) -> Path:
    ingest(SYMBOLS, Timeframe.D1, start=START, end=END)
    return home


def kinds(home: Path, kind: str) -> dict[str, Any]:
    with open_store(home) as store:
        return {one["_id"]: one for one in store.documents.find(RESULTS, {"kind": kind})}


def forget(home: Path, *names: str) -> None:
    with open_store(home) as store:
        for kind in names:
            for one in store.documents.find(RESULTS, {"kind": kind}):
                store.documents.delete(RESULTS, one["_id"])


def test_what_a_backtest_leaves_and_what_it_does_not_do_twice(stocked: Path) -> None:
    done = asked(cost_factors=[2.0])
    label = "sma_cross(fast=10, slow=30, long_only=true)"
    assert [(row["symbol"], row["strategy"]) for row in done.rows] == [
        (symbol, strategy) for symbol in SYMBOLS for strategy in ("rsi", label, "buy_and_hold")
    ]
    assert (done.data_mode, done.reused, done.batches, done.computed, done.trials) == ("sample", False, 12, 12, 12)
    assert {row["factor"] for row in done.leaderboard} == {1.0, 2.0}
    assert [one["symbol"] for one in done.luck] == ["SP500", "NASDAQ", "all symbols"]
    assert {one["strategy"] for one in done.robustness} == {"rsi", label}
    assert all(row["sharpe_low"] <= row["sharpe"] <= row["sharpe_high"] for row in done.rows)
    held = {row["symbol"]: row for row in done.rows if row["strategy"] == "buy_and_hold"}
    assert all(abs(row["beta"] - 1) < 1e-3 and row["deflated_sharpe"] is None for row in held.values())
    for page in done.pages:
        text = Path(page).read_text()
        assert "Sample data" in text
        assert "http://" not in text.replace("http://www.w3.org", "")
    assert all(Path(path).stat().st_size > 20_000 for path in done.pictures)

    client = registry.connect(load_settings())
    parent = client.get_run(done.run_id)
    assert parent.data.tags["data_mode"] == "sample"
    assert {"dataset_digest", "code_digest", "request_key"} <= set(parent.data.tags)
    assert parent.data.metrics["trials"] == 2
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{done.run_id}'")
    assert len(children) == 6
    logged = [one.path for child in children for one in client.list_artifacts(child.info.run_id)]
    assert sorted(logged) == sorted(Path(path).name for path in done.pages)
    table = pd.read_parquet(registry.run_file(client, done.run_id, "trials.parquet"))
    assert len(table) == 12

    _an_identical_request_is_answered_from_the_store(done, stocked)
    _one_more_strategy_is_all_that_is_run(stocked)
    _an_interrupted_run_goes_on_where_it_stopped(stocked)


def _an_identical_request_is_answered_from_the_store(done: Backtested, home: Path) -> None:
    before = kinds(home, "backtest batch")
    again = asked(cost_factors=[2.0])
    assert again.reused
    assert again.rows == json.loads(json.dumps(done.rows))
    assert again.run_id == done.run_id
    assert kinds(home, "backtest batch") == before


def _one_more_strategy_is_all_that_is_run(home: Path) -> None:
    before = kinds(home, "backtest batch")
    more = asked(strategies=[*RULES, "macd"], cost_factors=[2.0])
    after = kinds(home, "backtest batch")
    assert (more.reused, more.batches, more.computed) == (False, 16, 4)
    assert {one["result"]["name"] for key, one in after.items() if key not in before} == {
        f"macd {symbol}{costs}" for symbol in SYMBOLS for costs in ("", ", costs x2")
    }
    assert {key: after[key] for key in before} == before


def _an_interrupted_run_goes_on_where_it_stopped(home: Path) -> None:
    """What a run that was killed leaves: some batches, and nothing of what comes after them."""
    lost = [key for key, one in kinds(home, "backtest batch").items() if one["result"]["name"].startswith("macd")][:1]
    forget(home, "backtest", "backtest comparison", "backtest study", "backtest drawing")
    with open_store(home) as store:
        for key in lost:
            store.documents.delete(RESULTS, key)
    resumed = asked(strategies=[*RULES, "macd"], cost_factors=[2.0])
    assert (resumed.reused, resumed.batches, resumed.computed) == (False, 16, 1)


@pytest.fixture
def peeking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def tomorrow(candles: pd.DataFrame, strength: float = 1.0) -> np.ndarray:
        rises = candles["close"].shift(-1) > candles["close"]
        return np.asarray(rises, dtype=np.float64) * strength

    rule = Rule(
        "tomorrow", tomorrow, lambda *_, **__: "", lambda **_: 2, {"strength": Parameter(1.0, 0.0, 1.0, (0.5, 1.0))},
        ("strength", "strength"), "Knows the next close.",
    )  # fmt: skip
    monkeypatch.setitem(strategies.RULES, "tomorrow", rule)  # type: ignore[arg-type]
    yield


def test_a_strategy_that_peeks_is_refused_and_nothing_of_it_is_traded(stocked: Path, peeking: None) -> None:
    with pytest.raises(LookAhead, match=r"tomorrow\(strength=1\) looks ahead"):
        asked(["SP500"], ["rsi", "tomorrow"])
    assert kinds(stocked, "backtest batch") == {}


def test_nothing_is_simulated_without_approved_data(home: Path) -> None:
    with pytest.raises(InsufficientHistory, match=r"SP500 1d .*has not been ingested and approved"):
        asked(["SP500"])
    assert not (home / "reports").exists()


def test_what_makes_no_sense_is_refused_before_anything_is_fetched(home: Path) -> None:
    with pytest.raises(InvalidRequest, match="sma_cross: fast=30 and slow=10; fast is below slow"):
        asked(["SP500"], ["sma_cross(fast=30, slow=10)"], refresh="exchange")
    assert not (home / "store.db").exists()


def test_a_dask_cluster_gives_the_same_rows_as_threads(stocked: Path) -> None:
    """Two processes that know the settings and the store, and nothing else."""
    from distributed import Client, LocalCluster
    from prefect_dask import DaskTaskRunner

    threads = asked(["SP500"], ["rsi", "breakout"], cost_factors=[2.0])
    forget(stocked, "backtest", "backtest batch", "backtest comparison", "backtest study", "backtest drawing")
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        wide = backtest.with_options(task_runner=DaskTaskRunner(address=cluster.scheduler_address))
        found = wide(["SP500"], Timeframe.D1, start=START, end=END, strategies=["rsi", "breakout"], cost_factors=[2.0])
        with Client(cluster) as client:
            at_work = client.run(lambda: "tasks.backtest_runs" in sys.modules)
    assert list(at_work.values()) == [True, True]
    assert (found.reused, found.computed) == (False, 6)
    assert found.rows == threads.rows
    assert found.leaderboard == threads.leaderboard
    assert found.luck == threads.luck
    assert found.robustness == threads.robustness
    assert found.months == threads.months
