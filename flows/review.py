"""Review: stops strategies that cross hard thresholds, and proposes what a person should decide about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated

from prefect import flow
from prefect.states import Completed
from pydantic import Field

from flows.parameters import NAME, Bar, Days, form
from tasks import reports
from tasks.disabled_strategies import Disabled
from tasks.notification_texts import Message, of_disabled, of_review
from tasks.notifying import SUPPRESSED, Notified, notify_task
from tasks.periods import run_moment
from tasks.reviewing import (
    Reviewed,
    disable_task,
    lift_task,
    mark_proposals_told_task,
    mark_told_task,
    review_task,
    untold_proposals_task,
)
from trading.review import Limits
from trading.window import Timeframe

Judged = Annotated[Bar, form("Timeframe", "Length of a bar of the analyses that are judged.", "1h")]
RecordDays = Annotated[Days, form("Days back", "How far back records of strategies reach.", 90)]
EmergencyOnly = Annotated[bool, form("Emergency only", "Only disable what must be disabled.")]
Drawdown = Annotated[
    float,
    Field(gt=0, le=1),
    form("Drawdown", "Fall of a strategy's summed profits, as a share of the notional, that disables it.", 0.2),
]
LosingStreak = Annotated[
    int, Field(ge=2, le=1_000), form("Losing streak", "Losing spans of time in a row that disable it.", 10)
]
HitRate = Annotated[
    float,
    Field(gt=0, le=1),
    form("Hit rate", "Hit rate below which it is disabled, once there are enough spans.", 0.35),
]
HitRateSpans = Annotated[int, Field(ge=1, le=10_000), form("Enough spans", "How many spans those are.", 40)]
DisableDays = Annotated[Days, form("Disabled, days", "For how many days it is disabled.", 7)]
Lift = Annotated[
    Sequence[Annotated[str, Field(pattern=NAME)]],
    Field(max_length=50),
    form("Lift", "Strategies to let speak again first.", ["rsi"]),
]
LiftReason = Annotated[
    str, Field(max_length=500), form("Reason", "Why they may speak again; kept in the record.", "the data were wrong")
]


@flow(name="review", flow_run_name="review-{timeframe}", retries=0, persist_result=False)
def review(
    timeframe: Judged = Timeframe.H1,
    days: RecordDays = 90,
    emergency_only: EmergencyOnly = False,
    drawdown: Drawdown = 0.2,
    losing_streak: LosingStreak = 10,
    hit_rate: HitRate = 0.35,
    hit_rate_spans: HitRateSpans = 40,
    disable_days: DisableDays = 7,
    lift: Lift = (),
    lift_reason: LiftReason = "",
) -> Reviewed | None:
    """Disable strategies that cross a hard threshold; then look at the week, and propose.

    Disabling is told as critical, ends by itself, and needs no LLM. Proposals (train a model again, disable a
    strategy, let an analyst count less) are written down with their evidence and never carried out. The run ends in
    the state Degraded where an LLM should have looked at the figures and could not.
    """
    moment = run_moment()
    lifted = lift_task(list(lift), lift_reason, moment) if lift else []
    limits = Limits(drawdown, losing_streak, hit_rate, hit_rate_spans)
    out = disable_task(timeframe, days, limits, timedelta(days=disable_days), moment)
    found = None if emergency_only else review_task(timeframe, days, moment)
    _publish(timeframe, found, out, lifted)
    # after the report, so that an address that does not answer costs nothing else
    for one in out:
        _tell(of_disabled(one.strategy, one.reasons, one.until), moment)
        mark_told_task(one.strategy, one.since, moment)
    # those of an earlier run, too, that could not tell them
    if untold := untold_proposals_task():
        message = of_review(list(untold.values()), moment)
        # others of the same day are another message
        if _tell(replace(message, key=f"review|{'|'.join(untold)}"), moment).outcome != SUPPRESSED:
            mark_proposals_told_task(list(untold), moment)
    if found is not None and found.degraded:
        # Prefect hands the data to the caller, and shows the name and the message
        named: Reviewed = Completed(  # type: ignore[assignment]
            name="Degraded", message=f"without the LLM: {found.silent}"[:1000], data=found
        )
        return named
    return found


def _tell(message: Message, moment: datetime) -> Notified:
    return notify_task(message.severity.value, message.title, message.text, message.key, moment)


def _publish(timeframe: Timeframe, found: Reviewed | None, out: list[Disabled], lifted: list[Disabled]) -> None:
    text = [f"# Review {timeframe.value}"]
    text += reports.section("Disabled now", [f"**{one.strategy}**: {'; '.join(one.reasons)}" for one in out])
    text += reports.section("Lifted", [f"**{one.strategy}**: {one.lifted_why}" for one in lifted])
    if found is not None:
        text += _report(found)
    elif not out:
        text.append("No strategy crosses a hard threshold.")
    disabled = ", ".join(one.strategy for one in out) or "nobody"
    proposed = f", {len(found.fresh)} new proposals" if found is not None else ""
    key = f"review-{timeframe.value}" if found is not None else f"emergency-{timeframe.value}"
    reports.markdown(key, "\n\n".join(text), f"disabled: {disabled}{proposed}"[:200])


def _report(found: Reviewed) -> list[str]:
    facts = found.facts
    proposals = [
        {"action": one.action.value, "subject": one.subject, "why": one.reason, "by": one.origin}
        for one in found.proposals
    ]
    records = [
        {
            "strategy": name,
            "spans": one.spans,
            "signals": one.signals,
            "hit rate": f"{one.hit_rate:.0%}",
            "profit": f"{one.profit:+.2%}",
            "drawdown": f"{one.drawdown:.2%}",
            "losing in a row": one.streak,
        }
        for name, one in facts.records.items()
    ]
    market = [
        {
            "symbol": one["symbol"],
            "price": f"{one['price']:g}",
            "24 h": f"{one['change']:+.2%}",
            "range": f"{one['range']:.2%}",
            "volatility of a day": f"{one['volatility']:.2%}",
            "usual": f"{one['usual_volatility']:.2%}" if one["usual_volatility"] is not None else "unknown",
            "volume / usual": f"{one['volume'] / one['usual_volume']:.2f}" if one["usual_volume"] else "unknown",
            "data": one["data_mode"],
        }
        for one in facts.market
    ]
    costs = facts.costs
    return [
        f"As of {facts.until}. Data: **{', '.join(facts.modes) or 'none'}**. Calls of the LLM in the week: "
        f"{costs['calls']}, {costs['usd']:.4f} USD.",
        *(["## What the LLM makes of it", found.assessment] if found.assessment else []),
        *([f"_Without the LLM: {found.silent}_"] if found.silent else []),
        *reports.section("Concerns", found.concerns),
        "## Proposals, for a person to decide about",
        reports.markdown_table(proposals),
        *reports.section("Suggested and passed over", found.passed_over),
        "## Strategies",
        reports.markdown_table(records),
        "Figures are of spans of time, two horizons long, and shares of the notional of a trade, after costs.",
        *reports.section("Drift", [f"{one['model']} version {one['version']}: {one['state']}" for one in facts.drift]),
        *reports.section(
            "Promotions", [f"{one['model']}: {one['kind']} to version {one['to_version']}" for one in facts.promotions]
        ),
        "## The last 24 hours",
        reports.markdown_table(market),
    ]
