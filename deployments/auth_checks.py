"""The doctor's checks of secrets and authentication."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from deployments import auth, stack_state
from deployments.findings import Finding, Level
from tasks import credentials
from tasks.secret_files import SUFFIX
from tasks.settings import Settings, secret_variables


def secret_files(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Files that hold secrets are read by us alone."""
    for name in sorted(name for name in secret_variables() if name.endswith(SUFFIX) and environment.get(name)):
        path = Path(environment[name])
        # in a container everybody who gets there may read them
        if not path.is_relative_to("/run/secrets") and path.exists() and path.stat().st_mode & 0o077:
            yield Finding("warning", "secrets", f"others may read {path} ({name})", f"chmod 600 {path}")


def authentication(settings: Settings, state: stack_state.StackState | None) -> Iterator[Finding]:
    """Prefect and MLflow ask for the password, and take ours."""
    known = credentials.pair(settings)
    running = state is not None and state.supervised
    prefect = state.prefect_api if state and running else os.environ.get("PREFECT_API_URL")
    mlflow = state.parts["mlflow"].url if state and running else settings.mlflow_tracking_uri
    told = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    asked = [("Prefect", auth.prefect_question(prefect), (told[0], told[2]) if told[0] else known)] if prefect else []
    if mlflow and mlflow.startswith("http"):
        named = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
        asked.append(("MLflow", auth.mlflow_question(mlflow), (named[0], named[1]) if named[0] and named[1] else known))
    if not asked:
        seen = "a password is set" if known else "no password is set; the servers of the stack would listen on loopback"
        yield Finding("ok", "authentication", seen)
    for name, question, pair in asked:
        yield from _asks(name, question, pair, meant=bool(known) or settings.environment == "production")


def _asks(name: str, question: tuple[str, str], known: tuple[str, str] | None, *, meant: bool) -> Iterator[Finding]:
    url = httpx.URL(question[1])
    here = url.host in ("127.0.0.1", "localhost", "::1")
    outside = auth.door(*question)
    if outside == "open":
        level: Level = "error" if meant else "ok" if here else "warning"
        advice = f"set {credentials.VARIABLE}, and start the server again" if level != "ok" else ""
        who = "everybody on this machine" if here else "everybody"
        yield Finding(level, "authentication", f"{name} lets {who} in", advice)
    elif outside == "closed":
        inside = auth.door(*question, known) if known else "refused"
        advice = "" if inside == "open" else f"set {credentials.VARIABLE} to the one that {name} was started with"
        seen = f"{name} asks for a password" + (", and takes ours" if inside == "open" else ", and ours is not the one")
        yield Finding("ok" if inside == "open" else "error", "authentication", seen, advice)
    if known and url.scheme == "http" and not here:
        advice = "put TLS in front of it, as deployments/nginx.conf.example does, and use https://"
        yield Finding("warning", "authentication", f"the password goes to {name} at {url.host} in the clear", advice)
