"""``tradeflows serve``: a worker whose flow runs start in a fork of a process that has everything imported.

A process worker starts a Python for each run, and importing prefect and the flow takes seconds. Here a process
without threads (``multiprocessing``'s fork server) imports them once, and each run is a fork of it: a process of its
own as before, that can be cancelled or die alone, within a fraction of a second.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from deployments.worker import DRAIN_SECONDS, ENGINE, Launch, engine_words, options
from deployments.worker import serve as serve_with

# not prefect.engine: it is run as the main module
PRELOAD: Final = ("prefect.flow_engine", "prefect.runner", "deployments.preloaded")
QUERY_SECONDS: Final = 3


def engine(variables: Mapping[str, str], folder: str) -> None:
    """In the fork: what ``python -m prefect.engine`` does in a new process."""
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from prefect.context import SettingsContext, get_settings_context
    from prefect.settings import Settings

    # the fork's settings are those of the process that it is a fork of; a deployment may have its own
    with SettingsContext(profile=get_settings_context().profile, settings=Settings()):
        sys.argv = engine_words(variables)
        sys.modules.pop(ENGINE, None)
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Work until told to stop."""
    told = options(argv, __doc__, "warm")
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", str(QUERY_SECONDS))
    serve(told.pool, told.name, told.drain, told.limit)


def serve(pool: str, name: str, drain: float = DRAIN_SECONDS, limit: int | None = None) -> None:
    """``deployments.worker.serve`` with forks; the environment says where the server is."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(list(PRELOAD))
    _warm(forks)
    serve_with(pool, name, _forking(forks), drain, limit)


def _forking(forks: Any) -> Launch:
    async def launch(variables: Mapping[str, str], folder: str, command: str | None) -> Any:
        import anyio

        process = forks.Process(target=engine, args=(dict(variables), folder))
        process.start()

        async def ended() -> None:
            await anyio.wait_readable(process.sentinel)
            process.join()

        waiting: Callable[[], Awaitable[None]] = ended
        return process, waiting

    return launch


def _warm(forks: Any) -> None:
    """Let the fork server import what it must before the first run asks for a fork."""
    first = forks.Process(target=os.getpid)
    first.start()
    first.join()


if __name__ == "__main__":
    # the fork server imports this module by its name; under ``__main__`` each fork would import it again
    importlib.import_module("deployments.warm_worker").main()
