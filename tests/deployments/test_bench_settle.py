"""The measurement of settling measures what it says: all once, then nothing, then what six hours brought."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.bench_settle import END, HORIZON, fill, names, run
from tasks.settling import settlements
from tasks.store import open_store
from trading.window import Timeframe

pytestmark = pytest.mark.integration

DAYS = 8


def test_each_step_does_what_it_says(tmp_path: Path) -> None:
    symbols = names(2)
    assert fill(tmp_path, symbols, DAYS) == 2 * DAYS * 24
    # the last bar whose horizon is over closed so many hours before the end, and the record ends there
    due = 2 * (DAYS * 24 - HORIZON - 1)
    early = 2 * HORIZON
    said = {step: run(step, tmp_path, symbols, DAYS) for step in ("first", "again", "six hours", "record", "MLflow")}
    assert said["first"]["what"] == f"{due} settled, 0 were, {early} too early"
    assert said["again"]["what"] == f"0 settled, {due} were, {early} too early"
    assert said["six hours"]["what"].startswith("12 settled, ")
    assert said["record"]["what"] == f"of {due} settlements"
    # together, model, rules with four strategies, LLM and challenger
    assert said["MLflow"]["what"] == "9 analysts"
    assert all(one["seconds"] > 0 and one["megabytes"] > 50 for one in said.values())
    with open_store(tmp_path) as store:
        made = list(settlements(store, Timeframe.H1, END.replace(year=2020), END))
    assert len(made) == due
    assert {len(one["results"]) for one in made} == {9}
