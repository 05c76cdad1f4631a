"""``tradeflows run`` and ``tradeflows rerun``: start deployed flows, on the server and by its workers."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console

from deployments import show, stack
from deployments.client import Run, connected, signals, trigger
from deployments.client import rerun as ask_again
from deployments.client import wait as wait_for
from deployments.running import HomeFolder, Traceback, prepared, told
from tasks.settings import Settings
from trading.errors import ConfigurationError, InvalidRequest

Wait = Annotated[bool, typer.Option("--wait", help="Wait for its end; exit code 1 where it failed")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait at most", min=0)]


def run(
    flow: Annotated[str, typer.Argument(help="Deployed flow, such as signals or ingest")],
    given: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A parameter; the value is JSON, or else a text"),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: asked for again with it, it is the same run")
    ] = None,
    wait: Wait = False,
    timeout: Timeout = 600.0,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Start a deployed flow on the Prefect server of PREFECT_API_URL, or of the local stack."""
    with told(traceback):
        parameters = parsed(given or ())
        with connected(server(prepared(home))) as api:
            started = trigger(api, flow, parameters, idempotency_key=key)
            _told(api, started, wait, timeout)


def rerun(
    run_id: Annotated[str, typer.Argument(help="Id of a run that has ended")],
    wait: Wait = False,
    timeout: Timeout = 600.0,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Let a run that has ended run again: the same id, parameters and window."""
    with told(traceback), connected(server(prepared(home))) as api:
        _told(api, ask_again(api, run_id), wait, timeout)


def server(settings: Settings) -> str:
    """The address of the Prefect API: PREFECT_API_URL, else that of the stack that runs here.

    Raises:
        ConfigurationError: there is neither.
    """
    running = stack.running_stack(settings.home)
    url = os.environ.get("PREFECT_API_URL") or (running.prefect_api if running else None)
    if url is None:
        raise ConfigurationError("no stack runs here and PREFECT_API_URL is not set; start one with `tradeflows up`")
    return url


def parsed(given: Sequence[str]) -> dict[str, Any]:
    """Parameters from texts such as ``days=30``, ``symbols=["BTCUSDT"]`` and ``timeframe=1h``.

    Raises:
        InvalidRequest: a text without a name or an equals sign, or a name twice.
    """
    found: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not (name and sign):
            raise InvalidRequest(f"--set takes NAME=VALUE, such as --set days=30, and not {text!r}")
        if name in found:
            raise InvalidRequest(f"--set {name} is given twice")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _told(api: Any, started: Run, wait: bool, timeout: float) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"Run {started.id} ({started.name}): {started.named}", markup=False)
    if not wait:
        return
    ended = wait_for(api, started.id, timeout=timeout)
    console.print(f"{ended.named}{f': {ended.message}' if ended.message else ''}", markup=False)
    rows = signals(api, ended.id)
    if rows:
        columns = ("symbol", "signal", "sure", "price", "bar closed", "data", "who spoke")
        body = [
            [
                row["symbol"],
                row["signal"],
                f"{row['confidence']:.2f}",
                f"{row['price']:,.2f}",
                row["timestamp"][:16].replace("T", " "),
                row["data_mode"],
                row["basis"],
            ]
            for row in rows
        ]
        console.print(show.table("Signals (UTC)", columns, body, right=("sure", "price")))
