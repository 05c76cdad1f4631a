"""Flows on their way to the processes of a cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest
from prefect.flows import load_flow_from_entrypoint

from tasks import wide

pytestmark = pytest.mark.integration

CHECKOUT = Path(__file__).resolve().parents[2]


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
