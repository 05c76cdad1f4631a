"""Ingest: ask the ledger what is missing, fetch only that, screen, judge, store, record, report."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from prefect import flow

from flows.parameters import Days, End, SourceName, Start, Symbols
from tasks import log, reports
from tasks.ingestion import Holding, Outcome, Plan, fetch_task, holdings_task, plan_task, store_task
from tasks.periods import run_moment, span
from tasks.progress import report
from trading.errors import TradeflowsError
from trading.window import Timeframe, Window


@dataclass(frozen=True)
class IngestResult:
    """What an ingest run did: one row per symbol, and the windows that failed with their errors."""

    timeframe: str
    rows: list[dict[str, object]]
    failures: list[str]

    @property
    def added(self) -> int:
        """Candles that were not in the store before."""
        return sum(int(str(row["added"])) for row in self.rows)

    @property
    def changed(self) -> int:
        """Stored candles that the source now gives differently."""
        return sum(int(str(row["changed"])) for row in self.rows)


@flow(name="ingest", flow_run_name="ingest-{timeframe}", retries=0, persist_result=False)
def ingest(
    symbols: Symbols,
    timeframe: Timeframe = Timeframe.H1,
    source: SourceName = "exchange",
    days: Days = 730,
    start: Start = None,
    end: End = None,
) -> IngestResult:
    """Bring the trusted store up to date for some symbols.

    Only windows that the ledger has not approved are fetched, so a second run finds nothing to do. A
    window that fails does not stop the others; the run then ends Failed, with every error in its report.

    Args:
        symbols: Symbols as the source spells them, such as BTCUSDT.
        timeframe: Length of a bar.
        source: Where candles come from: exchange (Binance-style REST), engine (its chart API) or files.
        days: How many days to look back where no start is given.
        start: Open time of the first bar (UTC). Empty: so many days back.
        end: End of the last bar (UTC). Empty: the last bar that is over when the run is due.
    """
    moment = run_moment()
    first, last = span(timeframe, start, end, days, moment)
    return bring_up_to_date(symbols, timeframe, source, first, last, moment)


def bring_up_to_date(
    symbols: list[str], timeframe: Timeframe, source: str, first: datetime, last: datetime, moment: datetime
) -> IngestResult:
    """The body of ``ingest``, for flows that refresh the candles they are about to use.

    Raises:
        TradeflowsError: the first of the errors, after every window was tried and the report written.
    """
    plans = plan_task(symbols, timeframe, source, first, last)
    todo = [(plan, window) for plan in plans for window in plan.missing]
    outcomes: list[Outcome] = []
    errors: list[TradeflowsError] = []
    for done, (plan, window) in enumerate(todo):
        report(f"ingest {timeframe.value}", done, len(todo))
        try:
            batch = fetch_task(window, plan.instrument, source, moment)
            outcomes.append(store_task(batch, moment))
        except TradeflowsError as error:
            with log.about(window):
                log.logger().error("window failed", error=str(error))
            errors.append(error)
    report(f"ingest {timeframe.value}", len(todo), len(todo))
    held = holdings_task([plan.wanted for plan in plans])
    rows = [_row(plan, outcomes, held[plan.wanted.symbol]) for plan in plans]
    result = IngestResult(timeframe.value, rows, [str(error) for error in errors])
    _publish(result, first=plans[0].wanted)
    if errors:
        raise errors[0]
    return result


def _row(plan: Plan, outcomes: list[Outcome], held: Holding) -> dict[str, object]:
    mine = [outcome for outcome in outcomes if outcome.window.symbol == plan.wanted.symbol]
    put_aside: dict[str, int] = {}
    for outcome in mine:
        for reason, count in outcome.quarantined.items():
            put_aside[reason] = put_aside.get(reason, 0) + count
    return {
        "symbol": plan.wanted.symbol,
        "timeframe": plan.wanted.timeframe.value,
        "data": plan.instrument.data_mode,
        "windows": f"{len(mine)} of {len(plan.missing)}" if plan.missing else "none missing",
        "stored": held.rows,
        "received": sum(outcome.received for outcome in mine),
        "added": sum(outcome.added for outcome in mine),
        "changed": sum(outcome.changed for outcome in mine),
        "quarantined": ", ".join(f"{count} {reason}" for reason, count in sorted(put_aside.items())) or "0",
        "gaps": sum(outcome.gaps for outcome in mine),
        "digest": held.digest[:12],
        "warnings": len([warning for outcome in mine for warning in outcome.warnings]),
    }


def _publish(result: IngestResult, first: Window) -> None:
    headline = (
        f"{result.added} candles added, {result.changed} corrected"
        if result.added or result.changed
        else "nothing new: every window was approved before"
    )
    text = [
        f"# Ingest {result.timeframe}",
        f"`{first.start:%Y-%m-%d %H:%M}` to `{first.end:%Y-%m-%d %H:%M}` UTC. **{headline}**.",
        reports.markdown_table(result.rows),
    ]
    if result.failures:
        text += ["## Failed windows", *(f"- {failure}" for failure in result.failures)]
    reports.markdown(f"ingest-{result.timeframe}", "\n\n".join(text), headline)
    reports.table(f"candles-{result.timeframe}", result.rows, headline)
