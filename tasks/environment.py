"""Process environment that Prefect, MLflow and Great Expectations read at import.

Set before the first of them is imported, and only where the user has not set it: nobody phones home,
results are JSON, our log lines reach Prefect, pickles stay shut, and without a Prefect server of one's
own the database lies under the home folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

DEFAULTS: Final[Mapping[str, str]] = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "tradeflows",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": "2d",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
}


def defaults(home: Path) -> dict[str, str]:
    """The variables to set for a process whose data lie in ``home``, with what the user set left alone."""
    wanted = dict(DEFAULTS)
    if "PREFECT_API_URL" not in os.environ:
        wanted["PREFECT_HOME"] = str((home / "prefect").resolve())
    return {name: value for name, value in wanted.items() if name not in os.environ}


def prepare(home: Path) -> None:
    """Set ``defaults`` in this process; call it before prefect is imported."""
    os.environ.update(defaults(home))
