"""``tradeflows metrics``: the endpoint for Prometheus without a local stack, or one look at what it says."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from deployments.running import HomeFolder, Traceback, prepared, told


def metrics(
    port: Annotated[int, typer.Option(help="Where to listen, on loopback; 0: a free one", min=0, max=65_535)] = 9464,
    once: Annotated[bool, typer.Option("--once", help="Print the metrics and end")] = False,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Serve metrics for Prometheus until stopped; `tradeflows up` does it as a part of the stack."""
    with told(traceback):
        from deployments import metrics as endpoint
        from deployments import stack_state

        given = os.environ.get("PREFECT_API_URL")
        settings = prepared(home)
        state = stack_state.read(settings.home.resolve())
        running = state if state is not None and state.supervised else None
        prefect = given or (running.prefect_api if running else None)
        mlflow = settings.mlflow_tracking_uri or (running.parts["mlflow"].url if running else None)
        if once:
            typer.echo(endpoint.text(endpoint.sources(settings, prefect, mlflow)), nl=False)
            return
        console = Console(highlight=False, soft_wrap=True)
        if prefect is None:
            console.print("Prefect is not asked: no stack runs here and PREFECT_API_URL is not set.", style="yellow")
        if running is not None and "metrics" in running.parts:
            console.print(f"The stack here serves them already, at {running.parts['metrics'].url}.")
        for name, value in (("PREFECT_API_URL", prefect), ("MLFLOW_TRACKING_URI", mlflow)):
            if value:
                os.environ[name] = value
        os.environ["TRADEFLOWS_HOME"] = str(settings.home.resolve())
        # a new process: this one has imported three times what the endpoint needs
        os.execv(sys.executable, [sys.executable, "-m", "deployments.metrics", "--port", str(port)])  # noqa: S606
