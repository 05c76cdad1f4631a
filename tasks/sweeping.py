"""The sweep: runs that died are found, said to be dead, and run again within bounds; what they held is set free.

One sweep at a time, by a lease in the store; whoever comes second leaves. A sweep that dies half-way is no harm: the
next one looks at everything anew.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import httpx
from prefect import task

from tasks import ledger, log, registry, sweep_registry, sweep_runs
from tasks.documents import LEASES, Span
from tasks.llm_tracing import require_answer
from tasks.notification_texts import Message, Severity
from tasks.notifying import notify
from tasks.periods import span
from tasks.retry import STORE, prefect_options
from tasks.settings import Settings, load_settings
from tasks.store import Store, configured_store
from tasks.sweep_plan import Bounds, SeenRun, Verdict, is_dead, look, plan
from trading.errors import InvalidRequest, RevisionConflict
from trading.window import Timeframe, Window

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

LEASE_NAME: Final = "sweep"
# each step renews it; a sweep that dies must not keep the next ones waiting
LEASE: Final = timedelta(minutes=1)
# counters of the store: deaths that were seen, and those after which MLflow was put in order
MENDED: Final = "sweep deaths mended in MLflow"
DONE: Final = {
    "crash": "said to have crashed",
    "cancel": "cancelled",
    "rerun": "run again",
    "supersede": "not needed any more",
    "give up": "given up",
    "leave": "left alone",
}


@dataclass(frozen=True)
class Swept:
    """What a sweep found and did; with ``dry_run``, would do.

    Attributes:
        skipped: another one was at work, and nothing was done.
        rows: a row per run: what it is, how it was found, what was done, and why.
        counts: how many runs had what done to them, by the words of ``DONE``.
        leases: how many expired leases of the store were removed.
        slots: by deployment, how many concurrency slots that nobody held were set free.
        mended: what was put in order in MLflow, as sentences.
        lacking: what the ledger still lacks of crashed ingests, as sentences.
    """

    skipped: bool = False
    rows: list[dict[str, str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    leases: int = 0
    slots: dict[str, int] = field(default_factory=dict)
    mended: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)

    def count(self, action: str) -> int:
        """How many runs had that done to them."""
        return self.counts.get(DONE[action], 0)


def _now() -> datetime:
    return datetime.now(UTC)


def sweep(
    client: SyncPrefectClient,
    store: Store,
    settings: Settings,
    bounds: Bounds,
    *,
    clock: Callable[[], datetime] = _now,
    dry_run: bool = False,
) -> Swept:
    """Look at every run of ours that has not ended well, and do about it what ``tasks.sweep_plan`` says.

    Args:
        clock: whether a run is dead is a matter of the true time, not of that of a run.

    Raises:
        RevisionConflict: it took so long that another sweep began.
        NotificationFailed: somebody was not told that runs were given up; a later sweep tells it.
    """
    owner = uuid.uuid4().hex
    if not store.documents.acquire(LEASE_NAME, owner, LEASE, clock()):
        return Swept(skipped=True)
    try:
        return _swept(client, store, settings, bounds, _holding(store, owner, clock), dry_run=dry_run)
    finally:
        store.documents.release(LEASE_NAME, owner)


def _holding(store: Store, owner: str, clock: Callable[[], datetime]) -> Callable[[], datetime]:
    """Tells the time, and renews the lease."""

    def hold() -> datetime:
        now = clock()
        if not store.documents.acquire(LEASE_NAME, owner, LEASE, now):
            raise RevisionConflict(f"the sweep was held up for longer than {LEASE}, and another began")
        return now

    return hold


def _swept(
    client: SyncPrefectClient,
    store: Store,
    settings: Settings,
    bounds: Bounds,
    hold: Callable[[], datetime],
    *,
    dry_run: bool,
) -> Swept:
    now = hold()
    done: list[Verdict] = []

    def act(verdicts: Sequence[Verdict]) -> None:
        for verdict in verdicts:
            hold()
            if verdict.action == "leave" or dry_run or sweep_runs.carry_out(client, verdict):
                done.append(verdict)

    me = log.flow_run_id()
    unended = [run for run in sweep_runs.unended(client, bounds, now) if run.id != me]
    act([verdict for run in unended if (verdict := look(run, bounds, now)) is not None])
    now = hold()
    dead = [run for run in sweep_runs.ended_badly(client, now - bounds.oldest, now) if is_dead(run)]
    if dry_run:
        dead += [_as_crashed(verdict) for verdict in done if verdict.action == "crash" and verdict.run.deployment]
    left = [run for run in sweep_runs.orphans(client, [run for run in dead if not run.alive], now) if not run.alive]
    known = {verdict.run.id for verdict in done}
    act([Verdict(run, "crash", "the run that started it is dead") for run in left if run.id not in known])
    if (dead or left) and not dry_run:
        store.documents.increment(sweep_registry.DEATHS, len(dead) + len(left))
    before = surplus(client)
    decided = plan(
        dead, sweep_runs.beside(client, dead, now), sweep_runs.room(client, _deployments(dead), dead), bounds, now
    )
    act([verdict for verdict in decided if verdict.action != "give up"])
    slots = _freed(client, before, dry_run=dry_run)
    mended = _mended(client, store, settings, hold(), dry_run=dry_run)
    lacking = [text for run in dead for text in lacks(store, run)]
    given_up = [verdict for verdict in decided if verdict.action == "give up"]
    if given_up and not dry_run:
        # told first, then settled: better told twice than never
        notify(store, settings, of_given_up(given_up, lacking), now=now)
    act(given_up)
    leases = _expired(store, now, dry_run=dry_run)
    counts: dict[str, int] = {}
    for verdict in done:
        counts[DONE[verdict.action]] = counts.get(DONE[verdict.action], 0) + 1
    return Swept(False, [_row(verdict) for verdict in done], counts, leases, slots, mended, lacking)


def surplus(client: SyncPrefectClient) -> dict[str, int]:
    """By name, the deployments' limits that count more runs than are at work, and how many more.

    A slot stays taken where the server that kept the lease on it was killed.
    """
    found = {}
    for limit in _limits(client):
        deployment = str(limit["name"]).removeprefix("deployment:")
        # first the slots, then the runs: one that begins meanwhile must not look like a slot too many
        at_work = {
            "flow_runs": {
                "state": {"type": {"any_": list(sweep_runs.AT_WORK)}},
                "deployment_id": {"any_": [deployment]},
            }
        }
        extra = int(limit["active_slots"]) - int(sweep_runs.ask(client, "POST", "/flow_runs/count", at_work))
        if extra > 0:
            found[str(limit["name"])] = extra
    return found


def lacks(store: Store, run: SeenRun) -> list[str]:
    """What the ledger lacks of a crashed ingest's windows, a sentence for each symbol; nothing for other flows."""
    asked = run.parameters
    if run.flow != "ingest" or not isinstance(asked.get("symbols"), list):
        return []
    try:
        timeframe = Timeframe.parse(str(asked.get("timeframe", "1h")))
        first, last = span(
            timeframe, _moment(asked.get("start")), _moment(asked.get("end")), int(asked.get("days", 730)), run.due
        )
    except (InvalidRequest, ValueError):
        return []  # it asked for what makes no sense
    found = []
    for symbol in asked["symbols"]:
        wanted = ledger.since_listed(store, Window(symbol, timeframe, first, last))
        bars = sum(part.slots for part in ledger.missing(store, wanted))
        if bars:
            found.append(f"{run}: {bars} bars of {wanted} are not in the ledger")
    return found


def of_given_up(verdicts: Sequence[Verdict], lacking: Sequence[str]) -> Message:
    """What people are told of runs that nobody will run again."""
    lines = [f"- {verdict.run}: {verdict.why}" for verdict in verdicts]
    ids = {verdict.run.id for verdict in verdicts}
    runs = [str(verdict.run) for verdict in verdicts]
    lines += [f"- {text}" for text in lacking if text.startswith(tuple(runs))]
    count = f"{len(verdicts)} runs were" if len(verdicts) > 1 else f"{verdicts[0].run.flow} was"
    return Message(Severity.CRITICAL, f"{count} given up", "\n".join(lines), f"given up|{','.join(sorted(ids))}")


def _mended(client: SyncPrefectClient, store: Store, settings: Settings, now: datetime, *, dry_run: bool) -> list[str]:
    """Order in MLflow, where there is one, after deaths that were seen by this sweep or one before it.

    Nobody waits for MLflow: where it does not answer, a later sweep does it.
    """
    deaths, mended = store.documents.increment(sweep_registry.DEATHS, 0), store.documents.increment(MENDED, 0)
    there = settings.mlflow_tracking_uri or (settings.home / "mlflow" / "mlflow.db").is_file()
    if deaths == mended or not there:
        return []

    def began(flow_run: str) -> datetime | None:
        try:
            run = sweep_runs.ask(client, "GET", f"/flow_runs/{uuid.UUID(flow_run)}")
        except (httpx.HTTPStatusError, ValueError) as error:
            if isinstance(error, ValueError) or error.response.status_code == httpx.codes.NOT_FOUND:
                raise sweep_registry.UnknownRun(flow_run) from error
            raise
        if run["state_type"] != "RUNNING":
            return None
        return datetime.fromisoformat(run["state"]["timestamp"])

    from mlflow.exceptions import MlflowException

    try:
        require_answer(settings)
    except httpx.HTTPError as error:
        return [_later(error)]
    try:
        done = sweep_registry.mend(registry.connect(settings), store, began, now=now, dry_run=dry_run)
    except MlflowException as error:
        return [_later(error)]
    if not dry_run and not done.open:
        store.documents.increment(MENDED, deaths - mended)
    return done.lines()


def _later(error: Exception) -> str:
    return f"MLflow does not answer ({type(error).__name__}): a later sweep closes what dead runs left open there"


def _freed(client: SyncPrefectClient, before: dict[str, int], *, dry_run: bool) -> dict[str, int]:
    """Set free what was too much at two looks: at one, a run may just have ended."""
    found = {}
    now = surplus(client) if before else {}
    for name in sorted(before.keys() & now.keys()):
        found[name] = min(before[name], now[name])
        if not dry_run:
            body = {"names": [name], "slots": found[name], "occupancy_seconds": None}
            sweep_runs.ask(client, "POST", "/v2/concurrency_limits/decrement", body)
    return found


def _limits(client: SyncPrefectClient) -> Iterator[dict[str, Any]]:
    offset = 0
    while True:
        body = {"limit": sweep_runs.PAGE, "offset": offset}
        page = sweep_runs.ask(client, "POST", "/v2/concurrency_limits/filter", body)
        yield from (one for one in page if one["active_slots"] and str(one["name"]).startswith("deployment:"))
        if len(page) < sweep_runs.PAGE:
            return
        offset += sweep_runs.PAGE


def _expired(store: Store, now: datetime, *, dry_run: bool) -> int:
    """Remove leases that ran out with those who held them, and whatever else has expired; how many leases."""
    count = len(store.documents.find(LEASES, span=Span("expires_at", None, now)))
    if count and not dry_run:
        store.documents.purge(now)
    return count


def _deployments(runs: Sequence[SeenRun]) -> set[str]:
    return {run.deployment for run in runs if run.deployment is not None}


def _as_crashed(verdict: Verdict) -> SeenRun:
    return replace(verdict.run, state="CRASHED", state_name="Crashed", message=verdict.why, alive=None)


def _moment(told: object) -> datetime | None:
    return datetime.fromisoformat(str(told)) if told else None


def _row(verdict: Verdict) -> dict[str, str]:
    from prefect.utilities.urls import url_for

    run = verdict.run
    when = f" at {verdict.at:%H:%M:%S}" if verdict.at is not None else ""
    return {
        "flow": run.flow,
        "run": run.name,
        "link": url_for("flow-run", obj_id=run.id) or f"flow run {run.id}",
        "due": f"{run.due:%Y-%m-%d %H:%M:%S}",
        "found": f"{run.state_name or run.state} since {run.since:%H:%M:%S}",
        "done": DONE[verdict.action] + when,
        "why": verdict.why,
    }


@contextmanager
def _client() -> Iterator[SyncPrefectClient]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client


# --- Prefect task --------------------------------------------------------------------------------


@task(name="sweep-runs", **prefect_options(STORE))
def sweep_task(bounds: Bounds, dry_run: bool) -> Swept:
    """``sweep`` on the configured store and Prefect server."""
    settings = load_settings()
    with configured_store(settings) as store, _client() as client:
        done = sweep(client, store, settings, bounds, dry_run=dry_run)
        counts = {what.replace(" ", "_"): count for what, count in done.counts.items()}
        log.logger().info("swept", skipped=done.skipped, dry_run=dry_run, **counts)
        return done
