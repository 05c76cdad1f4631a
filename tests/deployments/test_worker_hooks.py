"""What a worker does first after an outage, and what it makes of hooks that go wrong (tests/flows/test_worker.py)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import psutil
import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelling, Completed, Crashed

from deployments.flow_hooks import Hooks
from deployments.worker import engine_words, newest_first

RUN = FlowRun.model_validate({"flow_id": "7f0a2a52-4d3a-4a43-9d2a-3a4f2c1b0e9d", "name": "one"})


def test_after_an_outage_the_newest_run_of_a_schedule_goes_first() -> None:
    now = datetime(2026, 3, 2, 7, 30, tzinfo=UTC)

    def due(minutes: float, *, scheduled: bool = True) -> Any:
        when = now - timedelta(minutes=minutes)
        return SimpleNamespace(flow_run=SimpleNamespace(auto_scheduled=scheduled, expected_start_time=when))

    friday, saturday, asked, soon, on_time = due(4_000), due(2_560), due(3_000, scheduled=False), due(-0.1), due(0.5)
    # as the server gives them
    given = [friday, asked, saturday, on_time, soon]
    assert newest_first(given, now) == [saturday, friday, asked, on_time, soon]
    assert newest_first([], now) == []


def program(text: str) -> Callable[[str], list[str]]:
    return lambda module: [sys.executable, "-c", text, module]


async def run(
    words: Callable[[str], list[str]], state: State[Any], *, crashed: bool = True, seconds: float = 30.0
) -> None:
    """The hooks of one kind, those aside included."""
    async with anyio.create_task_group() as group:
        hooks = Hooks(words, dict(os.environ), group.start_soon, seconds)
        await (hooks.run_crashed_hooks if crashed else hooks.run_cancellation_hooks)(RUN, state)


def test_the_process_is_told_of_the_run_and_its_state(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = tmp_path / "told"
    words = program(f"import sys; open({str(told)!r}, 'a').write(sys.argv[1] + ' ' + sys.stdin.read() + '\\n')")

    async def both() -> None:
        await run(words, Crashed(message="killed"))
        await run(words, Cancelling(), crashed=False)
        # not what they are for
        await run(words, Completed())
        await run(words, Crashed(), crashed=False)

    anyio.run(both)
    lines = [line.split(" ", 1) for line in told.read_text().splitlines()]
    assert [module for module, _ in lines] == ["deployments.flow_hooks"] * 2
    crashed, cancelled = (json.loads(line) for _, line in lines)
    assert (crashed["kind"], crashed["state"]["message"]) == ("crashed", "killed")
    assert cancelled["kind"] == "cancellation"
    assert FlowRun.model_validate(crashed["flow_run"]) == RUN
    assert State[Any].model_validate(cancelled["state"]).is_cancelling()
    assert capfd.readouterr().err == ""


def test_hooks_that_take_too_long_are_given_up(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "pid"
    words = program(f"import os, time; open({str(mine)!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    anyio.run(partial(run, words, Cancelling(), crashed=False, seconds=0.5))
    assert f"flow run {RUN.id}: the flow's hooks (cancellation) took longer than 0.5 s" in capfd.readouterr().err
    assert not mine.exists() or not psutil.pid_exists(int(mine.read_text()))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (program("raise SystemExit(3)"), r"the flow's hooks (crashed) ended with 3"),
        (lambda module: ["/no/such/python", module], r"the flow's hooks (crashed) could not be started: [Errno 2]"),
    ],
)
def test_what_goes_wrong_with_them_is_said_and_stops_nobody(
    words: Callable[[str], list[str]], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    anyio.run(run, words, Crashed())
    assert said in capfd.readouterr().err


def test_they_speak_json_where_runs_do() -> None:
    assert engine_words({}, "x") == ["x"]
    assert engine_words({"TRADEFLOWS_LOG_FORMAT": "json"}, "x") == ["deployments.json_process", "x"]
