"""``tradeflows doctor``: what could keep the stack from working, and what to do about each.

A check is a function that yields findings; a check that cannot find out says so, and none raises. Nothing is changed.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

import httpx
import psutil
from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape

from deployments import auth_checks, stack, stack_state
from deployments.findings import Finding, Level
from tasks.settings import PREFIX, Settings, known_variables, load_settings
from trading.errors import TradeflowsError

PROJECT: Final = "tradeflows"
PYTHONS: Final = ((3, 11), (3, 14))
# what a stack takes at rest, and a training on top
MEMORY_BYTES: Final = 2 * 1024**3
DISK_BYTES: Final = 2 * 1024**3
DISK_LEAST: Final = 200 * 1024**2
SKEW_SECONDS: Final = 5.0
SKEW_WORST: Final = 60.0
# variables of others that change what we do, and what they should be
SURPRISES: Final = {
    "PREFECT_PROFILE": "a profile may set other addresses; unset it, or look at `prefect config view`",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "with true, flows that find no server start one of their own",
    "PREFECT_SERVER_API_HOST": "the stack listens at TRADEFLOWS_BIND, 127.0.0.1 unless set; unset this one",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "models need no pickle; leave it unset",
}
MARKS: Final = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "error": "[bold red]error[/]"}


def run(home: Path | None, console: Console) -> bool:
    """Check everything and print it; False where something is wrong."""
    findings = list(examined(home))
    for finding in findings:
        console.print(f"{MARKS[finding.level]:<22} {finding.check}: {escape(finding.seen)}")
        if finding.advice:
            console.print(f"{'':>8}-> {escape(finding.advice)}")
    errors, warnings = (sum(finding.level == level for finding in findings) for level in ("error", "warning"))
    console.print(f"\n{len(findings)} checks, {errors} errors, {warnings} warnings.")
    return not errors


def examined(home: Path | None) -> Iterator[Finding]:
    """All findings, in the order in which one would mend them."""
    if home is not None:
        os.environ["TRADEFLOWS_HOME"] = str(home)
    yield from python()
    yield from pins(importlib.metadata.requires(PROJECT) or ())
    yield from variables(os.environ)
    try:
        settings = load_settings()
    except TradeflowsError as error:
        yield Finding("error", "settings", str(error), "set, mend or unset the variable that is named, and look again")
        return
    yield Finding("ok", "settings", f"{settings.environment}, data in {settings.home.resolve()}")
    yield from auth_checks.secret_files(os.environ)
    folder = settings.home.resolve()
    state = stack_state.read(folder)
    yield from writable(folder)
    yield from disk(folder)
    yield from memory(psutil.virtual_memory().available, running=bool(state and state.supervised))
    yield from database(settings)
    yield from running(state)
    yield from ports(state)
    for name, url in servers(settings, state):
        yield from server(name, url, required=bool(state and state.supervised))
    yield from auth_checks.authentication(settings, state)


def python() -> Iterator[Finding]:
    """The interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    fits = PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]
    advice = "" if fits else "make the environment again with Python 3.11 to 3.13: `make clean demo`"
    yield Finding("ok" if fits else "error", "python", f"{version}, {sys.prefix}", advice)


def pins(requirements: object) -> Iterator[Finding]:
    """What is installed against what pyproject.toml asks for; other versions fail silently (see its comments)."""
    wrong = []
    count = 0
    for text in requirements if isinstance(requirements, list | tuple) else ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is not installed")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name} is {found}, wanted {wanted.specifier}")
    if wrong or not count:
        seen = "; ".join(wrong) or f"{PROJECT} is not installed"
        yield Finding("error", "versions", seen, "install what is locked: `rm .venv/.installed; make demo`")
    else:
        yield Finding("ok", "versions", f"{count} packages as pyproject.toml wants them")


def variables(environment: object) -> Iterator[Finding]:
    """Variables that surprise."""
    known = known_variables()
    told = dict(environment) if isinstance(environment, dict | os._Environ) else {}
    unknown = sorted(name for name in told if name.startswith(PREFIX) and name not in known)
    if unknown:
        yield Finding(
            "error", "environment", f"unknown: {', '.join(unknown)}", "unset them, or spell them as the README does"
        )
    for name in sorted(told.keys() & SURPRISES.keys()):
        yield Finding("warning", "environment", f"{name} is set", SURPRISES[name])
    proxies = [name for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy") if told.get(name)]
    spared = told.get("NO_PROXY", "") + told.get("no_proxy", "")
    if proxies and not ("127.0.0.1" in spared or spared.strip() == "*"):
        advice = "set NO_PROXY=127.0.0.1,localhost, or Prefect and MLflow on this machine are asked through the proxy"
        yield Finding("error", "environment", f"{proxies[0]} is set", advice)
    if not unknown and not proxies and not told.keys() & SURPRISES.keys():
        yield Finding("ok", "environment", "no variable that surprises")


def writable(home: Path) -> Iterator[Finding]:
    """The data folder can be written, and nobody else reads it."""
    folder = next(path for path in (home, *home.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        advice = "set TRADEFLOWS_HOME, or --home, to a folder that you can write"
        yield Finding("error", "folder", f"{folder} cannot be written ({error.strerror})", advice)
        return
    strange = next((path for path in home.rglob("*") if _owner(path) != os.getuid()), None)
    if strange is not None:
        advice = f"as after sudo; make them yours: chown -R {os.getuid()} {home}"
        yield Finding("error", "folder", f"files of {home} belong to another user, such as {strange}", advice)
    elif home.exists() and home.stat().st_mode & 0o002:
        yield Finding("warning", "folder", f"everybody may write to {home}", f"chmod o-w {home}")
    else:
        yield Finding("ok", "folder", f"{home} can be written" if home.exists() else f"{home} will be made in {folder}")


def _owner(path: Path) -> int:
    try:
        return path.lstat().st_uid
    except FileNotFoundError:  # gone meanwhile, as files of a running database are
        return os.getuid()


def disk(home: Path) -> Iterator[Finding]:
    """Room for candles, models and logs."""
    folder = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    level: Level = "ok" if free >= DISK_BYTES else "warning" if free >= DISK_LEAST else "error"
    advice = "" if level == "ok" else f"make room on the disk of {folder}, or set TRADEFLOWS_HOME to another one"
    yield Finding(level, "disk", f"{free / 2**30:.1f} GiB are free", advice)


def memory(available: int, *, running: bool) -> Iterator[Finding]:
    """Room for the servers and a training."""
    enough = running or available >= MEMORY_BYTES
    advice = "" if enough else "the servers take 0.8 GiB, a training as much again: close something, or expect swapping"
    yield Finding("ok" if enough else "warning", "memory", f"{available / 2**30:.1f} GiB are available", advice)


def database(settings: Settings) -> Iterator[Finding]:
    """The store opens and answers."""
    from tasks.store import configured_store

    if settings.mongodb_url is None and not settings.home.exists():
        yield Finding("ok", "store", "not there yet; the first ingest makes it")
        return
    try:
        with configured_store(settings):
            pass
    except (TradeflowsError, OSError) as error:
        kind = "MONGODB_URL" if settings.mongodb_url else f"the files in {settings.home}"
        yield Finding("error", "store", str(error), f"look at {kind}; a backup can be restored into an empty folder")
        return
    yield Finding("ok", "store", "MongoDB answers" if settings.mongodb_url else "the embedded store opens")


def running(state: stack_state.StackState | None) -> Iterator[Finding]:
    """The stack of this home, if there is one."""
    if state is None:
        yield Finding("ok", "stack", "not running; `tradeflows up` starts it")
    elif not state.supervised:
        left = len(stack_state.family(state))
        advice = "`tradeflows down` stops what is left and removes the file"
        yield Finding(
            "error", "stack", f"its supervisor (process {state.pid}) is gone, {left} processes are left", advice
        )
    elif not state.well:
        for name, part in state.parts.items():
            if part.state not in ("ready", "done"):
                advice = f"look at `tradeflows logs {name}`, then `tradeflows down` and `up`"
                yield Finding("error", "stack", f"{name} is {part.state}: {part.told or 'no reason known'}", advice)
    else:
        restarts = sum(part.restarts for part in state.parts.values())
        level: Level = "warning" if restarts else "ok"
        advice = "look at `tradeflows status` and `tradeflows logs stack`" if restarts else ""
        yield Finding(level, "stack", f"running, {restarts} restarts", advice)


def ports(state: stack_state.StackState | None) -> Iterator[Finding]:
    """The usual ports."""
    ours = {part.url for part in state.parts.values()} if state and state.supervised else set()
    for name, port in (("Prefect", 4200), ("MLflow", 5000)):
        if f"http://{stack.LOOPBACK}:{port}" in ours:
            yield Finding("ok", "ports", f"{port} is our {name}")
        elif stack.free_port(port) == port:
            yield Finding("ok", "ports", f"{port} is free for {name}")
        else:
            yield Finding(
                "warning", "ports", f"{port} is taken", f"`tradeflows up` takes another port for {name}, and says which"
            )


def servers(settings: Settings, state: stack_state.StackState | None) -> Iterator[tuple[str, str]]:
    """The servers that are to answer: those of the stack, else those that variables name."""
    if state is not None and state.supervised:
        yield "Prefect", f"{state.prefect_api}/ready"
        yield "MLflow", f"{state.parts['mlflow'].url}/health"
        return
    if "PREFECT_API_URL" in os.environ:
        yield "Prefect", f"{os.environ['PREFECT_API_URL'].rstrip('/')}/health"
    if settings.mlflow_tracking_uri and settings.mlflow_tracking_uri.startswith("http"):
        yield "MLflow", f"{settings.mlflow_tracking_uri.rstrip('/')}/health"
    yield "exchange", f"{settings.exchange_url}/api/v3/time"


def server(
    name: str, url: str, *, required: bool, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Iterator[Finding]:
    """It answers, and its clock says what ours says."""
    try:
        answer = httpx.get(url, timeout=5.0)
    except httpx.TransportError as error:
        advice = (
            "start it with `tradeflows up`"
            if name != "exchange"
            else "candles come from it: set TRADEFLOWS_EXCHANGE_URL"
        )
        level: Level = "error" if required or name != "exchange" else "warning"
        yield Finding(level, name, f"{httpx.URL(url).host} does not answer ({error or type(error).__name__})", advice)
        return
    if answer.status_code != 200:
        advice = "with 401, set PREFECT_API_AUTH_STRING; else look at its log"
        yield Finding("error", name, f"{url} answers {answer.status_code}", advice)
        return
    try:
        told = parsedate_to_datetime(answer.headers["date"])
    except (KeyError, ValueError):
        yield Finding("ok", name, f"{url} answers, and does not say what time it is")
        return
    # the header has whole seconds
    skew = (now() - told).total_seconds()
    skew = max(abs(skew) - 1.0, 0.0)
    if skew > SKEW_SECONDS:
        clock: Level = "error" if skew > SKEW_WORST else "warning"
        advice = "set this machine's clock by NTP (timedatectl set-ntp true): a wrong clock makes wrong windows"
        yield Finding(clock, name, f"its clock is {skew:.0f} s from ours", advice)
    else:
        yield Finding(
            "ok",
            name,
            f"{httpx.URL(url).host}:{httpx.URL(url).port or ''} answers, its clock agrees".replace(": a", " a"),
        )
