"""What the local stack costs: ``python -m deployments.bench_stack``.

Seconds from ``tradeflows up`` to everything ready, from a REST trigger to the first line of a flow's code with the
process worker and with the warm one, and memory and processor time of a stack that has nothing to do. It uses a home
and ports of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil
from prefect import flow
from rich.console import Console

from deployments import declared, stack, stack_state
from deployments.prefect_api import Api, connected
from deployments.stack import Wanted
from deployments.stack_state import StackState
from tasks.settings import load_settings
from trading.errors import ConfigurationError

NAME: Final = "bench-stack"
PATIENCE: Final = 60.0


@flow(name=NAME)
def first_line(path: str) -> None:
    """Write down when the first line ran."""
    Path(path).write_text(repr(time.time()))


@contextmanager
def running(home: Path, *, warm: bool = False) -> Iterator[tuple[StackState, float]]:
    """A stack on free ports, and the seconds that it took to be ready."""
    os.environ["TRADEFLOWS_HOME"] = str(home)
    begun = time.monotonic()
    state = stack.detached(load_settings(), Wanted(sandbox=True, warm=warm, prefect_port=0, mlflow_port=0), print)
    try:
        yield state, time.monotonic() - begun
    finally:
        stack.down(home, print)


def trigger(api: Api, folder: Path, times: int) -> list[float]:
    """Seconds from asking for a run over REST to the flow's first line, each asked for when the last has ended."""
    flow_id = api.ask("POST", "/flows/", {"name": NAME})["id"]
    body = {
        "name": NAME,
        "flow_id": flow_id,
        "entrypoint": "deployments/bench_stack.py:first_line",
        "work_pool_name": stack.POOL,
        "pull_steps": declared.pulled(),
    }
    deployment = api.ask("POST", "/deployments/", body)["id"]
    seconds = []
    for number in range(times):
        path = folder / f"{number}-{time.time_ns()}"
        # at another moment of the worker's rhythm each time
        time.sleep(number * 0.37 % 2)
        asked = time.time()
        body = {"parameters": {"path": str(path)}, "idempotency_key": path.name}
        run = api.ask("POST", f"/deployments/{deployment}/create_flow_run", body)["id"]
        while not path.exists() or not path.read_text():
            _patient(asked, api, run)
        seconds.append(float(path.read_text()) - asked)
        while api.ask("GET", f"/flow_runs/{run}")["state_type"] in ("SCHEDULED", "PENDING", "RUNNING"):
            _patient(asked, api, run)
    api.ask("DELETE", f"/deployments/{deployment}")
    return seconds


def _patient(asked: float, api: Api, run: str) -> None:
    if time.time() - asked > PATIENCE:
        state = api.ask("GET", f"/flow_runs/{run}")["state"]
        raise ConfigurationError(f"the run is {state['type']} after {PATIENCE:.0f} s: {state['message']}")
    time.sleep(0.02)


def idle(state: StackState, seconds: float) -> dict[str, tuple[float, float]]:
    """Memory in MiB (shared pages counted once) and share of one core, by part and in all."""
    everybody = [psutil.Process(state.pid), *stack_state.family(state)]
    names = {part.pid: name for name, part in state.parts.items()}

    def name(process: psutil.Process) -> str:
        line = [process.pid, *(parent.pid for parent in process.parents())]
        return next((names[pid] for pid in line if pid in names), "supervisor")

    before = {process: _busy(process) for process in everybody}
    time.sleep(seconds)
    found: dict[str, tuple[float, float]] = {}
    for process in everybody:
        memory = process.memory_full_info()
        used = float(getattr(memory, "pss", memory.rss)) / 2**20
        share = (_busy(process) - before[process]) / seconds
        old = found.get(name(process), (0.0, 0.0))
        found[name(process)] = (old[0] + used, old[1] + share)
    found["all"] = (sum(one[0] for one in found.values()), sum(one[1] for one in found.values()))
    return found


def _busy(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _told(console: Console, title: str, seconds: list[float]) -> None:
    first, *rest = seconds
    console.print(
        f"{title}: median {statistics.median(rest):.2f} s, worst {max(rest):.2f} s of {len(rest)}; "
        f"the first after the start {first:.2f} s"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settle", type=float, default=45.0, help="seconds of quiet before idle is measured")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds over which it is measured")
    parser.add_argument("--times", type=int, default=8)
    options = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tradeflows-bench-stack-") as temporary:
        home = Path(temporary) / "home"
        with running(home) as (_, seconds):
            figures["first"] = seconds
        with running(home) as (state, seconds):
            figures["again"] = seconds
            time.sleep(options.settle)
            figures["idle"] = idle(state, options.idle)
            with connected(state.prefect_api) as api:
                figures["process"] = trigger(api, Path(temporary), options.times)
        with running(home, warm=True) as (state, seconds):
            with connected(state.prefect_api) as api:
                figures["warm"] = trigger(api, Path(temporary), options.times)
            time.sleep(options.settle)
            figures["idle warm"] = idle(state, options.idle)
    console.print(f"\nup, first time: {figures['first']:.1f} s; warm: {figures['again']:.1f} s (sought: under 30)")
    _told(console, "REST to first line, process worker (sought: under 10)", figures["process"])
    _told(console, "REST to first line, warm worker (sought: under 2)", figures["warm"])
    for name in ("idle", "idle warm"):
        console.print(f"{name} (sought: under 1,229 MiB and 5 % of a core):")
        for part, (memory, share) in figures[name].items():
            console.print(f"  {part:<11}{memory:>7,.0f} MiB {share:>7.2%}")


if __name__ == "__main__":
    main()
