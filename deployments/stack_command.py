"""The commands of the local stack, and the two processes that it is run by: ``python -m deployments.stack_command``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape

from deployments import show_stack, stack, stack_state
from deployments.log_reading import people
from deployments.running import HomeFolder, Traceback, prepared, told
from deployments.stack import Wanted
from tasks.settings import Settings
from trading.errors import ConfigurationError

WAIT_SECONDS: Final = 100.0
METRICS_PORT: Final = 9464
Warm = Annotated[bool, typer.Option("--warm", help="Runs start in forks of a warm process: 1 s, for 350 MB")]
Sandbox = Annotated[bool, typer.Option("--sandbox", help="Ingest from the sandbox exchange")]


def up(
    detach: Annotated[bool, typer.Option("--detach", help="Return once everything is ready")] = False,
    sandbox: Sandbox = False,
    warm: Warm = False,
    prefect_port: Annotated[int, typer.Option(help="Another one is taken where this is in use", min=0)] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Another one is taken where this is in use", min=0)] = 5000,
    metrics: Annotated[bool, typer.Option(help="Serve metrics for Prometheus, for 60 MB")] = True,
    metrics_port: Annotated[
        int | None, typer.Option(help="Another one is taken where this is in use [default: 9464]", min=0)
    ] = None,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Start Prefect, MLflow and a worker on loopback, watch them, and deploy the flows."""
    with told(traceback):
        settings, console = prepared(home), Console(highlight=False)
        # who wants any port for Prefect wants any for this, too
        chosen = metrics_port if metrics_port is not None else METRICS_PORT if prefect_port else 0
        wanted = Wanted(sandbox, warm, prefect_port, mlflow_port, chosen if metrics else None)

        def tell(line: str) -> None:
            console.print(f"  {escape(line)}", style="dim", soft_wrap=True)

        if detach:
            show_stack.ready(console, stack.detached(settings, wanted, tell), home)
        else:
            stack.run(settings, wanted, tell, lambda state: show_stack.ready(console, state, home))


def down(home: HomeFolder = None, traceback: Traceback = False) -> None:
    """Stop what ``up`` started, and whatever that started."""
    with told(traceback):
        console = Console(highlight=False)
        stopped = stack.down(prepared(home).home.resolve(), lambda line: console.print(line, style="yellow"))
        console.print("Stopped." if stopped else "Nothing is running.")


def status(settings: Settings, console: Console) -> bool | None:
    """Print what runs and what ran last; whether all is well, None where there is no stack."""
    state = stack_state.read(settings.home.resolve())
    if state is None:
        console.print("No stack runs here; `tradeflows up` starts one.\n")
        return None
    now = time.time()
    show_stack.stack(console, state, now)
    show_stack.runs(console, state.prefect_api, now)
    return state.well


def logs(
    part: Annotated[str, typer.Argument(help="prefect, mlflow, worker, sandbox, deploy or stack; empty: all")] = "",
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines", min=0)] = 40,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until stopped")] = False,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """What the parts of the local stack said."""
    with told(traceback):
        folder = prepared(home).home / "logs"
        found = sorted(path for path in folder.glob("*.log") if part in ("", path.stem))
        if not found:
            there = (
                ", ".join(sorted(path.stem for path in folder.glob("*.log"))) or "none yet; start with `tradeflows up`"
            )
            raise ConfigurationError(f"no log of {part or 'any part'} in {folder}; there are: {there}")
        # what was written as JSON is read as text; the files have it as it is
        show_stack.tail(people(sys.stdout), found, lines, follow=follow)


def deploy(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing")] = False,
    sandbox: Annotated[bool, typer.Option("--sandbox", help="With the symbols of the sandbox exchange")] = False,
    file: Annotated[Path | None, typer.Option(help="Another file than prefect.yaml", dir_okay=False)] = None,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Make the Prefect server hold what prefect.yaml declares: create, update, prune."""
    with told(traceback):
        settings = prepared(home)
        running = stack.running_stack(settings.home)
        url = os.environ.get("PREFECT_API_URL") or (running.prefect_api if running else None)
        if url is None:
            raise ConfigurationError(
                "no stack runs here and PREFECT_API_URL is not set; start one with `tradeflows up`"
            )
        with_sandbox = sandbox or bool(running and running.sandbox and running.prefect_api == url)
        synced(settings, url, Console(highlight=False), sandbox=with_sandbox, dry_run=dry_run, file=file)


def synced(
    settings: Settings, url: str, console: Console, *, sandbox: bool, dry_run: bool = False, file: Path | None = None
) -> None:
    """Sync, and print each change."""
    from deployments import auth, declared
    from deployments.prefect_api import connected
    from deployments.sync import sync

    auth.require_closed(settings, url)
    os.environ["PREFECT_API_URL"] = url
    wanted = declared.read(file or declared.FILE, symbols=declared.SANDBOX_SYMBOLS if sandbox else None)
    with connected(url) as api:
        changes = sync(api, settings, wanted, dry_run=dry_run)
    for change in changes:
        console.print(escape(str(change)), soft_wrap=True)
    would = "would be " if dry_run else ""
    console.print(f"{len(changes)} {would}changed." if changes else f"Nothing to do: {url} holds what is declared.")


def doctor(home: HomeFolder = None, traceback: Traceback = False) -> None:
    """Check versions, ports, disk, memory, database, servers and clock; say what to do about what is wrong."""
    with told(traceback):
        from deployments import doctor as checks

        if not checks.run(home, Console(highlight=False)):
            raise typer.Exit(1)


def serve(
    name: Annotated[str, typer.Option(help="Name of this worker in Prefect's pages")] = "warm",
    pool: Annotated[str, typer.Option(help="Work pool whose runs to take")] = stack.POOL,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Take runs and start each within a second, in a fork of a warm process; for servers that run elsewhere."""
    with told(traceback):
        settings = prepared(home)
        running = stack.running_stack(settings.home)
        if running is not None and "PREFECT_API_URL" not in os.environ:
            if pool == stack.POOL:
                raise ConfigurationError(
                    "the worker of the stack here takes the same runs, and would be slower about some of them; "
                    "start the stack with `tradeflows up --warm` instead, or give another --pool"
                )
            os.environ["PREFECT_API_URL"] = running.prefect_api
            os.environ.setdefault("MLFLOW_TRACKING_URI", running.parts["mlflow"].url or "")
            if running.sandbox:
                os.environ.setdefault("TRADEFLOWS_EXCHANGE_URL", running.parts["sandbox"].url or "")
        if "PREFECT_API_URL" not in os.environ:
            raise ConfigurationError(
                "no stack runs here and PREFECT_API_URL is not set; start one with `tradeflows up`"
            )
        os.environ["TRADEFLOWS_HOME"] = str(settings.home.resolve())
        os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"
        # a new process, so that nothing was imported before the environment was set
        command = [sys.executable, "-m", "deployments.warm_worker", "--pool", pool, "--name", name]
        os.chdir(stack.CHECKOUT)
        os.execv(sys.executable, command)  # noqa: S606 - ourselves


def main(argv: Sequence[str] | None = None) -> None:
    """The supervisor of a detached stack, or with ``--deploy`` the process that deploys while it starts."""
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--sandbox", action="store_true")
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--prefect-port", type=int, default=4200)
    parser.add_argument("--mlflow-port", type=int, default=5000)
    parser.add_argument("--metrics-port", type=int)
    parser.add_argument("--deploy", action="store_true")
    options = parser.parse_args(argv)
    try:
        with told(False):
            if options.deploy:
                _deploy_when_up(prepared(None), sandbox=options.sandbox)
                return
            ports = (options.prefect_port, options.mlflow_port, options.metrics_port)
            wanted = Wanted(options.sandbox, options.warm, *ports)
            stack.run(prepared(options.home), wanted, lambda line: print(line, flush=True), lambda _: None)
    except typer.Exit as told_already:
        raise SystemExit(told_already.exit_code) from None


def _deploy_when_up(settings: Settings, *, sandbox: bool) -> None:
    """Import what is needed while the server starts, then sync."""
    from deployments import declared

    url = os.environ["PREFECT_API_URL"]
    for one in declared.read():
        declared.flow_of(one.entrypoint)
    deadline = time.monotonic() + WAIT_SECONDS
    while not stack.answers("GET", f"{url}/ready"):
        if time.monotonic() > deadline:
            raise ConfigurationError(f"{url} did not answer within {WAIT_SECONDS:.0f} s")
        time.sleep(0.1)
    synced(settings, url, Console(highlight=False), sandbox=sandbox)


if __name__ == "__main__":
    main()
