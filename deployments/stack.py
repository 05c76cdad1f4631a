"""The local stack on loopback: Prefect server, MLflow server, a worker, and on request the sandbox exchange.

``up`` starts them under a supervisor (``deployments.supervising``), deploys prefect.yaml, and returns when each has
answered a real question, or stays in the foreground. ``down`` stops what carries the stack's mark, also where the
supervisor was killed. One stack per home folder; a lock says so.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from deployments import auth, stack_state
from deployments.declared import CHECKOUT, POOL
from deployments.stack_parts import LOOPBACK, Wanted, answers, free_port, parts
from deployments.stack_state import StackState
from deployments.supervising import READY_SECONDS, STOP_SECONDS, Supervisor
from tasks.settings import Settings
from trading.errors import ConfigurationError

__all__ = [
    "CHECKOUT", "LOOPBACK", "POOL", "Wanted", "answers", "detached", "down", "free_port", "run", "running_stack",
]  # fmt: skip


def run(settings: Settings, wanted: Wanted, tell: Callable[[str], None], ready: Callable[[StackState], None]) -> None:
    """Be the supervisor until SIGTERM, SIGINT or SIGHUP.

    Raises:
        ConfigurationError: a stack of this home runs already, or a part did not come up; all is stopped then.
    """
    home = settings.home.resolve()
    stop = threading.Event()
    # SIGHUP: the terminal is closed
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    with _locked(home):
        left = stack_state.read(home)
        if left is not None:
            tell("a stack was not stopped in order; stopping what is left of it")
            stack_state.stop(stack_state.family(left), STOP_SECONDS)
        state = StackState(
            id=uuid.uuid4().hex,
            pid=os.getpid(),
            born=psutil.Process().create_time(),
            started=time.time(),
            state="starting",
            sandbox=wanted.sandbox,
            warm=wanted.warm,
        )
        supervisor = Supervisor(home, parts(settings, wanted, tell), state, CHECKOUT)
        stack_state.write(home, state)
        try:
            if supervisor.start(stop, tell):
                ready(supervisor.state)
                supervisor.keep(stop)
        finally:
            supervisor.stop()


def detached(settings: Settings, wanted: Wanted, tell: Callable[[str], None]) -> StackState:
    """Start a supervisor of its own session; its state once everything is ready.

    Raises:
        ConfigurationError: as ``run``.
    """
    auth.require_password(settings)
    home = settings.home.resolve()
    running = running_stack(home)
    if running is not None:
        raise ConfigurationError(f"the stack runs already (process {running.pid}); stop it with `tradeflows down`")
    logs = home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "deployments.stack_command", "--home", str(home)]
    command += ["--prefect-port", str(wanted.prefect_port), "--mlflow-port", str(wanted.mlflow_port)]
    command += ["--metrics-port", str(wanted.metrics_port)] if wanted.metrics_port is not None else []
    command += ["--sandbox"] if wanted.sandbox else []
    command += ["--warm"] if wanted.warm else []
    said = logs / "up.log"
    with said.open("wb") as log:
        child = subprocess.Popen(
            command,
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "TRADEFLOWS_HOME": str(home)},
        )
    shown = 0
    try:
        while True:
            ended = child.poll() is not None
            lines = said.read_text().splitlines()
            for line in lines[shown:]:
                tell(line)
            shown = len(lines)
            state = stack_state.read(home)
            if state is not None and state.pid == child.pid and state.state == "ready":
                return state
            if ended:
                break
            time.sleep(0.1)
    except BaseException:
        if child.poll() is None:
            child.terminate()
            child.wait(READY_SECONDS)
        raise
    raise ConfigurationError(f"the stack did not come up, see above; its logs are in {logs}")


def down(home: Path, tell: Callable[[str], None]) -> bool:
    """Stop the stack of ``home`` and wait until nothing of it is left; False where there was none."""
    state = stack_state.read(home)
    if state is None:
        stack_state.file(home).unlink(missing_ok=True)
        return False
    was_supervised = state.supervised
    if was_supervised:
        supervisor = psutil.Process(state.pid)
        supervisor.terminate()
        # each part may take its time, and then be killed
        _, stubborn = psutil.wait_procs([supervisor], timeout=3 * STOP_SECONDS * (len(state.parts) + 1))
        for process in stubborn:
            process.kill()
    left = stack_state.family(state)
    if left:
        tell(f"stopping {len(left)} processes that their supervisor left")
        stack_state.stop(left, STOP_SECONDS)
    stack_state.file(home).unlink(missing_ok=True)
    return was_supervised or bool(left)


def running_stack(home: Path) -> StackState | None:
    """The stack of ``home`` whose supervisor lives."""
    state = stack_state.read(home.resolve())
    return state if state is not None and state.supervised else None


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Hold the home's lock; it goes with this process, however that ends."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "stack.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(f"a stack of {home} runs already; stop it with `tradeflows down`") from None
        yield
