"""What the wide stack is made of: the processes that several machines would share out, here all on this one.

PostgreSQL, Redis and MongoDB; two Prefect API servers and the background services apart from them; MLflow; workers that
share no folder; a Dask cluster; a sandbox exchange. Everything runs with ``TRADEFLOWS_ENVIRONMENT=production``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import httpx
from pydantic import SecretStr

from deployments import auth
from deployments.declared import POOL
from deployments.scale_databases import mongodb_part, postgres_parts, redis_part, secret
from deployments.stack_parts import HEARTBEAT_SECONDS, LOOPBACK, QUERY_SECONDS, SERVER_LOOPS, answers, free_port
from deployments.supervising import Part
from deployments.worker import PATIENCE_SECONDS
from tasks import credentials, environment
from tasks.settings import Settings

# Prefect's messages, locks and leases in Redis: what several servers need to be one
ON_REDIS: Final[Mapping[str, str]] = {
    "PREFECT_MESSAGING_BROKER": "prefect_redis.messaging",
    "PREFECT_MESSAGING_CACHE": "prefect_redis.messaging",
    "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
    "PREFECT_SERVER_WORKER_CHANNEL_CLEANUP_QUEUE_STORAGE": "prefect_redis.cleanup_queue",
}
API_SERVERS: Final = ("prefect", "prefect-2")


@dataclass(frozen=True)
class Wide:
    """How wide.

    Attributes:
        exchange_url: where candles come from; empty for a sandbox exchange of its own.
        mongodb_url: the store; empty for a server for tests of its own.
        at_once: runs that a worker takes at the same time.
    """

    workers: int = 3
    dask_workers: int = 2
    exchange_url: str = ""
    mongodb_url: str = ""
    at_once: int = 1


@dataclass(frozen=True)
class WideParts:
    """The processes, in the order of their start; the environment of who wants to talk to them; PostgreSQL's address.

    ``postgres`` has host, port, user and password.
    """

    parts: tuple[Part, ...]
    client: Mapping[str, str]
    postgres: Mapping[str, str]


def wide_parts(home: Path, wide: Wide) -> WideParts:
    """What to start.

    Raises:
        ConfigurationError: a program is not on this machine; says how to install it.
    """
    settings = _settings(home)
    made, login = postgres_parts(home)
    redis, redis_port = redis_part(home)
    made.append(redis)
    mongodb_url = wide.mongodb_url
    if not mongodb_url:
        mongodb, mongodb_url = mongodb_part(home)
        made.append(mongodb)
    exchange_url = wide.exchange_url or f"http://{LOOPBACK}:{free_port(0)}"
    apis = [f"http://{LOOPBACK}:{free_port(0)}/api" for _ in API_SERVERS]
    mlflow_url = f"http://{LOOPBACK}:{free_port(0)}"
    dask_port = free_port(0)
    client = {
        "PREFECT_API_URL": apis[0],
        "MLFLOW_TRACKING_URI": mlflow_url,
        "MONGODB_URL": mongodb_url,
        "TRADEFLOWS_ENVIRONMENT": "production",
        "TRADEFLOWS_ALLOWED_HOSTS": LOOPBACK,
        "TRADEFLOWS_EXCHANGE_URL": exchange_url,
        "TRADEFLOWS_SIGNING_KEY": secret(home, "signing-key"),
        "TRADEFLOWS_DASK_ADDRESS": f"tcp://{LOOPBACK}:{dask_port}",
        "TRADEFLOWS_MLFLOW_UI_URL": mlflow_url,
        **auth.of_clients(settings),
    }
    common = {
        **os.environ,
        **environment.defaults(home),
        **client,
        "TRADEFLOWS_HOME": str(home),
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
        "PYTHONUNBUFFERED": "1",
    }
    if not wide.exchange_url:
        made.append(_sandbox(common, exchange_url))
    made += _prefect(home, settings, common, login, redis_port, apis)
    made.append(_mlflow(home, settings, common, login, mlflow_url))
    deploy = (*_python("deployments.stack_command"), "--deploy", "--sandbox")
    made.append(Part("deploy", deploy, common, lambda _: True, after=API_SERVERS, once=True))
    made += _dask(home, common, dask_port, wide.dask_workers)
    for number in range(1, wide.workers + 1):
        made.append(_worker(home, settings, common, number, apis[number % len(apis)], wide.at_once))
    postgres = {name.removeprefix("PG").lower(): value for name, value in login.items()}
    return WideParts(tuple(made), client, postgres)


def _settings(home: Path) -> Settings:
    """Those of the environment, with a password in any case."""
    settings = Settings(home=home)  # type: ignore[call-arg]
    password = settings.password or SecretStr(secret(home, "password"))
    return settings.model_copy(update={"password": password})


def _sandbox(common: Mapping[str, str], url: str) -> Part:
    command = (*_python("deployments.sandbox"), "--port", url.rpartition(":")[2], "--clock", "now")
    return Part("sandbox", command, auth.without_secrets(common), partial(_answers, f"{url}/api/v3/time"), url)


def _prefect(
    home: Path,
    settings: Settings,
    common: Mapping[str, str],
    login: Mapping[str, str],
    redis_port: int,
    apis: Sequence[str],
) -> list[Part]:
    """The database's tables, two servers for requests alone, and the services (schedules, automations, ...)."""
    password = secret(home, "redis")
    variables = {
        **auth.without_secrets(common),
        **auth.of_prefect_server(settings),
        **ON_REDIS,
        "PREFECT_SERVER_DATABASE_DRIVER": "postgresql+asyncpg",
        "PREFECT_SERVER_DATABASE_HOST": login["PGHOST"],
        "PREFECT_SERVER_DATABASE_PORT": login["PGPORT"],
        "PREFECT_SERVER_DATABASE_USER": login["PGUSER"],
        "PREFECT_SERVER_DATABASE_PASSWORD": login["PGPASSWORD"],
        "PREFECT_SERVER_DATABASE_NAME": "prefect",
        # once, and not by every server at the same time
        "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",
        # what cleans up after workers has an address of its own
        **{
            f"PREFECT_REDIS_{who}_{name}": value
            for who in ("MESSAGING", "WORKER_CLEANUP_QUEUE")
            for name, value in (("HOST", LOOPBACK), ("PORT", str(redis_port)), ("PASSWORD", password))
        },
        "PREFECT_SERVER_DOCKET_URL": f"redis://default:{password}@{LOOPBACK}:{redis_port}/0",
        **{f"PREFECT_SERVER_SERVICES_{service}_LOOP_SECONDS": str(every) for service, every in SERVER_LOOPS.items()},
    }
    upgrade = (*_python("prefect"), "server", "database", "upgrade", "--yes")
    made = [Part("tables", upgrade, variables, lambda _: True, after=("databases",), once=True)]
    # one after the other: each registers Prefect's blocks when it starts, and two at a time are in each other's way
    before: tuple[str, ...] = ("tables", "redis")
    for name, api in zip(API_SERVERS, apis, strict=True):
        url = api.removesuffix("/api")
        listening = {
            "PREFECT_SERVER_API_HOST": LOOPBACK,
            "PREFECT_SERVER_API_PORT": url.rpartition(":")[2],
            "PREFECT_SERVER_UI_API_URL": "/api",
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url,
        }
        command = (*_python("prefect"), "server", "start", "--no-services")
        made.append(Part(name, command, {**variables, **listening}, partial(_answers, f"{api}/ready"), url, before))
        before = (name,)
    services = (*_python("prefect"), "server", "services", "start")
    # they have no address to ask; that they work, their work says
    made.append(Part("services", services, variables, lambda _: True, after=("tables", "redis")))
    return made


def _mlflow(home: Path, settings: Settings, common: Mapping[str, str], login: Mapping[str, str], url: str) -> Part:
    folder = home / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    command = (
        *_python("deployments.auth_mlflow"), "server", "--app-name", "basic-auth",
        "--host", LOOPBACK, "--port", url.rpartition(":")[2], "-w", "1",
        # libpq takes user and password from its own variables
        "--backend-store-uri", f"postgresql://{login['PGHOST']}:{login['PGPORT']}/mlflow",
        "--artifacts-destination", str(folder / "artifacts"),
    )  # fmt: skip
    variables = {
        **auth.without_secrets(common),
        **auth.of_mlflow_server(settings, folder),
        **login,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    asked, known = f"{url}/api/2.0/mlflow/experiments/search", credentials.pair(settings)
    return Part(
        "mlflow", command, variables, lambda _: answers("POST", asked, {"max_results": 1}, known), url, ("databases",)
    )


def _dask(home: Path, common: Mapping[str, str], port: int, workers: int) -> list[Part]:
    pages = free_port(0)
    identity = f"http://{LOOPBACK}:{pages}/json/identity.json"
    address = f"tcp://{LOOPBACK}:{port}"
    scheduler = (
        *_python("dask"), "scheduler", "--host", LOOPBACK, "--port", str(port), "--no-dashboard",
        "--dashboard-address", f"{LOOPBACK}:{pages}",
    )  # fmt: skip
    made = [Part("dask", scheduler, auth.without_secrets(common), partial(_answers, identity))]
    for number in range(1, workers + 1):
        name = f"dask-{number}"
        folder = home / name
        command = (
            *_python("dask"), "worker", address, "--host", LOOPBACK, "--name", name, "--nthreads", "1", "--no-nanny",
            "--no-dashboard", "--memory-limit", "0", "--local-directory", str(folder / "scratch"),
        )  # fmt: skip
        variables = {**common, "TRADEFLOWS_HOME": str(folder)}
        made.append(Part(name, command, variables, partial(_known, identity, name), after=("dask",)))
    return made


def _worker(home: Path, settings: Settings, common: Mapping[str, str], number: int, api: str, at_once: int) -> Part:
    """A worker with folders of its own, as on a machine of its own."""
    name = f"worker-{number}"
    variables = {
        **common,
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(home / name / "prefect"),
        "TRADEFLOWS_HOME": str(home / name),
        "PREFECT_WORKER_QUERY_SECONDS": str(QUERY_SECONDS),
        "PREFECT_WORKER_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS),
    }
    command = (*_python("deployments.worker"), "--pool", POOL, "--name", name, "--limit", str(at_once))
    (home / name / "prefect").mkdir(parents=True, exist_ok=True)
    ready = partial(_beats, api, credentials.pair(settings), name)
    return Part(name, command, variables, ready, after=("deploy", "mlflow"), stop_seconds=PATIENCE_SECONDS)


def _python(module: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module)


def _answers(url: str, _: float) -> bool:
    return answers("GET", url)


def _known(identity: str, name: str, _: float) -> bool:
    """The Dask scheduler has the worker."""
    try:
        told = httpx.get(identity, timeout=5.0, trust_env=False, verify=False).raise_for_status().json()  # noqa: S501
    except httpx.HTTPError:
        return False
    return any(one["name"] == name for one in told["workers"].values())


def _beats(api: str, known: tuple[str, str] | None, name: str, started: float) -> bool:
    """The server has heard the worker since its start, and not too long ago."""
    try:
        with httpx.Client(base_url=api, auth=known, timeout=5.0, trust_env=False, verify=False) as asked:  # noqa: S501
            found = asked.post(f"/work_pools/{POOL}/workers/filter", json={}).raise_for_status().json()
    except httpx.HTTPError:
        return False
    times = [one["last_heartbeat_time"] for one in found if one["name"] == name and one["last_heartbeat_time"]]
    heard = max((datetime.fromisoformat(moment) for moment in times), default=datetime.fromtimestamp(0, UTC))
    return heard.timestamp() >= max(started, time.time() - 4 * HEARTBEAT_SECONDS)
