"""Structured logs: one event and its fields a line, with flow run id, symbol and window on each.

Lines go through the standard ``logging`` logger ``tradeflows``, which Prefect sends to its API when
``PREFECT_LOGGING_EXTRA_LOGGERS`` names it (the deployments do). Each record has its fields as ``record.fields``, too:
of them ``tasks.log_lines`` makes JSON where lines are collected.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import structlog

from tasks.log_lines import JsonLines
from trading.window import Window

NAME = "tradeflows"


def configure(log_format: Literal["text", "json"] = "text") -> None:
    """Set the shape of the lines of this process; calling it again changes nothing else."""
    renderer: Any = (
        structlog.processors.JSONRenderer(sort_keys=True)
        if log_format == "json"
        else structlog.processors.LogfmtRenderer(key_order=["event"], bool_as_flag=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            partial(_record, renderer),
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _record(renderer: Any, logger: Any, method: str, event: dict[str, Any]) -> tuple[tuple[str], dict[str, Any]]:
    """The text of a line, and its fields beside it."""
    fields = dict(event)
    return (renderer(logger, method, event),), {"extra": {"fields": fields}}


def to_console(log_format: Literal["text", "json"]) -> None:
    """Write the lines of this process to standard error, for processes in which Prefect does not."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if log_format == "json" else logging.Formatter("%(levelname)-7s %(message)s"))
    own = logging.getLogger(NAME)
    own.addHandler(handler)
    own.setLevel(logging.INFO)
    own.propagate = False


def logger() -> structlog.stdlib.BoundLogger:
    """The project's logger; a process that was not told its format gets text."""
    if not structlog.is_configured():
        configure()
    bound: structlog.stdlib.BoundLogger = structlog.get_logger(NAME)
    return bound


@contextmanager
def about(window: Window | None = None, **fields: str) -> Iterator[None]:
    """Every line logged inside carries the window's symbol and span, and ``fields``.

    Inside a Prefect run the flow run's id is added by itself.
    """
    context: dict[str, str] = dict(fields)
    run_id = flow_run_id()
    if run_id is not None:
        context["flow_run_id"] = run_id
    if window is not None:
        context |= {"symbol": window.symbol, "timeframe": window.timeframe.value}
        context["window"] = f"{window.start:%Y-%m-%dT%H:%MZ}/{window.end:%Y-%m-%dT%H:%MZ}"
    with structlog.contextvars.bound_contextvars(**context):
        yield


def flow_run_id() -> str | None:
    """Id of the Prefect flow run this code runs in, or None outside one."""
    from prefect.context import FlowRunContext, TaskRunContext

    task = TaskRunContext.get()
    if task is not None and task.task_run.flow_run_id is not None:
        return str(task.task_run.flow_run_id)
    flow = FlowRunContext.get()
    return str(flow.flow_run.id) if flow is not None and flow.flow_run is not None else None


def quiet_libraries() -> None:
    """Raise the level of loggers that talk about themselves (alembic, matplotlib, GE)."""
    for name in (
        "alembic",
        "mlflow",
        "matplotlib",
        "great_expectations",
        "httpx",
        "httpcore",
        "httpx2",
        "httpcore2",
        "openai",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    # warns that it finds no pip, which the environment has no need of
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)
