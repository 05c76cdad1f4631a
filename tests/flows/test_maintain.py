"""The maintain flow: what it removes and reports, rehearsed first; doing it twice does nothing more."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort

from flows.maintain import maintain
from tasks.store import RESULTS, open_store, put_result

pytestmark = pytest.mark.integration


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder without MLflow, that the settings point to."""
    monkeypatch.setenv("TRADEFLOWS_HOME", str(tmp_path / "home"))
    for name in ("MLFLOW_TRACKING_URI", "MONGODB_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def newest_report() -> str:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["maintain"])),
            sort=ArtifactSort.CREATED_DESC,
            limit=1,
        )
    return str(found[0].data)


def test_rehearsed_done_and_done_again(home: Path) -> None:
    now = datetime.now(UTC)
    with open_store(home) as store:
        for number in range(4):
            put_result(store, f"{number}", "backtest", {"figures": [1.5] * 50}, now - timedelta(days=60 - number))
    for days in (100, 200):
        page = home / "reports" / "data" / f"{now - timedelta(days=days):%Y-%m-%d}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_bytes(b"x" * 1_000)
        stamp = (now - timedelta(days=days)).timestamp()
        os.utime(page, (stamp, stamp))
    state = maintain(dry_run=True, newest_results=1, return_state=True)
    assert (state.type.value, state.name) == ("COMPLETED", "Rehearsed")
    assert "nothing was changed" in newest_report()
    rehearsed = state.result()
    with open_store(home) as store:
        assert len(store.documents.find(RESULTS)) == 4
    done = maintain(newest_results=1)
    assert (done.removed, done.bytes) == (rehearsed.removed, rehearsed.bytes) == (4, done.bytes)
    assert done.bytes > 3 * 50 * 8 + 1_000
    with open_store(home) as store:
        assert [one["_id"] for one in store.documents.find(RESULTS)] == ["3"]
    report = newest_report()
    assert [path.stem for path in page.parent.iterdir()] == [f"{now - timedelta(days=100):%Y-%m-%d}"]
    for words in ("4 removed", "| results: backtest | 3 |", "| reports | 1 | 1,000 |", "| store |"):
        assert words in report
    assert maintain(newest_results=1).removed == 0


def test_what_would_harm_work_under_way_is_refused_before_it_runs() -> None:
    from prefect.exceptions import ParameterTypeError

    with pytest.raises(ParameterTypeError, match="llm_calls_days"):
        maintain(llm_calls_days=30)
    with pytest.raises(ParameterTypeError, match="most_reports"):
        maintain(most_reports=0)
