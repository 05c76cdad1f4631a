"""Ingest: ask the ledger what is missing, fetch only that, screen, judge, store, record, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows.parameters import Bar, Days, End, Source, SourceName, Start, Symbols, form
from tasks import events, reports
from tasks.collecting import Wanted
from tasks.ingestion import Failure, Holding, Outcome, Plan, batches, holdings_task, ingest_task, plan_task
from tasks.periods import run_moment, span
from tasks.progress import report
from tasks.quality import SeriesQuality, quality_task
from tasks.resampling import Derived, derive_task
from trading.errors import DataError, TradeflowsError
from trading.window import Timeframe

# bars at the end of the window that a source may be late with; with more than that, somebody should look
PATIENCE_BARS = 3
# batches at the same time: one is fetched while the other is judged and written
AT_ONCE = 2
# columns of the reports
REPORTED = (
    "symbol", "timeframe", "data", "windows", "stored", "added", "changed", "quarantined", "gaps", "waiting", "source",
)  # fmt: skip
STORED = ("symbol", "data", "coverage", "rows", "last candle", "behind", "gaps", "in quarantine", "corrected")
CHANGED = ("symbol", "volume, day / month", "range, day / month")

Fallback = Annotated[
    Sequence[SourceName],
    Field(max_length=3),
    form("Fall back to", "Sources to ask, in this order, where the first does not answer.", ["mirror"]),
]
Compare = Annotated[SourceName | None, form("Compare with", "A source whose prices must agree. Empty: none.", "mirror")]
Recheck = Annotated[
    int,
    Field(ge=0, le=1_000_000),
    form("Ask again", "How many of the newest bars to ask for again, to find late corrections.", 48),
]
Repair = Annotated[bool, form("Repair gaps", "Ask again for the bars of confirmed gaps.")]
Derive = Annotated[
    Sequence[Timeframe],
    Field(max_length=11),
    form("Derive", "Coarser timeframes to make of these candles, held to the source's own.", ["4h", "1d"]),
]


@dataclass(frozen=True)
class IngestResult:
    """What an ingest run did: one row per symbol and timeframe, and the windows that failed with their errors."""

    timeframe: str
    rows: list[dict[str, object]]
    failures: list[str]
    corrections: list[str] = field(default_factory=list)
    page: str = ""

    @property
    def added(self) -> int:
        """Candles that were not in the store before."""
        return sum(int(str(row["added"])) for row in self.rows)

    @property
    def changed(self) -> int:
        """Stored candles that the source now gives differently."""
        return sum(int(str(row["changed"])) for row in self.rows)


@flow(
    name="ingest",
    flow_run_name="ingest-{timeframe}",
    retries=0,
    persist_result=False,
    task_runner=ThreadPoolTaskRunner(max_workers=AT_ONCE),  # type: ignore[arg-type]
)
def ingest(
    symbols: Symbols,
    timeframe: Bar = Timeframe.H1,
    source: Source = "exchange",
    days: Days = 730,
    start: Start = None,
    end: End = None,
    fallback: Fallback = (),
    compare: Compare = None,
    recheck: Recheck = 0,
    repair: Repair = False,
    derive: Derive = (),
) -> IngestResult:
    """Bring the trusted store up to date for some symbols.

    Only windows that the ledger has not approved are fetched, so a second run finds nothing to do. A
    window that fails does not stop the others; the run then ends Failed, with every error in its report.
    """
    moment = run_moment()
    first, last = span(timeframe, start, end, days, moment)
    result, errors = _brought(
        symbols, timeframe, [source, *fallback], first, last, moment,
        compare=compare, recheck=recheck, repair=repair, derive=derive,
    )  # fmt: skip
    # old candles are nothing to analyse now; what came in is, whatever failed beside it
    if end is None and (fresh := [row for row in result.rows if row["added"] and row["timeframe"] == timeframe.value]):
        names, modes = [str(row["symbol"]) for row in fresh], {str(row["data"]) for row in fresh}
        events.candles_ingested(names, timeframe.value, ", ".join(sorted(modes)), last.isoformat())
    if errors:
        raise errors[0]
    return result


def bring_up_to_date(
    symbols: list[str], timeframe: Timeframe, source: str, first: datetime, last: datetime, moment: datetime
) -> IngestResult:
    """What ``ingest`` does, for flows that refresh the candles they are about to use.

    Raises:
        TradeflowsError: the first of the errors, after every window was tried and the report written.
    """
    result, errors = _brought(symbols, timeframe, [source], first, last, moment)
    if errors:
        raise errors[0]
    return result


def _brought(
    symbols: list[str],
    timeframe: Timeframe,
    sources: list[str],
    first: datetime,
    last: datetime,
    moment: datetime,
    *,
    compare: Compare = None,
    recheck: int = 0,
    repair: bool = False,
    derive: Derive = (),
) -> tuple[IngestResult, list[TradeflowsError]]:
    """Every window tried and the report written; what was done, and what went wrong."""
    plans = plan_task(symbols, timeframe, sources, first, last, recheck, repair)
    outcomes, failures = _work_off(batches(plans), sources, moment, timeframe, compare)
    again = [failure.window for failure in failures if failure.error.transient]
    if again:
        # what failed in passing may do better now that the rest is done
        repeated = [[wanted for wanted in batch if wanted.window in again] for batch in batches(plans)]
        more, left = _work_off([batch for batch in repeated if batch], sources, moment, timeframe, compare)
        outcomes += more
        failures = [failure for failure in failures if failure.window not in again] + left
    derived: list[Derived] = []
    for target in derive:
        made, failed = derive_task([(plan.wanted, plan.instrument) for plan in plans], target, sources, moment)
        derived += made
        failures += failed
    late = _late(plans, outcomes)
    held = holdings_task([plan.wanted for plan in plans])
    rows = [_row(plan, outcomes, held[plan.wanted.symbol]) for plan in plans]
    rows += [_derived_row(plan, derived, target) for plan in plans for target in derive]
    qualities, page = quality_task([(plan.wanted, plan.instrument.calendar) for plan in plans], moment, bool(outcomes))
    corrections = [text for outcome in outcomes for text in outcome.corrections]
    corrections += [
        f"{one.window}: {one.added + one.changed} made anew of corrected {timeframe} candles"
        for one in derived
        if one.late and (one.added or one.changed)
    ]
    said = [*map(_named, failures), *map(str, late)]
    result = IngestResult(timeframe.value, rows, said, corrections, page)
    _publish(result, qualities, outcomes, first, last)
    return result, [*(failure.error for failure in failures), *late]


def _named(failure: Failure) -> str:
    """The error with its window, which one of a source does not name."""
    window, error = str(failure.window), str(failure.error)
    return error if window in error else f"{window}: {error}"


def _work_off(
    todo: list[list[Wanted]], sources: list[str], moment: datetime, timeframe: Timeframe, compare: str | None
) -> tuple[list[Outcome], list[Failure]]:
    """Every batch, some at the same time; what became of their windows."""
    outcomes: list[Outcome] = []
    failures: list[Failure] = []
    futures = [
        ingest_task.submit(batch, sources, moment, f"{batch[0].window.symbol}-{timeframe.value}-{number}", compare)
        for number, batch in enumerate(todo)
    ]
    step = f"ingest {timeframe.value}"
    for done, future in enumerate(futures):
        report(step, done, len(futures))
        good, bad = future.result()
        outcomes += good
        failures += bad
    report(step, len(futures), len(futures))
    return outcomes, failures


def _late(plans: list[Plan], outcomes: list[Outcome]) -> list[DataError]:
    """An error for each symbol of which the source has long had nothing."""
    found = []
    for plan in plans:
        waiting = sum(one.waiting for one in outcomes if one.window.symbol == plan.wanted.symbol)
        if waiting > PATIENCE_BARS:
            found.append(
                DataError(
                    f"{plan.instrument.source} has none of the newest {waiting} bars of {plan.wanted}; what came "
                    "before them is stored; check that it still trades, or end the window earlier"
                )
            )
    return found


def _row(plan: Plan, outcomes: list[Outcome], held: Holding) -> dict[str, object]:
    mine = [outcome for outcome in outcomes if outcome.window.symbol == plan.wanted.symbol]
    put_aside: dict[str, int] = {}
    for outcome in mine:
        for reason, count in outcome.quarantined.items():
            put_aside[reason] = put_aside.get(reason, 0) + count
    asked = len(plan.missing) + len(plan.again)
    return {
        "symbol": plan.wanted.symbol,
        "timeframe": plan.wanted.timeframe.value,
        "data": plan.instrument.data_mode,
        "source": ", ".join(dict.fromkeys(outcome.source for outcome in mine)) or plan.instrument.source,
        "windows": f"{len(mine)} of {asked}" if asked else "none missing",
        "stored": held.rows,
        "received": sum(outcome.received for outcome in mine),
        "added": sum(outcome.added for outcome in mine),
        "changed": sum(outcome.changed for outcome in mine),
        "quarantined": ", ".join(f"{count} {reason}" for reason, count in sorted(put_aside.items())) or "0",
        "gaps": held.gaps,
        "waiting": sum(outcome.waiting for outcome in mine),
        "digest": held.digest[:12],
        "warnings": len([warning for outcome in mine for warning in outcome.warnings]),
    }


def _derived_row(plan: Plan, derived: list[Derived], target: Timeframe) -> dict[str, object]:
    mine = [one for one in derived if (one.window.symbol, one.window.timeframe) == (plan.wanted.symbol, target)]
    disagreed = sum(one.disagreed for one in mine)
    return {
        "symbol": plan.wanted.symbol,
        "timeframe": target.value,
        "data": plan.instrument.data_mode,
        "source": f"made of {plan.wanted.timeframe.value}",
        "windows": len(mine) or "none missing",
        "stored": "",
        "received": sum(one.made + one.taken + one.disagreed for one in mine),
        "added": sum(one.added for one in mine),
        "changed": sum(one.changed for one in mine),
        "quarantined": f"{disagreed} disagrees" if disagreed else "0",
        "gaps": "",
        "waiting": 0,
        "digest": "",
        "warnings": 0,
    }


def _publish(
    result: IngestResult, qualities: list[SeriesQuality], outcomes: list[Outcome], first: datetime, last: datetime
) -> None:
    headline = _headline(result, outcomes)
    # the pages cut off what a window is too narrow for
    usual = {"timeframe": result.timeframe, "waiting": 0}
    columns = [one for one in REPORTED if one not in usual or any(row[one] != usual[one] for row in result.rows)]
    warnings = [f"{outcome.window}: {warning}" for outcome in outcomes for warning in outcome.warnings]
    text = [
        f"# Ingest {result.timeframe}",
        f"`{first:%Y-%m-%d %H:%M}` to `{last:%Y-%m-%d %H:%M}` UTC: **{headline}**.",
        reports.markdown_table([_part(row, columns) for row in result.rows]),
        f"With digests: artifact `candles-{result.timeframe}`.",
        *reports.section("Failed windows", result.failures),
        *reports.section("Late corrections", result.corrections),
        *reports.section("Warnings", warnings),
    ]
    reports.markdown(f"ingest-{result.timeframe}", "\n\n".join(text), headline)
    reports.table(f"candles-{result.timeframe}", result.rows, headline)
    rows = [quality.row() for quality in qualities]
    pages = "every gap, every row put aside and the expectations"
    text = [
        f"# Data quality {result.timeframe}",
        reports.markdown_table([_part(row, STORED) for row in rows]),
        "## The newest day beside the 30 days before it",
        reports.markdown_table([_part(row, CHANGED) for row in rows]),
        "Median volume and range as multiples; KS is 0 for alike distributions and 1 for nothing in common.",
        f"The page of the day, with {pages}: `{result.page}`"
        if result.page
        else f"No window was asked for. Pages with {pages} are made by the runs that ask.",
    ]
    least = min((quality.coverage for quality in qualities), default=1.0)
    gaps = sum(len(quality.gaps) for quality in qualities)
    said = f"coverage at least {least:.2%}, {gaps} gaps, {sum(sum(one.held.values()) for one in qualities)} put aside"
    reports.markdown(f"data-quality-{result.timeframe}", "\n\n".join(text), said)


def _headline(result: IngestResult, outcomes: list[Outcome]) -> str:
    failed = f"; {len(result.failures)} failed, see below" if result.failures else ""
    if result.added or result.changed:
        return f"{result.added:,} candles added, {result.changed:,} corrected{failed}"
    if outcomes or failed:
        return f"nothing new among {sum(one.received for one in outcomes):,} candles received{failed}"
    return "nothing new: every window was approved before"


def _part(row: Mapping[str, object], names: Sequence[str]) -> dict[str, object]:
    return {name: f"{value:,}" if isinstance(value := row[name], int) else value for name in names}
