"""Log lines as JSON: one object a line, for whoever collects logs; and such a line as text again, for people.

``JsonLines`` is what ``tasks/prefect_logging.yml`` and ``deployments/uvicorn_logging.yml`` name. Each object has
``time`` (UTC, ISO 8601), ``level``, ``logger`` and ``message``; inside a flow run also ``flow_run_id``, ``flow_name``,
``trace_id`` and whatever ``tasks.log.about`` said: ``symbol``, ``timeframe``, ``window``. ``trace_id`` is the id of the
flow run that everything of one process belongs to: subflows have ids of their own, and this one in common.

Nothing heavy is imported here: processes that log little read it, too.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

MASK: Final = "***"
# environment variables whose values are never written; shorter ones are no secrets and would mask words
SECRET: Final = re.compile(r"(KEYS?|TOKEN|SECRET|PASSWORD|PASSWD|AUTH_STRING|CREDENTIALS|MONGODB_URL|NOTIFY_URLS)$")
SHORTEST_SECRET: Final = 8
# what every line begins with, in this order
FIRST: Final = ("time", "level", "logger", "message")
# of a flow run's records, as Prefect names them
OF_RUN: Final = ("flow_run_id", "flow_run_name", "flow_name", "task_run_id", "task_run_name", "deployment_name")
UNKNOWN: Final = "<unknown>"
# set by Prefect's worker for the process of a flow run
RUN_VARIABLE: Final = "PREFECT__FLOW_RUN_ID"


class JsonLines(logging.Formatter):
    """Writes each record as one JSON object without line breaks."""

    def __init__(self, *_: object, **__: object) -> None:
        # configurations give formats, which mean nothing here
        super().__init__()
        # printed they would be text
        logging.captureWarnings(True)
        self._secrets = secrets_of(os.environ)

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; what cannot be JSON is its text."""
        said = dict(getattr(record, "fields", None) or {})
        message = str(said.pop("event", None) or record.getMessage())
        for name in ("level", "timestamp"):
            said.pop(name, None)
        if record.exc_info and record.exc_info[0] is not None and "exception" not in said:
            said["exception"] = self.formatException(record.exc_info)
        return line(
            message,
            level=record.levelname.lower(),
            logger=record.name,
            at=record.created,
            fields={**_surroundings(record), **said},
            secrets=self._secrets,
        )


def line(
    message: str,
    *,
    level: str,
    logger: str,
    at: float,
    fields: Mapping[str, Any] | None = None,
    secrets: tuple[str, ...] = (),
) -> str:
    """One object of a log, as JSON.

    Args:
        at: when, in seconds since the epoch.
        fields: a name that every line has gets an underscore behind it.
        secrets: texts that are masked wherever they stand.
    """
    moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    whole: dict[str, Any] = {"time": moment, "level": level, "logger": logger, "message": message}
    for name, value in (fields or {}).items():
        whole[f"{name}_" if name in FIRST else name] = value
    # masked before it is JSON, where a quotation mark in a secret would look otherwise
    # ASCII, for some readers take other line separators of Unicode for the end of a line
    return json.dumps(_masked(whole, secrets), default=lambda value: _masked(str(value), secrets))


def secrets_of(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The values of variables whose names say that they are secret, the longest first."""
    told = [value for name, value in environment.items() if SECRET.search(name)]
    # several keys or addresses in one variable, and the password of user:password
    parts = [part for value in told for part in (value, *re.split(r"[,\s]+", value), value.partition(":")[2])]
    long = {part for part in parts if len(part) >= SHORTEST_SECRET}
    return tuple(sorted(long, key=len, reverse=True))


def readable(text: str) -> str:
    """A line of a log for people: what is JSON of ours as text, everything else as it is.

    Something may stand before the object, such as the name of the part that wrote it.
    """
    start = text.find('{"time": ')
    if start < 0:
        return text
    try:
        told = json.loads(text[start:])
    except ValueError:
        return text
    if not isinstance(told, dict) or not told.keys() >= set(FIRST):
        return text
    where = told["logger"]
    if told.get("flow_run_id"):
        # the end of the id is enough to find the whole of it in the file; the beginnings are times, and alike
        where = f"{told.get('flow_run_name', 'flow run')} {str(told['flow_run_id'])[-12:]}"
    head = f"{told['time'][:19]}Z {told['level'].upper():<7} {where}: {told['message']}"
    shown = {name: value for name, value in told.items() if name not in (*FIRST, *OF_RUN, "trace_id", "exception")}
    rest = "".join(f" {name}={_word(value)}" for name, value in shown.items())
    trace = "\n" + str(told["exception"]).rstrip() if told.get("exception") else ""
    return f"{text[:start]}{head}{rest}{trace}"


def is_line(text: str) -> bool:
    """Whether a text is a JSON object already, ours or another program's."""
    if not (text.startswith("{") and text.endswith("}")):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _surroundings(record: logging.LogRecord) -> dict[str, Any]:
    """The flow run that a record was made in, and what is said of everything inside ``tasks.log.about``."""
    found: dict[str, Any] = {}
    structlog = sys.modules.get("structlog")
    if structlog is not None:
        found |= structlog.contextvars.get_contextvars()
    found |= _run()
    for name in OF_RUN:
        value = getattr(record, name, None)
        if value is not None and value != UNKNOWN:
            found[name] = str(value)
    root = os.environ.get(RUN_VARIABLE) or found.get("flow_run_id")
    if root is not None:
        found["trace_id"] = root
    return found


def _run() -> dict[str, str]:
    """The flow run of this thread, where Prefect is there and one is under way."""
    context = sys.modules.get("prefect.context")
    found: dict[str, str] = {}
    if context is None:
        return found
    flow = context.FlowRunContext.get()
    if flow is not None and flow.flow_run is not None:
        found = {"flow_run_id": str(flow.flow_run.id), "flow_run_name": flow.flow_run.name}
        if flow.flow is not None:
            found["flow_name"] = flow.flow.name
    task = context.TaskRunContext.get()
    if task is not None:
        found |= {"task_run_id": str(task.task_run.id), "task_run_name": task.task_run.name}
        if task.task_run.flow_run_id is not None:
            found["flow_run_id"] = str(task.task_run.flow_run_id)
    return found


def _masked(value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, MASK)
        return value
    if isinstance(value, Mapping):
        return {str(name): _masked(inner, secrets) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(inner, secrets) for inner in value]
    # JSON has no NaN and no infinities
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _word(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f'"{text}"' if " " in text else text
