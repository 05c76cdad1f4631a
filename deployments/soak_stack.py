"""The soak of the whole stack: random kills while it works must leave it as if nothing had been.

A stack of its own works through days of a sandbox exchange whose clock runs fast: ingest, analyse, settle, train,
backtest, each asked for over REST with the end of its window. Meanwhile worker, flow processes, Prefect's server,
MLflow's and the exchange are killed by chance (SIGKILL or SIGTERM), and nobody helps but the supervisor and the
sweep. Then the same days are worked through by a stack that nobody disturbs, and store, ledger, registry and analyses
of the two are compared. ``python -m deployments.soak_stack --minutes 10 --seed 7``
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
from rich.console import Console

from deployments import soak_compare, stack, stack_state
from deployments.prefect_api import connected
from deployments.sandbox import Sandbox
from deployments.soak import SoakFailed
from deployments.stack import Wanted
from deployments.stack_state import PartState, StackState
from tasks.settings import load_settings
from trading.errors import ConfigurationError

FIRST: Final = datetime(2018, 1, 3, tzinfo=UTC)
LAST: Final = datetime(2018, 12, 31, tzinfo=UTC)
STEP: Final = timedelta(days=5)
# seconds of the exchange's clock in a real one: a step's days pass in ten
SPEED: Final = STEP.total_seconds() / 10
DAILY: Final[dict[str, Any]] = {"symbols": ["SP500", "NASDAQ"], "timeframe": "1d"}
HOURLY: Final[dict[str, Any]] = {"symbols": ["BTCSIM", "ETHSIM"], "timeframe": "1h"}
# of these each is killed so often at most in ten minutes: the supervisor gives up what dies more than five times
PARTS: Final = ("worker", "prefect", "mlflow", "sandbox")
PART_KILLS: Final = 4
PART_SECONDS: Final = 600.0
PROCESS: Final = "a flow's process"
# once everything is up again; now and then the second dies while the first is away
BETWEEN: Final = (2.0, 20.0)
AT_ONCE: Final = 0.25
# more often than on schedule, and with less patience: minutes pass quickly here
SWEEP_SECONDS: Final = 20.0
SWEEP: Final = {"silence_minutes": 1.5, "pending_minutes": 1.0, "pause_minutes": 0.1, "attempts": 10}
# a window may be asked for so often, as schedules do, once the run before has ended for good; that may take so long
ASKED: Final = 8
PATIENCE: Final = 1_200.0
WELL: Final = ("ready", "done")
ENDED: Final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass
class Tally:
    """What happened in a run through the days."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    windows: int = 0
    again: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def work_of(step: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The runs of a step, in their order: deployment and parameters."""
    end = {"end": f"{FIRST + step * STEP:%Y-%m-%dT%H:%M:%SZ}"}
    yield "ingest", {**DAILY, "days": 6_570, "recheck": 3, **end}
    yield "ingest", {**HOURLY, "days": 60, "recheck": 12, **end}
    if step % 4 == 0:
        yield "train", {**DAILY, "refresh": None, "days": 6_500, "horizon": 5, "tune_trials": 0,
                        "estimators": ["logistic"], **end}  # fmt: skip
    yield "analyse", {**DAILY, "refresh": None, "days": 1_000, "horizon": 5, **end}
    yield "analyse", {**HOURLY, "refresh": None, "days": 50, **end}
    if step % 2:
        for group in (DAILY, HOURLY):
            yield "settle", {**group, "refresh": None, "days": 60, "hindsight": True, **end}
    if step % 4 == 2:
        yield "backtest", {**DAILY, "refresh": None, "days": 700, "strategies": ["champion", "rsi"], **end}


class Driver:
    """Asks a stack for runs and waits for them, through whatever dies meanwhile."""

    def __init__(self, home: Path, state: StackState, console: Console) -> None:
        self.home, self.state, self._console = home, state, console
        self.tally = Tally()
        self._begun = time.monotonic()
        self.sandbox = Sandbox(str(state.parts["sandbox"].url), 0)

    def ask(self, method: str, path: str, body: object = None, seconds: float = 180.0) -> Any:
        """The server's answer, asked again while it is away."""
        until = time.monotonic() + seconds
        while True:
            try:
                with connected(self.state.prefect_api) as api:
                    return api.ask(method, path, body)
            except (ConfigurationError, httpx.HTTPError):
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)

    def quiet(self) -> None:
        """No schedule runs: the days here are others than today."""
        for one in list(self._all("/deployments/filter")):
            self.ask("PATCH", f"/deployments/{one['id']}", {"paused": True})
        scheduled = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
        for run in self.ask("POST", "/flow_runs/filter", scheduled):
            self.ask("DELETE", f"/flow_runs/{run['id']}")
        # nor does an event: what is asked for here is asked for once
        for one in list(self._all("/automations/filter")):
            if one["name"] != "crash-silent-runs":
                self.ask("DELETE", f"/automations/{one['id']}")

    def set_clock(self, speed: float = SPEED) -> None:
        """Let the exchange's clock say what it is in the days of the soak, also after it was killed."""
        moment = min(FIRST + timedelta(seconds=(time.monotonic() - self._begun) * SPEED), LAST)
        with _ignored():
            self.sandbox.set_clock(moment.isoformat())
            self.sandbox.set_speed(speed)

    def days(self, step: int) -> None:
        """Wait until the step's days are over by the exchange's clock, setting it again where it was lost."""
        due = FIRST + step * STEP + timedelta(minutes=5)
        while FIRST + timedelta(seconds=(time.monotonic() - self._begun) * SPEED) < due:
            time.sleep(0.2)
        self.set_clock()

    def step(self, number: int) -> None:
        """Everything that a step has to do, one after the other."""
        for position, (name, parameters) in enumerate(work_of(number)):
            self.tally.windows += 1
            window = f"{name} {parameters['timeframe']} {parameters['end'][:10]}"
            if not any(self._done(name, parameters, f"{number}/{position}/{turn}") for turn in range(ASKED)):
                self.tally.lost.append(window)
                self._console.print(f"lost: {window}")

    def _done(self, name: str, parameters: dict[str, Any], key: str) -> bool:
        """Ask for a run and wait until it has ended well; a run of that key is asked for once."""
        deployment = self.ask("GET", f"/deployments/name/{name}/{name}")["id"]
        body = {"parameters": parameters, "idempotency_key": key}
        run = self.ask("POST", f"/deployments/{deployment}/create_flow_run", body)["id"]
        self.tally.asked += 1
        found = self._ended(run, time.monotonic() + PATIENCE)
        kind, how = found["state_type"], found["state_name"]
        # Unknown, Waiting: it is done, and says something about the market
        good = kind == "COMPLETED" and how not in ("Degraded", "Partly")
        if not good:
            message = (found["state"]["message"] or "")[:200]
            self.tally.again.append(f"{name} {parameters['timeframe']} {parameters['end'][:10]}: {how}: {message}")
            # as at the next schedule: not before what was away is back
            until = time.monotonic() + PATIENCE
            while not self.well() and time.monotonic() < until:
                time.sleep(0.5)
            time.sleep(2)
        return good

    def settle(self) -> None:
        """Wait until nothing is at work and the sweep has nothing left to do."""
        until = time.monotonic() + PATIENCE
        left = ["everything"]
        while left and time.monotonic() < until:
            self._ended(self.sweep(), until)
            at_work = {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
            waiting = {"state": {"name": {"any_": ["AwaitingRetry", "Crashed"]}}}
            found = [self.ask("POST", "/flow_runs/filter", {"flow_runs": wanted}) for wanted in (at_work, waiting)]
            left = [f"{run['name']} {run['state_name']}" for page in found for run in page]
            left += [] if self.well() else ["a part of the stack"]
        if left:
            raise SoakFailed(f"not at rest after {PATIENCE:.0f} s: {', '.join(left)}")

    def parts(self) -> Mapping[str, PartState]:
        """The processes of the stack as they are now."""
        found = stack_state.read(self.home)
        if found is None:
            raise SoakFailed(f"the stack of {self.home} is gone")
        return found.parts

    def well(self) -> bool:
        """Every part of the stack is up."""
        return all(part.state in WELL for part in self.parts().values())

    def sweep(self) -> str:
        """Ask for a sweep; the id of its run."""
        found = self.ask("GET", "/deployments/name/sweep/sweep")
        return str(self.ask("POST", f"/deployments/{found['id']}/create_flow_run", {"parameters": SWEEP})["id"])

    def _ended(self, run: str, until: float) -> dict[str, Any]:
        """The run, once it has ended, or the time is over; what crashed has not: the sweep sees to it."""
        while True:
            found: dict[str, Any] = self.ask("GET", f"/flow_runs/{run}")
            if (found["state_type"] in ENDED and found["state_name"] != "Crashed") or time.monotonic() > until:
                return found
            self.set_clock()
            time.sleep(0.3)

    def count(self) -> None:
        """Count runs by flow and final state, and find slots that nobody gave back."""
        for run in self._all("/flow_runs/filter"):
            flow = self.ask("GET", f"/flows/{run['flow_id']}")["name"]
            self.tally.runs[f"{flow} {run['state_name']}"] += 1
            self.tally.runs["re-runs by the sweep"] += int(run["labels"].get("tradeflows.reruns", 0))
        for limit in self._all("/v2/concurrency_limits/filter"):
            if limit["name"].startswith("deployment:") and limit["active_slots"]:
                self.tally.lost.append(f"{limit['active_slots']} slots of {limit['name']}, which nobody holds")

    def _all(self, path: str) -> Iterator[dict[str, Any]]:
        with connected(self.state.prefect_api) as api:
            yield from list(api.all(path))


@contextmanager
def _ignored() -> Iterator[None]:
    """The exchange may be away just now; whoever needs it asks again."""
    try:
        yield
    except httpx.HTTPError:
        return


def storm(driver: Driver, chance: random.Random, stop: threading.Event, console: Console) -> None:
    """Kill by chance until told to stop: on a busy machine less often, for it takes longer to come back."""
    last: dict[str, list[float]] = {part: [] for part in PARTS}
    while not stop.wait(chance.uniform(*BETWEEN)):
        alone = chance.random() >= AT_ONCE
        while alone and not stop.wait(0.5) and not driver.well():
            pass
        now = time.monotonic()
        open_parts = [part for part in PARTS if len([at for at in last[part] if now - at < PART_SECONDS]) < PART_KILLS]
        target = chance.choice([*open_parts, *[PROCESS] * max(len(open_parts) // 2, 1)])
        number = chance.choice([signal.SIGKILL, signal.SIGTERM])
        pid = _process_of_a_run(driver) if target == PROCESS else driver.parts()[target].pid
        if pid is None or stop.is_set():
            continue
        try:
            psutil.Process(pid).send_signal(number)
        except psutil.Error:
            continue
        if target in last:
            last[target].append(now)
        driver.tally.kills[f"{target} {number.name}"] += 1
        console.print(f"{datetime.now(UTC):%H:%M:%S} {number.name} to {target}", style="dim")


def _process_of_a_run(driver: Driver) -> int | None:
    """The process of some run that is at work; None where none is, or the server is away."""
    running = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}, "sort": "START_TIME_DESC", "limit": 5}
    try:
        found = driver.ask("POST", "/flow_runs/filter", running, seconds=1.0)
    except (ConfigurationError, httpx.HTTPError):
        return None
    return next((int(run["infrastructure_pid"]) for run in found if run["infrastructure_pid"]), None)


def sweeping(driver: Driver, stop: threading.Event) -> None:
    """A sweep every so often, until told to stop."""
    while not stop.wait(SWEEP_SECONDS):
        try:
            driver.sweep()
        except (ConfigurationError, httpx.HTTPError):
            continue  # longer away than anybody waits: the next round tries again


def worked(
    home: Path, console: Console, steps: int | None, minutes: float, disturb: Callable[..., Any] | None
) -> tuple[dict[str, Any], Tally, int]:
    """Let a stack of its own work: so many steps, or so many minutes; what it left, what happened, and the steps."""
    os.environ["TRADEFLOWS_HOME"] = str(home)
    # weights are metered by the minute, and minutes are none of these days
    os.environ["TRADEFLOWS_EXCHANGE_WEIGHT_PER_MINUTE"] = "1000000"
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    wanted = Wanted(sandbox=True, warm=True, prefect_port=0, mlflow_port=0, metrics_port=None)
    state = _started(wanted, console)
    stop = threading.Event()
    driver = Driver(home, state, console)
    try:
        driver.quiet()
        driver.set_clock()
        helpers = [threading.Thread(target=sweeping, args=(driver, stop))]
        if disturb is not None:
            helpers.append(threading.Thread(target=disturb, args=(driver, stop)))
        for one in helpers:
            one.start()
        begun, number = time.monotonic(), 0
        try:
            while number < (steps if steps is not None else (LAST - FIRST) // STEP):
                if steps is None and time.monotonic() - begun > 60 * minutes:
                    break
                driver.days(number)
                driver.step(number)
                number += 1
                console.print(f"{datetime.now(UTC):%H:%M:%S} {FIRST + number * STEP:%Y-%m-%d} is done")
        finally:
            stop.set()
            for one in helpers:
                one.join()
        driver.settle()
        driver.count()
        return _snapshot(home, state), driver.tally, number
    finally:
        stack.down(home, lambda line: console.print(line, style="dim"))


def _started(wanted: Wanted, console: Console) -> StackState:
    """A stack, at the second attempt where the machine is too busy for new databases and all else at once."""
    try:
        return stack.detached(load_settings(), wanted, lambda line: console.print(line, style="dim"))
    except ConfigurationError:
        return stack.detached(load_settings(), wanted, lambda line: console.print(line, style="dim"))


def _snapshot(home: Path, state: StackState) -> dict[str, Any]:
    from tasks import environment, registry
    from tasks.store import configured_store

    environment.prepare(home)
    os.environ["MLFLOW_TRACKING_URI"] = str(state.parts["mlflow"].url)
    settings = load_settings()
    with configured_store(settings) as store:
        found = soak_compare.snapshot(settings, store, registry.connect(settings))
    # as files keep it, so that both are read alike
    return dict(json.loads(json.dumps(found, default=str)))


def soak(folder: Path, minutes: float, seed: int, console: Console) -> list[str]:
    """Work with kills and without, and compare; what is wrong, a line each."""
    chance = random.Random(seed)  # noqa: S311 - whom to kill, and when
    console.print(f"[bold]With kills[/], for {minutes:g} minutes")
    begun = time.monotonic()
    disturbed, tally, steps = worked(
        folder / "storm", console, None, minutes, lambda driver, stop: storm(driver, chance, stop, console)
    )
    seconds = time.monotonic() - begun
    console.print(f"[bold]Without[/], the same {steps} steps")
    calm, usual, _ = worked(folder / "calm", console, steps, 0, None)
    wrong = [f"lost: {text}" for text in (*tally.lost, *usual.lost)]
    wrong += [f"with kills: {text}" for text in soak_compare.faults(disturbed)]
    wrong += [f"without kills: {text}" for text in soak_compare.faults(calm)]
    wrong += list(soak_compare.differences(calm, disturbed))
    _told(console, tally, disturbed, steps, seconds)
    return wrong


def _told(console: Console, tally: Tally, found: dict[str, Any], steps: int, seconds: float) -> None:
    promoted = sum(len(one["history"]) for one in found["registry"].values())
    candles = sum(one["rows"] for one in found["series"].values())
    console.print(
        f"\n{steps} steps in {seconds:.0f} s: {tally.windows} windows, asked for {tally.asked} times, "
        f"{len(tally.lost)} lost\n"
        f"kills: {sum(tally.kills.values())}, {dict(sorted(tally.kills.items()))}\n"
        f"runs: {dict(sorted(tally.runs.items()))}\n"
        f"left: {candles:,} candles, {len(found['analyses'])} analyses, {len(found['settlements'])} settled, "
        f"{sum(len(one['trainings']) for one in found['registry'].values())} models, {promoted} promotions"
    )
    for text in tally.again:
        console.print(f"asked for again: {text}", style="dim")


def main() -> None:
    """Soak, and print what was seen; exit code 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to work with kills")
    parser.add_argument("--seed", type=int, default=7, help="of whom to kill, and when")
    parser.add_argument("--keep", type=Path, help="folder of the two homes, kept; else a temporary one")
    options = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="tradeflows-soak-") as temporary:
        wrong = soak((options.keep or Path(temporary)).resolve(), options.minutes, options.seed, console)
    for line in wrong[:50]:
        console.print(line, style="red")
    if wrong:
        console.print(f"{len(wrong)} differences", style="bold red")
        raise SystemExit(1)
    console.print("Store, ledger, registry and analyses are as without kills.", style="bold green")


if __name__ == "__main__":
    main()
