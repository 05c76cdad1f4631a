"""Costs: what the LLM cost on a day, against its budgets, reported."""

from __future__ import annotations

from datetime import date
from typing import Annotated

from prefect import flow
from prefect.states import Completed
from pydantic import Field

from flows.parameters import DATE, form
from tasks import reports
from tasks.llm_costs import NOTHING, Costs, costs_task, default_day, report
from tasks.periods import run_moment

Day = Annotated[
    Annotated[date, Field(json_schema_extra={"pattern": DATE})] | None,
    form("Day", "UTC day. Empty: the last one that was over when the run is due.", "2026-11-21"),
]


@flow(name="costs", flow_run_name="costs", retries=0, persist_result=False)
def costs(day: Day = None) -> Costs:
    """Add up the LLM calls of a UTC day: calls, tokens and US dollars by model, outcome and symbol.

    Calls that nobody settled are booked at their worst case first. The run ends Completed, in the state
    Nothing where no call was made. Running it again replaces the day's report and changes nothing else.
    """
    moment = run_moment()
    found = costs_task(day.isoformat() if day is not None else default_day(moment), moment)
    reports.markdown(f"costs-{found.day}", report(found), f"{found.usd:.4f} USD, {found.calls} calls")
    if found.state == NOTHING:
        # Prefect hands the data to the caller, and shows the name and the message
        named: Costs = Completed(  # type: ignore[assignment]
            name=NOTHING.capitalize(), message=f"no LLM call on {found.day}", data=found
        )
        return named
    return found
