"""The settle flow: analyses of the past settled once, scored in MLflow and in a report, and weighed by from then on."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.analyse import analyse
from flows.settle import settle
from tasks import registry
from tasks.scoreboards import scoreboard_at
from tasks.settings import load_settings
from tasks.store import CHUNKS, SETTLEMENTS, open_store
from tests.flows.test_analyse import END, START, asked, fill
from trading.window import Timeframe

pytestmark = pytest.mark.integration

SYMBOLS = ["AAA", "BBB"]


def test_analyses_are_settled_once_and_shown_where_people_look(home: Path) -> None:
    with open_store(home) as store:
        fill(store)
    for hours in (96, 72, 48, 24, 2):
        analyse(SYMBOLS, start=START, end=END - timedelta(hours=hours))
    window: dict[str, Any] = {"start": START, "end": END}
    # made today of bars of 2020: nothing of that counts unless it is asked for
    strict = settle(SYMBOLS, **window)
    assert (strict.settled, strict.link) == (0, "")

    done = settle(SYMBOLS, hindsight=True, **window)
    # the horizon of the last analysis is not over
    assert (done.settled, done.hindsight, done.reused, done.data_modes) == (8, 8, False, ["simulated"])
    analysts = {row["analyst"] for row in done.rows}
    assert analysts == {"combined", "technical", "rsi", "macd", "volume", "bollinger"}
    assert {row["weight"] for row in done.rows} == {"1.00"}
    assert {row["symbol"] for row in done.by_symbol} == set(SYMBOLS)
    assert done.picture is not None
    assert Path(done.picture).stat().st_size > 10_000

    client = registry.connect(load_settings())
    run_id = done.link.partition("?")[0].rsplit("/", 1)[1]
    run = client.get_run(run_id)
    assert run.data.metrics["settled"] == 8
    assert run.data.metrics["combined.signals"] <= 8
    # the page of a run begins with what it says; parts of an analyst are in runs below it
    assert not any(name.startswith("rsi.") for name in run.data.metrics)
    assert run.data.tags["mlflow.note.content"].startswith("# Analysts, 1h, until 2020-02-20 00:00 UTC")
    assert re.search(r"\| rsi period=14\S* \(part\) \|", run.data.tags["mlflow.note.content"])
    note = client.get_experiment(run.info.experiment_id).tags["mlflow.note.content"]
    assert f"[The newest run]({done.link})" in note
    assert "| combined |" in note
    assert {file.path for file in client.list_artifacts(run_id)} >= {"report.md", "scores.csv"}
    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert {child.data.tags["analyst"] for child in children} == analysts
    assert all({"count", "weight"} <= set(child.data.metrics) for child in children)
    [report] = asked("/artifacts/latest/filter", {"artifacts": {"key": {"any_": ["settle-1h"]}}})
    assert "| settled now | settled before | horizon not over |" in report["data"]
    assert f"[The run in MLflow]({done.link})" in report["data"]

    again = settle(SYMBOLS, hindsight=True, **window)
    assert (again.reused, again.link, again.rows) == (True, done.link, done.rows)
    with open_store(home) as store:
        assert len(store.documents.find(SETTLEMENTS)) == 8
        board = scoreboard_at(store, Timeframe.H1, END)
        assert board is not None
        assert board["run_id"] == run_id
    assert len(client.search_runs([run.info.experiment_id], "tags.kind = 'settlements'")) == 1


def test_a_late_candle_is_waited_for_by_name(home: Path) -> None:
    with open_store(home) as store:
        fill(store)
    analyse(["AAA"], start=START, end=END - timedelta(hours=24))
    with open_store(home) as store:
        [chunk] = [one for one in store.documents.find(CHUNKS) if one["series"].startswith("AAA")]
        store.documents.delete(CHUNKS, chunk["_id"])
    state = settle(["AAA"], start=START, end=END, hindsight=True, return_state=True)
    assert (state.type.value, state.name) == ("COMPLETED", "Waiting")
    assert "AAA|1h|2020-02-19T00:00:00Z waits for the candle of 2020-02-19T00:00Z" in str(state.message)
