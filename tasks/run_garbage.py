"""MLflow's garbage: runs of work that failed, and of work that ended well long ago, are deleted; what was deleted long
enough ago is gone for good. Old conversations with the LLM go at once.

A registered version goes when it is old, was never a champion, and has no name; its run is then like any other.
Never touched is the family (parent, children, their children) of a run that a registered version came from or that
the promotion history names as evidence, nor any model that a version was registered from. What a stored answer or the
record that analysts are weighed by links to stays as long as that does.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlparse

from tasks import log, model_files, registry
from tasks.llm_tracing import EXPERIMENT
from tasks.retention import Retention, root_of
from tasks.settings import Settings
from tasks.store import PROMOTIONS, RESULTS, SCOREBOARDS, Store
from tasks.upkeep import earlier

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_PARENT: Final = "mlflow.parentRunId"
_OURS: Final = "tags.`mlflow.source.name` = 'tradeflows'"
_UNFINISHED: Final = ("FAILED", "KILLED", "RUNNING")
_PAGE: Final = 500
# traces that one request removes: each is a write that others wait for
_TRACES: Final = 100
# answers that link to a run
_LINKED: Final = "backtest"
# deleting is a request for each run; what is more is left for the next maintenance
MOST: Final = 5_000
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

    ``deleted`` failed or never ended, ``old`` ended well. ``kept`` are deleted runs and models that must stay;
    ``remark`` says why nothing could be removed for good.
    """

    deleted: tuple[str, ...]
    old: tuple[str, ...]
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
    """Delete runs of ours that failed, or never ended, or ended well, and are too old, with all below them; then remove
    for good what was deleted (by us or by people) before as long a time again as failed ones are kept.

    Args:
        hold: called between steps, to keep a lease.
    """
    stay, linked = promoted(client, store), _linked(store)
    parents: dict[str, str | None] = {}
    remarks = []

    def delete(runs: Iterable[str]) -> tuple[str, ...]:
        """The families of these runs, but for those that must stay."""
        done: dict[str, None] = {}
        for run in runs:
            hold()
            _climb(client, run, parents)
            root = root_of(run, parents)
            if root in linked or stay.holds(run, root):
                continue
            if len(done) >= MOST:
                remarks.append(f"more than {MOST:,} runs are to be deleted: the rest with the next maintenance")
                break
            family = [one for one in _family(client, run) if one not in done]
            done |= dict.fromkeys(family)
            if not dry_run:
                _delete(client, family, stay, hold)
        return tuple(done)

    failed = delete(_unfinished(client, _ms(retention.before("runs", now))))
    old = delete(_ended(client, _ms(retention.before("finished_runs", now))))
    backend = backend_of(settings)
    if backend is None:
        remarks.append(
            f"runs deleted on {urlparse(settings.mlflow_tracking_uri or '').hostname} are not removed for good from "
            "here: run mlflow gc beside its database"
        )
        return Collected(failed, old, (), (), 0, (), "; ".join(remarks))
    done = _gone(client, settings, store, backend, retention, parents, dry_run=dry_run, hold=hold)
    return replace(done, deleted=failed, old=old, remark="; ".join(remarks))


def collect_traces(client: MlflowClient, before: datetime, *, dry_run: bool, hold: Callable[[], None]) -> int:
    """Remove conversations with the LLM that began before then; how many. Other experiments' traces are not ours."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return 0
    if dry_run:
        query = f"attributes.timestamp_ms < {_ms(before)}"
        found = _paged(
            lambda page: client.search_traces(
                locations=[experiment.experiment_id], filter_string=query, max_results=_PAGE, page_token=page,
                include_spans=False,
            )
        )  # fmt: skip
        return sum(1 for _ in found)
    count = 0
    while True:
        hold()
        last = client.delete_traces(experiment.experiment_id, max_timestamp_millis=_ms(before) - 1, max_traces=_TRACES)
        count += int(last)
        if last < _TRACES:
            return count


def collect_versions(
    client: MlflowClient, store: Store, before: datetime, *, dry_run: bool, hold: Callable[[], None]
) -> list[str]:
    """Remove versions of ours made before then that were never promoted, that no alias names and that are not the
    newest of their model: names and numbers. Their runs and files are garbage from then on."""
    moves = store.documents.find(PROMOTIONS)
    moved = {(one["model"], str(one[field])) for one in moves for field in ("from_version", "to_version")}
    gone = []
    for model in _paged(lambda page: client.search_registered_models(max_results=200, page_token=page)):
        for version in registry.versions(client, model.name)[1:]:
            hold()
            ours = model_files.MANIFEST_SHA256 in version.tags
            held = version.aliases or (model.name, str(version.version)) in moved
            if ours and not held and version.creation_timestamp < _ms(before):
                gone.append(f"{model.name} {version.version}")
                if not dry_run:
                    client.delete_model_version(model.name, version.version)
    return gone


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _linked(store: Store) -> frozenset[str]:
    """Runs that stored answers, and the records that analysts are weighed by, lead to."""
    results = earlier(store, RESULTS, "created_at", None, {"kind": _LINKED})
    boards: dict[str, str] = {}
    for one in earlier(store, SCOREBOARDS, "until", None):
        boards.setdefault(one["timeframe"], str(one.get("run_id")))
    return frozenset({*(str(one["result"].get("run_id")) for one in results), *boards.values()})


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
    parents: dict[str, str | None], *, dry_run: bool, hold: Callable[[], None],
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
    log.logger().info("MLflow collected", gone=len(gone), models=len(models), dry_run=dry_run)
    return Collected((), (), tuple(gone), tuple(models), freed, tuple(kept))


def _delete(client: MlflowClient, family: Sequence[str], stay: Promoted, hold: Callable[[], None]) -> None:
    """Delete the runs of a family as people do, and the models that they logged and nobody registered."""
    experiment = client.get_run(family[-1]).info.experiment_id
    logged = _paged(lambda page: client.search_logged_models([experiment], page_token=page))
    models: dict[str, list[str]] = {}
    for model in logged:
        models.setdefault(str(model.source_run_id), []).append(str(model.model_id))
    for run in family:
        hold()
        for name in models.get(run, ()):
            if not stay.names(name):
                client.delete_logged_model(name)
        client.delete_run(run)


def _ended(client: MlflowClient, cutoff_ms: int) -> Iterator[str]:
    """Active runs of ours at the top of their families that began before the cutoff and ended well, the oldest first.

    One below a run that was deleted alone is at the top, too.
    """
    experiments = [one.experiment_id for one in _paged(lambda page: client.search_experiments(page_token=page))]
    if not experiments:
        return
    query = f"attributes.status = 'FINISHED' and attributes.start_time < {cutoff_ms} and {_OURS}"
    above = {
        str(run.info.run_id): (run.info.start_time, run.data.tags.get(_PARENT))
        for run in _runs(client, experiments, query)
    }
    for run, (_, parent) in sorted(above.items(), key=lambda one: one[1][0]):
        if parent is None or (parent not in above and not _active(client, parent)):
            yield run


def _active(client: MlflowClient, run: str) -> bool:
    found = _run(client, run)
    return found is not None and found.info.lifecycle_stage == "active"


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
