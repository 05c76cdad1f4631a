"""What a program asks for: the signals flow is the analyse flow with a short form, and leaves a table to read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployments.sandbox import Sandbox
from flows.analyse import analyse
from flows.signals import signals
from tests.flows.test_analyse import asked, run_of

pytestmark = pytest.mark.integration

SYMBOLS = ["BTCSIM", "ETHSIM"]
END = "2019-01-01T00:00:00Z"


def test_signals_are_those_of_analyse_and_stand_in_a_table(home: Path, exchange: Sandbox) -> None:
    state = signals(SYMBOLS, end=END, return_state=True)
    rows = state.result()
    assert [row.symbol for row in rows] == SYMBOLS
    wanted = {"flow_run_id": {"any_": [run_of(state)]}, "key": {"like_": "signals-"}}
    [table] = asked("/artifacts/filter", {"artifacts": wanted})
    assert (table["key"], table["type"]) == ("signals-1h", "table")
    found = json.loads(table["data"])
    for row, said in zip(rows, found, strict=True):
        assert said == {name: getattr(row, name) for name in said}
        assert {"symbol", "timestamp", "signal", "confidence", "price", "data_mode"} <= said.keys()
        assert (said["timestamp"], said["data_mode"]) == ("2019-01-01T00:00:00+00:00", "simulated")

    # by the other name the same: nobody is asked again, and nothing is fetched
    exchange.forget_requests()
    same = analyse(SYMBOLS, days=60, end=END, return_state=True)
    assert same.name == state.name
    assert [(row.signal, row.confidence, row.reused) for row in same.result()] == [
        (row.signal, row.confidence, True) for row in rows
    ]
    assert "klines" not in exchange.requests()


def test_what_the_exchange_does_not_trade_fails_by_its_name(home: Path) -> None:
    state = signals(["NOBODY"], end=END, return_state=True)
    assert state.is_failed() and "NOBODY" in str(state.message)
