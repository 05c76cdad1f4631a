"""``tradeflows serve``: a worker whose flow runs start in a fork of a process that has everything imported.

A process worker starts a Python for each run, and importing prefect and the flow takes seconds. Here a process
without threads (``multiprocessing``'s fork server) imports them once, and each run is a fork of it: a process of its
own as before, that can be cancelled or die alone, within a fraction of a second.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from uuid import UUID

# not prefect.engine: it is run as the main module
PRELOAD: Final = ("prefect.flow_engine", "prefect.runner", "deployments.preloaded")
# it is told of new runs; it asks for those that it was not told of
QUERY_SECONDS: Final = 3
LISTEN_SECONDS: Final = 5


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
        sys.argv = ["prefect.engine"]
        sys.modules.pop("prefect.engine", None)
        runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Work until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", default="tradeflows")
    parser.add_argument("--name", default="warm")
    options = parser.parse_args(argv)
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", str(QUERY_SECONDS))
    serve(options.pool, options.name)


def serve(pool: str, name: str) -> None:
    """Take the runs of a work pool until SIGINT or SIGTERM; the environment says where the server is."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(list(PRELOAD))
    _warm(forks)
    # a job of a shell's background ignores SIGINT unless told otherwise
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    import anyio
    import anyio.abc
    from prefect.flows import load_flow_from_flow_run
    from prefect.runner._flow_run_executor import FlowRunExecutorContext
    from prefect.runner._process_manager import ProcessHandle
    from prefect.workers.process import ProcessWorker, ProcessWorkerResult

    from deployments.declared import CHECKOUT, pulled

    class Starter:
        """Prefect's protocol: signals the process once it runs, returns once it has ended."""

        def __init__(self, variables: Mapping[str, str | None], folder: str, channel: Any) -> None:
            self._variables, self._folder, self._channel = variables, folder, channel

        async def start(self, flow_run: Any, task_status: Any = anyio.TASK_STATUS_IGNORED) -> None:
            variables = {**self._variables, **self._control(flow_run.id), "PREFECT__FLOW_RUN_ID": str(flow_run.id)}
            told = {key: value for key, value in variables.items() if value is not None}
            process = forks.Process(target=engine, args=(told, self._folder))
            process.start()
            task_status.started(ProcessHandle(process))  # type: ignore[arg-type]
            await anyio.wait_readable(process.sentinel)
            process.join()

        def _control(self, identifier: UUID) -> dict[str, str]:
            try:
                port, token = self._channel.register(identifier)
            except RuntimeError:  # it could not listen; then a cancelled run is killed without a word
                return {}
            return {
                "PREFECT__CONTROL_PORT": str(port),
                "PREFECT__CONTROL_TOKEN": token,
                "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS": "false",
            }

    class WarmWorker(ProcessWorker):
        """A process worker that forks."""

        async def run(self, flow_run: Any, configuration: Any, task_status: Any = None) -> ProcessWorkerResult:
            async with FlowRunExecutorContext() as context:
                folder = str(configuration.working_dir or CHECKOUT)
                variables = {**configuration.env, **await self._entrypoint(flow_run)}
                starter = Starter(variables, folder, context.control_channel)
                executor = context.create_executor(
                    flow_run, starter, resolve_flow=load_flow_from_flow_run, propose_submitting=False
                )
                done: Any = None

                async def execute(*, task_status: Any = anyio.TASK_STATUS_IGNORED) -> None:
                    nonlocal done
                    done = await executor.submit(task_status=task_status)

                async with anyio.create_task_group() as group:
                    handle = await group.start(execute)
                    if task_status is not None:
                        task_status.started(handle.pid)
            if done is None or done.status_code is None:
                raise RuntimeError("the flow run's process did not start")
            return ProcessWorkerResult(status_code=done.status_code, identifier=str(done.handle.pid))

        async def _entrypoint(self, flow_run: Any) -> dict[str, str]:
            """Where the flow is in this checkout, for deployments of it: then it need not be pulled (half a second)."""
            deployment = await self.client.read_deployment(flow_run.deployment_id) if flow_run.deployment_id else None
            here = deployment is not None and deployment.pull_steps == pulled()
            return {"PREFECT__FLOW_ENTRYPOINT": str(deployment.entrypoint)} if deployment and here else {}

    worker = WarmWorker(work_pool_name=pool, name=name, create_pool_if_not_found=False)

    async def work() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(_look_when_told, worker)
            await worker.start()
            group.cancel_scope.cancel()

    try:
        anyio.run(work)
    except KeyboardInterrupt:
        print(f"worker {name} stopped")


async def _look_when_told(worker: Any) -> None:
    """Look for work whenever the server says that a run was made: sooner than by asking, and cheaper.

    Where it cannot be heard, the worker's own questions find the run a few seconds later.
    """
    import anyio
    from prefect.events.clients import get_events_subscriber
    from prefect.events.filters import EventFilter, EventNameFilter

    made = EventFilter(event=EventNameFilter(name=["prefect.flow-run.Scheduled"]))
    while True:
        try:
            async with get_events_subscriber(filter=made) as events:
                async for _ in events:
                    if worker.is_setup:
                        await worker.get_and_submit_flow_runs()
        except Exception as error:  # noqa: BLE001 - whatever broke the connection, the next one may hold
            print(f"cannot hear of new runs ({type(error).__name__}: {error}); listening again in {LISTEN_SECONDS} s")
        await anyio.sleep(LISTEN_SECONDS)


def _warm(forks: Any) -> None:
    """Let the fork server import what it must before the first run asks for a fork."""
    first = forks.Process(target=os.getpid)
    first.start()
    first.join()


if __name__ == "__main__":
    # the fork server imports this module by its name; under ``__main__`` each fork would import it again
    importlib.import_module("deployments.warm_worker").main()
