"""The wide stack on one machine: ``python -m deployments.scale --home FOLDER``, until Ctrl-C.

It is what deployments/compose.yaml describes, without containers, to be tried and measured.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from deployments.declared import CHECKOUT
from deployments.scale_parts import Wide, wide_parts
from deployments.stack_state import StackState
from deployments.supervising import Supervisor
from trading.errors import TradeflowsError

# seconds for all of it to start; on two processors it takes one minute
PATIENCE: Final = 400.0


@dataclass(frozen=True)
class Running:
    """A wide stack.

    Attributes:
        home: folder of everything in it.
        client: environment of who wants to talk to it, with its passwords.
        postgres: host, port, user and password of PostgreSQL.
        supervisor: keeps it.
    """

    home: Path
    client: Mapping[str, str]
    postgres: Mapping[str, str]
    supervisor: Supervisor

    @property
    def state(self) -> StackState:
        """What runs."""
        return self.supervisor.state


@contextmanager
def running(
    home: Path, wide: Wide, tell: Callable[[str], None] = lambda _: None, stop: threading.Event | None = None
) -> Iterator[Running | None]:
    """A wide stack that has answered; everything of it is gone at the end. None when told to stop before that.

    Args:
        home: an empty folder, or one that was used for this before. Where we are root, everybody must be able to
            enter it and its parents (mode 0711), for PostgreSQL runs as a user of its own.

    Raises:
        ConfigurationError: a program is missing, or a part did not come up; names its log.
    """
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    made = wide_parts(home, wide)
    state = StackState(
        id=uuid.uuid4().hex,
        pid=os.getpid(),
        born=psutil.Process().create_time(),
        started=time.time(),
        state="starting",
        sandbox=not wide.exchange_url,
    )
    supervisor = Supervisor(home, made.parts, state, CHECKOUT)
    try:
        ready = supervisor.start(stop or threading.Event(), tell, PATIENCE)
        yield Running(home, made.client, made.postgres, supervisor) if ready else None
    finally:
        supervisor.stop()


def main(argv: Sequence[str] | None = None) -> None:
    """Start it, print where everything is, keep it until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--dask-workers", type=int, default=2)
    options = parser.parse_args(argv)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    wide = Wide(options.workers, options.dask_workers, mongodb_url=os.environ.get("MONGODB_URL", ""))
    try:
        with running(options.home, wide, lambda line: print(line, flush=True), stop) as stack:
            if stack is None:
                return
            for name, part in stack.state.parts.items():
                print(f"{name:<16}{part.url or ''}".rstrip())
            where = stack.home / "secrets" / "password"
            print(f"user tradeflows, password in {where}; Ctrl-C stops everything", flush=True)
            stack.supervisor.keep(stop)
    except TradeflowsError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None


if __name__ == "__main__":
    main()
