"""Flow runs as Prefect's server knows them: what people are told of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from prefect import task

from tasks.retry import NOTIFY, prefect_options


@dataclass(frozen=True)
class RunSeen:
    """A flow run: ``message`` is that of its state, ``due`` when it was to start (UTC), ``link`` its page."""

    id: str
    flow: str
    name: str
    state: str
    message: str
    due: datetime | None
    link: str

    @property
    def waiting(self) -> bool:
        """Whether nobody has taken it yet."""
        return self.state == "SCHEDULED"


def seen(flow_run_id: UUID) -> RunSeen:
    """The run of that id.

    Raises:
        ObjectNotFound: (Prefect's) there is none.
    """
    from prefect.client.orchestration import get_client
    from prefect.utilities.urls import url_for

    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run_id)
        flow = client.read_flow(run.flow_id)
    due = run.expected_start_time
    return RunSeen(
        id=str(run.id),
        flow=flow.name,
        name=run.name,
        state=run.state.type.value if run.state is not None else "",
        message=(run.state.message if run.state is not None else None) or "",
        due=datetime.fromtimestamp(due.timestamp(), tz=UTC) if due is not None else None,
        link=url_for("flow-run", obj_id=run.id) or f"flow run {run.id}",
    )


@task(name="look-at-run", **prefect_options(NOTIFY))
def seen_task(flow_run_id: UUID) -> RunSeen:
    """``seen``; tried again where the server is busy."""
    return seen(flow_run_id)
