"""The local stack as its supervisor writes it down, and the files of the home folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from deployments import metrics_catalogue as catalogue
from deployments import stack_state
from deployments.metrics_sources import Reading

DATABASES: Final = {"store": "store.db", "mlflow": "mlflow/mlflow.db", "prefect": "prefect/prefect.db"}


class StackReader:
    """Reads ``home``: what runs there, how large its databases are, and how much room there is."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def __call__(self, now: float) -> Reading:
        """See the module; without a stack the files alone are told.

        Raises:
            OSError: the folder cannot be looked at.
        """
        found = Reading()
        state = stack_state.read(self._home)
        if state is not None:
            found.set(catalogue.STACK, 1.0, str(state.sandbox).lower(), str(state.warm).lower())
            found.set(catalogue.PART_UP, float(state.supervised), "stack")
            for name, part in state.parts.items():
                found.set(catalogue.PART_UP, float(part.state in ("ready", "done")), name)
                found.set(catalogue.PART_RESTARTS, float(part.restarts), name)
        for name, path in DATABASES.items():
            files = [self._home / f"{path}{end}" for end in ("", "-wal", "-shm")]
            sizes = [file.stat().st_size for file in files if file.is_file()]
            if sizes:
                found.set(catalogue.FILE_SIZE, float(sum(sizes)), name)
        found.set(catalogue.FREE, float(shutil.disk_usage(self._home).free))
        return found
