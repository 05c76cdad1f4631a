"""Settle: what became of the analyses whose horizon is over, and what each analyst counts from now on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.states import Completed

from flows.ingest import bring_up_to_date
from flows.parameters import Bar, Days, End, FeeRate, Horizon, Refresh, SlippageRate, Start, Symbols, form
from tasks import reports
from tasks.periods import run_moment, span
from tasks.score_runs import Scored, score_task
from tasks.settling import Settled, SettleRequest, settle_task
from trading.window import Timeframe

# what the report lists one by one
LISTED = 30

Analysed = Annotated[
    Symbols, form("Symbols", "Symbols whose analyses to settle, as the source spells them.", ["BTCUSDT"])
]
Back = Annotated[Days, form("Days back", "How many days back a horizon may have ended, where no start is given.", 7)]
FirstClose = Annotated[
    Start, form("Start", "Close of the first bar whose analysis to settle (UTC). Empty: so many days back.")
]
LastEnd = Annotated[
    End,
    form("End", "End of the last bar to settle with (UTC). Empty: the last bar that is over when the run is due."),
]
SettledAfter = Annotated[
    Horizon, form("Horizon", "Bars after which analyses are settled that say no horizon themselves.", 12)
]
ScoreDays = Annotated[Days, form("Record, days", "How many days of settlements the record is made of.", 90)]
Hindsight = Annotated[
    bool,
    form(
        "Hindsight",
        "Settle also analyses that were made when their fill was past, as in a replay. They are marked, and count for "
        "no weight.",
    ),
]


@flow(name="settle", flow_run_name="settle-{timeframe}", retries=0, persist_result=False)
def settle(
    symbols: Analysed,
    timeframe: Bar = Timeframe.H1,
    days: Back = 7,
    start: FirstClose = None,
    end: LastEnd = None,
    refresh: Refresh = None,
    fee_rate: FeeRate = 0.001,
    slippage_rate: SlippageRate = 0.0005,
    horizon: SettledAfter = 12,
    score_days: ScoreDays = 90,
    hindsight: Hindsight = False,
) -> Scored:
    """Settle every opinion against what happened, and score the analysts on equal terms.

    A signal is filled at the next open, given up at the open a horizon later, and pays costs at both. Only
    finished candles are used; where one is missing the analysis waits, the report says for which, and the run
    ends in the state Waiting. A second run settles nothing twice. The record that results is what
    analyses from then on weigh their analysts by.
    """
    moment = run_moment()
    first, last = span(timeframe, start, end, days, moment)
    if refresh is not None:
        bring_up_to_date(symbols, timeframe, refresh, first, last, moment)
    request = SettleRequest(
        timeframe, first, last, fee_rate=fee_rate, slippage_rate=slippage_rate, horizon=horizon,
        score_days=score_days, hindsight=hindsight, reach_back=start is None,
    )  # fmt: skip
    settled = settle_task(symbols, request, moment)
    scored = score_task(request, settled, moment)
    _publish(timeframe, settled, scored)
    if settled.waiting or settled.errors:
        # Prefect hands the data to the caller, and shows the name and the message
        message = "; ".join([*settled.errors, *settled.waiting])[:1000]
        named: Scored = Completed(name="Waiting", message=message, data=scored)  # type: ignore[assignment]
        return named
    return scored


def _publish(timeframe: Timeframe, settled: Settled, scored: Scored) -> None:
    counts = {
        "settled now": settled.fresh,
        "settled before": settled.known,
        "horizon not over": settled.early,
        "made too late to count": settled.late_made,
        "waiting for candles": len(settled.waiting),
    }
    late = f" {scored.hindsight} of them were made late, and count for no weight." if scored.hindsight else ""
    text = [
        f"# Analysts {timeframe.value}: {settled.fresh} analyses settled",
        f"Data: **{', '.join(scored.data_modes) or 'none'}**. The record is of {scored.settled} settlements.{late}",
        *([f"[The run in MLflow]({scored.link})"] if scored.link else []),
        reports.markdown_table([counts]),
        "## By analyst and version",
        reports.markdown_table(scored.rows),
        *reports.section("Failed", settled.errors[:LISTED]),
        *reports.section("Waiting", settled.waiting[:LISTED]),
    ]
    if len(scored.by_symbol) <= 10 * LISTED:
        text += ["## By symbol", reports.markdown_table(scored.by_symbol)]
    else:
        text.append("By symbol: scores.csv of the run in MLflow.")
    reports.markdown(f"settle-{timeframe.value}", "\n\n".join(text), f"{settled.fresh} settled")
    if scored.picture is not None:
        reports.picture(f"analysts-{timeframe.value}", Path(scored.picture), f"Analysts {timeframe.value}")
