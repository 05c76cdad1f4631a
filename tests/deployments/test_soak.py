"""A backfill under faults, outage and kills ends with the candles of one without: small here, in full by make soak."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from deployments import soak
from tasks.store import open_store, read_candles, write_candles

pytestmark = pytest.mark.integration


def test_a_backfill_under_faults_ends_like_one_without(tmp_path: Path) -> None:
    windows = soak.generated(tmp_path / "candles", 4, 25_000)
    plan = soak.Plan(
        tmp_path / "candles", windows, kills=2, speed=1200.0, retry_after=0.05, timeout=0.5, flow=False, seed=3
    )
    report = soak.soak(plan, tmp_path / "homes", Console(quiet=True))
    assert report.candles + report.absent == 4 * 25_000
    assert report.kills == 2
    # the faults were there
    assert report.statuses["429"] > 5
    assert report.statuses["503"] > 5
    assert {"inconsistent", "duplicate"} <= set(report.quarantined)
    with open_store(tmp_path / "homes" / "calm") as calm, open_store(tmp_path / "homes" / "storm") as storm:
        # and a difference would have been noticed
        changed = read_candles(storm, windows[0]).iloc[100:101] * 1.5
        write_candles(storm, windows[0], changed, "sample")
        with pytest.raises(soak.SoakFailed, match="1 candles have other values"):
            soak._compared(plan, calm, storm)


def test_real_candles_survive_the_same(tmp_path: Path, shared: Path) -> None:
    windows = soak.from_files(shared / "data", tmp_path / "candles")
    assert len(windows) == 6
    plan = soak.Plan(
        tmp_path / "candles", windows, kills=1, speed=3600.0, retry_after=0.05, timeout=0.5, flow=False, seed=5
    )
    report = soak.soak(plan, tmp_path / "homes", Console(quiet=True))
    assert report.candles + report.absent == sum(window.slots for window in windows)
    assert report.statuses["503"] > 0
