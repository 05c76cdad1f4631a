"""From a source to the trusted store: plan, fetch, judge, store, record.

Each step is a plain function that takes what it needs; the Prefect tasks at the foot open the settings'
store and source around them. Between steps go windows, digests and counts, never frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from prefect import task

from tasks import ledger, log, quarantine
from tasks.retry import EXCHANGE, STORE, prefect_options
from tasks.settings import load_settings
from tasks.sources import Instrument, Source, require_over, source_of
from tasks.store import Store, configured_store, read_candles, stage, staged, unstage, write_candles
from trading.errors import ExpectationFailed
from trading.masks import Screening, screen
from trading.window import Timeframe, Window


@dataclass(frozen=True)
class Plan:
    """What a run has to do for one symbol.

    Attributes:
        wanted: the whole window.
        missing: the parts of it that the ledger has not approved, at most one chunk period each.
    """

    instrument: Instrument
    wanted: Window
    missing: tuple[Window, ...]


@dataclass(frozen=True)
class Batch:
    """A fetched and not yet trusted batch: where its rows wait, and how many there are."""

    window: Window
    instrument: Instrument
    staged: str
    rows: int


@dataclass(frozen=True)
class Outcome:
    """What became of one window."""

    window: Window
    data_mode: str
    received: int
    added: int
    changed: int
    quarantined: Mapping[str, int]
    gaps: int
    warnings: tuple[str, ...]
    digest: str


def plan(
    store: Store, source: Source, symbols: Sequence[str], timeframe: Timeframe, start: datetime, end: datetime
) -> list[Plan]:
    """Ask the source what the symbols are and the ledger what is missing of them.

    Raises:
        UnknownSymbol: the source does not know one of them; nothing has been fetched.
        BadWindow: the span is not over by the source's clock; nothing has been fetched either.
    """
    plans = []
    clock = source.server_time()
    for symbol in symbols:
        window = Window(symbol, timeframe, start, end)
        require_over(window, clock)
        plans.append(Plan(source.describe(symbol), window, tuple(ledger.missing(store, window))))
    return plans


def fetch(store: Store, source: Source, window: Window, instrument: Instrument, now: datetime) -> Batch:
    """Fetch one window and put the raw rows where the next step finds them."""
    raw = source.fetch(window)
    return Batch(window, instrument, stage(store, raw, window, now), len(raw))


def judge_and_store(
    store: Store, batch: Batch, *, now: datetime, max_bad_share: float, flow_run_id: str | None
) -> Outcome:
    """Screen a batch, put bad rows aside, judge the rest, store it and record the window.

    Raises:
        ExpectationFailed: a critical expectation was broken. The bad rows are in quarantine and the
            ledger says ``refused``; no candle was written.
    """
    from expectations.candles import VERSION, judge, require

    screening = screen(staged(store, batch.staged), batch.window, batch.instrument.calendar)
    verdict = judge(screening, max_bad_share=max_bad_share)
    mode, origin = batch.instrument.data_mode, batch.instrument.source
    if len(screening.bad):
        quarantine.put(store, batch.window, screening.bad, source=origin, now=now, data_mode=mode)

    def entry(status: str, added: int, digest: str) -> ledger.LedgerEntry:
        return ledger.LedgerEntry(
            window=batch.window,
            status=status,
            rows=len(screening.good),
            added=added,
            quarantined=screening.quarantined,
            gaps=len(screening.missing),
            digest=digest,
            suite=VERSION,
            flow_run_id=flow_run_id,
            data_mode=mode,
            source=origin,
            calendar=batch.instrument.calendar,
            recorded_at=now,
        )

    try:
        require(verdict, screening, batch.window)
    except ExpectationFailed:
        ledger.record(store, entry("refused", 0, ""))
        raise
    written = write_candles(store, batch.window, screening.good, mode)
    ledger.record(store, entry("approved", written.added, written.digest))
    unstage(store, batch.staged)
    return _outcome(batch, screening, written.added, written.changed, written.digest, tuple(map(str, verdict.findings)))


@dataclass(frozen=True)
class Holding:
    """What the store holds of a window: how many candles, and their digest."""

    rows: int
    digest: str


def holding(store: Store, window: Window) -> Holding:
    """Count and digest of the stored candles of a window."""
    from trading.candles import digest

    candles = read_candles(store, window)
    return Holding(len(candles), digest(candles))


def _outcome(
    batch: Batch, screening: Screening, added: int, changed: int, digest: str, warnings: tuple[str, ...]
) -> Outcome:
    return Outcome(
        window=batch.window,
        data_mode=batch.instrument.data_mode,
        received=screening.received,
        added=added,
        changed=changed,
        quarantined=screening.quarantined,
        gaps=len(screening.missing),
        warnings=warnings,
        digest=digest,
    )


# --- Prefect tasks -------------------------------------------------------------------------------


@task(name="plan-ingest", **prefect_options(EXCHANGE))
def plan_task(symbols: Sequence[str], timeframe: Timeframe, source: str, start: datetime, end: datetime) -> list[Plan]:
    """``plan`` on the configured store and source."""
    settings = load_settings()
    with configured_store(settings) as store, source_of(settings, source) as opened:
        return plan(store, opened, symbols, timeframe, start, end)


@task(name="fetch-window", task_run_name="fetch-{window}", **prefect_options(EXCHANGE))
def fetch_task(window: Window, instrument: Instrument, source: str, now: datetime) -> Batch:
    """``fetch`` on the configured store and source."""
    settings = load_settings()
    with log.about(window), configured_store(settings) as store, source_of(settings, source) as opened:
        batch = fetch(store, opened, window, instrument, now)
        log.logger().info("fetched", rows=batch.rows, source=instrument.source)
        return batch


@task(name="store-window", task_run_name="store-{batch.window}", **prefect_options(STORE))
def store_task(batch: Batch, now: datetime) -> Outcome:
    """``judge_and_store`` on the configured store."""
    settings = load_settings()
    with log.about(batch.window), configured_store(settings) as store:
        outcome = judge_and_store(
            store, batch, now=now, max_bad_share=settings.max_bad_share, flow_run_id=log.flow_run_id()
        )
        log.logger().info("stored", added=outcome.added, changed=outcome.changed, quarantined=dict(outcome.quarantined))
        return outcome


@task(name="count-stored", **prefect_options(STORE))
def holdings_task(windows: Sequence[Window]) -> dict[str, Holding]:
    """``holding`` of each window by symbol, on the configured store."""
    settings = load_settings()
    with configured_store(settings) as store:
        return {window.symbol: holding(store, window) for window in windows}
