"""How a worker that must stop hands a run back: its process stops, and the run is scheduled again as it was."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient


async def hand_back(
    context: Any,
    client: PrefectClient,
    identifier: UUID,
    worker: str,
    seconds: float,
    disown: Callable[[], None],
    ended: Callable[[], Awaitable[bool]],
) -> str:
    """Stop a run's process and schedule the run again; what became of it, for a log.

    The process is told first that its run is taken from it, so that it ends without a word about the run. One that
    does not listen, because it is only starting, is killed.

    Args:
        context: Prefect's of the run's execution; None where there is no process yet.
        worker: its name, for the run's history.
        seconds: how long the process has to stop.
        disown: says that the end of the process is not the run's, however it ends.
        ended: waits until nothing is left of the run here; whether that came about.
    """
    from prefect.exceptions import Abort, Pause
    from prefect.runner._control_channel import ControlSignalStatus
    from prefect.states import AwaitingRetry
    from prefect.utilities.engine import propose_state

    if context is not None:
        told = await context.control_channel.signal(identifier, "reschedule")
        if told is ControlSignalStatus.ALREADY_CONCLUDED:
            await ended()
            return "it ended"
        # nobody is to be told of a crash, nor the flow's hooks for one to run
        disown()
        if told is ControlSignalStatus.ACKNOWLEDGED:
            await context.process_manager.kill(identifier, grace_seconds=seconds)
        else:
            await context.process_manager.kill(identifier, force=True)
        # before it is scheduled: another worker would begin it while this process is still at it
        await ended()
    run = await client.read_flow_run(identifier)
    if run.state is not None and (run.state.is_cancelling() or run.state.is_final()):
        said = f"it is {run.state.name}"
    else:
        message = f"handed back by worker {worker}, which was told to stop"
        try:
            state = await propose_state(client, AwaitingRetry(message=message), flow_run_id=identifier)
            said = "handed back" if state.is_scheduled() else f"it is {state.name}"
        except (Abort, Pause) as refused:
            said = f"could not be handed back: {refused}"
    return said
