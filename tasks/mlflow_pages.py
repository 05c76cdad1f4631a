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


def run_link(settings: Settings, experiment: str, run_id: str, file: str = "") -> str:
    """Address of a run in the MLflow pages, or of one of its files."""
    return _page(settings, f"experiments/{experiment}/runs/{run_id}" + (f"/artifacts/{file}" if file else ""))


def version_link(settings: Settings, name: str, version: str) -> str:
    """Address of a model version in the MLflow pages."""
    return _page(settings, f"models/{name}/versions/{version}")


def share_view(client: MlflowClient, experiment: str, view: str, *, kind: str, metrics: Sequence[str]) -> None:
    """Set up a table of an experiment's runs of one ``kind``, the newest first, for ``view_link`` to open.

    As the pages themselves do when somebody shares a view: the pages show no metric unless they are told to.
    Sorted by their start, runs would be folded away under their parents.
    """
    state = {
        "searchFilter": f"tags.kind = '{kind}'",
        "orderByKey": "attributes.end_time",
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
    return f"{_page(settings, f'experiments/{experiment}/runs')}&viewStateShareKey={view}"


def moved(settings: Settings, link: str) -> str:
    """A link that was written down earlier, to where the MLflow pages are now."""
    return f"{settings.mlflow_ui_url.rstrip('/')}/#/{link.partition('/#/')[2]}"


def _page(settings: Settings, path: str) -> str:
    # without the word, the pages open as those of an observer of language models, who sees no training runs
    return f"{settings.mlflow_ui_url.rstrip('/')}/#/{path}?workflowType=machine_learning"
