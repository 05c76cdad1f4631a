"""What every command does first and last: settings and environment of the process; errors as one sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deployments.prefect_server import mend_on_demand
from tasks import credentials, environment, log
from tasks.addresses import without_login
from tasks.settings import Settings, load_settings
from trading.errors import TradeflowsError

HomeFolder = Annotated[
    Path | None, typer.Option("--home", help="Data folder (default: TRADEFLOWS_HOME or .tradeflows)")
]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error")]


def prepared(home: Path | None, *, default: Path | None = None) -> Settings:
    """Settings and environment of this process; ``home`` wins over the environment, that over ``default``."""
    chosen = home or (default if "TRADEFLOWS_HOME" not in os.environ else None)
    if chosen is not None:
        os.environ["TRADEFLOWS_HOME"] = str(chosen)
    settings = load_settings()
    environment.prepare(settings.home)
    os.environ.update(credentials.for_clients(settings))
    # Prefect's own lines would break the progress bars; its pages have them all
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    log.configure(settings.log_format)
    return settings


def prepared_for_flows(home: Path | None, *, default: Path | None = None) -> Settings:
    """``prepared``, and the server that Prefect starts for flows where ``PREFECT_API_URL`` names none is mended."""
    settings = prepared(home, default=default)
    if not os.environ.get("PREFECT_API_URL"):
        mend_on_demand()
    return settings


def utc(moment: datetime | None) -> datetime | None:
    """A time of the command line, which is in UTC unless it says otherwise."""
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


@contextmanager
def told(traceback: bool) -> Iterator[None]:
    """Errors become one sentence on standard error and exit code 1, or a traceback where asked for."""
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print("[yellow]stopped[/]")
        raise typer.Exit(130) from None
    except typer.Exit:  # said already; to Python it is a RuntimeError
        raise
    except Exception as error:
        # MLflow's are plain exceptions; where it was not imported it raised none
        mlflow = sys.modules.get("mlflow.exceptions")
        expected = (TradeflowsError, OSError, ValueError, RuntimeError, *([mlflow.MlflowException] if mlflow else []))
        if traceback or not isinstance(error, expected):
            raise
        kind = type(error).__name__
        Console(stderr=True, soft_wrap=True).print(f"[bold red]{kind}[/]: ", end="")
        Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(without_login(str(error)))
        raise typer.Exit(1) from None
