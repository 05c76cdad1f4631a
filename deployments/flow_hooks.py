"""What a flow wants done when a run of it crashed or is cancelled, in a process of its own.

Its hooks are in the flow's module, so that it has to be imported. Prefect does that in the worker: an import that
does not end would hold up the worker with everything that it is about, and what it changes would be changed for all.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from deployments.declared import CHECKOUT

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

MODULE: Final = "deployments.flow_hooks"
# hooks that take longer are given up, so that a run that is cancelled is so in the end
LONGEST_SECONDS: Final = 60.0


class Hooks:
    """Prefect's protocol: runs a flow's hooks in the environment of its run.

    Args:
        words: how a Python that runs a module is started.
        variables: the environment.
        aside: has something done without waiting for it.
    """

    def __init__(
        self,
        words: Callable[[str], list[str]],
        variables: Mapping[str, str],
        aside: Callable[[Callable[[], Awaitable[None]]], None],
        seconds: float = LONGEST_SECONDS,
    ) -> None:
        self._words, self._variables, self._aside, self._seconds = words, variables, aside, seconds

    async def run_crashed_hooks(self, flow_run: FlowRun, state: State[Any]) -> None:
        """Those for a crash, aside: while they are at work the run may be scheduled again, and be taken."""
        if state.is_crashed():
            self._aside(lambda: self._run("crashed", flow_run, state))

    async def run_cancellation_hooks(self, flow_run: FlowRun, state: State[Any]) -> None:
        """Those for a cancellation; the run is cancelled when they are done."""
        if state.is_cancelling():
            await self._run("cancellation", flow_run, state)

    async def _run(self, kind: str, flow_run: FlowRun, state: State[Any]) -> None:
        import anyio

        told = {"kind": kind, "flow_run": flow_run.model_dump(mode="json"), "state": state.model_dump(mode="json")}
        why = f"took longer than {self._seconds:g} s"
        # not a pipe: it would break where the process dies before it has read everything
        with tempfile.TemporaryFile() as file:
            file.write(json.dumps(told).encode())
            file.seek(0)
            try:
                with anyio.move_on_after(self._seconds):
                    done = await anyio.run_process(
                        self._words(MODULE), stdin=file, stdout=None, stderr=None, check=False,
                        cwd=CHECKOUT, env=self._variables,
                    )  # fmt: skip
                    why = f"ended with {done.returncode}" if done.returncode else ""
            except OSError as error:
                why = f"could not be started: {error}"
        if why:
            print(f"flow run {flow_run.id}: the flow's hooks ({kind}) {why}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the hooks that standard input tells of; what goes wrong with them goes to the flow run's log."""
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.flows import load_flow_from_flow_run
    from prefect.runner._hook_runner import HookRunner

    told = json.load(sys.stdin)
    runner = HookRunner(resolve_flow=load_flow_from_flow_run)
    run = {"crashed": runner.run_crashed_hooks, "cancellation": runner.run_cancellation_hooks}[told["kind"]]
    state: State[Any] = State.model_validate(told["state"])
    asyncio.run(run(FlowRun.model_validate(told["flow_run"]), state))


if __name__ == "__main__":
    main()
