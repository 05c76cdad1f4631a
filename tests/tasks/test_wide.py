"""What one task does of a step, and flows on their way to the processes of a cluster."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.flows import load_flow_from_entrypoint

from tasks import wide

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Thing:
    name: str


@given(count=st.integers(0, 1_000), most=st.integers(1, 150))
def test_groups_are_neighbours_of_nearly_equal_number(count: int, most: int) -> None:
    things = [Thing(str(number)) for number in range(count)]
    groups = wide.grouped(things, most)
    assert [thing for group in groups for thing in group.items] == things
    assert len(groups) == min(count, most)
    sizes = {len(group.items) for group in groups}
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_a_group_is_called_after_its_first() -> None:
    rsi, macd = Thing("rsi BTCUSDT"), Thing("macd BTCUSDT")
    assert wide.Group((rsi,)).name == "rsi BTCUSDT"
    assert wide.Group((rsi, macd, macd)).name == "rsi BTCUSDT and 2 more"


@pytest.mark.integration
def test_a_flow_that_was_loaded_from_its_file_reaches_a_process_that_knows_our_packages_only(tmp_path: Path) -> None:
    """As a worker loads what prefect.yaml declares: under a name that is in no package."""
    flow = load_flow_from_entrypoint(f"{CHECKOUT}/flows/backtest.py:backtest")
    assert "." not in flow.fn.__module__
    wide.send_whole(flow)
    sent = tmp_path / "flow"
    sent.write_bytes(cloudpickle.dumps(flow))
    read = f"import pickle; print(pickle.load(open({str(sent)!r}, 'rb')).name)"
    told = subprocess.run([sys.executable, "-c", read], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.stdout.strip() == "backtest", told.stderr[-1000:]
