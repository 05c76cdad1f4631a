"""``mlflow`` whose server is this very process: ``python -m deployments.mlflow_server server ...``.

MLflow's command prepares the database, starts uvicorn as a child and waits for it, which holds 180 MiB for nothing.
Here it becomes what it would have started.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn


def main() -> None:
    """Be MLflow's command line."""
    take_place()
    from mlflow.cli import cli

    cli(sys.argv[1:], prog_name="mlflow")


def take_place() -> None:
    """Let MLflow's command become its server, where it has nothing else to do meanwhile."""
    from mlflow import server
    from mlflow.environment_variables import MLFLOW_SERVER_ENABLE_JOB_EXECUTION

    # jobs are started and watched by the parent
    if not MLFLOW_SERVER_ENABLE_JOB_EXECUTION.get():
        server._exec_cmd = _become


def _become(command: Sequence[str], *, extra_env: Mapping[str, str], **_: Any) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], list(command), {**os.environ, **extra_env})  # noqa: S606 - what MLflow would have started


if __name__ == "__main__":
    main()
