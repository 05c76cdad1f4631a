"""``tradeflows serve-model``: the verified champion behind HTTP, until it is stopped."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from deployments import stack
from deployments.running import HomeFolder, Traceback, prepared, told
from tasks import credentials, log
from tasks.settings import Settings
from trading.errors import ConfigurationError

READY: Final = "serving "


def serve_model(
    name: Annotated[str, typer.Argument(help="Model, such as BTCUSDT-ETHUSDT-1h")],
    port: Annotated[int, typer.Option(help="0: a free one", min=0, max=65_535)] = 5001,
    watch: Annotated[float, typer.Option(help="Seconds between looks for a new champion; 0: never", min=0)] = 60.0,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Answer posted candles with the champion's signal; its signature and files are verified first."""
    with told(traceback):
        settings = with_registry(prepared(home), home)
        known = required_password(settings)
        import uvicorn

        from deployments.serve_champion import ChampionWatch
        from deployments.serve_server import application
        from tasks import registry
        from tasks.store import configured_store

        log.to_console(settings.log_format)
        with configured_store(settings) as store, listening(settings.bind, port) as server:
            served = ChampionWatch(registry.connect(settings), settings, store, name)
            hosts = ("127.0.0.1", "localhost") if settings.loopback else ("*",)
            app = application(served, known, hosts=hosts, every=watch)
            found = served.current.champion
            address = f"http://{settings.bind}:{server.getsockname()[1]}"
            console = Console(highlight=False, soft_wrap=True)
            if found is not None:
                console.print(f"{READY}{name} version {found.version} ({found.estimator}) on {address}", markup=False)
                console.print(f"verified: manifest {found.manifest_sha256[:12]}, run {found.run_id}", markup=False)
                if found.degraded:
                    console.print(f"degraded: {found.degraded}", style="yellow", markup=False)
            config = uvicorn.Config(app, log_level="warning", access_log=False)
            uvicorn.Server(config).run(sockets=[server])


def with_registry(settings: Settings, home: Path | None) -> Settings:
    """The settings; where a stack runs here, its MLflow server is the registry unless another one is set."""
    running = stack.running_stack(settings.home)
    if running is None or settings.mlflow_tracking_uri:
        return settings
    os.environ["MLFLOW_TRACKING_URI"] = url = running.parts["mlflow"].url or ""
    os.environ.setdefault("TRADEFLOWS_MLFLOW_UI_URL", url)
    return prepared(home)


def required_password(settings: Settings) -> tuple[str, str] | None:
    """User and password to ask for, None where everybody on this machine may ask.

    Raises:
        ConfigurationError: there is none in production.
    """
    known = credentials.pair(settings)
    if known is None and settings.environment == "production":
        raise ConfigurationError(
            f"{credentials.VARIABLE} must be set to serve a model in production; make one with: openssl rand -hex 24"
        )
    return known


def listening(address: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        ConfigurationError: somebody else does.
    """
    try:
        made = socket.create_server((address, port))
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen at {address}:{port} ({error.strerror}); give another --port"
        ) from error
    # else every reply but a connection's first waits for an acknowledgement
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made
