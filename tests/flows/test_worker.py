"""Workers that are told to stop, or killed, with a run at work."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from tasks.sweep_places import PLACE, here
from tests.flows.at_work import asked, in_state, place, state, wait_for

pytestmark = pytest.mark.integration

KINDS = ("deployments.worker", "deployments.warm_worker")


@pytest.mark.parametrize("module", KINDS)
def test_told_to_stop_it_hands_a_long_run_back_and_another_worker_does_it(module: str, tmp_path: Path) -> None:
    here_ = place(tmp_path)
    run = here_.run()
    due = state(run)["expected_start_time"]
    with here_.worker(module) as worker:
        pid = here_.began(1)
        in_state(run, "Running")
        assert here_.slots() == 1
        assert state(run)["labels"][PLACE] == here()
        worker.send_signal(signal.SIGTERM)
        # what comes now is not for this worker
        assert worker.wait(60) == 0, (tmp_path / "worker.log").read_text()
    assert not psutil.pid_exists(pid)
    back = state(run)
    assert (back["state_type"], back["state_name"]) == ("SCHEDULED", "AwaitingRetry")
    assert back["state"]["message"] == "handed back by worker test, which was told to stop"
    assert here_.slots() == 0
    # nobody was told of a crash that was none
    names = [one["name"] for one in asked(f"/flow_run_states/?flow_run_id={run}", method="GET")]
    assert "Crashed" not in names
    here_.let_go()
    with here_.worker():
        done = in_state(run, "Completed", "Crashed", "Failed")
    assert done["state_name"] == "Completed"
    assert (done["expected_start_time"], done["run_count"]) == (due, 2)
    # both attempts were about the same time, which their windows come from
    (_, first, moment), (_, second, again) = here_.attempts()
    assert first != second
    assert moment == again


@pytest.mark.parametrize("module", KINDS)
def test_a_run_that_is_only_starting_is_handed_back_too(module: str, tmp_path: Path) -> None:
    """It cannot be told to end without a word, so it is killed; the worker does not import the flow for its hooks."""
    here_ = place(tmp_path)
    (tmp_path / "stuck").touch()
    run = here_.run()
    due = state(run)["expected_start_time"]
    with here_.worker(module) as worker:
        [pid] = wait_for(here_.importing)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0, (tmp_path / "worker.log").read_text()
    assert not psutil.pid_exists(pid)
    assert here_.importing() == [pid]
    back = state(run)
    assert (back["state_type"], back["state_name"]) == ("SCHEDULED", "AwaitingRetry")
    assert back["state"]["message"] == "handed back by worker test, which was told to stop"
    assert (back["expected_start_time"], here_.slots()) == (due, 0)
    # nobody was told of a crash that was none
    names = [one["name"] for one in asked(f"/flow_run_states/?flow_run_id={run}", method="GET")]
    assert "Crashed" not in names
    (tmp_path / "stuck").unlink()
    here_.let_go()
    with here_.worker(module):
        assert in_state(run, "Completed", "Crashed", "Failed")["state_name"] == "Completed"
    assert here_.hooks() == []


def test_the_hooks_of_a_run_that_crashed_or_is_cancelled_have_a_process_of_their_own(tmp_path: Path) -> None:
    here_ = place(tmp_path, limit=2)
    with here_.worker() as worker:
        crashed = here_.run()
        psutil.Process(here_.began(1)).kill()
        in_state(crashed, "Crashed")
        [told] = wait_for(here_.hooks)
        assert told[:2] == ["Crashed", crashed]
        assert told[3] == str(worker.pid) != told[2]
        cancelled = here_.run()
        here_.began(2)
        in_state(cancelled, "Running")
        asked(f"/flow_runs/{cancelled}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
        in_state(cancelled, "Cancelled")
        [_, told] = here_.hooks()
        assert told[:2] == ["Cancelling", cancelled]
        assert told[3] == str(worker.pid) != told[2]


def test_told_to_stop_it_lets_a_run_end_that_does_so_in_time(tmp_path: Path) -> None:
    here_ = place(tmp_path)
    run = here_.run()
    with here_.worker() as worker:
        here_.began(1)
        worker.send_signal(signal.SIGTERM)
        wait_for(lambda: "runs may end" in (tmp_path / "worker.log").read_text())
        here_.let_go()
        assert worker.wait(60) == 0
    done = state(run)
    assert (done["state_name"], done["run_count"]) == ("Completed", 1)


@pytest.mark.parametrize("module", KINDS)
def test_a_killed_worker_leaves_its_run_to_end_alone(module: str, tmp_path: Path) -> None:
    here_ = place(tmp_path)
    run = here_.run()
    with here_.worker(module) as worker:
        here_.began(1)
        in_state(run, "Running")
        worker.kill()
        worker.wait()
        here_.let_go()
        done = in_state(run, "Completed", "Crashed", "Failed")
    assert done["state_name"] == "Completed"
    assert len(here_.attempts()) == 1
