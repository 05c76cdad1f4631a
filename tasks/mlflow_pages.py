"""Where people find things in the MLflow pages."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient


def run_link(settings: Settings, experiment: str, run_id: str) -> str:
    """Address of a run in the MLflow pages."""
    return f"{settings.mlflow_ui_url}/#/experiments/{experiment}/runs/{run_id}"


def version_link(settings: Settings, name: str, version: str) -> str:
    """Address of a model version in the MLflow pages."""
    return f"{settings.mlflow_ui_url}/#/models/{name}/versions/{version}"


def share_view(client: MlflowClient, experiment: str, view: str, *, kind: str, metrics: Sequence[str]) -> None:
    """Set up a table of an experiment's runs of one ``kind``, the newest first, for ``view_link`` to open.

    As the pages themselves do when somebody shares a view: the pages show no metric unless they are told to.
    """
    state = {
        "searchFilter": f"tags.kind = '{kind}'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "selectedColumns": ["attributes.`Created`", *(f"metrics.`{name}`" for name in metrics), "tags.`gate`"],
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{view}", f"deflate;{packed}")


def view_link(settings: Settings, experiment: str, view: str) -> str:
    """Where people see the table of ``share_view``."""
    return f"{settings.mlflow_ui_url.rstrip('/')}/#/experiments/{experiment}/runs?viewStateShareKey={view}"
