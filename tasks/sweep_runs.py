"""Prefect's runs as a sweep sees and changes them, over the server's REST API.

Nothing is changed that is not looked at again first: what somebody else did meanwhile stays.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from tasks.sweep_places import PLACE, seen_alive
from tasks.sweep_plan import GIVEN_UP, SUPERSEDED, Bounds, SeenRun, Verdict

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

# what is ours on a server carries this tag (deployments.declared.TAG)
TAG: Final = "tradeflows"
# the label that counts how often a sweep ran a run again
RERUNS: Final = "tradeflows.reruns"
HEARTBEAT: Final = "prefect.flow-run.heartbeat"
AWAITING: Final = "AwaitingRetry"
# a limit that lets runs wait, or none at all, has room for as many as come
UNLIMITED: Final = 1_000_000
PAGE: Final = 200
AT_WORK: Final = ("PENDING", "RUNNING", "CANCELLING")


def unended(client: SyncPrefectClient, bounds: Bounds, now: datetime) -> list[SeenRun]:
    """Our runs that are taken, at work, or to be cancelled, with their heartbeats."""
    return [
        _heard(client, run, seen(client, run, now), now - bounds.silence)
        for run in _found(client, state=_states(*AT_WORK), tags={"all_": [TAG]})
    ]


def _heard(client: SyncPrefectClient, told: Mapping[str, Any], run: SeenRun, since: datetime) -> SeenRun:
    """The run with its last heartbeat after ``since``; where there is none, with whether it ever had one."""
    if run.state != "RUNNING":
        return run
    beat = last_beat(client, run.id, since)
    if beat is not None or PLACE in told["labels"]:
        # our workers make their runs beat
        return replace(run, beat=beat)
    return replace(run, beats=last_beat(client, run.id, run.due - timedelta(days=1)) is not None)


def ended_badly(client: SyncPrefectClient, since: datetime, now: datetime) -> list[SeenRun]:
    """Runs of our deployments that crashed, of any age, and those that were cancelled after ``since``."""
    open_ones = {**_states("CRASHED"), "name": {"not_any_": [GIVEN_UP, SUPERSEDED]}}
    found = [
        *_found(client, state=open_ones, tags={"all_": [TAG]}),
        *_found(client, state=_states("CANCELLED"), tags={"all_": [TAG]}, end_time={"after_": since.isoformat()}),
    ]
    return [seen(client, run, now) for run in found if run["deployment_id"] is not None]


def beside(client: SyncPrefectClient, runs: Sequence[SeenRun], now: datetime) -> list[SeenRun]:
    """Other runs of the same deployments, due no earlier than the first of ``runs``, that did or may do their work."""
    deployments = sorted({run.deployment for run in runs if run.deployment is not None})
    if not deployments:
        return []
    due = {"after_": min(run.due for run in runs).isoformat(), "before_": now.isoformat()}
    states = _states("COMPLETED", "PENDING", "RUNNING", "SCHEDULED")
    found = _found(client, state=states, deployment_id={"any_": deployments}, expected_start_time=due)
    ids = {run.id for run in runs}
    return [seen(client, run, now) for run in found if run["id"] not in ids]


def orphans(client: SyncPrefectClient, parents: Iterable[SeenRun], now: datetime) -> list[SeenRun]:
    """Runs that dead runs started within themselves, at any depth, and that nobody ended."""
    found: list[SeenRun] = []
    above = [run.id for run in parents]
    while above:
        below = list(_found(client, parent_flow_run_id={"any_": above}))
        found += [seen(client, run, now) for run in below if _kind(run) in AT_WORK]
        above = [run["id"] for run in below]
    return found


def room(client: SyncPrefectClient, deployments: Iterable[str], dead: Iterable[SeenRun] = ()) -> dict[str, int]:
    """How many runs of each deployment may start now: its limit, without those at work or about to run again.

    Args:
        dead: are not at work, whatever the server says.
    """
    gone = {run.id for run in dead}
    found = {}
    for deployment in sorted(set(deployments)):
        limit = _limit(client, deployment)
        if limit is None:
            found[deployment] = UNLIMITED
            continue
        only = {"any_": [deployment]}
        taken = [run for run in _found(client, state=_states(*AT_WORK), deployment_id=only) if run["id"] not in gone]
        waiting = {**_states("SCHEDULED"), "name": {"any_": [AWAITING]}}
        found[deployment] = limit - len(taken) - len(list(_found(client, state=waiting, deployment_id=only)))
    return found


def seen(client: SyncPrefectClient, run: Mapping[str, Any], now: datetime) -> SeenRun:
    """Prefect's flow run as a value; only the name of its flow is asked for."""
    state: Mapping[str, Any] = run["state"] or {}
    since = _utc(state["timestamp"]) if state else now
    due = _utc(run["expected_start_time"] or run["created"])
    kind = _kind(run)
    place = str(run["labels"].get(PLACE, ""))
    until = now if kind == "PENDING" else since
    return SeenRun(
        id=run["id"],
        flow=str(ask(client, "GET", f"/flows/{run['flow_id']}")["name"]),
        name=run["name"],
        deployment=run["deployment_id"],
        state=kind,
        state_name=state.get("name") or "",
        message=state.get("message") or "",
        since=since,
        due=due,
        parameters=run["parameters"] or {},
        reruns=int(run["labels"].get(RERUNS, 0)),
        subflow=run["parent_task_run_id"] is not None,
        alive=seen_alive(run["infrastructure_pid"], place, due - fetched_before(), until),
        pid=run["infrastructure_pid"],
    )


def fetched_before() -> timedelta:
    """How long before a run is due a worker may start its process, which then waits."""
    from prefect.settings import get_current_settings

    # a worker elsewhere may be set otherwise, and its clock be a little off
    return timedelta(seconds=2 * get_current_settings().worker.prefetch_seconds + 10)


def last_beat(client: SyncPrefectClient, run: str, since: datetime) -> datetime | None:
    """When the run's last heartbeat came, if it came after ``since``."""
    wanted = {
        "event": {"name": [HEARTBEAT]},
        "resource": {"id": [f"prefect.flow-run.{run}"]},
        "occurred": {"since": since.isoformat()},
        "order": "DESC",
    }
    found = ask(client, "POST", "/events/filter", {"filter": wanted, "limit": 1})["events"]
    return _utc(found[0]["occurred"]) if found else None


def carry_out(client: SyncPrefectClient, verdict: Verdict) -> bool:
    """Do to a run what was decided; False where it is no longer as it was seen, and nothing was done."""
    run = verdict.run
    current = ask(client, "GET", f"/flow_runs/{run.id}")
    if _kind(current) != run.state or _utc(current["state"]["timestamp"]) != run.since:
        return False
    if verdict.action == "crash":
        return _set(client, current, "CRASHED", "Crashed", f"found by the sweep: {verdict.why}")
    if verdict.action == "cancel":
        return _set(client, current, "CANCELLED", "Cancelled", f"finished by the sweep: {verdict.why}")
    if verdict.action == "rerun":
        number = run.reruns + 1
        # counted first: if this process dies in between, a re-run is lost rather than done without end
        ask(client, "PATCH", f"/flow_runs/{run.id}/labels", {RERUNS: number})
        said = f"re-run {number} by the sweep: {verdict.why}"
        return _set(client, current, "SCHEDULED", AWAITING, said, at=verdict.at)
    if verdict.action in ("supersede", "give up"):
        name = SUPERSEDED if verdict.action == "supersede" else GIVEN_UP
        # of a run that has ended the server takes another end by force only
        return _set(client, current, "CRASHED", name, verdict.why, force=True)
    return False


def ask(client: SyncPrefectClient, method: str, path: str, body: object = None) -> Any:
    """The JSON of the server's answer, None where there is none; tried again by Prefect's client while it is busy.

    Raises:
        HTTPStatusError: (httpx's) the server refuses.
    """
    answer = client.request(method, path, json=body)  # type: ignore[arg-type]
    return answer.json() if answer.content else None


def _set(
    client: SyncPrefectClient,
    run: Mapping[str, Any],
    kind: str,
    name: str,
    message: str,
    *,
    at: datetime | None = None,
    force: bool = False,
) -> bool:
    """Propose a state; the same proposal about the same state once more changes nothing."""
    details: dict[str, Any] = {"transition_id": str(uuid.uuid5(uuid.UUID(run["state"]["id"]), f"{kind}/{name}"))}
    if kind == "SCHEDULED":
        details["scheduled_time"] = at.isoformat() if at is not None else None
    state = {"type": kind, "name": name, "message": message[:1000], "state_details": details}
    done = ask(client, "POST", f"/flow_runs/{run['id']}/set_state", {"state": state, "force": force})
    return bool(done["status"] == "ACCEPT")


def _limit(client: SyncPrefectClient, deployment: str) -> int | None:
    """How many runs of a deployment may be at work; None where more of them wait, or any number may."""
    import httpx

    try:
        found = ask(client, "GET", f"/deployments/{deployment}")
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.NOT_FOUND:
            return 0
        raise
    limit, options = found["global_concurrency_limit"], found["concurrency_options"] or {}
    turned_away = options.get("collision_strategy") == "CANCEL_NEW"
    return int(limit["limit"]) if limit is not None and turned_away else None


def _found(client: SyncPrefectClient, **wanted: Any) -> Iterator[dict[str, Any]]:
    """Flow runs, page by page, the earliest due first."""
    offset = 0
    while True:
        body = {"flow_runs": wanted, "sort": "EXPECTED_START_TIME_ASC", "limit": PAGE, "offset": offset}
        page = ask(client, "POST", "/flow_runs/filter", body)
        yield from page
        if len(page) < PAGE:
            return
        offset += PAGE


def _states(*kinds: str) -> dict[str, Any]:
    return {"type": {"any_": list(kinds)}}


def _kind(run: Mapping[str, Any]) -> str:
    return str(run["state_type"] or "")


def _utc(moment: str) -> datetime:
    return datetime.fromisoformat(moment).astimezone(UTC)
