"""Sweeps of runs that really died, on a real server: killed processes and workers, zombies, runs that never began."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import get_client

from deployments import declared
from flows.sweep import sweep as sweep_flow
from tasks import sweep_runs, sweeping
from tasks.settings import load_settings
from tasks.store import NOTIFICATIONS, open_store
from tasks.sweep_places import PLACE
from tasks.sweep_plan import NO_ROOM, Bounds, covers, plan
from tests.flows.at_work import asked, in_state, place, state, wait_for

pytestmark = pytest.mark.integration

# no patience, so that nobody has to wait
AT_ONCE = Bounds(pending=timedelta(0), pause=timedelta(0), grace=timedelta(0))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home folder without MLflow, that the settings point to; no dead run is left for other tests."""
    monkeypatch.setenv("TRADEFLOWS_HOME", str(tmp_path / "home"))
    for name in ("MLFLOW_TRACKING_URI", "MONGODB_URL", "TRADEFLOWS_NOTIFY_URLS"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path / "home"
    ours = {"flow_runs": {"tags": {"all_": [declared.TAG]}, "state": {"type": {"not_any_": ["COMPLETED"]}}}}
    for run in asked("/flow_runs/filter", ours):
        asked(f"/flow_runs/{run['id']}", method="DELETE")


def swept(bounds: Bounds = AT_ONCE, **options: Any) -> sweeping.Swept:
    settings = load_settings()
    with open_store(settings.home) as store, get_client(sync_client=True) as client:
        return sweeping.sweep(client, store, settings, bounds, **options)


def done_to(found: sweeping.Swept, run: str) -> list[str]:
    """What a sweep did to a run."""
    name = state(run)["name"]
    return [row["done"].split(" at ")[0] for row in found.rows if row["run"] == name]


def put(run: str, kind: str, name: str | None = None, message: str = "", *, force: bool = True) -> None:
    told = {"state": {"type": kind, "name": name or kind.title(), "message": message}, "force": force}
    asked(f"/flow_runs/{run}/set_state", told)


def history(run: str) -> list[str]:
    return [one["name"] for one in asked(f"/flow_run_states/?flow_run_id={run}", method="GET")]


# --- what dies -------------------------------------------------------------------------------------


def test_a_killed_process_is_run_again_with_its_parameters_and_its_window(home: Path, tmp_path: Path) -> None:
    """And a second sweep finds nothing to do."""
    here = place(tmp_path / "runs")
    run = here.run(name="mine")
    due = state(run)["expected_start_time"]
    with here.worker():
        psutil.Process(here.began(1)).kill()
        in_state(run, "Crashed")
        here.let_go()
        assert done_to(swept(), run) == ["run again"]
        # the worker may have taken it by now: it is not dead, and nobody touches it
        assert done_to(swept(Bounds()), run) == []
        done = in_state(run, "Completed", "Crashed", "Failed")
    assert done["state_name"] == "Completed"
    assert (done["expected_start_time"], done["run_count"], done["labels"][sweep_runs.RERUNS]) == (due, 2, 1)
    assert done["parameters"] == {"folder": str(here.folder), "name": "mine"}
    (name, _, moment), (again, _, same) = here.attempts()
    assert (name, moment) == (again, same)
    assert here.slots() == 0


def test_a_zombie_is_found_without_waiting_where_its_process_would_be_in_sight(home: Path, tmp_path: Path) -> None:
    """Worker and process killed at once: nobody is left to say that the run died, and it holds its slot."""
    here = place(tmp_path / "runs")
    run = here.run()
    with here.worker() as worker:
        pid = here.began(1)
        in_state(run, "Running")
        # it lives: a sweep in the middle of its work does nothing
        assert done_to(swept(), run) == []
        # somebody says that it crashed, and it goes on: it is not run twice at once
        put(run, "CRASHED")
        assert done_to(swept(), run) == ["left alone"]
        put(run, "RUNNING", force=False)
        worker.kill()
        psutil.Process(pid).kill()
        wait_for(lambda: not psutil.pid_exists(pid))
    assert state(run)["state_type"] == "RUNNING"
    assert done_to(swept(), run) == ["said to have crashed", "run again"]
    assert state(run)["state_name"] == "AwaitingRetry"
    here.let_go()
    with here.worker():
        assert in_state(run, "Completed", "Crashed", "Failed")["state_name"] == "Completed"


def test_the_server_says_of_a_silent_run_that_it_crashed(home: Path, tmp_path: Path) -> None:
    """The automation of prefect.yaml, with less patience."""
    [block] = [one for one in declared.read() if one.name == "sweep"]
    [core] = [one for one in declared.automations(block, block.name) if one["name"] == "crash-silent-runs"]
    here = place(tmp_path / "runs")
    run = here.run()
    made = asked("/automations/", {**core, "trigger": {**core["trigger"], "within": 10}})
    try:
        with here.worker() as worker:
            pid = here.began(1)
            with get_client(sync_client=True) as client:
                long_ago = datetime.now(UTC) - timedelta(hours=1)
                wait_for(lambda: sweep_runs.last_beat(client, run, long_ago))
            worker.kill()
            psutil.Process(pid).kill()
        assert in_state(run, "Crashed")["state"]["message"].startswith("It was not heard of")
        assert here.slots() == 0
        assert done_to(swept(), run) == ["run again"]
    finally:
        asked(f"/automations/{made['id']}", method="DELETE")


def test_a_run_that_was_taken_and_never_began_gives_its_slot_back(home: Path, tmp_path: Path) -> None:
    here = place(tmp_path / "runs")
    run = here.run()
    put(run, "PENDING", force=False)
    assert here.slots() == 1
    # by the usual bounds it may still begin
    assert done_to(swept(Bounds()), run) == []
    assert done_to(swept(dry_run=True), run) == ["said to have crashed", "run again"]
    assert state(run)["state_type"] == "PENDING"
    assert done_to(swept(), run) == ["said to have crashed", "run again"]
    assert (state(run)["state_name"], here.slots()) == ("AwaitingRetry", 0)


def test_a_run_of_another_machine_is_dead_when_it_is_silent(home: Path, tmp_path: Path) -> None:
    here = place(tmp_path / "runs", limit=3)
    silent, heard, never = (here.run() for _ in range(3))
    for run in (silent, heard, never):
        put(run, "PENDING", force=False)
        put(run, "RUNNING", force=False)
    # our workers say where they are, and make their runs beat; what others started is judged by what was ever heard
    asked(f"/flow_runs/{silent}/labels", {PLACE: "another machine"}, "PATCH")
    began = datetime.fromisoformat(state(silent)["state"]["timestamp"])
    wait_for(lambda: datetime.now(UTC) - began > timedelta(seconds=1))
    beat = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": sweep_runs.HEARTBEAT,
        "resource": {"prefect.resource.id": f"prefect.flow-run.{heard}"},
    }
    asked("/events", [beat])
    with get_client(sync_client=True) as client:
        wait_for(lambda: sweep_runs.last_beat(client, heard, began))
    # of one nothing was heard for longer than that, of the other something
    bounds = Bounds(silence=timedelta(minutes=3))
    found = swept(bounds, clock=lambda: began + bounds.silence + timedelta(seconds=0.5))
    assert done_to(found, silent) == ["said to have crashed", "run again"]
    assert (done_to(found, heard), done_to(found, never)) == ([], [])
    assert state(heard)["state_type"] == state(never)["state_type"] == "RUNNING"


def test_what_a_dead_run_had_started_is_said_to_be_dead_too(home: Path, tmp_path: Path) -> None:
    here = place(tmp_path / "runs", flow="nested")
    run = here.run()
    with here.worker() as worker:
        pid = here.began(1)
        worker.kill()
        psutil.Process(pid).kill()
        wait_for(lambda: not psutil.pid_exists(pid))
    inner = {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}}
    [child] = asked("/flow_runs/filter", inner)
    assert child["state_type"] == "RUNNING"
    assert done_to(swept(), run) == ["said to have crashed", "run again"]
    assert state(child["id"])["state"]["message"] == "found by the sweep: the run that started it is dead"
    here.let_go()
    with here.worker():
        assert in_state(run, "Completed", "Crashed", "Failed")["state_name"] == "Completed"


# --- bounds ------------------------------------------------------------------------------------------


def test_what_dies_each_time_is_given_up_and_people_are_told_once(home: Path, tmp_path: Path) -> None:
    here = place(tmp_path / "runs")
    run = here.run()
    for number in range(1, 4):
        put(run, "CRASHED", message="out of memory")
        assert done_to(swept(), run) == ["run again"]
        assert state(run)["state"]["message"] == f"re-run {number} by the sweep: out of memory"
    put(run, "CRASHED", message="out of memory")
    assert done_to(swept(), run) == ["given up"]
    assert done_to(swept(), run) == []
    found = state(run)
    assert (found["state_type"], found["state_name"]) == ("CRASHED", "GivenUp")
    with open_store(home) as store:
        [told] = store.documents.find(NOTIFICATIONS)
    assert (told["severity"], told["state"], told["untold"]) == ("critical", "nobody", 1)


def test_people_s_cancellations_stay_and_are_finished_where_nobody_is_left_to(home: Path, tmp_path: Path) -> None:
    here = place(tmp_path / "runs", limit=9)
    cancelled, cancelling, late, failed, turned_away = (here.run() for _ in range(5))
    put(cancelled, "CANCELLED", message="by ann")
    put(cancelling, "PENDING", force=False)
    put(cancelling, "CANCELLING", force=False)
    put(late, "SCHEDULED", "Late")
    put(failed, "FAILED")
    asked(f"/flow_runs/{turned_away}/labels", {sweep_runs.RERUNS: 1}, "PATCH")
    put(turned_away, "CANCELLED", message=NO_ROOM)
    found = swept()
    assert [done_to(found, run) for run in (cancelled, late, failed)] == [[], [], []]
    assert done_to(found, cancelling) == ["cancelled"]
    # a re-run for which there was no room comes again
    assert done_to(found, turned_away) == ["run again"]
    assert state(cancelling)["state_type"] == "CANCELLED"
    assert (state(late)["state_name"], state(failed)["state_type"]) == ("Late", "FAILED")


def test_what_a_later_run_did_is_not_done_again(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = place(tmp_path / "runs")
    crashed, later = here.run(), here.run()
    put(crashed, "CRASHED")
    put(later, "COMPLETED")
    with get_client(sync_client=True) as client:
        now = datetime.now(UTC)
        one, two = (
            sweep_runs.seen(client, sweep_runs.ask(client, "GET", f"/flow_runs/{run}"), now) for run in (crashed, later)
        )
    # of a flow that nobody knows it cannot be said
    assert not covers(two, one)
    assert covers(replace(two, flow="ingest"), replace(one, flow="ingest"))
    monkeypatch.setattr("tasks.sweep_plan.CATCHING_UP", frozenset({"waiting"}))
    assert done_to(swept(), crashed) == ["not needed any more"]
    assert state(crashed)["state_name"] == "Superseded"
    assert done_to(swept(), crashed) == []


# --- what dead runs held -----------------------------------------------------------------------------


def test_a_slot_that_nobody_holds_is_set_free(home: Path, tmp_path: Path) -> None:
    """As after the death of a server that kept its leases in memory."""
    here = place(tmp_path / "runs", limit=3)
    at_work = here.run()
    put(at_work, "PENDING", force=False)
    limit = asked(f"/deployments/{here.deployment}", method="GET")["global_concurrency_limit"]
    asked(f"/v2/concurrency_limits/{limit['id']}", {"active_slots": 3}, "PATCH")
    assert swept(Bounds(), dry_run=True).slots == {limit["name"]: 2}
    assert here.slots() == 3
    assert swept(Bounds()).slots == {limit["name"]: 2}
    assert here.slots() == 1
    assert swept(Bounds()).slots == {}


# --- several, and the flow ---------------------------------------------------------------------------


def test_two_sweeps_at_once_run_it_again_once(home: Path, tmp_path: Path) -> None:
    here = place(tmp_path / "runs")
    run = here.run()
    put(run, "CRASHED")
    found: list[sweeping.Swept] = []
    both = [threading.Thread(target=lambda: found.append(swept())) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert history(run).count("AwaitingRetry") == 1
    assert state(run)["labels"][sweep_runs.RERUNS] == 1
    assert sum(len(done_to(one, run)) for one in found) == 1


def test_what_changed_since_it_was_seen_is_left_alone(home: Path, tmp_path: Path) -> None:
    here = place(tmp_path / "runs")
    run = here.run()
    put(run, "CRASHED")
    with get_client(sync_client=True) as client:
        now = datetime.now(UTC)
        [seen] = [one for one in sweep_runs.ended_badly(client, now - timedelta(hours=1), now) if one.id == run]
        [verdict] = plan([seen], [], {here.deployment: 1}, AT_ONCE, now)
        put(run, "COMPLETED")
        assert not sweep_runs.carry_out(client, verdict)
    assert state(run)["state_name"] == "Completed"


def test_the_flow_reports_and_names_what_became_of_it(home: Path, tmp_path: Path) -> None:
    here = place(tmp_path / "runs")
    run = here.run()
    put(run, "CRASHED", message="killed")
    assert sweep_flow(dry_run=True, return_state=True).name == "Rehearsed"
    assert state(run)["state_name"] == "Crashed"
    assert sweep_flow(return_state=True).name == "Completed"
    assert state(run)["state_name"] == "AwaitingRetry"
    put(run, "CRASHED", message="killed")
    gave_up = sweep_flow(attempts=1, return_state=True)
    assert (gave_up.name, gave_up.message) == ("GaveUp", "1 given up")
    wanted = {"artifacts": {"key": {"any_": ["sweep"]}}, "sort": "CREATED_DESC", "limit": 1}
    [report] = asked("/artifacts/filter", wanted)
    for words in ("# Sweep", "| waiting | [", f"{run}", "given up", "1 times and died each time; last: killed"):
        assert words in report["data"]
    with open_store(home) as store:
        assert store.documents.acquire("sweep", "another", timedelta(minutes=1), datetime.now(UTC))
        assert sweep_flow(return_state=True).name == "Skipped"


def test_a_sweep_that_died_does_not_keep_the_next_from_starting() -> None:
    [block] = [one for one in declared.read() if one.name == "sweep"]
    assert sweep_runs.TAG == declared.TAG
    assert block.concurrency_limit is not None and block.concurrency_limit.limit > 1
