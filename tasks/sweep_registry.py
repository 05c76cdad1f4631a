"""What trainings that died left in MLflow: open runs are closed, half-registered versions go, aliases follow history.

A version is half registered from its making to its signature. Nobody can load one (``tasks.signing``), but every
check of the registry would go on finding it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from tasks import promotions, registry, signing
from tasks.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

# how often something died that may have left something in MLflow
DEATHS: Final = "sweep deaths"
# the tags by which a run names its flow run, and a version its training
FLOW_RUN: Final = "prefect_flow_run"
TRAINING: Final = "training_key"
# from a version's making to its signature it takes milliseconds
HALF: Final = timedelta(minutes=2)
_PAGE: Final = 500

# when the attempt of a flow run that is at work began (UTC); None: it is not at work; Unknown below
Began = datetime | None


class UnknownRun(LookupError):
    """The Prefect server does not know a flow run: it may be another server's."""


@dataclass(frozen=True)
class Mended:
    """What was done: ids of runs closed, half-registered versions removed, models whose aliases were moved.

    ``open``: runs at work, and half-registered versions that may still be signed: to be looked at again.
    """

    closed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    open: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """A sentence for each."""
        return [
            *(f"MLflow run {run} was open and its flow run is dead: closed as KILLED" for run in self.closed),
            *(f"{version} was registered and not signed: removed" for version in self.removed),
            *(f"the aliases of {name} were set to what its promotion history says" for name in self.moved),
        ]


def mend(
    client: MlflowClient, store: Store, began: Callable[[str], Began], *, now: datetime, dry_run: bool = False
) -> Mended:
    """Put MLflow in order after runs that died.

    Args:
        began: for the id of a flow run, when the attempt that is at work began; None where none is.
            Raises ``UnknownRun`` for one that it does not know, which is left alone.
        now: the time, UTC.
    """
    closed = []
    removed: list[str] = []
    moved: list[str] = []
    half: list[str] = []
    for run in _open_runs(client):
        left = _is_left(run, began)
        if left is None:
            continue
        if not left:
            # it may yet end without being able to say so
            half.append(f"run {run.info.run_id}")
            continue
        closed.append(str(run.info.run_id))
        if not dry_run:
            client.set_terminated(run.info.run_id, "KILLED")
    for model in _paged(lambda page: client.search_registered_models(page_token=page)):
        for version in registry.versions(client, str(model.name)):
            if not _is_half(version):
                continue
            told = f"{version.name} version {version.version}"
            if _is_at_work(client, version, set(closed), now):
                half.append(told)
            else:
                removed.append(told)
                if not dry_run:
                    client.delete_model_version(str(version.name), str(version.version))
        if promotions.strayed(client, store, str(model.name)):
            moved.append(str(model.name))
            if not dry_run:
                promotions.settle(client, store, str(model.name))
    return Mended(tuple(closed), tuple(removed), tuple(moved), tuple(half))


def _open_runs(client: MlflowClient) -> Iterator[Any]:
    """Runs of ours that are open, and say which flow run they are of."""
    experiments = [one.experiment_id for one in _paged(lambda page: client.search_experiments(page_token=page))]
    if not experiments:
        return
    query = "attributes.status = 'RUNNING' and tags.`mlflow.source.name` = 'tradeflows'"
    # all of them first: they are closed while one goes through
    found = list(_paged(lambda page: client.search_runs(experiments, query, 1, _PAGE, page_token=page)))
    yield from (run for run in found if run.data.tags.get(FLOW_RUN))


def _is_left(run: Any, began: Callable[[str], Began]) -> bool | None:
    """Whether it is of an attempt that is over; None where nobody here knows."""
    try:
        since = began(run.data.tags[FLOW_RUN])
    except UnknownRun:
        return None
    return since is None or datetime.fromtimestamp(run.info.start_time / 1000, UTC) < since


def _is_half(version: Any) -> bool:
    """Whether a version of ours is not signed, and nobody says that it is to stay."""
    return not version.tags.get(signing.SIGNATURE) and TRAINING in version.tags and not version.aliases


def _is_at_work(client: MlflowClient, version: Any, closed: set[str], now: datetime) -> bool:
    """Whether whoever made a half-registered version may be about to sign it."""
    if now - datetime.fromtimestamp(version.creation_timestamp / 1000, UTC) < HALF:
        return True
    run = str(version.run_id)
    return run not in closed and registry.run_exists(client, run) and client.get_run(run).info.status == "RUNNING"


def _paged(search: Callable[[str | None], Any]) -> Iterator[Any]:
    page: str | None = None
    while page is None or page:
        found = search(page)
        yield from found
        page = found.token or ""
