"""MLflow: experiments, runs, registered model versions and their aliases.

Everything goes through ``MlflowClient`` with explicit run ids; the fluent interface is used only inside
``log_model``, which has no other. Metadata live in SQLite (or behind the server that
``MLFLOW_TRACKING_URI`` names), artifacts in files.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tasks.settings import Settings
from trading.errors import ConfigurationError, ModelNotFound

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
PREVIOUS: Final = "previous"
MODEL_FOLDER: Final = "model"


@dataclass(frozen=True)
class Record:
    """What one MLflow run is told: numbers to compare, values that explain them, files to look at."""

    name: str
    params: Mapping[str, object] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[Path] = ()


def tracking_uri(settings: Settings) -> str:
    """The configured server, else the SQLite database under the home folder."""
    if settings.mlflow_tracking_uri:
        return settings.mlflow_tracking_uri
    return f"sqlite:///{(settings.home / 'mlflow' / 'mlflow.db').resolve()}"


def connect(settings: Settings) -> MlflowClient:
    """A client of the tracking server and registry; makes the local database where there is none.

    Raises:
        ConfigurationError: the local folder cannot be made.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # the artifact is native files; with the flag off nothing can smuggle a pickle in
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    if not settings.mlflow_tracking_uri:
        folder = settings.home / "mlflow"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"cannot make {folder}: {error.strerror}; set TRADEFLOWS_HOME to a folder you can write"
            ) from error
    import mlflow
    from mlflow import MlflowClient

    from tasks.log import quiet_libraries

    quiet_libraries()
    uri = tracking_uri(settings)
    told = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    # MLflow writes the address into the environment, where the next run of this process would take it for a setting
    if told is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    return MlflowClient(uri, registry_uri=uri)


def experiment_id(client: MlflowClient, settings: Settings, name: str) -> str:
    """Id of the experiment, made on first use."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None if settings.mlflow_tracking_uri else (settings.home / "mlflow" / "artifacts").resolve().as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:
        # another process made it between the look and the making
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def log_run(
    client: MlflowClient,
    experiment: str,
    record: Record,
    *,
    at_ms: int,
    parent: str | None = None,
    finish: bool = True,
) -> str:
    """Write one run in one batch and return its id.

    Args:
        experiment: experiment id.
        at_ms: time stamp of the metrics, milliseconds UTC.
        parent: id of the run this one is a child of.
        finish: False leaves the run open, for ``finish_run`` to close.
    """
    from mlflow.entities import Metric, Param, RunTag

    tags = dict(record.tags)
    if parent is not None:
        tags["mlflow.parentRunId"] = parent
    run = client.create_run(experiment, run_name=record.name, tags=tags)
    run_id = str(run.info.run_id)
    metrics = [Metric(name, float(value), at_ms, 0) for name, value in record.metrics.items()]
    params = [Param(name, str(value)) for name, value in record.params.items()]
    client.log_batch(run_id, metrics=metrics, params=params, tags=[RunTag("mlflow.source.name", "tradeflows")])
    for path in record.files:
        client.log_artifact(run_id, str(path))
    if finish:
        client.set_terminated(run_id, "FINISHED")
    return run_id


def finish_run(client: MlflowClient, run_id: str, *, failed: bool = False) -> None:
    """Close a run that was left open."""
    client.set_terminated(run_id, "FAILED" if failed else "FINISHED")


def run_exists(client: MlflowClient, run_id: str) -> bool:
    """Whether the tracking server still knows a run."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def log_model(client: MlflowClient, run_id: str, folder: Path, example: Any) -> str:
    """Log an artifact folder of ``ml.artifact`` as a pyfunc model of that run; returns its URI.

    Args:
        folder: what ``ml.artifact.save`` wrote.
        example: a frame of raw candles that the model can answer; kept beside the model.
    """
    from importlib.metadata import version

    import mlflow
    from mlflow.models import infer_signature

    from ml.artifact import _load_pyfunc

    answer = _load_pyfunc(str(folder)).predict(example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with mlflow.start_run(run_id=run_id):
            info = mlflow.pyfunc.log_model(
                name="model",
                loader_module="ml.artifact",
                data_path=str(folder),
                signature=infer_signature(example, answer),
                # given, because working them out takes ten seconds and a process of its own; this package is
                # not among them: it is installed from its checkout, and a stranger's of that name must not be
                pip_requirements=[f"{name}=={version(name)}" for name in ("numpy", "pandas", "lightgbm", "TA-Lib")],
            )
    return str(info.model_uri)


def register(client: MlflowClient, name: str, model_uri: str, run_id: str, tags: Mapping[str, str]) -> str:
    """Add a version to the registered model, made on first use; returns the version."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model_id = model_uri.removeprefix("models:/")
    return str(client.create_model_version(name, model_uri, run_id, tags=dict(tags), model_id=model_id).version)


def find_version(client: MlflowClient, name: str, tags: Mapping[str, str]) -> ModelVersion | None:
    """The newest version of ``name`` that carries all these tags."""
    query = " and ".join([f"name = '{name}'", *(f"tags.`{key}` = '{value}'" for key, value in tags.items())])
    found = client.search_model_versions(query, max_results=100)
    return max(found, key=lambda version: int(version.version)) if found else None


def version_of(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that ``alias`` names, or None where the model or the alias does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return None
        raise


def require_champion(client: MlflowClient, name: str) -> ModelVersion:
    """The champion of ``name``.

    Raises:
        ModelNotFound: there is none.
    """
    version = version_of(client, name, CHAMPION)
    if version is None:
        raise ModelNotFound(f"model {name} has no champion; run the train flow for it (tradeflows train), or wait for a challenger that passes the gate")  # fmt: skip # noqa: E501
    return version


def promote(client: MlflowClient, name: str, version: str) -> None:
    """Make ``version`` the champion and keep the one before as ``previous``; the champion moves last."""
    current = version_of(client, name, CHAMPION)
    if current is not None and str(current.version) != version:
        client.set_registered_model_alias(name, PREVIOUS, str(current.version))
    client.set_registered_model_alias(name, CHAMPION, version)


def model_folder(version: ModelVersion) -> Path:
    """Local folder with the artifact files of a version (downloaded where the registry is remote)."""
    import mlflow

    path = mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{version.name}/{version.version}")
    # MLflow keeps the folder under the name it was logged from
    return Path(path) / "data" / MODEL_FOLDER


def run_file(client: MlflowClient, run_id: str, name: str) -> Path:
    """Local path of a file that a run logged."""
    return Path(client.download_artifacts(run_id, name))


def run_link(settings: Settings, experiment: str, run_id: str) -> str:
    """Address of a run in the MLflow pages."""
    return f"{settings.mlflow_ui_url}/#/experiments/{experiment}/runs/{run_id}"


def version_link(settings: Settings, name: str, version: str) -> str:
    """Address of a model version in the MLflow pages."""
    return f"{settings.mlflow_ui_url}/#/models/{name}/versions/{version}"
