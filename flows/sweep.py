"""Sweep: runs that died are found and run again within bounds, what they held is set free, and it is said."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from prefect import flow
from prefect.states import Completed
from pydantic import Field

from flows.parameters import form
from tasks import reports
from tasks.periods import run_moment
from tasks.sweep_plan import Bounds
from tasks.sweeping import Swept, sweep_task

Attempts = Annotated[int, Field(ge=0, le=20), form("Attempts", "How often a run that died is run again. 0: never.", 3)]
Most = Annotated[int, Field(ge=1, le=500), form("At most", "So many runs are run again by one sweep.", 20)]
Hours = Annotated[int, Field(ge=1, le=720), form("Oldest, hours", "What was due longer ago is given up.", 24)]
Silence = Annotated[
    float,
    Field(ge=1.5, le=1_440),
    form(
        "Silence, minutes",
        "A run whose process is not in sight is dead after so long without a heartbeat; one comes every half minute.",
        3,
    ),
]
Pending = Annotated[
    float,
    Field(ge=0.5, le=1_440),
    form("Pending, minutes", "A run that a worker took and that has not begun is dead after so long.", 5),
]
Pause = Annotated[
    float,
    Field(ge=0, le=1_440),
    form("Pause, minutes", "Before a run's second re-run; doubled before each further one.", 1),
]
Rehearse = Annotated[bool, form("Rehearse", "Only say what would be done.", True)]


@flow(name="sweep", flow_run_name="sweep", retries=0, persist_result=False)
def sweep(
    dry_run: Rehearse = False,
    attempts: Attempts = 3,
    most: Most = 20,
    oldest_hours: Hours = 24,
    silence_minutes: Silence = 3,
    pending_minutes: Pending = 5,
    pause_minutes: Pause = 1,
) -> Swept:
    """Run again what died, with the parameters and the window that it had.

    A run is dead when Prefect says that it crashed, when its process is gone, when it is silent, or when a worker took
    it and it never began. It is not run again when a later run did its work, when somebody cancelled it, when it died
    too often or was due too long ago; of the last two people are told. Also closes MLflow runs, registered versions,
    leases and concurrency slots that dead runs left behind. A second sweep finds nothing to do.

    The run ends Completed; in the state GaveUp when a run was given up, Skipped when another sweep is at work, and
    Rehearsed with dry_run.
    """
    bounds = Bounds(
        attempts=attempts,
        most=most,
        oldest=timedelta(hours=oldest_hours),
        silence=timedelta(minutes=silence_minutes),
        pending=timedelta(minutes=pending_minutes),
        pause=timedelta(minutes=pause_minutes),
    )
    moment = run_moment()
    done = sweep_task(bounds, dry_run)
    said = headline(done)
    reports.markdown("sweep", report(done, said, f"{moment:%Y-%m-%d %H:%M} UTC", dry_run=dry_run), said)
    name = _state(done, dry_run=dry_run)
    if name is None:
        return done
    # Prefect hands the data to the caller, and shows the name and the message
    named: Swept = Completed(name=name, message=said, data=done)  # type: ignore[assignment]
    return named


def _state(done: Swept, *, dry_run: bool) -> str | None:
    if done.skipped:
        return "Skipped"
    if dry_run:
        return "Rehearsed"
    return "GaveUp" if done.count("give up") else None


def headline(done: Swept) -> str:
    """What was done, in a line."""
    if done.skipped:
        return "another sweep is at work"
    told = [f"{count} {what}" for what, count in done.counts.items()]
    told += [f"{sum(done.slots.values())} slots set free"] if done.slots else []
    told += [f"{len(done.mended)} things put in order in MLflow"] if done.mended else []
    return ", ".join(told) or "nothing to do"


def report(done: Swept, said: str, due: str, *, dry_run: bool) -> str:
    """What a person reads of a sweep."""
    rows = [
        {key: value for key, value in row.items() if key != "link"} | {"run": f"[{row['run']}]({row['link']})"}
        for row in done.rows
    ]
    slots = [f"{name}: {count}" for name, count in done.slots.items()]
    title = "# Sweep, rehearsed: nothing was changed" if dry_run else "# Sweep"
    text = [
        title,
        f"Due {due}: {said}.",
        *([reports.markdown_table(rows)] if rows else []),
        *reports.section("Not in the ledger", done.lacking),
        *reports.section("MLflow", done.mended),
        *reports.section("Concurrency slots that nobody held", slots),
        *reports.section("Leases", [f"{done.leases} had run out and were removed"] if done.leases else []),
    ]
    return "\n\n".join(text)
