"""Process environment that Prefect, MLflow and Great Expectations read at import.

Set before the first of them is imported, and only where the user has not set it: nobody phones home,
results are JSON, our log lines reach Prefect, pickles stay shut, and without a Prefect server of one's
own the database lies under the home folder.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from trading.errors import ConfigurationError

DEFAULTS: Final[Mapping[str, str]] = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
    # Prefect's newer pages ask a host of Amplitude, from the browser, whatever is said of analytics
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "tradeflows",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": "2d",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
}

LOGGING_JSON: Final = Path(__file__).with_name("prefect_logging.yml")


def defaults(home: Path) -> dict[str, str]:
    """The variables to set for a process whose data lie in ``home``, with what the user set left alone."""
    wanted = dict(DEFAULTS)
    if os.environ.get("TRADEFLOWS_LOG_FORMAT") == "json":
        wanted["PREFECT_LOGGING_SETTINGS_PATH"] = str(LOGGING_JSON)
    if "PREFECT_API_URL" not in os.environ:
        wanted["PREFECT_HOME"] = str((home / "prefect").resolve())
    return {name: value for name, value in wanted.items() if name not in os.environ}


def prepare(home: Path) -> None:
    """Set ``defaults`` in this process, and make the folders that they name; call it before prefect is imported.

    Raises:
        ConfigurationError: a folder cannot be made or written.
    """
    wanted = defaults(home)
    folder = Path(wanted.get("PREFECT_HOME", home))
    try:
        # databases and logs are for nobody else's eyes
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"the data folder {folder} cannot be written ({error.strerror}); "
            "set TRADEFLOWS_HOME, or --home, to a folder that you can write"
        ) from error
    os.environ.update(wanted)
