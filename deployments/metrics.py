"""The metrics endpoint: ``/metrics`` in Prometheus' text format, on loopback. ``python -m deployments.metrics``.

Nothing is counted here by flows, which come and go: each scrape asks Prefect, the store, MLflow's registry and the
stack's own record for what they hold (``deployments.metrics_sources`` says how often). It holds no secret, writes
nothing, and asks for no password: whoever can reach the loopback address can read it.
"""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlparse
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer, generate_latest

from deployments import metrics_prefect, metrics_registry
from deployments.metrics_prefect import PrefectRuns
from deployments.metrics_registry import RegistryReader
from deployments.metrics_sources import Source, Sources
from deployments.metrics_stack import StackReader
from deployments.metrics_store import StoreReader
from tasks import log
from tasks.settings import Settings
from trading.errors import ConfigurationError

LOOPBACK: Final = "127.0.0.1"
PORT: Final = 9464
PATH: Final = "/metrics"
# a page of another site that was made to resolve to this machine would name itself here
HOSTS: Final = frozenset({"127.0.0.1", "localhost", "::1"})
SOCKET_SECONDS: Final = 30.0
App = Callable[[dict[str, Any], Callable[..., Any]], list[bytes]]


def sources(settings: Settings, prefect: str | None, mlflow: str | None) -> list[Source]:
    """Everything that is asked: the stack and the store always, the servers where there are any.

    Args:
        prefect: its API, with ``/api``; ``mlflow``: a tracking server over HTTP.
    """
    home = settings.home.resolve()
    found = [
        Source("stack", StackReader(home), every=5.0),
        Source("store", StoreReader(settings.model_copy(update={"home": home}))),
    ]
    if prefect is not None:
        found.append(Source("prefect", PrefectRuns(prefect), every=metrics_prefect.EVERY_SECONDS))
    if mlflow is not None and urlparse(mlflow).scheme in ("http", "https"):
        found.append(Source("mlflow", RegistryReader(mlflow), every=metrics_registry.EVERY_SECONDS))
    return found


def registry(asked: Sequence[Source]) -> CollectorRegistry:
    """The sources, and what the process of the endpoint itself takes."""
    made = CollectorRegistry(auto_describe=False)
    made.register(Sources(asked))
    ProcessCollector(registry=made)
    return made


def text(asked: Sequence[Source]) -> str:
    """One scrape, in Prometheus' text format."""
    return generate_latest(registry(asked)).decode()


@contextmanager
def served(asked: Sequence[Source], port: int) -> Iterator[tuple[str, ThreadingWSGIServer]]:
    """The address of an endpoint that listens, and its server, to call ``serve_forever`` on.

    Raises:
        ConfigurationError: the port cannot be had.
    """
    try:
        server = make_server(LOOPBACK, port, _app(registry(asked)), ThreadingWSGIServer, handler_class=_Quiet)
    except OSError as error:
        raise ConfigurationError(
            f"port {port} of {LOOPBACK} cannot be had ({error.strerror}); choose another one with --port"
        ) from error
    assert isinstance(server, ThreadingWSGIServer)  # noqa: S101 - what make_server was given
    with server:
        yield f"http://{LOOPBACK}:{server.server_port}{PATH}", server


def serve(asked: Sequence[Source], port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; ``ready`` is told the address.

    Raises:
        ConfigurationError: as ``served``.
    """
    with served(asked, port) as (address, server):
        # serve_forever would wait for itself if it were stopped from its own thread
        stop = threading.Thread(target=server.shutdown, daemon=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None if stop.ident else stop.start())
        ready(address)
        server.serve_forever(poll_interval=0.2)


class _Quiet(WSGIRequestHandler):
    """A scrape every few seconds is no news. A client that says nothing is not waited for."""

    timeout = SOCKET_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _app(told: CollectorRegistry) -> App:
    metrics = make_wsgi_app(told)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        def plain(status: str, said: str) -> list[bytes]:
            start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
            return [said.encode()]

        host = urlparse(f"//{environ.get('HTTP_HOST', '')}").hostname
        if host not in HOSTS:
            return plain("403 Forbidden", "ask for it under a loopback address\n")
        if environ["PATH_INFO"] == PATH:
            answer: list[bytes] = metrics(environ, start_response)
            return answer
        if environ["PATH_INFO"] == "/":
            return plain("200 OK", f"tradeflows; the metrics are at {PATH}\n")
        return plain("404 Not Found", f"only {PATH} is here\n")

    return app


def main(argv: Sequence[str] | None = None) -> None:
    """The endpoint as a part of the local stack: what it asks stands in its environment."""
    import os

    from deployments.running import prepared, told

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--port", type=int, default=PORT, help="0: a free one")
    options = parser.parse_args(argv)
    with told(False):
        settings = prepared(options.home)
        log.to_console(settings.log_format)
        asked = sources(settings, os.environ.get("PREFECT_API_URL"), os.environ.get("MLFLOW_TRACKING_URI"))
        serve(asked, options.port, lambda address: print(f"metrics at {address}", flush=True))


if __name__ == "__main__":
    main()
