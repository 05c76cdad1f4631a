"""What the commands of the local stack print, in 80 columns."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO

from rich.console import Console
from rich.markup import escape

from deployments.prefect_api import Api, connected
from deployments.show import table
from deployments.stack_state import StackState
from tasks import credentials
from trading.errors import ConfigurationError

STYLES: Final = {
    "ready": "green", "done": "green", "COMPLETED": "green", "RUNNING": "cyan", "starting": "yellow",
    "waiting": "yellow", "PENDING": "yellow", "CANCELLED": "yellow", "failed": "bold red", "FAILED": "bold red",
    "CRASHED": "bold red",
}  # fmt: skip


def ready(console: Console, state: StackState, home: Path | None) -> None:
    """The addresses, and three things to try; ``home`` where it was given."""
    api = state.prefect_api
    console.print("[bold green]Ready.[/]")
    for name in ("prefect", "mlflow", "sandbox", "metrics"):
        if name in state.parts:
            console.print(f"  {name:<9} {state.parts[name].url}")
    asks = bool(os.environ.get("PREFECT_API_AUTH_STRING"))
    if asks:
        console.print(f"  They ask for a password: user {credentials.USER}, and what {credentials.VARIABLE} holds.")
    login = f" -u {credentials.USER}" if asks else ""
    console.print("\nTry next:")
    console.print(f"  open {api.removesuffix('/api')}/deployments and run [bold]ingest[/] from its form")
    console.print(
        f"  id=$(curl -s{login} {api}/deployments/name/ingest/ingest | python3 -c 'import json,sys; "
        'print(json.load(sys.stdin)["id"])\')\n'
        f"  curl{login} -X POST {api}/deployments/$id/create_flow_run -H 'Content-Type: application/json' -d '{{}}'",
        soft_wrap=True,
        markup=False,
    )
    where = f" --home {home}" if home else ""
    console.print(f"  tradeflows status{where}; tradeflows logs worker --follow{where}; tradeflows down{where}")


def stack(console: Console, state: StackState, now: float) -> None:
    """What runs, since when, how often it was started again, and where."""
    if not state.supervised:
        console.print(
            f"[bold red]The stack's supervisor (process {state.pid}) is gone.[/] "
            "`tradeflows down` stops what it left, `tradeflows up` does and starts anew."
        )
    rows = [
        [
            name,
            _styled(part.state),
            span(now - part.since),
            str(part.restarts or "-"),
            part.url or (f"process {part.pid}" if part.pid else "-"),
            part.told or "-",
        ]
        for name, part in state.parts.items()
    ]
    since = datetime.fromtimestamp(state.started, UTC)
    console.print(
        table(
            f"Stack, up since {since:%Y-%m-%d %H:%M} UTC",
            ("part", "state", "for", "restarts", "address", "last end"),
            rows,
            right=("for", "restarts"),
        )
    )


def runs(console: Console, url: str, now: float) -> None:
    """The last run of each deployment; one sentence where the server does not say."""
    try:
        with connected(url, timeout=10.0) as api:
            rows = [_last(api, one, now) for one in _deployments(api)]
    except ConfigurationError as error:
        console.print(f"No word of the runs: {escape(str(error))}", style="yellow")
        return
    columns = ("deployment", "last run", "state", "started", "took", "next")
    console.print(table("Deployments", columns, rows, right=("started", "took", "next")))


def _deployments(api: Api) -> list[dict[str, Any]]:
    return sorted(
        api.all("/deployments/filter", deployments={"tags": {"all_": ["tradeflows"]}}), key=lambda one: one["name"]
    )


def _last(api: Api, one: dict[str, Any], now: float) -> list[str]:
    chosen = {"id": {"any_": [one["id"]]}}
    begun = {"start_time": {"is_null_": False}}
    found = api.ask(
        "POST",
        "/flow_runs/filter",
        {"deployments": chosen, "flow_runs": begun, "sort": "START_TIME_DESC", "limit": 1},
    )
    state = {"state": {"type": {"any_": ["SCHEDULED"]}}}
    due = api.ask(
        "POST",
        "/flow_runs/filter",
        {"deployments": chosen, "flow_runs": state, "sort": "NEXT_SCHEDULED_START_TIME_ASC", "limit": 1},
    )
    following = f"in {span(_moment(due[0]['next_scheduled_start_time']) - now)}" if due else "-"
    if not found:
        return [one["name"], "-", "-", "-", "-", following]
    run = found[0]
    return [
        one["name"],
        run["name"],
        _styled(run["state_type"]),
        f"{span(now - _moment(run['start_time']))} ago",
        span(float(run["total_run_time"])),
        following,
    ]


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _styled(word: str) -> str:
    return f"[{STYLES[word]}]{word.lower()}[/]" if word in STYLES else word.lower()


def span(seconds: float) -> str:
    """A length of time in one unit: ``45 s``, ``12 min``, ``5 h``, ``3 d``."""
    for unit, size in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"


def tail(out: TextIO, paths: Sequence[Path], lines: int, *, follow: bool) -> None:
    """The last lines of each log, with its name where there are several; with ``follow`` what comes, too."""
    named = len(paths) > 1
    ends = {}
    for path in paths:
        with path.open(errors="replace") as log:
            # a log is cut at some megabytes, so it may be read as a whole
            text = log.read().splitlines()
            ends[path] = log.tell()
        for line in text[len(text) - lines :] if lines < len(text) else text:
            out.write(f"{path.stem:<8} {line}\n" if named else f"{line}\n")
    out.flush()
    while follow:
        for path in paths:
            size = path.stat().st_size
            if size < ends[path]:  # it was cut
                ends[path] = 0
            if size > ends[path]:
                with path.open(errors="replace") as log:
                    log.seek(ends[path])
                    for line in log.read().splitlines():
                        out.write(f"{path.stem:<8} {line}\n" if named else f"{line}\n")
                    ends[path] = log.tell()
        out.flush()
        time.sleep(0.25)
