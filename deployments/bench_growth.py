"""What a home folder and the processes of a stack hold, how fast that grows, and where it ends.

Figures over plain facts, and the few functions that look: bytes on disk by kind, tables of an SQLite file, memory by
process. ``deployments.bench_day`` prints them.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from deployments import stack_state
from deployments.stack_parts import RUN_DAYS
from deployments.stack_state import StackState
from deployments.supervising import KEPT, LOG_BYTES
from tasks.retention import Retention
from tasks.sqlite_files import MLFLOW, PREFECT, STORE, TUNING

MIB: Final = 2**20
# Prefect calls a run late that has not begun so many seconds after its time
LATE_SECONDS: Final = 15.0
# every kind of file that a home folder has, by its place in it; what is none of these is "other"
PLACES: Final = {
    "Prefect database": PREFECT,
    "MLflow database": MLFLOW,
    "MLflow artifacts": "mlflow/artifacts",
    "store": STORE,
    "tuning": TUNING,
    "reports": "reports",
    "logs": "logs",
}
OTHER: Final = "other"
# the supervisor's, and one of each part
LOGS: Final = 8
# whose rows Prefect's own vacuum removes
_EVENTS: Final = frozenset({"events", "event_resources"})
_RUNS: Final = frozenset({"flow_run", "flow_run_state", "task_run", "task_run_state", "log", "artifact"})
# what is counted before and after
AGED: Final = ("flow_run", "task_run", "flow_run_state", "log", "artifact", "events", "event_resources")
# by table of the store, what of ``Retention`` it is kept by
_FIELDS: Final = {
    "results": "results",
    "ai_analysis": "records",
    "settlements": "records",
    "scoreboards": "records",
    "quarantine": "quarantine",
    "llm_calls": "llm_calls",
    "notifications": "notifications",
    "datasets": "datasets",
}


@dataclass(frozen=True)
class Sample:
    """A stack at one hour with nothing at work.

    Attributes:
        memory: MiB by process.
        sizes: bytes by kind of file.
        tables: by database, bytes of each table with its indexes.
    """

    hour: float
    memory: dict[str, float]
    sizes: dict[str, int]
    tables: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Seen:
    """What became of a run: seconds from its time to its first line, and from there to its end."""

    deployment: str
    state: str
    waited: float | None
    took: float | None

    @property
    def late(self) -> bool:
        """Not begun in time; one that never began was held up, too."""
        return self.waited is None or self.waited > LATE_SECONDS


@dataclass(frozen=True)
class Lived:
    """A simulated day.

    Attributes:
        seconds: that it took.
        samples: from its first hour to its last; ``quiet`` those of the hours in which nothing ran afterwards.
        peak: the most MiB that each process had; ``all`` of all together.
        after: once everything was maintained as if it were years later.
        vacuumed: rows of Prefect's tables before and after they were aged beyond their retention.
    """

    hours: float
    seconds: float
    ran: list[Seen]
    samples: list[Sample]
    quiet: list[Sample]
    peak: dict[str, float]
    after: Sample
    vacuumed: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Line:
    """A straight line through points: ``slope`` per unit of x, with its standard error, and where it begins."""

    slope: float
    error: float
    start: float


@dataclass(frozen=True)
class Bound:
    """What keeps one kind of data small.

    Attributes:
        growth: bytes per day.
        days: for how long it is kept; None where nothing removes it by its age.
        by: the setting or parameter of maintain that says so.
        most: bytes that it is cut at; None where it is not.
    """

    what: str
    growth: float
    days: float | None
    by: str
    most: float | None = None

    @property
    def steady(self) -> float | None:
        """Bytes that it comes to; None where it has no end."""
        return self.most if self.days is None else self.growth * self.days


def bounds(grown: Mapping[str, Mapping[str, float]]) -> list[Bound]:
    """What bounds each table of each database, and each kind of file (under ``files``), with the default retention.

    Args:
        grown: bytes per day.
    """
    found = []
    for place, kinds in grown.items():
        for kind, rate in kinds.items():
            days, by = _kept(place, kind)
            found.append(Bound(f"{place}: {kind}", rate, days, by))
            if kind == "logs":
                most = LOGS * (KEPT + 1) * LOG_BYTES
                found[-1] = Bound(f"{place}: {kind}", rate, None, f"{LOGS} of them, cut when they are too large", most)
    return found


def _kept(place: str, kind: str) -> tuple[float | None, str]:
    """Days, and who says so."""
    keep = Retention()
    if place == "MLflow database" or kind == "MLflow artifacts":
        return keep.finished_runs + keep.runs, "finished_runs_days + runs_days, but for what is registered"
    if place == "Prefect database" and kind in _EVENTS:
        return 2, "PREFECT_SERVER_EVENTS_RETENTION_PERIOD"
    if place == "Prefect database" and kind in _RUNS:
        return RUN_DAYS, "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD"
    if kind == "artifact_collection":
        return 1, "the newest of each key"
    if kind == "reports":
        return min(keep.reports, keep.most_reports), "reports_days, most_reports"
    name = _FIELDS.get(kind)
    return (getattr(keep, name), f"{name}_days") if name else (None, "nothing")


def line(xs: Sequence[float], ys: Sequence[float]) -> Line:
    """Least squares.

    Raises:
        ValueError: fewer than three points, or all at one x.
    """
    count = len(xs)
    if count < 3 or len(ys) != count:
        raise ValueError(f"a line and its error need three points or more, and here are {count} and {len(ys)}")
    middle, level = sum(xs) / count, sum(ys) / count
    spread = sum((x - middle) ** 2 for x in xs)
    if not spread:
        raise ValueError(f"all {count} points are at {middle}")
    slope = sum((x - middle) * (y - level) for x, y in zip(xs, ys, strict=True)) / spread
    left = sum((y - level - slope * (x - middle)) ** 2 for x, y in zip(xs, ys, strict=True))
    return Line(slope, (left / (count - 2) / spread) ** 0.5, level - slope * middle)


def daily(told: Sequence[tuple[float, Mapping[str, int]]]) -> dict[str, float]:
    """Bytes per day of each kind: what the first stretch brought, in which the daily work is, and for the rest of 24
    hours as much as the stretches after it did. What is gone grows by less than nothing.

    Args:
        told: hour, and bytes by kind.

    Raises:
        ValueError: fewer than three, or not in the order of time.
    """
    hours = [hour for hour, _ in told]
    if len(told) < 3 or hours != sorted(set(hours)):
        raise ValueError(f"growth needs three hours in their order, the first before the daily work; here are {hours}")
    (begin, first), (second, then), (end, last) = told[0], told[1], told[-1]
    rest = max(24 - (second - begin), 0.0) / (end - second)
    return {
        kind: then.get(kind, 0) - first.get(kind, 0) + rest * (last.get(kind, 0) - then.get(kind, 0))
        for kind in dict.fromkeys(kind for _, one in told for kind in one)
    }


def sizes(home: Path) -> dict[str, int]:
    """Bytes of the files of a home folder by kind, the journals of a database with it."""
    found = dict.fromkeys((*PLACES, OTHER), 0)
    for path in home.rglob("*"):
        try:
            size = path.lstat().st_size if not path.is_dir() else 0
        except FileNotFoundError:
            continue
        found[_kind(path.relative_to(home).as_posix())] += size
    return found


def _kind(path: str) -> str:
    plain = re.sub(r"(\.db)-(wal|shm)$", r"\1", path)
    return next((kind for kind, place in PLACES.items() if plain == place or plain.startswith(f"{place}/")), OTHER)


def tables(file: Path) -> dict[str, int]:
    """Bytes of each table of an SQLite database with its indexes; what is empty is ``(free)``."""
    if not file.is_file():
        return {}
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=30)) as connection:
        owners = dict(connection.execute("SELECT name, tbl_name FROM sqlite_master"))
        found: dict[str, int] = {}
        for name, size in connection.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name"):
            owner = owners.get(name, name)
            found[owner] = found.get(owner, 0) + size
        free, page = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_size"))
    return found | {"(free)": free * page}


def rows(file: Path, names: Iterable[str]) -> dict[str, int]:
    """How many rows each of these tables of an SQLite database has."""
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=30)) as connection:
        # names of ours, from code
        return {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names}  # noqa: S608


def age(file: Path, days: float) -> None:
    """Let the runs that ended and the events of a Prefect database, whose server is not at work, be older."""
    with closing(sqlite3.connect(file, timeout=30)) as connection, connection:
        for table, column in (("flow_run", "end_time"), ("events", "occurred"), ("event_resources", "occurred")):
            shifted = f"strftime('%Y-%m-%d %H:%M:%f', {column}, '-{days:g} days') || '000'"
            connection.execute(f"UPDATE {table} SET {column} = {shifted} WHERE {column} IS NOT NULL")  # noqa: S608


def databases(home: Path) -> dict[str, dict[str, int]]:
    """``tables`` of each database of a home folder."""
    return {name: tables(home / PLACES[name]) for name in ("Prefect database", "MLflow database", "store")}


def memory(state: StackState, others: Mapping[str, int] | None = None) -> dict[str, float]:
    """MiB by process, pages that are shared counted once over all of them; forks of flow runs under ``runs``.

    Args:
        others: further processes by name, such as an exchange.
    """
    named = {part.pid: name for name, part in state.parts.items() if part.pid}
    extra = {pid: name for name, pid in (others or {}).items()}
    everybody = [psutil.Process(state.pid), *stack_state.family(state), *map(psutil.Process, extra)]
    found: dict[str, float] = {}
    for process in everybody:
        try:
            info, words = process.memory_full_info(), " ".join(process.cmdline())
            above = [one.pid for one in process.parents()]
        except psutil.Error:
            continue
        name = extra.get(process.pid) or named.get(process.pid)
        if name is None and process.pid == state.pid:
            name = "supervisor"
        if name is None:
            part = next((named[pid] for pid in above if pid in named), "stray")
            name = f"{part}: {_role(words, part, depth=_depth(above, named))}"
        found[name] = found.get(name, 0.0) + float(getattr(info, "pss", info.rss)) / MIB
    return found


def _depth(above: Sequence[int], named: Mapping[int, str]) -> int:
    """How many processes lie between one and its part."""
    return next((depth for depth, pid in enumerate(above) if pid in named), len(above))


def _role(words: str, part: str, *, depth: int) -> str:
    # the fork server's own process is a child of the worker, and each flow run a child of that
    if part == "worker" and depth == 0:
        return "template" if "forkserver" in words else "tracker" if "resource_tracker" in words else "runs"
    return "runs" if part == "worker" else "children"
