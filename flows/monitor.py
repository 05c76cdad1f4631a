"""Monitor: live bars against what the champion was trained on; a model that has drifted is trained again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.states import Completed
from pydantic import Field

from flows.ingest import bring_up_to_date
from flows.parameters import Bar, Days, End, Refresh, Start, Symbols, form
from ml.monitoring import DRIFTED, STABLE, UNKNOWN, DriftRule
from tasks import reports
from tasks.monitoring import Monitored, monitor_task
from tasks.periods import run_moment, span
from trading.window import Timeframe

HEADINGS = {STABLE: "Nothing to do", DRIFTED: "Train again", UNKNOWN: "Too little to say"}
# columns of the report beside those that are unusual
SHOWN = 12

PsiModerate = Annotated[
    float,
    Field(gt=0, le=10),
    form("Moderate shift", "Population stability index above which an unusual shift is called moderate.", 0.1),
]
PsiLarge = Annotated[
    float,
    Field(gt=0, le=10),
    form("Large shift", "Population stability index above which an unusual shift is drift.", 0.25),
]
Level = Annotated[
    float,
    Field(gt=0, lt=1),
    form("Level", "How often the test of the hit rate may be wrong about a model that is as good as it was.", 0.01),
]
HitRateDrop = Annotated[
    float,
    Field(gt=0, lt=1),
    form("Drop", "Drop of the hit rate, 0.1 for ten points, that the test's power is stated for.", 0.1),
]


@flow(name="monitor", flow_run_name="monitor-{timeframe}", retries=0, persist_result=False)
def monitor(
    symbols: Symbols,
    timeframe: Bar = Timeframe.H1,
    days: Days = 30,
    start: Start = None,
    end: End = None,
    refresh: Refresh = None,
    psi_moderate: PsiModerate = 0.1,
    psi_large: PsiLarge = 0.25,
    level: Level = 0.01,
    hit_rate_drop: HitRateDrop = 0.1,
) -> Monitored:
    """Compare features, predictions and hit rate of the bars since the training with those of the training.

    The run ends Completed when the champion is as it was, in the state Drifted when it must be trained
    again (the event tradeflows.model.drifted then starts the train deployment, whose gate decides about
    the new model), and in the state Unknown when there is no champion, no reference or too little to say.
    A second run over the same bars gives the same answer and starts nothing.
    """
    moment = run_moment()
    first, last = span(timeframe, start, end, days, moment)
    if refresh is not None:
        bring_up_to_date(symbols, timeframe, refresh, first, last, moment)
    rule = DriftRule(moderate=psi_moderate, large=psi_large, level=level, effect=hit_rate_drop)
    found = monitor_task(symbols, timeframe, first, last, rule, moment)
    _publish(found)
    if found.state != STABLE:
        # Prefect hands the data to the caller, and shows the name and the message
        named: Monitored = Completed(  # type: ignore[assignment]
            name=found.state.capitalize(), message="; ".join(found.reasons)[:1000], data=found
        )
        return named
    return found


def _publish(found: Monitored) -> None:
    title = f"{found.model} version {found.version}" if found.version else f"{found.model} has no champion"
    rows = f" {found.rows:,} live rows of {found.live.replace('/', ' to ')}." if found.live else ""
    text = [
        f"# {title}: {found.state}",
        f"Data: **{found.data_mode}**.{rows}{' Reused: the same bars were looked at before.' if found.reused else ''}",
        *([f"[Model version]({found.link})"] if found.link else []),
        *reports.section(HEADINGS[found.state], found.reasons),
        *_columns(found),
    ]
    key = f"monitor-{found.model}".lower().replace("_", "-").replace(".", "-")
    reports.markdown(key, "\n\n".join(text), f"{found.state}: {found.reasons[0]}"[:200])
    if found.picture is not None:
        reports.picture(f"drift-{found.model}".lower().replace("_", "-").replace(".", "-"), Path(found.picture), title)


def _columns(found: Monitored) -> list[str]:
    """What has drifted or is unusual, and the next few, with what the figures mean."""
    order = sorted(found.columns, key=lambda column: -column["psi"] / column["limit"])
    unusual = sum(bool(column["unusual"]) for column in order)
    shown, left = order[: unusual + SHOWN], order[unusual + SHOWN :]
    if not shown:
        return []
    more = f" {len(left)} more columns are farther from their limits than these." if left else ""
    return [
        "## Against training, the nearest to its limit first",
        reports.markdown_table([*map(_row, shown)]),
        "PSI says how far the live rows are from those of the training, KS likewise from 0 to 1. *By chance* is the "
        "mean PSI of independent rows, *usual up to* what the training's own windows of this length reached: rows "
        "of a market come in spells. A column has drifted when its PSI is above what is usual and large besides."
        + more,
    ]


def _row(column: dict[str, object]) -> dict[str, object]:
    verdict = "**drifted**" if column["drifted"] else f"unusual, {column['size']}" if column["unusual"] else "usual"
    figures = (("PSI", "psi"), ("by chance", "expected"), ("usual up to", "limit"), ("KS", "ks"))
    return {
        "column": column["name"],
        **{title: f"{column[name]:.3f}" for title, name in figures},
        "verdict": verdict,
    }
