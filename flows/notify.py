"""Notify: tells people of a run that failed, crashed, does not start or did less than it should.

Prefect's automations start it.
"""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from prefect import flow
from pydantic import Field

from flows.parameters import IDENTIFIER, form
from tasks import reports
from tasks.flow_runs import seen_task
from tasks.notification_texts import Severity, of_run, plain
from tasks.notifying import Notified, notify_task, tell_held_task
from tasks.periods import run_moment

RunId = Annotated[
    UUID,
    Field(json_schema_extra={"pattern": IDENTIFIER}),
    form("Flow run", "Id of the run to tell of.", "00000000-0000-4000-8000-000000000000"),
]
Kind = Annotated[
    Literal["failed", "crashed", "late", "partly", "degraded"], form("What happened", "What became of it.", "failed")
]
HowSevere = Annotated[Severity, form("Severity", "How much it matters: info, warning or critical.", "warning")]


@flow(name="notify", flow_run_name="notify-{kind}", retries=0, persist_result=False)
def notify(flow_run_id: RunId, kind: Kind, severity: HowSevere) -> Notified | None:
    """Tell those who want to know of a run, unless they were just told the same.

    A late run that has started by now is not told of. Who that is, and how, stands in TRADEFLOWS_NOTIFY_URLS; a
    message that does not reach somebody fails this run, of which nobody is told: it is to be seen here.
    """
    moment = run_moment()
    run = seen_task(flow_run_id)
    if kind == "late" and not run.waiting:
        return None
    message = of_run(kind, severity, run.flow, run.name, run.message, run.link, run.due)
    told = notify_task(message.severity.value, message.title, message.text, message.key, moment)
    # as it is: what the state says may be anything
    text = [f"# {message.title}", f"```text\n{plain(message.text)}\n```", _word(told), f"[The run]({run.link})"]
    reports.markdown("notify", "\n\n".join(text), message.title)
    tell_held_task(moment)
    return told


def _word(told: Notified) -> str:
    """What became of the message, for a person."""
    said = {
        "delivered": f"Told: {', '.join(told.targets)}.",
        "suppressed": "Not told again: they were told the same a short while ago.",
        "held": "Held back until the quiet hours are over.",
        "nobody": "Told nobody: no address in TRADEFLOWS_NOTIFY_URLS wants messages as mild as this, or it is not set.",
    }
    return said[told.outcome]
