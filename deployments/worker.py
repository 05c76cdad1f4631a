"""The stack's worker: it takes the runs of a work pool, and when told to stop lets them end or hands them back.

Prefect's own process worker kills its runs when it is told to stop, and leaves them behind as running. This one takes
no further runs then, gives those at work some time to end, and hands the others back: they are scheduled again, with
the parameters and the due time that they had, for any worker to take. Killed itself, it leaves its runs to end alone;
a run's output does not go through the worker for that reason.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

from deployments.declared import CHECKOUT, POOL, pulled
from tasks.sweep_places import PLACE, here

if TYPE_CHECKING:
    from uuid import UUID

ENGINE: Final = "prefect.engine"
# it is told of new runs; it asks for those that it was not told of
LISTEN_SECONDS: Final = 5
# runs at work may end by themselves for so long, and then have so long to stop
DRAIN_SECONDS: Final = 20.0
STOP_SECONDS: Final = 8.0
# runs of a schedule that are due for so long were not waited for, but missed
LATE: Final = timedelta(minutes=1)
# what a supervisor should leave a worker before it kills it
PATIENCE_SECONDS: Final = DRAIN_SECONDS + STOP_SECONDS + 10.0


class Launched(Protocol):
    """A process that was started."""

    @property
    def pid(self) -> int | None:
        """Its id."""


# environment, folder, command as Prefect has it, or none; the process, and how to wait for its end
Launch = Callable[[Mapping[str, str], str, str | None], Awaitable[tuple[Launched, Callable[[], Awaitable[Any]]]]]


def newest_first(found: Sequence[Any], now: datetime) -> list[Any]:
    """What a worker took, in the order in which to begin it: of a schedule's runs that are late the newest first.

    After an outage a deployment with room for one run has several. The newest does the work of those before it, which
    are then turned away; the other way round an old window would be worked off, and the newest never.
    """
    late = [one for one in found if one.flow_run.auto_scheduled and _due(one) < now - LATE]
    others = [one for one in found if one not in late]
    return [*sorted(late, key=_due, reverse=True), *others]


def _due(one: Any) -> datetime:
    due: datetime = one.flow_run.expected_start_time
    return due


def engine_words(variables: Mapping[str, str], module: str = ENGINE) -> list[str]:
    """The module that a run's process is, and its arguments: with lines of JSON where those are asked for."""
    return ["deployments.json_process", module] if variables.get("TRADEFLOWS_LOG_FORMAT") == "json" else [module]


async def launch(variables: Mapping[str, str], folder: str, command: str | None) -> Any:
    """A Python of its own for the run; what it says goes where the worker's words go."""
    import subprocess

    import anyio
    from prefect.utilities.processutils import command_from_string

    words = command_from_string(command) if command else [sys.executable, "-m", ENGINE]
    if words[-2:] == ["-m", ENGINE]:
        words = [*words[:-1], *engine_words(variables)]
    process = await anyio.open_process(
        words, stdin=subprocess.DEVNULL, stdout=None, stderr=None, cwd=folder, env=dict(variables)
    )
    return process, process.wait


def serve(
    pool: str, name: str, launching: Launch = launch, drain: float = DRAIN_SECONDS, limit: int | None = None
) -> None:
    """Take the runs of a work pool until SIGINT or SIGTERM, a second of which ends the patience.

    Args:
        drain: seconds that runs at work are given to end before they are handed back.
        limit: so many runs at a time; None: as many as come.
    """
    # a job of a shell's background ignores SIGINT unless told otherwise
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import anyio

    worker = _worker_class()(
        work_pool_name=pool, name=name, limit=limit, create_pool_if_not_found=False, launching=launching
    )

    async def work() -> None:
        async with anyio.create_task_group() as group:

            async def until_told() -> None:
                async with _signals() as told:
                    await anext(told)
                    async with anyio.create_task_group() as patience:
                        patience.start_soon(_cancel_when, told, patience.cancel_scope)
                        await worker.drained(drain)
                        patience.cancel_scope.cancel()
                await worker.hand_back_all()
                group.cancel_scope.cancel()

            group.start_soon(until_told)
            group.start_soon(_look_when_told, worker)
            await worker.start()
            group.cancel_scope.cancel()

    anyio.run(work)
    print(f"worker {name} stopped", flush=True)


@asynccontextmanager
async def _signals() -> AsyncIterator[AsyncIterator[signal.Signals]]:
    import anyio

    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as told:
        yield told


async def _cancel_when(told: AsyncIterator[signal.Signals], scope: Any) -> None:
    await anext(told)
    scope.cancel()


def _worker_class() -> Any:
    import anyio
    import anyio.abc
    from prefect._internal.attempt_control import StateOwnershipDelegation
    from prefect.runner._flow_run_executor import FlowRunExecutorContext
    from prefect.runner._process_manager import ProcessHandle
    from prefect.workers.process import ProcessWorker, ProcessWorkerResult

    from deployments.flow_hooks import Hooks
    from deployments.handing_back import hand_back

    class Starter:
        """Prefect's protocol: signals the process once it runs, returns once it has ended."""

        def __init__(self, launching: Callable[[Mapping[str, str]], Awaitable[Any]], channel: Any) -> None:
            self._launching, self._channel = launching, channel

        async def start(self, flow_run: Any, task_status: Any = anyio.TASK_STATUS_IGNORED) -> None:
            told = {**self._control(flow_run.id), "PREFECT__FLOW_RUN_ID": str(flow_run.id)}
            process, ended = await self._launching(told)
            task_status.started(ProcessHandle(process))
            await ended()

        def _control(self, identifier: UUID) -> dict[str, str]:
            try:
                port, token = self._channel.register(identifier)
            except RuntimeError:  # it could not listen; then a run is stopped without a word
                return {}
            return {
                "PREFECT__CONTROL_PORT": str(port),
                "PREFECT__CONTROL_TOKEN": token,
                "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS": "false",
            }

    class Worker(ProcessWorker):
        """A process worker that drains, and says where it is."""

        def __init__(self, *, launching: Launch, **options: Any) -> None:
            super().__init__(**options)
            self._launching = launching
            self._draining = False
            # what was taken and is not done with, and how to reach its process once there is one
            self._taken: dict[UUID, Any] = {}
            # runs whose process was killed to hand them back; that it ended so says nothing about them
            self._disowned: set[UUID] = set()
            # what is done besides, such as hooks of runs that crashed
            self._aside = 0

        async def get_and_submit_flow_runs(self) -> Any:
            return [] if self._draining else await super().get_and_submit_flow_runs()

        async def _submit_scheduled_flow_runs(self, flow_run_response: list[Any]) -> Any:
            return await super()._submit_scheduled_flow_runs(newest_first(flow_run_response, datetime.now(UTC)))

        async def drained(self, seconds: float) -> None:
            """Take no more runs, and wait until those at work have ended or the time is over."""
            self._draining = True
            if self._taken:
                print(f"worker {self.name} is to stop; {len(self._taken)} runs may end", flush=True)
            with anyio.move_on_after(seconds):
                while self._taken or self._submitting_flow_run_ids or self._aside:
                    await anyio.sleep(0.1)

        async def hand_back_all(self) -> None:
            """Stop what is still at work, and have it scheduled again."""
            async with anyio.create_task_group() as group:
                for identifier, context in list(self._taken.items()):
                    group.start_soon(self._hand_back, identifier, context)

        async def _hand_back(self, identifier: UUID, context: Any) -> None:
            async def ended() -> bool:
                with anyio.move_on_after(STOP_SECONDS):
                    while identifier in self._taken:
                        await anyio.sleep(0.05)
                return identifier not in self._taken

            def disown() -> None:
                self._disowned.add(identifier)

            said = await hand_back(context, self.client, identifier, self.name, STOP_SECONDS, disown, ended)
            print(f"flow run {identifier}: {said}", flush=True)

        async def _submit_run_and_capture_errors(self, flow_run: Any, task_status: Any = None) -> Any:
            self._taken[flow_run.id] = None
            try:
                return await super()._submit_run_and_capture_errors(flow_run, task_status)
            finally:
                del self._taken[flow_run.id]

        async def _give_worker_labels_to_flow_run(self, flow_run_id: UUID) -> None:
            await super()._give_worker_labels_to_flow_run(flow_run_id)
            await self.client.update_flow_run_labels(flow_run_id, {PLACE: here()})

        async def run(self, flow_run: Any, configuration: Any, task_status: Any = None) -> ProcessWorkerResult:
            async with FlowRunExecutorContext() as entered:
                # not its type, which has no assignment to the method below
                context: Any = entered
                self._taken[flow_run.id] = context
                heard = context.control_channel.get_conclusion

                def conclusion(identifier: UUID) -> Any:
                    mine = identifier not in self._disowned
                    return heard(identifier) if mine else StateOwnershipDelegation("reschedule")

                # whatever a process says by its end is overruled by this
                context.control_channel.get_conclusion = conclusion
                folder = str(configuration.working_dir or CHECKOUT)
                named = {**configuration.env, **await self._entrypoint(flow_run)}
                variables = {key: value for key, value in named.items() if value is not None}

                async def launching(more: Mapping[str, str]) -> Any:
                    return await self._launching({**variables, **more}, folder, configuration.command)

                def words(module: str) -> list[str]:
                    return [sys.executable, "-m", *engine_words(variables, module)]

                executor = context.create_executor(
                    flow_run,
                    Starter(launching, context.control_channel),
                    hook_runner=Hooks(words, variables, self._do_aside),
                    propose_submitting=False,
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

        def _do_aside(self, what: Callable[[], Awaitable[None]]) -> None:
            async def counted() -> None:
                self._aside += 1
                try:
                    await what()
                finally:
                    self._aside -= 1

            # there is one as long as the worker takes runs
            group: Any = self._runs_task_group
            group.start_soon(counted)

        async def _entrypoint(self, flow_run: Any) -> dict[str, str]:
            """Where the flow is in this checkout, for deployments of it: then it need not be pulled (half a second)."""
            deployment = await self.client.read_deployment(flow_run.deployment_id) if flow_run.deployment_id else None
            here = deployment is not None and deployment.pull_steps == pulled()
            return {"PREFECT__FLOW_ENTRYPOINT": str(deployment.entrypoint)} if deployment and here else {}

    return Worker


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


def options(argv: Sequence[str] | None, description: str | None, name: str) -> argparse.Namespace:
    """What a worker is told: pool, name, limit, drain."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--pool", default=POOL)
    parser.add_argument("--name", default=name)
    parser.add_argument("--limit", type=int, help="so many runs at a time; as many as come where it is not given")
    parser.add_argument(
        "--drain", type=float, default=DRAIN_SECONDS, help="seconds that runs may go on when it is told to stop"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Work until told to stop."""
    told = options(argv, __doc__, "local")
    serve(told.pool, told.name, drain=told.drain, limit=told.limit)


if __name__ == "__main__":
    main()
