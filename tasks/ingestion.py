"""From sources to the trusted store: plan, collect, judge, store, record.

Each step is a plain function that takes what it needs; the Prefect tasks at the foot open the settings'
store and sources around them. Between tasks go windows, digests and counts, never frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Final

import numpy as np
from prefect import task

from tasks import gaps, ledger, log, quarantine
from tasks.chunks import Revision
from tasks.collecting import Collected, OpenSource, Wanted, collect_checked, rows_of, runs
from tasks.guarding import opened_sources
from tasks.retry import EXCHANGE, STORE, prefect_options
from tasks.settings import load_settings
from tasks.sources import Instrument, Source, require_over
from tasks.store import Store, configured_store, corrections, read_candles, write_candles
from trading.calendars import expected_opens
from trading.candles import digest, open_times_ms
from trading.errors import ConfigurationError, DataModeConflict, ExpectationFailed, SourceError, TradeflowsError
from trading.gaps import Gap
from trading.gaps import gaps as gaps_of
from trading.masks import Screening
from trading.window import Timeframe, Window, split_by_period, subtract

if TYPE_CHECKING:
    from expectations.candles import Verdict

# candles per batch: what one task fetches, judges in one go and holds in memory
BATCH_BARS: Final = 250_000
# runs of windows of a batch that are fetched at the same time
WORKERS: Final = 2
SHOWN_CORRECTIONS: Final = 20


@dataclass(frozen=True)
class Plan:
    """What a run has to do for one symbol.

    Attributes:
        wanted: the whole window, from the symbol's first candle on.
        missing: the parts of it that the ledger has not approved, at most one chunk period each.
        again: approved parts to ask for again, to find late corrections and to mend gaps.
    """

    instrument: Instrument
    wanted: Window
    missing: tuple[Window, ...]
    again: tuple[Window, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of one window.

    Attributes:
        window: the part of it that was stored; what the source does not have yet is not.
        waiting: bars at its end that the source does not have yet.
        gaps: bars that the source, asked again, does not have.
        repaired: bars of earlier gaps that it gave now.
        withdrawn: stored candles that it did not give again.
        corrections: the late changes, as text, the first ``SHOWN_CORRECTIONS``.
    """

    window: Window
    data_mode: str
    source: str
    received: int = 0
    added: int = 0
    changed: int = 0
    quarantined: Mapping[str, int] = field(default_factory=dict)
    gaps: int = 0
    waiting: int = 0
    repaired: int = 0
    withdrawn: int = 0
    warnings: tuple[str, ...] = ()
    corrections: tuple[str, ...] = ()
    digest: str = ""


@dataclass(frozen=True)
class Failure:
    """A window that could not be ingested, and why."""

    window: Window
    error: TradeflowsError


# --- what is to do -------------------------------------------------------------------------------


def plan(
    store: Store,
    source: Source,
    symbols: Sequence[str],
    timeframe: Timeframe,
    start: datetime,
    end: datetime,
    *,
    recheck: int = 0,
    repair: bool = False,
) -> list[Plan]:
    """Ask the source what the symbols are and the ledger what is missing of them.

    Args:
        recheck: how many of the newest bars to ask for even if they are approved.
        repair: ask for the bars of confirmed gaps again.

    Raises:
        UnknownSymbol: the source does not know one of them; nothing has been fetched.
        BadWindow: the span is not over by the source's clock; nothing has been fetched either.
    """
    clock = source.server_time()
    windows = [Window(symbol, timeframe, start, end) for symbol in symbols]
    for window in windows:
        require_over(window, clock)
    instruments = source.describe_all(symbols)
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="plan") as pool:
        missing = pool.map(lambda window: _missing(store, source, window), windows)
        return [
            Plan(instrument, wanted, tuple(parts), tuple(_again(store, wanted, parts, recheck, repair)))
            for instrument, (wanted, parts) in zip(instruments, missing, strict=True)
        ]


def _missing(store: Store, source: Source, window: Window) -> tuple[Window, list[Window]]:
    """The window from the symbol's first candle on, and the parts of it that nobody has approved."""
    parts = ledger.missing(store, window)
    if not parts or parts[0].start > window.start:
        return window, parts
    # the market may have opened later than asked for: that is no gap
    first = source.listed(window.symbol, window.timeframe)
    if first is None:
        return window, parts
    ledger.set_listed(store, window.symbol, window.timeframe, first)
    window = ledger.since_listed(store, window)
    return window, [part.within(max(part.start, window.start), part.end) for part in parts if part.end > window.start]


def _again(store: Store, window: Window, missing: Sequence[Window], recheck: int, repair: bool) -> list[Window]:
    step = window.timeframe.delta
    asked = [(part.start, part.end) for part in missing]
    found: list[Window] = []
    if recheck:
        newest = window.within(max(window.start, window.end - recheck * step), window.end)
        found = [part for whole in subtract(newest, asked) for part in split_by_period(whole)]
    if repair:
        for known in gaps.within(store, window):
            whole = window.within(known.gap.start, min(known.gap.end, window.end))
            found += subtract(whole, [*asked, *((part.start, part.end) for part in found)])
    return sorted(found)


def batches(plans: Iterable[Plan], bars: int = BATCH_BARS) -> list[list[Wanted]]:
    """Every window of the plans, in batches of about so many bars, so that memory does not grow with their number."""
    made: list[list[Wanted]] = []
    room = 0
    for one in plans:
        for window, again in [*((part, False) for part in one.missing), *((part, True) for part in one.again)]:
            if window.slots > room or not made:
                made.append([])
                room = bars
            made[-1].append(Wanted(window, one.instrument, again))
            room -= window.slots
    return made


# --- one batch -----------------------------------------------------------------------------------


def ingest_windows(
    store: Store,
    sources: Sequence[OpenSource],
    batch: Sequence[Wanted],
    *,
    now: datetime,
    max_bad_share: float,
    flow_run_id: str | None,
    compare: OpenSource | None = None,
    price_tolerance: float = 0.01,
) -> tuple[list[Outcome], list[Failure]]:
    """Collect, judge and store some windows; one that fails does not stop the others.

    Args:
        sources: the source, then those to fall back to where it does not answer; opened where they are needed.
        compare: a source whose prices must agree.
        price_tolerance: median relative difference of closes above which two sources disagree.
    """
    from expectations.candles import judge

    # a batch that is tried again finds part of its work done
    todo = [wanted for wanted in batch if wanted.again or ledger.missing(store, wanted.window)]
    outcomes: list[Outcome] = []
    failures: list[Failure] = []
    collected: list[Collected] = []

    def attempt(run: Sequence[Wanted]) -> list[Collected | Failure]:
        rows = rows_of(sources[0], run)
        found: list[Collected | Failure] = []
        for wanted in run:
            try:
                found.append(collect_checked(store, sources, wanted, compare, price_tolerance, rows))
            except TradeflowsError as error:
                found.append(Failure(wanted.window, error))
        return found

    with ThreadPoolExecutor(WORKERS, thread_name_prefix="collect") as pool:
        for done in chain.from_iterable(pool.map(attempt, runs(todo))):
            if isinstance(done, Failure):
                failures.append(done)
            else:
                collected.append(done)
    verdicts = judge([one.screening for one in collected], max_bad_share=max_bad_share)
    for one, verdict in zip(collected, verdicts, strict=True):
        try:
            outcomes.append(_store(store, one, verdict, now=now, flow_run_id=flow_run_id))
        except (ExpectationFailed, DataModeConflict) as error:
            failures.append(Failure(one.wanted.window, error))
    return outcomes, failures


def ingest_batches(
    store: Store,
    sources: Sequence[OpenSource],
    todo: Sequence[Sequence[Wanted]],
    *,
    now: datetime,
    max_bad_share: float,
    flow_run_id: str | None,
    at_once: int = 2,
) -> tuple[list[Outcome], list[Failure]]:
    """``ingest_windows`` of each batch, ``at_once`` at the same time: one is fetched while another is written."""

    def work(batch: Sequence[Wanted]) -> tuple[list[Outcome], list[Failure]]:
        return ingest_windows(store, sources, batch, now=now, max_bad_share=max_bad_share, flow_run_id=flow_run_id)

    with ThreadPoolExecutor(at_once, thread_name_prefix="batch") as pool:
        done = list(pool.map(work, todo))
    return [outcome for good, _ in done for outcome in good], [failure for _, failed in done for failure in failed]


def _store(store: Store, collected: Collected, verdict: Verdict, *, now: datetime, flow_run_id: str | None) -> Outcome:
    """Put bad rows aside, store the good ones and record the window.

    Raises:
        ExpectationFailed: a critical expectation was broken. The bad rows are in quarantine and the
            ledger says ``refused``; no candle was written.
        DataModeConflict: the series holds candles of another mode.
    """
    from expectations.candles import VERSION, require

    wanted, screening, instrument = collected.wanted, collected.screening, collected.instrument
    mode, origin = instrument.data_mode, instrument.source
    findings = (*map(str, verdict.findings), *collected.notes)
    if len(screening.bad):
        quarantine.put(store, wanted.window, screening.bad, source=origin, now=now, data_mode=mode)
    if collected.end <= wanted.window.start:
        return Outcome(wanted.window, mode, origin, waiting=collected.waiting, warnings=findings)
    window = wanted.window.within(wanted.window.start, collected.end)

    def entry(status: str, **found: object) -> ledger.LedgerEntry:
        return ledger.LedgerEntry(
            window=window,
            status=status,
            rows=len(screening.good),
            quarantined=screening.quarantined,
            gaps=len(screening.missing),
            suite=VERSION,
            flow_run_id=flow_run_id,
            data_mode=mode,
            source=origin,
            calendar=instrument.calendar,
            recorded_at=now,
            findings=findings,
            **found,  # type: ignore[arg-type]
        )

    try:
        require(verdict, screening, window)
    except ExpectationFailed:
        ledger.record(store, entry(ledger.REFUSED, added=0, digest=""))
        raise
    approved = ledger.approved(store, window)
    late = Revision(now, origin, flow_run_id) if approved else None
    written = write_candles(store, window, screening.good, mode, late)
    expected = expected_opens(window, instrument.calendar)
    absent = gaps_of(expected, screening.missing, window.timeframe.delta)
    # a candle that the source no longer gives is still in the store: no gap
    if written.withdrawn:
        absent = _unstored(store, window, expected, screening)
    repaired = 0
    if absent or approved:
        repaired = gaps.record(
            store, window, absent,
            source=origin, now=now, flow_run_id=flow_run_id, calendar=instrument.calendar,
        )  # fmt: skip
    # an earlier try may have put rows aside and then waited for the bars, which the ledger does not know
    quarantine.heal(store, window, screening.good)
    ledger.record(
        store,
        entry(
            ledger.APPROVED,
            added=written.added,
            changed=written.changed,
            repaired=repaired,
            withdrawn=written.withdrawn,
            digest=written.digest,
        ),
    )
    if approved and (written.added or written.changed):
        ledger.refresh(store, window)
    return Outcome(
        window=window,
        data_mode=mode,
        source=origin,
        received=screening.received,
        added=written.added,
        changed=written.changed,
        quarantined=screening.quarantined,
        gaps=sum(gap.bars for gap in absent),
        waiting=collected.waiting,
        repaired=repaired,
        withdrawn=written.withdrawn,
        warnings=findings,
        corrections=_corrections(store, window, now) if late and (written.changed or written.added) else (),
        digest=written.digest,
    )


def _unstored(store: Store, window: Window, expected: np.ndarray, screening: Screening) -> list[Gap]:
    held = open_times_ms(read_candles(store, window))
    return gaps_of(expected, np.setdiff1d(screening.missing, held), window.timeframe.delta)


def _corrections(store: Store, window: Window, now: datetime) -> tuple[str, ...]:
    made = [
        f"{window.symbol} {window.timeframe} {one.open_time:%Y-%m-%d %H:%M}: "
        + (f"close {one.old[3]:g}, now {one.new[3]:g}" if one.old else f"came late, close {one.new[3]:g}")
        for one in corrections(store, window.symbol, window.timeframe.value)
        # times are stored to the millisecond
        if now - one.revision.at < timedelta(milliseconds=1) and window.start <= one.open_time < window.end
    ]
    return tuple(made[:SHOWN_CORRECTIONS])


@dataclass(frozen=True)
class Holding:
    """What the store holds of a window: how many candles, their digest, and the bars of confirmed gaps."""

    rows: int
    digest: str
    gaps: int


def holding(store: Store, window: Window) -> Holding:
    """Count and digest of the stored candles of a window."""
    candles = read_candles(store, window)
    return Holding(len(candles), digest(candles), sum(known.gap.bars for known in gaps.within(store, window)))


# --- Prefect tasks -------------------------------------------------------------------------------


@task(name="plan-ingest", **prefect_options(EXCHANGE))
def plan_task(
    symbols: Sequence[str],
    timeframe: Timeframe,
    sources: Sequence[str],
    start: datetime,
    end: datetime,
    recheck: int = 0,
    repair: bool = False,
) -> list[Plan]:
    """``plan`` on the configured store and the first of the sources that answers."""
    settings = load_settings()
    with configured_store(settings) as store, opened_sources(settings, store, sources, metered=True) as openers:
        for at, opener in enumerate(openers):
            try:
                return plan(store, opener(), symbols, timeframe, start, end, recheck=recheck, repair=repair)
            except SourceError as error:
                if not error.transient or at == len(openers) - 1:
                    raise
                log.logger().warning("source does not answer", source=sources[at], error=str(error))
    raise ConfigurationError("an ingest needs at least one source")


@task(name="ingest-windows", task_run_name="ingest-{title}", **prefect_options(STORE))
def ingest_task(
    batch: Sequence[Wanted], sources: Sequence[str], now: datetime, title: str, compare: str | None = None
) -> tuple[list[Outcome], list[Failure]]:
    """``ingest_windows`` on the configured store and sources."""
    settings = load_settings()
    kinds = [*sources, *([compare] if compare else [])]
    with configured_store(settings) as store, opened_sources(settings, store, kinds, metered=True) as openers:
        outcomes, failures = ingest_windows(
            store,
            openers[: len(sources)],
            batch,
            now=now,
            max_bad_share=settings.max_bad_share,
            flow_run_id=log.flow_run_id(),
            compare=openers[-1] if compare else None,
            price_tolerance=settings.price_tolerance,
        )
    for outcome in outcomes:
        with log.about(outcome.window):
            log.logger().info(
                "stored",
                added=outcome.added,
                changed=outcome.changed,
                gaps=outcome.gaps,
                quarantined=dict(outcome.quarantined),
                source=outcome.source,
            )
    for failure in failures:
        with log.about(failure.window):
            log.logger().error("window failed", error=str(failure.error))
    return outcomes, failures


@task(name="count-stored", **prefect_options(STORE))
def holdings_task(windows: Sequence[Window]) -> dict[str, Holding]:
    """``holding`` of each window by symbol, on the configured store."""
    settings = load_settings()
    with configured_store(settings) as store:
        return {window.symbol: holding(store, window) for window in windows}
