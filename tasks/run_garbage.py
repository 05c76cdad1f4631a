"""MLflow's garbage: runs of work that failed are deleted, and what was deleted long enough ago is gone for good.

Never touched is the family (parent, children, their children) of a run that a registered version came from or that
the promotion history names as evidence, nor any model that a version was registered from.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlparse

from tasks import log
from tasks.retention import Retention, root_of
from tasks.settings import Settings
from tasks.store import PROMOTIONS, Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_PARENT: Final = "mlflow.parentRunId"
_OURS: Final = "tags.`mlflow.source.name` = 'tradeflows'"
_UNFINISHED: Final = ("FAILED", "KILLED", "RUNNING")
_PAGE: Final = 500
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True)
class Promoted:
    """What registered versions and the promotion history stand on.

    Attributes:
        roots: runs at the top of the families that must stay.
        sources: where versions say that their files are; the ids of runs and logged models are in them.
        datasets: digests of what was learned from.
    """

    roots: frozenset[str]
    sources: tuple[str, ...]
    datasets: frozenset[str]

    def holds(self, run: str, root: str) -> bool:
        """Whether a run must stay."""
        return root in self.roots or self.names(run)

    def names(self, id: str) -> bool:
        """Whether a version was registered from the run or logged model of that id."""
        return any(id in source for source in self.sources)


@dataclass(frozen=True)
class Collected:
    """What was done: ids of runs deleted (they can be restored), of runs and models gone for good, bytes of files.

    ``kept`` are deleted runs and models that must stay; ``remark`` says why nothing could be removed for good.
    """

    deleted: tuple[str, ...]
    gone: tuple[str, ...]
    models: tuple[str, ...]
    bytes: int
    kept: tuple[str, ...]
    remark: str = ""


def promoted(client: MlflowClient, store: Store) -> Promoted:
    """What must stay: of every registered version, whatever its alias, and of all the history names."""
    versions = [*_paged(lambda page: client.search_model_versions(max_results=200, page_token=page))]
    runs = {str(version.run_id) for version in versions if version.run_id}
    runs |= {str(change["evidence_run"]) for change in store.documents.find(PROMOTIONS) if change["evidence_run"]}
    datasets = {str(version.tags["dataset_digest"]) for version in versions if "dataset_digest" in version.tags}
    parents: dict[str, str | None] = {}
    for run in runs:
        tags = _climb(client, run, parents)
        datasets |= {tags["dataset_digest"]} if "dataset_digest" in tags else set()
    return Promoted(
        frozenset(root_of(run, parents) for run in runs),
        # of the fields, model_id is mostly empty in what a search gives
        tuple(str(told) for version in versions for told in (version.source, version.model_id) if told),
        frozenset(datasets),
    )


def collect(
    client: MlflowClient, settings: Settings, store: Store, retention: Retention, *, now: datetime, dry_run: bool,
    hold: Callable[[], None],
) -> Collected:  # fmt: skip
    """Delete runs of ours that failed, or never ended, and are too old, with all below them; then remove for good
    what was deleted (by us or by people) before as long a time again.

    Args:
        hold: called between steps, to keep a lease.
    """
    stay = promoted(client, store)
    cutoff_ms = int(retention.before("runs", now).timestamp() * 1000)
    parents: dict[str, str | None] = {}
    deleted = []
    for run in _unfinished(client, cutoff_ms):
        hold()
        _climb(client, run, parents)
        if stay.holds(run, root_of(run, parents)):
            continue
        for one in _family(client, run):
            if one in deleted:
                continue
            deleted.append(one)
            if not dry_run:
                _delete(client, one, stay)
    backend = backend_of(settings)
    if backend is None:
        remark = (
            f"runs deleted on {urlparse(settings.mlflow_tracking_uri or '').hostname} are not removed for good from "
            "here: run mlflow gc beside its database"
        )
        return Collected(tuple(deleted), (), (), 0, (), remark)
    return _gone(client, settings, store, backend, retention, tuple(deleted), parents, dry_run=dry_run, hold=hold)


def backend_of(settings: Settings) -> str | None:
    """MLflow's database, where this machine has it: the local one, or that behind a server on this machine."""
    told = settings.mlflow_tracking_uri
    if told and not told.startswith(("http://", "https://")):
        return told
    file = (settings.home / "mlflow" / "mlflow.db").resolve()
    here = not told or urlparse(told).hostname in LOOPBACK
    return f"sqlite:///{file}" if here and file.is_file() else None


def _gone(
    client: MlflowClient, settings: Settings, store: Store, backend: str, retention: Retention,
    deleted: tuple[str, ...], parents: dict[str, str | None], *, dry_run: bool, hold: Callable[[], None],
) -> Collected:  # fmt: skip
    from mlflow.cli import _gc_tracking_resources
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    artifacts = (settings.home / "mlflow" / "artifacts").resolve()
    tracking = SqlAlchemyStore(backend, artifacts.as_uri())
    age = retention.runs * _DAY_MS
    gone, models, kept, freed = [], [], [], 0

    def remove(*, runs: list[str], logged: list[str]) -> None:
        # what `mlflow gc --run-ids` does, without the deleted experiments, which the command takes along unasked;
        # it looks again whether each is still deleted, and long enough
        with contextlib.redirect_stdout(io.StringIO()):
            _gc_tracking_resources(
                tracking, runs, None, logged, f"{retention.runs}d", age, skip_experiments=True, skip_logged_models=False
            )

    # looked at again: somebody may have registered one meanwhile
    stay = promoted(client, store)
    for run in sorted(tracking._get_deleted_runs(older_than=age)):
        hold()
        known = _run(client, run)
        if known is None or known.info.lifecycle_stage != "deleted":
            continue  # the server's database is another one
        _climb(client, run, parents)
        if stay.holds(run, root_of(run, parents)):
            kept.append(run)
            continue
        gone.append(run)
        freed += _size(known.info.artifact_uri, artifacts)
        if not dry_run:
            remove(runs=[run], logged=[])
    for model in sorted(tracking._get_deleted_logged_models(older_than=age)):
        hold()
        logged = tracking.get_logged_model(model, allow_deleted=True)
        if stay.names(model):
            kept.append(model)
            continue
        models.append(model)
        freed += _size(logged.artifact_location, artifacts)
        if not dry_run:
            remove(runs=[], logged=[model])
    log.logger().info("MLflow collected", deleted=len(deleted), gone=len(gone), models=len(models), dry_run=dry_run)
    return Collected(deleted, tuple(gone), tuple(models), freed, tuple(kept))


def _delete(client: MlflowClient, run: str, stay: Promoted) -> None:
    """Delete a run as people do, and the models that it logged and nobody registered."""
    experiment = client.get_run(run).info.experiment_id
    logged = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run}'")
    for model in logged:
        if not stay.names(model.model_id):
            client.delete_logged_model(model.model_id)
    client.delete_run(run)


def _unfinished(client: MlflowClient, cutoff_ms: int) -> Iterator[str]:
    """Active runs of ours that began before the cutoff and did not end well."""
    experiments = [one.experiment_id for one in _paged(lambda page: client.search_experiments(page_token=page))]
    if not experiments:
        return
    for status in _UNFINISHED:
        query = f"attributes.status = '{status}' and attributes.start_time < {cutoff_ms} and {_OURS}"
        # all of them first: they are deleted while one goes through
        yield from [str(run.info.run_id) for run in _runs(client, experiments, query)]


def _family(client: MlflowClient, run: str, above: frozenset[str] = frozenset()) -> list[str]:
    """A run and all active runs below it, the lowest first, so that what is left can be found after a crash."""
    experiment = client.get_run(run).info.experiment_id
    query = f"tags.`{_PARENT}` = '{run}'"
    seen = above | {run}  # MLflow does not forbid a circle
    found = _runs(client, [experiment], query)
    below = [str(child.info.run_id) for child in found if child.info.run_id not in seen]
    return [*(one for child in below for one in _family(client, child, seen)), run]


def _climb(client: MlflowClient, run: str, parents: dict[str, str | None]) -> dict[str, str]:
    """Note the parents of a run up to the top; returns the run's tags, none where it is gone."""
    found = _run(client, run)
    tags = dict(found.data.tags) if found is not None else {}
    at, above = run, tags.get(_PARENT)
    while at not in parents:
        parents[at] = above
        if above is None:
            break
        parent = _run(client, above)
        at, above = above, parent.data.tags.get(_PARENT) if parent is not None else None
    return tags


def _run(client: MlflowClient, run: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _runs(client: MlflowClient, experiments: list[str], query: str) -> Iterator[Any]:
    # 1: active ones only
    return _paged(lambda page: client.search_runs(experiments, query, 1, _PAGE, page_token=page))


def _paged(search: Callable[[str | None], Any]) -> Iterator[Any]:
    page: str | None = None
    while page is None or page:
        found = search(page)
        yield from found
        page = found.token or ""


def _size(location: str, artifacts: Path) -> int:
    """Bytes of the files at a place, where it is on this machine."""
    parsed = urlparse(location)
    if parsed.scheme not in {"", "file", "mlflow-artifacts"}:
        return 0
    path = unquote(parsed.path)
    folder = artifacts / path.lstrip("/") if parsed.scheme == "mlflow-artifacts" else Path(path)
    return sum(_sizes(folder.rglob("*")))


def _sizes(paths: Iterable[Path]) -> Iterator[int]:
    yield from (path.lstat().st_size for path in paths if path.is_file() and not path.is_symlink())
