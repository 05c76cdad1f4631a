"""Authentication of the local stack: one password for Prefect and MLflow, and which part is told which secret.

A server gets what it checks and nothing else: neither the signing key nor the keys of others. The password goes to a
process in its environment, never on a command line, and is in no file of ours; MLflow keeps a salted hash.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import httpx

from deployments.prefect_api import trusted
from tasks import credentials
from tasks.credentials import USER, VARIABLE
from tasks.settings import Settings, secret_variables
from trading.errors import ConfigurationError

# of Prefect and MLflow: what a client sends, or a server compares it with
CREDENTIALS: Final = frozenset({
    "PREFECT_API_AUTH_STRING", "PREFECT_API_KEY", "PREFECT_SERVER_API_AUTH_STRING",
    "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY",
})  # fmt: skip
# one process serves MLflow, so that a new password holds at once in spite of the cache; a check takes 0.05 s
INI: Final = """\
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{database}
admin_username = {user}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 300
"""
PROBE_SECONDS: Final = 5.0
Door = Literal["open", "closed", "refused", "silent"]


def require_password(settings: Settings) -> None:
    """Refuse to start servers that let everybody in where that is not to be.

    Raises:
        ConfigurationError: no password in production or beyond loopback, or another one in Prefect's variables.
    """
    known = credentials.pair(settings)
    if known is None:
        if settings.environment == "production" or not settings.loopback:
            raise ConfigurationError(
                f"{VARIABLE} must be set to start Prefect and MLflow in production, or where others can reach them; "
                "make one with: openssl rand -hex 24"
            )
        return
    for name in ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"):
        if os.environ.get(name, ":".join(known)) != ":".join(known):
            raise ConfigurationError(f"{name} is set, and is not {USER}: and the password of {VARIABLE}; unset one")


def without_secrets(variables: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process that needs no secret of ours."""
    kept_out = secret_variables() | CREDENTIALS
    return {name: value for name, value in variables.items() if name not in kept_out}


def of_clients(settings: Settings) -> dict[str, str]:
    """What a worker and its flow runs need to be let in by the stack's own servers."""
    known = credentials.pair(settings)
    if known is None:
        return {}
    return {
        "PREFECT_API_AUTH_STRING": ":".join(known),
        "MLFLOW_TRACKING_USERNAME": known[0],
        "MLFLOW_TRACKING_PASSWORD": known[1],
    }


def of_prefect_server(settings: Settings) -> dict[str, str]:
    """What Prefect's server compares requests with."""
    known = credentials.pair(settings)
    if known is not None:
        return {"PREFECT_SERVER_API_AUTH_STRING": ":".join(known)}
    told = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    return {"PREFECT_SERVER_API_AUTH_STRING": told} if told else {}


def of_mlflow_server(settings: Settings, folder: Path) -> dict[str, str]:
    """What MLflow's server needs to check requests; writes its configuration, without secrets, into ``folder``."""
    known = credentials.pair(settings)
    if known is None:
        return {}
    ini = folder / "auth.ini"
    # to the parser of such files a percent sign means something
    database = str(folder / "auth.db").replace("%", "%%")
    ini.write_text(INI.format(database=database, user=known[0]))
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(ini),
        "MLFLOW_AUTH_ADMIN_USERNAME": known[0],
        "MLFLOW_AUTH_ADMIN_PASSWORD": known[1],
        # signs the form for new users: one that is open over a restart must be opened again
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
    }


def door(method: str, url: str, auth: tuple[str, str] | None = None) -> Door:
    """How a server answers a question that only those who are let in may ask.

    ``refused`` is 401 or 403 with ``auth``, ``closed`` the same without; ``silent`` is any other answer, or none.
    """
    verify = trusted(url)
    try:
        answer = httpx.request(
            method, url, json={}, auth=auth, timeout=PROBE_SECONDS, trust_env=bool(verify), verify=verify
        )
    except httpx.HTTPError:
        return "silent"
    if answer.status_code in (401, 403):
        return "refused" if auth else "closed"
    return "open" if answer.is_success else "silent"


def prefect_question(api: str) -> tuple[str, str]:
    """Method and address of a small question to Prefect's API, ``api`` ending in ``/api``."""
    return "POST", f"{api.rstrip('/')}/flows/count"


def mlflow_question(url: str) -> tuple[str, str]:
    """Method and address of a small question to MLflow."""
    return "GET", f"{url.rstrip('/')}/api/2.0/mlflow/experiments/get?experiment_id=0"


def require_closed(settings: Settings, api: str) -> None:
    """In production, refuse a Prefect server that lets everybody in.

    Raises:
        ConfigurationError: it does.
    """
    if settings.environment == "production" and door(*prefect_question(api)) == "open":
        raise ConfigurationError(
            f"the Prefect server at {api} lets everybody in, and TRADEFLOWS_ENVIRONMENT is production; set "
            "PREFECT_SERVER_API_AUTH_STRING for it, or start it with `tradeflows up`"
        )
