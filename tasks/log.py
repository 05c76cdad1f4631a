"""Structured logs: one event and its fields a line, with flow run id, symbol and window on each.

Lines go through the standard ``logging`` logger ``tradeflows``, which Prefect sends to its API when
``PREFECT_LOGGING_EXTRA_LOGGERS`` names it (the deployments do).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import structlog

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
            renderer,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


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
