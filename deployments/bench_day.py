"""A day of the declared schedules, sped up: ``python -m deployments.bench_day``.

A stack of its own (home and ports, warm worker) works off what prefect.yaml schedules from a Monday's midnight on, for
100 generated symbols with hourly bars, against a sandbox exchange whose clock is moved along. The simulated clock runs
like a real one while a run is at work and jumps to the next scheduled time while none is, so that runs wait for each
other, and hold each other up, as they would on the day itself. Each is created with its scheduled time, from which it
takes its window, and executed by the worker; the schedules themselves are paused, and so are the automations that
answer to events of ours: a run of theirs would be about today. What follows an ingest is started here instead.

Printed: what ran, and what was late, cancelled or failed; memory of each process every two simulated hours, and how
fast it grows; bytes of each database and folder, per day, and what bounds them. The daily runs are nearly all in the
first hour, so that ``--hours 3 --every 1`` already tells a day's growth: the first hour and 23 times an hour after it.
``--idle MINUTES`` then lets the stack idle, to see what time alone does. Not as declared: the training is small
(``TRAIN``), its version is promoted by hand so that a champion speaks, the LLM is off, and the monthly cycle is not in
the day.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from deployments import declared, stack
from deployments.bench_growth import AGED, Lived, Sample, Seen, age, databases, memory, rows, sizes
from deployments.declared import Deployment
from deployments.prefect_api import Api, connected
from deployments.running import prepared
from deployments.sandbox import Sandbox, running_sandbox
from deployments.stack import Wanted
from deployments.stack_parts import RUN_DAYS
from deployments.stack_state import StackState
from tasks.settings import load_settings
from tasks.sqlite_files import PREFECT
from trading.errors import ConfigurationError

# a Monday, so that the weekly review is in it, and no first of a month
BEGIN: Final = datetime(2024, 7, 8, tzinfo=UTC)
DAYS: Final = 730
TRAIN: Final = {"days": 60, "tune_trials": 0}
# what an event of ours starts, by what sends it
FOLLOWS: Final = {"ingest": "analyse"}
OURS: Final = "tradeflows."
EVERY: Final = 2.0
PATIENCE: Final = 3_600.0
# the server answers late where everything is done on two cores
TIMEOUT: Final = 300.0
LOOK_SECONDS: Final = 0.25
ENDED: Final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass(frozen=True, order=True)
class Due:
    """One run that a schedule asks for."""

    moment: datetime
    deployment: str
    slug: str
    parameters: Mapping[str, Any] = field(default_factory=dict, compare=False)


def plan(wanted: Sequence[Deployment], start: datetime, hours: float) -> list[Due]:
    """What the schedules ask for in [start, start + hours), by time and then by name.

    Prefect's own reading of cron, in UTC like all schedules of ours.
    """
    from prefect.server.schemas.schedules import CronSchedule

    end = start + timedelta(hours=hours)

    async def times(cron: str, timezone: str) -> list[datetime]:
        schedule = CronSchedule(cron=cron, timezone=timezone)
        # a schedule has no second finer than a minute
        found = await schedule.get_dates(n=int(hours * 60) + 1, start=start, end=end)
        # Prefect's own class of time is made plain
        return [datetime.fromtimestamp(moment.timestamp(), tz=UTC) for moment in found]

    made = [
        Due(moment, one.name, schedule.slug, schedule.parameters)
        for one in wanted
        for schedule in one.schedules
        for moment in asyncio.run(times(schedule.cron, schedule.timezone))
        if start <= moment < end
    ]
    return sorted(made)


@dataclass
class Clock:
    """Simulated time: runs like a real clock, and can be put forward."""

    moment: datetime
    ticks: Callable[[], float] = time.monotonic
    since: float = 0.0

    def __post_init__(self) -> None:
        self.since = self.ticks()

    def now(self) -> datetime:
        """What it says."""
        return self.moment + timedelta(seconds=self.ticks() - self.since)

    def skip_to(self, moment: datetime) -> bool:
        """Put it forward; whether it was not there already."""
        if moment <= self.now():
            return False
        self.moment, self.since = moment, self.ticks()
        return True


def simulate(
    due: Sequence[Due], clock: Clock, busy: Callable[[], bool], start: Callable[[Due], object],
    skipped: Callable[[datetime], None], *, wait: Callable[[float], None] = time.sleep,
) -> None:  # fmt: skip
    """Start each run at its simulated time; time between them is left out where nothing is at work.

    Args:
        skipped: told the moment that the clock was put forward to, before the run of it is started.
    """
    for one in due:
        while clock.now() < one.moment:
            if busy():
                wait(min(LOOK_SECONDS, (one.moment - clock.now()).total_seconds()) if clock.now() < one.moment else 0)
            elif clock.skip_to(one.moment):
                skipped(one.moment)
        start(one)


def candles(folder: Path, symbols: Sequence[str], start: datetime, end: datetime) -> None:
    """Hourly candles of generated markets as files."""
    import numpy as np

    from deployments.sandbox.generator import Recipe, generate
    from trading.candles import frame_of

    bars = int((end - start).total_seconds() // 3600)
    opens = int(start.timestamp() * 1000) + 3_600_000 * np.arange(bars, dtype="int64")
    folder.mkdir(parents=True)
    recipes = [Recipe(name, 100.0 + at, 0.006, 900.0, 4) for at, name in enumerate(symbols)]
    for name, values in generate(recipes, bars, 7).items():
        frame_of(opens, values).reset_index().to_parquet(folder / f"{name}_1h.parquet")


class Day:
    """A running stack that is sent through a day."""

    def __init__(self, api: Api, state: StackState, exchange: Sandbox, home: Path) -> None:
        self._api, self._state, self._exchange, self._home = api, state, exchange, home
        self._ids = {one["name"]: one["id"] for one in api.all("/deployments/filter")}
        self._created: dict[str, float] = {}
        self._leading: dict[str, Due] = {}
        self.peak: dict[str, float] = {}

    def hold(self, symbols: Sequence[str]) -> None:
        """Deploy for these symbols, pause every schedule and our own events' automations, drop what was planned."""
        from deployments.sync import sync

        wanted = declared.read(symbols=symbols)
        sync(self._api, load_settings(), wanted)
        ours = {
            trigger["name"]
            for one in wanted
            for trigger in one.triggers
            if any(event.startswith(OURS) for event in trigger.get("expect", ()))
        }
        for automation in list(self._api.all("/automations/filter")):
            if automation["name"] in ours:
                self._api.ask("PATCH", f"/automations/{automation['id']}", {"enabled": False})
        for one in list(self._api.all("/deployments/filter")):
            for schedule in one["schedules"]:
                path = f"/deployments/{one['id']}/schedules/{schedule['id']}"
                self._api.ask("PATCH", path, {"active": False})
        planned = {"state": {"type": {"any_": ["SCHEDULED"]}}}
        for run in list(self._api.all("/flow_runs/filter", flow_runs=planned)):
            self._api.ask("DELETE", f"/flow_runs/{run['id']}")
        # one may have begun before
        self.settle()

    def start(self, due: Due) -> str:
        """Create the run of a scheduled time."""
        parameters = {**due.parameters, **(TRAIN if due.deployment == "train" else {})}
        body = {
            "parameters": parameters,
            "state": {"type": "SCHEDULED", "state_details": {"scheduled_time": due.moment.isoformat()}},
            "idempotency_key": f"{due.deployment} {due.slug} {due.moment.isoformat()}",
        }
        run = self._api.ask("POST", f"/deployments/{self._ids[due.deployment]}/create_flow_run", body)
        self._created[run["id"]] = time.time()
        if due.deployment in FOLLOWS:
            self._leading[run["id"]] = due
        return str(run["id"])

    def skipped(self, moment: datetime) -> None:
        """The exchange's clock follows; it runs on by itself."""
        self._exchange.set_clock(moment.isoformat())

    def busy(self) -> bool:
        """Whether any run is under way or waits, those of automations included; starts what follows one."""
        for run, due in list(self._leading.items()):
            state = self._api.ask("GET", f"/flow_runs/{run}")["state_type"]
            if state in ENDED:
                del self._leading[run]
            if state == "COMPLETED":
                self.start(Due(due.moment, FOLLOWS[due.deployment], f"after {due.deployment}"))
        open_ = {"state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING"]}}}
        return bool(self._api.ask("POST", "/flow_runs/count", {"flow_runs": open_}))

    def settle(self) -> None:
        """Wait until nothing is at work, and until automations have had a moment to start something."""
        begun, quiet = time.monotonic(), 0
        while quiet < 8:
            quiet = 0 if self.busy() else quiet + 1
            if time.monotonic() - begun > PATIENCE:
                raise ConfigurationError(f"runs are still at work after {PATIENCE:.0f} s")
            time.sleep(LOOK_SECONDS)

    def finish(self, due: Due) -> dict[str, Any]:
        """Start a run, wait for it and whatever it causes; refuse one that did not complete.

        Raises:
            ConfigurationError: says how it ended.
        """
        run = self.start(due)
        self.settle()
        found: dict[str, Any] = self._api.ask("GET", f"/flow_runs/{run}")
        if found["state_type"] != "COMPLETED":
            raise ConfigurationError(f"{due.deployment} is {found['state']['name']}: {found['state']['message']}")
        return found

    def sample(self, hour: float) -> Sample:
        """The stack as it is."""
        used = memory(self._state, {"exchange": self._exchange.pid})
        return Sample(hour, used, sizes(self._home), databases(self._home))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note the most memory that each process had, meanwhile."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(2.0):
                found = memory(self._state)
                for name, mib in (found | {"all": sum(found.values())}).items():
                    self.peak[name] = max(mib, self.peak.get(name, 0.0))

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def seen(self, since: float) -> list[Seen]:
        """What became of every run made since then; those of automations are late for the moment of their making."""
        names = {identifier: name for name, identifier in self._ids.items()}
        found = []
        for run in self._api.all("/flow_runs/filter"):
            if run["deployment_id"] is None or run["parent_task_run_id"] is not None:
                continue
            made = self._created.get(run["id"]) or datetime.fromisoformat(run["created"]).timestamp()
            if made < since:
                continue
            begun = datetime.fromisoformat(run["start_time"]).timestamp() if run["start_time"] else None
            ended = datetime.fromisoformat(run["end_time"]).timestamp() if run["end_time"] else None
            found.append(
                Seen(
                    names[run["deployment_id"]],
                    run["state"]["name"],
                    begun - made if begun is not None else None,
                    ended - begun if begun is not None and ended is not None else None,
                )
            )
        return found


def promote_first(symbols: Sequence[str], now: datetime) -> None:
    """Make the model that was just trained the champion, whatever the gate said of generated markets."""
    from tasks import promotions, registry
    from tasks.signing import signing_key
    from tasks.store import configured_store
    from tasks.training import model_name
    from trading.window import Timeframe

    settings = load_settings()
    client = registry.connect(settings)
    name = model_name(list(symbols), Timeframe.H1)
    if registry.version_of(client, name, registry.CHAMPION) is None:
        with configured_store(settings) as store:
            promotions.promote(
                client, store, name, "1", reason="the day needs one", who="bench_day", now=now,
                key=signing_key(settings),
            )  # fmt: skip


@contextmanager
def stacked(folder: Path, symbols: Sequence[str], start: datetime, hours: float) -> Iterator[Day]:
    """A stack, an exchange, and candles that reach past the day."""
    home = folder / "home"
    candles(folder / "candles", symbols, start - timedelta(days=DAYS + 30), start + timedelta(hours=hours + 48))
    with ExitStack() as held:
        clock = (start - timedelta(hours=1)).isoformat()
        exchange = held.enter_context(running_sandbox(clock=clock, speed=1.0, folder=folder / "candles"))
        os.environ |= {
            "TRADEFLOWS_EXCHANGE_URL": exchange.url,
            # scheduled times lie years back for the server; what is late is judged here
            "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": str(10**9),
        }
        state = stack.detached(prepared(home), Wanted(warm=True, prefect_port=0, mlflow_port=0), print)
        held.callback(stack.down, home, print)
        os.environ["MLFLOW_TRACKING_URI"] = state.parts["mlflow"].url or ""
        os.environ["PREFECT_API_URL"] = state.prefect_api
        api = held.enter_context(connected(state.prefect_api, timeout=TIMEOUT))
        yield Day(api, state, exchange, home)


def through(day: Day, symbols: Sequence[str], hours: float, every: float, idle: float) -> Lived:
    """Backfill and train before the day, then live it; samples every so many hours with nothing at work."""
    clock = Clock(BEGIN - timedelta(hours=1))
    before = [Due(clock.moment, "settings", "before"), Due(clock.moment, "ingest", "before")]
    for one in [*before, Due(clock.moment, "train", "before")]:
        day.finish(one)
    promote_first(symbols, clock.moment)
    clock.skip_to(BEGIN)
    day.skipped(BEGIN)
    samples = [day.sample(0.0)]
    due = plan(declared.read(), BEGIN, hours)
    since, begun = time.time(), time.monotonic()
    with day.watched():
        while samples[-1].hour < hours:
            hour = min(samples[-1].hour + every, hours)
            low, high = (BEGIN + timedelta(hours=at) for at in (samples[-1].hour, hour))
            simulate([one for one in due if low <= one.moment < high], clock, day.busy, day.start, day.skipped)
            day.settle()
            samples.append(day.sample(hour))
            took = time.monotonic() - begun
            print(f"hour {hour:4.1f} after {took:6.0f} s, {sum(samples[-1].memory.values()):,.0f} MiB", flush=True)
    seconds = time.monotonic() - begun
    quiet = [day.sample(0.0)]
    while quiet[-1].hour < idle / 60:
        time.sleep(min(60.0, idle * 6))
        quiet.append(day.sample(quiet[-1].hour + min(60.0, idle * 6) / 3600))
    ran = day.seen(since)
    day.start(Due(datetime.now(UTC), "maintain", "after"))
    day.settle()
    return Lived(hours, seconds, ran, samples, quiet, day.peak, day.sample(hours), {})


def vacuumed(home: Path) -> dict[str, tuple[int, int]]:
    """Let Prefect's server find everything older than it keeps it; rows before and after.

    Raises:
        ConfigurationError: it did not remove the runs in time.
    """
    file = home / PREFECT
    age(file, RUN_DAYS + 1)
    before = rows(file, AGED)
    os.environ["PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS"] = "5"
    stack.detached(prepared(home), Wanted(prefect_port=0, mlflow_port=0), print)
    try:
        begun, left, last = time.monotonic(), before, dict[str, int]()
        # logs and artifacts go after their runs; the start itself makes some events
        while left["flow_run"] > before["flow_run"] / 10 or left["events"] > before["events"] / 10 or left != last:
            if time.monotonic() - begun > PATIENCE:
                raise ConfigurationError(f"of {before} Prefect has still {left} after {PATIENCE:.0f} s")
            time.sleep(5.0)
            last, left = left, rows(file, AGED)
        return {name: (count, left[name]) for name, count in before.items()}
    finally:
        stack.down(home, print)


def main() -> None:
    """Simulate, and print."""
    from deployments.bench_day_report import printed

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0, help="of the day, more than --every")
    parser.add_argument("--every", type=float, default=EVERY, help="hours between two looks at memory and disk")
    parser.add_argument("--symbols", type=int, default=100)
    parser.add_argument("--idle", type=float, default=0.0, help="minutes to watch the stack do nothing afterwards")
    parser.add_argument("--folder", type=Path, help="where to keep the home folder; default: a temporary one")
    options = parser.parse_args()
    if options.hours <= options.every:
        parser.error("--hours must be more than --every: growth is told by what comes after the first stretch")
    symbols = [f"S{number:03d}USDT" for number in range(options.symbols)]
    with ExitStack() as held:
        folder = options.folder or Path(held.enter_context(tempfile.TemporaryDirectory(prefix="tradeflows-bench-day-")))
        with stacked(folder, symbols, BEGIN, options.hours) as day:
            day.hold(symbols)
            lived = through(day, symbols, options.hours, options.every, options.idle)
        printed(replace(lived, vacuumed=vacuumed(folder / "home")))


if __name__ == "__main__":
    main()
