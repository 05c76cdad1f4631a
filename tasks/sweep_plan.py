"""What a sweep does about runs that do not end by themselves: pure decisions over what was seen.

First ``look`` says of each run whether it is dead; then ``plan`` says of the dead which are run again, which need not
be, and which are given up. A re-run is the same run once more: same parameters, same due time, so the same window.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from trading.window import Timeframe

# of a later run these flows need no more than that it came: it does what an earlier one left undone
CATCHING_UP: Final = frozenset(
    {"ingest", "train", "backtest", "monitor", "settle", "settings", "maintain", "review", "cycle", "notify"}
)
# the next sweep does what this one left undone, so it is never run again
SELF: Final = "sweep"
DAY: Final = timedelta(days=1)
# what Prefect says of a run that its deployment's limit left no room for
NO_ROOM: Final = "Deployment concurrency limit reached."
# names of crashed states that are settled
GIVEN_UP: Final = "GivenUp"
SUPERSEDED: Final = "Superseded"

Action = Literal["crash", "cancel", "rerun", "supersede", "give up", "leave"]


@dataclass(frozen=True)
class Bounds:
    """How far a sweep goes.

    Attributes:
        attempts: so often a run is run again.
        most: so many runs are run again by one sweep.
        oldest: what was due longer ago is given up.
        silence: a running run whose process is not in sight is dead after so long without a heartbeat.
        pending: a run that was taken and has not begun is dead after so long.
        pause: before the second re-run; doubled before each further one.
        grace: what is known of the process of a run that began so recently may be of an earlier attempt.
    """

    attempts: int = 3
    most: int = 20
    oldest: timedelta = timedelta(hours=24)
    silence: timedelta = timedelta(minutes=3)
    pending: timedelta = timedelta(minutes=5)
    pause: timedelta = timedelta(minutes=1)
    grace: timedelta = timedelta(seconds=30)


@dataclass(frozen=True)
class SeenRun:
    """A flow run as the sweep sees it; times are UTC.

    Attributes:
        deployment: id of the deployment that it is of; None for what was started by hand or by another run.
        state: Prefect's type, such as CRASHED; ``state_name`` and ``message`` go with it.
        since: when it came into that state.
        due: its scheduled start, from which it takes its window.
        reruns: how often a sweep ran it again.
        subflow: another run started it, and would start it again.
        alive: whether its process lives; None where that cannot be told from here.
        beat: its last heartbeat, None where none was heard within ``Bounds.silence``.
        beats: whether it has heartbeats at all; other workers than ours may leave them out.
        pid: of its process, for a person.
    """

    id: str
    flow: str
    name: str
    deployment: str | None
    state: str
    state_name: str
    message: str
    since: datetime
    due: datetime
    parameters: Mapping[str, Any] = field(default_factory=dict)
    reruns: int = 0
    subflow: bool = False
    alive: bool | None = None
    beat: datetime | None = None
    beats: bool = True
    pid: str | None = None

    def __str__(self) -> str:
        return f"{self.flow} {self.name} due {self.due:%Y-%m-%d %H:%M:%S}"


@dataclass(frozen=True)
class Verdict:
    """What to do about a run, and why; ``at`` is when it is to run again."""

    run: SeenRun
    action: Action
    why: str
    at: datetime | None = None


def look(run: SeenRun, bounds: Bounds, now: datetime) -> Verdict | None:
    """What must be done about a run that has not ended, or None where it is none of a sweep's business.

    ``crash``: it is dead and nobody said so. ``cancel``: somebody wanted it cancelled, and nobody is left to do it.
    ``leave``: it is silent, and lives.
    """
    if run.state == "RUNNING":
        return _running(run, bounds, now)
    age = now - run.since
    if run.state == "PENDING" and not run.alive and age > bounds.pending:
        # its process id may still be that of an earlier attempt: only time tells
        return Verdict(run, "crash", f"it was taken {_ago(age)} ago and has not begun")
    if run.state == "CANCELLING" and not run.alive and age > bounds.pending:
        return Verdict(run, "cancel", f"it was to be cancelled {_ago(age)} ago, and nobody is left to do it")
    return None


def _running(run: SeenRun, bounds: Bounds, now: datetime) -> Verdict | None:
    age = now - run.since
    if run.alive is False and age > bounds.grace:
        return Verdict(run, "crash", f"its process {run.pid} is gone")
    silent = now - (run.beat or run.since)
    # of one that never says that it lives, silence says little
    if silent <= (bounds.silence if run.beats else bounds.oldest):
        return None
    if run.alive:
        return Verdict(run, "leave", f"no heartbeat for {_ago(silent)}, but its process {run.pid} lives")
    return Verdict(run, "crash", f"no heartbeat for {_ago(silent)}")


def is_dead(run: SeenRun) -> bool:
    """Whether it died and what becomes of it is open: crashed, or turned away when it was to run again."""
    if run.state == "CRASHED":
        return run.state_name not in (GIVEN_UP, SUPERSEDED)
    return run.state == "CANCELLED" and run.message == NO_ROOM and run.reruns > 0


def plan(
    dead: Sequence[SeenRun], others: Sequence[SeenRun], room: Mapping[str, int], bounds: Bounds, now: datetime
) -> list[Verdict]:
    """What becomes of each dead run, in the order in which they were due.

    Args:
        dead: runs of which ``is_dead`` is true.
        others: runs of the same deployments that completed, or are at work or waiting.
        room: by deployment, how many of its runs may start now.
        now: the time, UTC.
    """
    ordered, others = _by_due(dead), _by_due(others)
    left = dict(room)
    started = 0
    found = []
    for run in ordered:
        verdict = _settled(run, others, bounds, now) or _held_back(run, ordered, others)
        if verdict is None and run.deployment is not None:
            if started >= bounds.most:
                verdict = Verdict(run, "leave", f"{bounds.most} others go first; the next sweep sees to it")
            elif left.get(run.deployment, 0) < 1:
                verdict = Verdict(run, "leave", "another run of its deployment is at work; the next sweep sees to it")
            else:
                started += 1
                left[run.deployment] -= 1
                verdict = Verdict(run, "rerun", f"{run.message or run.state_name}", again_at(run, bounds, now))
        by_whom = "the run that started it starts it again" if run.subflow else "it was started by hand"
        found.append(verdict or Verdict(run, "leave", f"nobody can start it from here: {by_whom}"))
    return found


def _by_due(runs: Iterable[SeenRun]) -> list[SeenRun]:
    return sorted(runs, key=lambda run: (run.due, run.id))


def again_at(run: SeenRun, bounds: Bounds, now: datetime) -> datetime:
    """When a dead run runs again: at once, later after a pause that doubles, counted from its death."""
    pause = bounds.pause * 2 ** (run.reruns - 1) if run.reruns else timedelta(0)
    return max(now, run.since + pause)


def covers(other: SeenRun, run: SeenRun) -> bool:
    """Whether what ``other`` does, if it completes, is all that ``run`` was to do."""
    if other.id == run.id or other.deployment != run.deployment or other.due < run.due:
        return False
    if dict(other.parameters) != dict(run.parameters):
        return False
    return run.flow in CATCHING_UP or _window(other) == _window(run)


def _window(run: SeenRun) -> object:
    """What tells windows of equal parameters apart: the bar, or the day, that a run is about."""
    if run.parameters.get("end") or run.parameters.get("day"):
        return "told by the parameters"
    if "timeframe" in run.parameters:
        return Timeframe.parse(str(run.parameters["timeframe"])).floor(run.due)
    return Timeframe.D1.floor(run.due) if run.flow == "costs" else run.due


def _settled(run: SeenRun, others: Iterable[SeenRun], bounds: Bounds, now: datetime) -> Verdict | None:
    """What ends the matter without a re-run."""
    if run.alive:
        return Verdict(run, "leave", f"its process {run.pid} lives and may end by itself")
    if run.deployment is None:
        return None
    if run.flow == SELF:
        return Verdict(run, "supersede", "the next sweep does its work")
    done = next((other for other in others if other.state == "COMPLETED" and covers(other, run)), None)
    if done is not None:
        return Verdict(run, "supersede", f"{done.name} (due {done.due:%H:%M:%S}) did its work")
    why = _hopeless(run, bounds, now)
    return Verdict(run, "give up", why) if why else None


def _hopeless(run: SeenRun, bounds: Bounds, now: datetime) -> str:
    """Why a dead run is not run again any more; empty where it may be."""
    if run.reruns >= bounds.attempts:
        return f"it was run again {run.reruns} times and died each time; last: {run.message or 'no word'}"
    if now - run.due > bounds.oldest:
        return f"it was due {_ago(now - run.due)} ago; run it again by hand if it is missed"
    return ""


def _held_back(run: SeenRun, dead: Iterable[SeenRun], others: Iterable[SeenRun]) -> Verdict | None:
    """Wait for a later run that would do its work: if that one dies, too, a later sweep comes to this one again."""
    under_way = [other for other in others if other.state in ("RUNNING", "PENDING", "SCHEDULED")]
    # of dead ones with one window the last is run again; those before it wait for it
    for other in (*under_way, *(one for one in dead if not one.alive)):
        if covers(other, run) and (other.due, other.id) > (run.due, run.id) and _soon(other):
            return Verdict(run, "leave", f"{other.name} (due {other.due:%H:%M:%S}) does its work")
    return None


def _soon(other: SeenRun) -> bool:
    """Whether it is at work or dead, or was at work before: what the schedule holds for later days is no help."""
    return other.state != "SCHEDULED" or other.state_name == "AwaitingRetry"


def _ago(span: timedelta) -> str:
    seconds = int(span.total_seconds())
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} minutes" if seconds < 7200 else f"{seconds // 3600} hours"
