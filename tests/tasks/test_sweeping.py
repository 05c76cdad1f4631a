"""What a sweep does beside Prefect: one at a time, the ledger, leases, messages, and processes in sight."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient

from tasks import ledger, sweep_plan, sweep_runs, sweeping
from tasks.documents import LEASES
from tasks.notification_texts import Severity
from tasks.settings import load_settings
from tasks.store import Store, open_store
from tasks.sweep_places import PLACE, here, lives, seen_alive
from tasks.sweep_plan import Bounds, SeenRun, Verdict
from trading.window import Timeframe, Window

NOW = datetime(2026, 3, 2, 12, 30, tzinfo=UTC)
NOBODY = cast(SyncPrefectClient, None)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "home") as made:
        yield made


def crashed(flow: str = "ingest", **parameters: Any) -> SeenRun:
    return SeenRun("id", flow, "red-fox", "deployment", "CRASHED", "Crashed", "", NOW, NOW, parameters)


def approve(store: Store, window: Window) -> None:
    ledger.record(
        store,
        ledger.LedgerEntry(
            window, ledger.APPROVED, 1, 1, {}, 0, "digest", "suite", None, "simulated", "exchange", "24/7", NOW
        ),
    )


def test_a_second_sweep_leaves_while_the_first_is_at_work(store: Store) -> None:
    """It asks Prefect nothing: there is none here."""
    settings = load_settings()
    assert store.documents.acquire(sweeping.LEASE_NAME, "another", 2 * MINUTE, NOW)
    found = sweeping.sweep(NOBODY, store, settings, Bounds(), clock=lambda: NOW + MINUTE)
    assert found == sweeping.Swept(skipped=True)
    # of one that died the lease ends
    with pytest.raises(AttributeError, match="request"):
        sweeping.sweep(NOBODY, store, settings, Bounds(), clock=lambda: NOW + 3 * MINUTE)
    # and whoever fails gives it back
    assert store.documents.acquire(sweeping.LEASE_NAME, "a third", MINUTE, NOW + 3 * MINUTE)


def test_what_the_ledger_lacks_of_a_crashed_ingest(store: Store) -> None:
    run = crashed(symbols=["BTCSIM", "ETHSIM"], timeframe="1h", days=1)
    end = Timeframe.H1.floor(NOW)
    approve(store, Window("BTCSIM", Timeframe.H1, end - timedelta(days=1), end))
    approve(store, Window("ETHSIM", Timeframe.H1, end - timedelta(days=1), end - timedelta(hours=3)))
    [text] = sweeping.lacks(store, run)
    assert "3 bars of ETHSIM 1h" in text
    assert "ingest red-fox due 2026-03-02 12:30" in text
    # a window that the parameters tell, whenever the run was due
    told = crashed(symbols=["BTCSIM"], timeframe="1h", start="2026-03-01T13:00:00Z", end="2026-03-01T20:00:00Z")
    assert sweeping.lacks(store, told) == []


@pytest.mark.parametrize(
    "run",
    [
        crashed("analyse", symbols=["BTCSIM"]),
        crashed(symbols="BTCSIM"),
        crashed(symbols=["BTCSIM"], timeframe="7m"),
        crashed(symbols=["BTCSIM"], start="soon"),
        crashed(symbols=["BTCSIM"], end="2027-01-01T00:00:00Z"),
    ],
)
def test_of_other_flows_and_of_nonsense_the_ledger_says_nothing(store: Store, run: SeenRun) -> None:
    assert sweeping.lacks(store, run) == []


def test_leases_that_ran_out_are_removed_and_others_kept(store: Store) -> None:
    assert store.documents.acquire("promotion|m", "dead", MINUTE, NOW - 5 * MINUTE)
    assert store.documents.acquire("maintenance", "alive", 5 * MINUTE, NOW)
    assert sweeping._expired(store, NOW, dry_run=True) == 1
    assert sweeping._expired(store, NOW, dry_run=False) == 1
    assert [one["_id"] for one in store.documents.find(LEASES)] == ["maintenance"]


def test_people_are_told_what_was_given_up_and_what_is_missing_for_it() -> None:
    run = crashed()
    lacking = [f"{run}: 3 bars of ETHSIM are not in the ledger", "another run: 1 bar"]
    message = sweeping.of_given_up([Verdict(run, "give up", "it died each time")], lacking)
    assert (message.severity, message.title) == (Severity.CRITICAL, "ingest was given up")
    assert message.text.splitlines() == [f"- {run}: it died each time", f"- {lacking[0]}"]
    two = [Verdict(run, "give up", "why"), Verdict(run, "give up", "why")]
    assert sweeping.of_given_up(two, []).title == "2 runs were given up"


# --- processes in sight ----------------------------------------------------------------------------


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_process_counts_if_it_was_born_for_the_run(sleeper: subprocess.Popen[bytes]) -> None:
    pid, now = str(sleeper.pid), datetime.now(UTC)
    assert lives(pid, now - MINUTE, now)
    # another one under its id, born before the run was due or after it began
    assert not lives(pid, now + MINUTE, now + 2 * MINUTE)
    assert not lives(pid, now - 5 * MINUTE, now - MINUTE)
    assert seen_alive(pid, "", now - MINUTE, now) is True
    sleeper.kill()
    psutil.Process(sleeper.pid).wait(10)
    assert not lives(pid, now - MINUTE, now)


@pytest.mark.parametrize("early", [0.0, 9.0, 20.0])
def test_the_process_of_a_scheduled_run_may_be_born_before_the_run_is_due(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, early: float
) -> None:
    """Prefect's workers take runs ten seconds before they are due, and their processes wait."""
    monkeypatch.setattr(sweep_runs, "ask", lambda *_: {"name": "train"})
    due = datetime.fromtimestamp(psutil.Process(sleeper.pid).create_time(), UTC) + timedelta(seconds=early)
    run = {
        "id": "id", "flow_id": "flow", "name": "red-fox", "deployment_id": "deployment", "parameters": {},
        "state": {"type": "RUNNING", "name": "Running", "timestamp": due.isoformat()},
        "expected_start_time": due.isoformat(), "created": due.isoformat(), "parent_task_run_id": None,
        "state_type": "RUNNING",
        "infrastructure_pid": str(sleeper.pid), "labels": {PLACE: here()},
    }  # fmt: skip
    now = due + 2 * MINUTE
    found = sweep_runs.seen(NOBODY, run, now)
    assert found.alive
    assert sweep_plan.look(replace(found, beat=due + MINUTE), Bounds(), now) is None
    sleeper.kill()
    psutil.Process(sleeper.pid).wait(10)
    gone = sweep_plan.look(sweep_runs.seen(NOBODY, run, now), Bounds(), now)
    assert gone is not None
    assert (gone.action, gone.why) == ("crash", f"its process {sleeper.pid} is gone")


@pytest.mark.parametrize("pid", [None, "", "host:7", "-1", "4194305"])
def test_what_is_no_process_here_lives_nowhere_in_sight(pid: str | None) -> None:
    assert not lives(pid, NOW, NOW)
    assert seen_alive(pid, "another machine", NOW, NOW) is None
    assert seen_alive(pid, "", NOW, NOW) is None


def test_of_a_process_that_would_be_here_it_is_known_that_it_is_gone() -> None:
    assert here()
    assert seen_alive("4194305", here(), NOW, NOW) is False
    # its worker was here, and nobody knows yet which process it started
    assert seen_alive(None, here(), NOW, NOW) is None
