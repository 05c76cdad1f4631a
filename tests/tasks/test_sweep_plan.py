"""What a sweep decides: examples of each rule, and properties over worlds drawn at random."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.sweep_plan import (
    GIVEN_UP,
    NO_ROOM,
    SUPERSEDED,
    Bounds,
    SeenRun,
    Verdict,
    again_at,
    covers,
    is_dead,
    look,
    plan,
)

NOW = datetime(2026, 3, 2, 12, 30, tzinfo=UTC)
BOUNDS = Bounds()
MINUTE = timedelta(minutes=1)


def run(
    id: str = "one",
    flow: str = "ingest",
    state: str = "CRASHED",
    *,
    due: datetime = NOW - 28 * MINUTE,
    since: datetime = NOW - 20 * MINUTE,
    parameters: Mapping[str, Any] | None = None,
    **more: Any,
) -> SeenRun:
    usual = {"symbols": ["BTCSIM"], "timeframe": "1h", "days": 30}
    told: dict[str, Any] = {"deployment": f"the {flow}", "state_name": state.title(), "message": "", **more}
    return SeenRun(id, flow, f"{flow}-{id}", state=state, since=since, due=due, parameters=parameters or usual, **told)


def only(dead: SeenRun, *others: SeenRun, room: int = 1, bounds: Bounds = BOUNDS, now: datetime = NOW) -> Verdict:
    [verdict] = plan([dead], others, {str(dead.deployment): room}, bounds, now)
    return verdict


# --- is it dead? ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "action"),
    [
        (run(state="RUNNING", beat=NOW - MINUTE), None),
        (run(state="RUNNING", since=NOW - 2 * MINUTE), None),
        (run(state="RUNNING"), "crash"),
        (run(state="RUNNING", beat=NOW - 4 * MINUTE), "crash"),
        # another worker's, that was never heard
        (run(state="RUNNING", beats=False), None),
        (run(state="RUNNING", beats=False, since=NOW - timedelta(hours=25)), "crash"),
        # its process is in sight: then that counts
        (run(state="RUNNING", alive=True), "leave"),
        (run(state="RUNNING", alive=False, beat=NOW), "crash"),
        (run(state="RUNNING", alive=False, beat=NOW, since=NOW - timedelta(seconds=5)), None),
        (run(state="PENDING", since=NOW - 4 * MINUTE), None),
        (run(state="PENDING", since=NOW - 6 * MINUTE), "crash"),
        (run(state="PENDING", since=NOW - 6 * MINUTE, alive=True), None),
        # the process of an earlier attempt is gone; this one may only just be starting
        (run(state="PENDING", since=NOW - MINUTE, alive=False), None),
        (run(state="CANCELLING", since=NOW - 6 * MINUTE), "cancel"),
        (run(state="CANCELLING", since=NOW - MINUTE), None),
        (run(state="CANCELLING", since=NOW - 6 * MINUTE, alive=True), None),
        (run(state="SCHEDULED", state_name="Late", since=NOW - 600 * MINUTE), None),
        (run(state="PAUSED", since=NOW - 600 * MINUTE), None),
        (run(state="COMPLETED"), None),
    ],
)
def test_what_is_dead_and_what_is_left(seen: SeenRun, action: str | None) -> None:
    verdict = look(seen, BOUNDS, NOW)
    assert (verdict.action if verdict else None) == action


@pytest.mark.parametrize(
    ("seen", "dead"),
    [
        (run(), True),
        (run(state_name=GIVEN_UP), False),
        (run(state_name=SUPERSEDED), False),
        (run(state="FAILED"), False),
        # by a person, or by the limit when it was new
        (run(state="CANCELLED", message="Cancelled by ann"), False),
        (run(state="CANCELLED", message="Cancelled by ann", reruns=1), False),
        (run(state="CANCELLED", message=NO_ROOM), False),
        (run(state="CANCELLED", message=NO_ROOM, reruns=1), True),
    ],
)
def test_whose_matter_is_open(seen: SeenRun, dead: bool) -> None:
    assert is_dead(seen) is dead


# --- what becomes of the dead ---------------------------------------------------------------------


def test_a_crashed_run_runs_again_at_once_and_later_after_pauses() -> None:
    assert only(run()) == Verdict(run(), "rerun", "Crashed", NOW)
    pauses = [again_at(run(reruns=count, since=NOW), BOUNDS, NOW) - NOW for count in range(4)]
    assert pauses == [timedelta(0), MINUTE, 2 * MINUTE, 4 * MINUTE]


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (run(reruns=3, message="killed"), "run again 3 times and died each time; last: killed"),
        (run(due=NOW - timedelta(hours=25)), "it was due 25 hours ago"),
    ],
)
def test_what_died_too_often_or_long_ago_is_given_up(seen: SeenRun, why: str) -> None:
    verdict = only(seen)
    assert verdict.action == "give up"
    assert why in verdict.why


def test_no_bound_of_zero_attempts_runs_anything() -> None:
    assert only(run(), bounds=Bounds(attempts=0)).action == "give up"


@pytest.mark.parametrize(
    ("dead", "other", "action"),
    [
        # a later ingest has caught up
        (run(), run("two", state="COMPLETED", due=NOW), "supersede"),
        (run(), run("two", state="COMPLETED", due=NOW - 40 * MINUTE), "rerun"),
        (run(), run("two", state="COMPLETED", due=NOW, parameters={"symbols": ["ETHSIM"]}), "rerun"),
        (run(), run("two", state="COMPLETED", due=NOW, deployment="another"), "rerun"),
        (run(), run("two", state="FAILED", due=NOW), "rerun"),
        # an analysis of the same bar has; one of the next bar has not
        (run(flow="analyse"), run("two", "analyse", "COMPLETED", due=NOW - 5 * MINUTE), "supersede"),
        (run(flow="analyse"), run("two", "analyse", "COMPLETED", due=NOW + 31 * MINUTE), "rerun"),
        # a window that the parameters tell is the same whenever it is due
        (
            run(flow="analyse", parameters={"end": "2026-01-01T00:00:00Z", "timeframe": "1h"}),
            run(
                "two",
                "analyse",
                "COMPLETED",
                due=NOW + 90 * MINUTE,
                parameters={"end": "2026-01-01T00:00:00Z", "timeframe": "1h"},
            ),
            "supersede",
        ),
        # the costs of a day are about that day
        (run(flow="costs"), run("two", "costs", "COMPLETED", due=NOW), "supersede"),
        (run(flow="costs"), run("two", "costs", "COMPLETED", due=NOW + timedelta(days=1)), "rerun"),
        # one that is at work may do it; what the schedule holds for later is no help
        (run(), run("two", state="RUNNING", due=NOW), "leave"),
        (run(), run("two", state="SCHEDULED", due=NOW), "rerun"),
        (run(), run("two", state="SCHEDULED", state_name="AwaitingRetry", due=NOW), "leave"),
        # a flow that nobody knows: only the same due time is the same window
        (run(flow="mine", parameters={"a": 1}), run("two", "mine", "COMPLETED", due=NOW, parameters={"a": 1}), "rerun"),
    ],
)
def test_a_run_whose_work_was_done_does_not_run_again(dead: SeenRun, other: SeenRun, action: str) -> None:
    assert only(dead, other).action == action


def test_of_dead_runs_with_one_window_the_last_runs_again() -> None:
    first, second = run("one", due=NOW - 80 * MINUTE), run("two", due=NOW - 20 * MINUTE)
    verdicts = plan([second, first], [], {"the ingest": 5}, BOUNDS, NOW)
    assert [(verdict.run.id, verdict.action) for verdict in verdicts] == [("one", "leave"), ("two", "rerun")]
    # two analyses are of two bars
    first, second = replace(first, flow="analyse"), replace(second, flow="analyse")
    verdicts = plan([second, first], [], {"the ingest": 5}, BOUNDS, NOW)
    assert [verdict.action for verdict in verdicts] == ["rerun", "rerun"]


def test_without_room_it_waits_for_the_next_sweep() -> None:
    """Where a limit turns away what comes while another is at work, a re-run would be cancelled."""
    bars = [run(str(hour), "analyse", due=NOW - timedelta(hours=hour)) for hour in range(4)]
    verdicts = plan(bars, [], {"the analyse": 1}, BOUNDS, NOW)
    assert [verdict.action for verdict in verdicts] == ["rerun", "leave", "leave", "leave"]
    assert only(run(), room=0).action == "leave"
    many = plan(bars, [], {"the analyse": 9}, Bounds(most=2), NOW)
    assert [verdict.action for verdict in many] == ["rerun", "rerun", "leave", "leave"]


def test_what_lives_or_has_no_deployment_is_left_alone() -> None:
    assert only(run(alive=True, pid="7")).why == "its process 7 lives and may end by itself"
    assert "by hand" in only(run(deployment=None)).why
    assert "the run that started it" in only(run(deployment=None, subflow=True)).why


def test_a_sweep_is_never_run_again() -> None:
    assert only(run(flow="sweep")).action == "supersede"


# --- properties ------------------------------------------------------------------------------------

FLOWS = ("ingest", "analyse", "train", "costs", "sweep", "mine")


@st.composite
def runs(draw: st.DrawFn, states: tuple[str, ...], count: int = 8) -> list[SeenRun]:
    made = []
    for number in range(draw(st.integers(0, count))):
        flow, state = draw(st.sampled_from(FLOWS)), draw(st.sampled_from(states))
        due = NOW - timedelta(minutes=draw(st.integers(0, 2_000)))
        made.append(
            run(
                f"{states[0]}-{number}",
                flow,
                state,
                due=due,
                since=due + timedelta(minutes=draw(st.integers(0, 5))),
                parameters={"timeframe": draw(st.sampled_from(["1h", "4h"]))},
                reruns=draw(st.integers(0, 4)),
                alive=draw(st.sampled_from([None, False, True])),
            )
        )
    return made


@given(
    dead=runs(("CRASHED",)),
    others=runs(("COMPLETED", "RUNNING", "SCHEDULED")),
    room=st.dictionaries(st.sampled_from([f"the {flow}" for flow in FLOWS]), st.integers(-1, 3)),
    attempts=st.integers(0, 4),
    most=st.integers(1, 3),
)
def test_no_world_makes_a_sweep_go_beyond_its_bounds(
    dead: list[SeenRun], others: list[SeenRun], room: dict[str, int], attempts: int, most: int
) -> None:
    bounds = Bounds(attempts=attempts, most=most)
    verdicts = plan(dead, others, room, bounds, NOW)
    # everybody gets a verdict, in the order of what was due
    assert sorted(verdict.run.id for verdict in verdicts) == sorted(one.id for one in dead)
    assert [verdict.run.due for verdict in verdicts] == sorted(one.due for one in dead)
    again = [verdict.run for verdict in verdicts if verdict.action == "rerun"]
    assert len(again) <= most
    for deployment, count in Counter(one.deployment for one in again).items():
        assert count <= room.get(str(deployment), 0)
    for verdict in verdicts:
        assert verdict.why
        if verdict.action == "rerun":
            one = verdict.run
            assert one.reruns < attempts
            assert NOW - one.due <= bounds.oldest
            assert not one.alive
            assert one.flow != "sweep"
            assert verdict.at is not None and verdict.at >= NOW
            assert not any(covers(other, one) for other in others if other.state == "COMPLETED")
    # nobody runs beside another run again that has the same window
    assert not any(covers(one, two) for one in again for two in again if one is not two)
    # the same world gives the same answer, in whatever order it is looked at
    assert plan(dead[::-1], others[::-1], room, bounds, NOW) == verdicts


@given(dead=runs(("CRASHED",)), attempts=st.integers(0, 4))
def test_sweeping_on_ends(dead: list[SeenRun], attempts: int) -> None:
    """Runs that die again each time are settled after finitely many sweeps."""
    bounds, now, open_ones = Bounds(attempts=attempts), NOW, [replace(one, alive=None) for one in dead]
    again: Counter[str] = Counter()
    for _ in range(len(dead) * (attempts + 2) + 1):
        if not open_ones:
            break
        verdicts = plan(open_ones, [], {f"the {flow}": 1 for flow in FLOWS}, bounds, now)
        now += MINUTE
        open_ones = []
        for verdict in verdicts:
            if verdict.action == "rerun":
                again[verdict.run.id] += 1
                open_ones.append(replace(verdict.run, reruns=verdict.run.reruns + 1, since=now))
            elif verdict.action == "leave":
                open_ones.append(verdict.run)
    assert not open_ones
    assert all(count <= attempts for count in again.values())
