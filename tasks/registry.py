"""MLflow: experiments, runs, registered model versions and their aliases.

Everything goes through ``MlflowClient`` with explicit run ids; the fluent interface is used only inside
``log_model``, which has no other. Metadata live in SQLite (or behind the server that
``MLFLOW_TRACKING_URI`` names), artifacts in files.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlparse

from tasks import credentials, model_files, signing
from tasks.settings import Settings
from trading.errors import ConfigurationError, DataError, ModelNotFound

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
PREVIOUS: Final = "previous"
_SQLITE: Final = "sqlite:///"
# what the artifact's code imports to answer
_REQUIREMENTS: Final = ("numpy", "pandas", "lightgbm", "TA-Lib", "exchange-calendars")


# without it the pages open in their mode for language models, where no figure of a run is to be seen
_KIND: Final = {"mlflow.experimentKind": "custom_model_development"}


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
    return f"{_SQLITE}{(settings.home / 'mlflow' / 'mlflow.db').resolve()}"


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
    # MLflow's client looks for them there alone
    os.environ.update(credentials.for_clients(settings))
    from mlflow import MlflowClient

    from tasks.log import quiet_libraries

    quiet_libraries()
    uri = tracking_uri(settings)
    _reach_artifacts()
    _talk_to(uri)
    return MlflowClient(uri, registry_uri=uri)


def _reach_artifacts() -> None:
    """Let a client of the local database find in its folder what was logged through the stack's server.

    The server writes down addresses as ``mlflow-artifacts:/1/models/...`` and keeps the files in ``artifacts`` beside
    its database (``deployments.stack_parts``); MLflow itself resolves such an address by asking a server only.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories

    known = get_registered_artifact_repositories()
    if known["mlflow-artifacts"] is not _artifacts_of:
        known["mlflow-artifacts"] = _artifacts_of


def _artifacts_of(artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> Any:
    import mlflow
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    database = tracking_uri or mlflow.get_tracking_uri()
    if not database.startswith(_SQLITE):
        return MlflowArtifactsRepository(artifact_uri, tracking_uri=tracking_uri, registry_uri=registry_uri)
    root = Path(database.removeprefix(_SQLITE)).parent / "artifacts"
    path = (root / unquote(urlparse(artifact_uri).path).lstrip("/")).resolve()
    if not path.is_relative_to(root.resolve()):
        raise DataError(f"{artifact_uri} leads out of {root}; somebody changed MLflow's database")
    return LocalArtifactRepository(path.as_uri(), tracking_uri=tracking_uri, registry_uri=registry_uri)


def _talk_to(uri: str) -> None:
    """Let the parts of MLflow that take no client use this server, too."""
    import mlflow

    told = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    # MLflow writes the address into the environment, where the next run of this process would take it for a setting
    if told is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)


def experiment_id(client: MlflowClient, settings: Settings, name: str) -> str:
    """Id of the experiment, made on first use."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None if settings.mlflow_tracking_uri else (settings.home / "mlflow" / "artifacts").resolve().as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=location, tags=_KIND))
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


def metrics(client: MlflowClient, run_id: str) -> dict[str, float]:
    """The figures of a run by name; none where the run is gone."""
    return dict(client.get_run(run_id).data.metrics) if run_exists(client, run_id) else {}


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

    Signature, input example and requirements go with it, so that ``mlflow models serve`` can answer.

    Args:
        folder: what ``ml.artifact.save`` wrote.
        example: a frame of raw candles, as many as a prediction needs, ``open_time`` a column.
    """
    from importlib.metadata import version

    import mlflow
    import pandas as pd
    from mlflow.models import infer_signature

    from ml.serving import _load_pyfunc

    # somebody in this process may have talked to another server since
    _talk_to(client.tracking_uri)
    # whole milliseconds: of times MLflow's schema keeps no zone
    stamps = pd.DatetimeIndex(example["open_time"]).as_unit("ms").asi8
    asked = example.assign(open_time=stamps)
    answer = _load_pyfunc(str(folder)).example(asked)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with mlflow.start_run(run_id=run_id):
            info = mlflow.pyfunc.log_model(
                name="model",
                loader_module="ml.serving",
                data_path=str(folder),
                signature=infer_signature(asked, answer),
                input_example=asked,
                # given, because working them out takes ten seconds and a process of its own; this package is
                # not among them: it is installed from its checkout, and a stranger's of that name must not be
                pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
            )
    # MLflow has ended the run, and it is at work until ``finish_run``: who dies before must not look as if it were done
    client.update_run(run_id, status="RUNNING")
    return str(info.model_uri)


def register(
    client: MlflowClient, name: str, model_uri: str, run_id: str, tags: Mapping[str, str], *, key: bytes
) -> str:
    """Add a signed version to the registered model, made on first use; returns the version.

    Args:
        tags: everything that is later read from the version; none can be added or changed afterwards.
        key: see ``tasks.signing.signing_key``.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model_id = model_uri.removeprefix("models:/")
    with model_files.logged(client, model_id) as folder:
        around = model_files.wrapping(folder)
    said = {**tags, model_files.WRAPPING: json.dumps(around, sort_keys=True)}
    version = str(client.create_model_version(name, model_uri, run_id, tags=said, model_id=model_id).version)
    # a version that lacks it, because we died here, is refused
    signature = signing.signature(key, name=name, version=version, run_id=run_id, tags=said)
    client.set_model_version_tag(name, version, signing.SIGNATURE, signature)
    return version


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


def champions(client: MlflowClient, like: str) -> list[ModelVersion]:
    """The champion of every model that has one and whose name is like that, with ``%`` for anything."""
    found: list[ModelVersion] = []
    page: str | None = None
    while page is None or page:
        part = client.search_registered_models(f"name LIKE '{like}'", max_results=200, page_token=page)
        page = part.token or ""
        found += [version for one in part if (version := version_of(client, one.name, CHAMPION)) is not None]
    return found


def versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """Every version of ``name``, the newest first, with its aliases.

    Raises:
        ModelNotFound: there is no such model.
    """
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise ModelNotFound(f"there is no model {name}; see: tradeflows models list") from error
        raise
    found: list[ModelVersion] = []
    page: str | None = None
    while page is None or page:
        part = client.search_model_versions(f"name = '{name}'", max_results=200, page_token=page)
        found, page = [*found, *part], part.token or ""
    for version in found:
        version.aliases = sorted(alias for alias, at in aliases.items() if str(at) == str(version.version))
    return sorted(found, key=lambda version: -int(version.version))


def version_at(client: MlflowClient, name: str, version: str) -> ModelVersion:
    """One version of ``name``.

    Raises:
        ModelNotFound: there is none of that number.
    """
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise ModelNotFound(f"model {name} has no version {version}; see: tradeflows models list") from error
        raise


def set_alias(client: MlflowClient, name: str, alias: str, version: str | None) -> bool:
    """Let ``alias`` name ``version``, or nothing; whether that was to be done."""
    current = version_of(client, name, alias)
    if (str(current.version) if current is not None else None) == version:
        return False
    if version is None:
        client.delete_registered_model_alias(name, alias)
    else:
        client.set_registered_model_alias(name, alias, version)
    return True


def run_file(client: MlflowClient, run_id: str, name: str) -> Path:
    """Local path of a file that a run logged."""
    return Path(client.download_artifacts(run_id, name))
