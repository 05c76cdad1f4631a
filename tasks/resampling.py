"""Coarser candles from stored finer ones, held to the exchange's own coarser candles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
from prefect import task

from tasks import gaps, ledger, log, quarantine
from tasks.chunks import Revision
from tasks.collecting import OpenSource, Wanted, collect_checked
from tasks.guarding import opened_sources
from tasks.ingestion import Failure
from tasks.retry import STORE, prefect_options
from tasks.settings import load_settings
from tasks.sources import Instrument
from tasks.store import Store, configured_store, corrections, read_candles, write_candles
from trading.calendars import expected_opens
from trading.candles import COLUMNS, open_times_ms, resample
from trading.errors import ExpectationFailed, StoreError, TradeflowsError
from trading.gaps import gaps as gaps_of
from trading.masks import RAW_COLUMNS
from trading.window import Timeframe, Window, split_by_period, subtract

# prices are copied, so they are equal; volumes are sums, whose rounding depends on the order
VOLUME_TOLERANCE = 1e-9
SUITE = "resampled-1"
DISAGREES = "disagrees"


@dataclass(frozen=True)
class Derived:
    """What was made of one window of finer candles.

    Attributes:
        made: coarser candles that were made of finer ones and agree with the exchange's own.
        taken: candles that only the exchange has, since no finer bar of theirs was traded.
        disagreed: candles that the exchange has otherwise; they were put aside.
        late: whether they had been made before, and a finer candle was corrected since.
    """

    window: Window
    made: int
    taken: int
    disagreed: int
    added: int
    changed: int
    late: bool = False


def derive(
    store: Store,
    sources: Sequence[OpenSource],
    instrument: Instrument,
    fine: Window,
    target: Timeframe,
    *,
    now: datetime,
    max_bad_share: float,
    flow_run_id: str | None,
    price_tolerance: float = 0.01,
) -> tuple[list[Derived], list[Failure]]:
    """Make the coarser candles of ``fine`` that the ledger has not approved, or whose finer ones were corrected since.

    A window that fails does not stop the others: more than ``max_bad_share`` of its candles are not what the exchange
    says, no source answers, or ``target`` is not a coarser multiple; nothing of it was stored.

    Args:
        sources: who says what the coarser candles are, then those to fall back to; opened where they are needed.
        fine: a window of finer candles, approved as far as it is ingested.

    Raises:
        StoreError: the store failed.
    """
    start, end = _ceil(target, fine.start), target.floor(fine.end)
    if start >= end:
        return [], []
    whole = Window(fine.symbol, target, start, end)
    done: list[Derived] = []
    failures: list[Failure] = []
    for part in [*ledger.missing(store, whole), *_outdated(store, whole, fine.timeframe, now)]:
        finer = Window(fine.symbol, fine.timeframe, part.start, part.end)
        if ledger.missing(store, finer):
            continue  # not ingested yet: the next run comes back to it
        try:
            done.append(
                _derive(store, sources, instrument, part, finer, now, max_bad_share, flow_run_id, price_tolerance)
            )
        except StoreError:
            raise  # of the whole task, which is tried again
        except TradeflowsError as error:
            failures.append(Failure(part, error))
    return done, failures


def _outdated(store: Store, whole: Window, fine: Timeframe, now: datetime) -> list[Window]:
    """The approved parts of ``whole`` of which a finer candle was changed, or came, after they were made."""
    late = [one for one in corrections(store, whole.symbol, fine.value) if whole.start <= one.open_time < whole.end]
    if not late:
        return []
    made: dict[datetime, datetime] = {}
    for entry in ledger.approved(store, whole):
        for slot in range(entry.window.slots):
            bar = entry.window.start + slot * whole.timeframe.delta
            made[bar] = max(entry.recorded_at, made.get(bar, entry.recorded_at))
    # what this run corrected counts whenever the candles were made: a run's time is when it was due
    this_run = now - timedelta(milliseconds=1)
    moved = {
        bar
        for one in late
        if (bar := whole.timeframe.floor(one.open_time)) in made and one.revision.at > min(made[bar], this_run)
    }
    bars = [(bar, bar + whole.timeframe.delta) for bar in moved]
    others = [(rest.start, rest.end) for rest in subtract(whole, bars)]
    return [part for run in subtract(whole, others) for part in split_by_period(run)]


def _derive(
    store: Store,
    sources: Sequence[OpenSource],
    instrument: Instrument,
    part: Window,
    finer: Window,
    now: datetime,
    max_bad_share: float,
    flow_run_id: str | None,
    price_tolerance: float,
) -> Derived:
    made = resample(read_candles(store, finer), finer.timeframe, part.timeframe, finer.end)
    collected = collect_checked(store, sources, Wanted(part, instrument), None, price_tolerance)
    own = collected.screening.good
    both = made.index.intersection(own.index)
    wrong = both[~_equal(made.loc[both], own.loc[both])]
    # no trade in any finer bar: the exchange's own candle says so, or says nothing
    only_theirs = own[~own.index.isin(made.index)]
    instrument = collected.instrument
    origin = f"resampled from {finer.timeframe} ({instrument.source})"
    aside = _aside(made.loc[wrong])
    if len(wrong):
        quarantine.put(store, part, aside, source=origin, now=now, data_mode=instrument.data_mode)
    share = len(wrong) / max(len(made), 1)
    good = pd.concat([made.drop(wrong), only_theirs]).sort_index()
    expected = expected_opens(part, instrument.calendar)
    missing = np.setdiff1d(expected, open_times_ms(good))
    refused = share > max_bad_share
    approved = ledger.approved(store, part)
    late = Revision(now, origin, flow_run_id) if approved else None
    written = None if refused else write_candles(store, part, good, instrument.data_mode, late)
    ledger.record(
        store,
        ledger.LedgerEntry(
            window=part,
            status=ledger.REFUSED if written is None else ledger.APPROVED,
            rows=len(good),
            added=written.added if written else 0,
            quarantined={DISAGREES: len(wrong)} if len(wrong) else {},
            gaps=len(missing),
            digest=written.digest if written else "",
            suite=SUITE,
            flow_run_id=flow_run_id,
            data_mode=instrument.data_mode,
            source=origin,
            calendar=instrument.calendar,
            recorded_at=now,
            changed=written.changed if written else 0,
            withdrawn=written.withdrawn if written else 0,
            findings=collected.notes,
        ),
    )
    if written is None:
        raise ExpectationFailed(
            f"{part}: {len(wrong)} of {len(made)} candles made of {finer.timeframe} ones are not what "
            f"{instrument.source} says, first {wrong[0]:%Y-%m-%dT%H:%MZ} ({_shown(made, own, wrong[0])}); nothing was "
            f"stored; look for late corrections with: tradeflows ingest {part.symbol} --timeframe {finer.timeframe} "
            f"--recheck {finer.slots}"
        )
    held = open_times_ms(read_candles(store, part))
    gaps.record(
        store,
        part,
        gaps_of(expected, np.setdiff1d(missing, held), part.timeframe.delta),
        source=origin,
        now=now,
        flow_run_id=flow_run_id,
        calendar=instrument.calendar,
    )
    if approved and (written.added or written.changed):
        ledger.refresh(store, part)
    return Derived(
        part, len(made) - len(wrong), len(only_theirs), len(wrong), written.added, written.changed, bool(approved)
    )


def _equal(made: pd.DataFrame, own: pd.DataFrame) -> np.ndarray:
    prices = list(COLUMNS[:-1])
    same = (made[prices].to_numpy() == own[prices].to_numpy()).all(axis=1)
    return np.asarray(same & np.isclose(made["volume"], own["volume"], rtol=VOLUME_TOLERANCE, atol=0))


def _aside(candles: pd.DataFrame) -> pd.DataFrame:
    rows = candles.reset_index(drop=True)
    rows.insert(0, "open_time", open_times_ms(candles))
    rows = rows[list(RAW_COLUMNS)]
    rows["reasons"] = pd.Series([[DISAGREES]] * len(rows), dtype=object)
    return rows


def _shown(made: pd.DataFrame, own: pd.DataFrame, at: pd.Timestamp) -> str:
    ours, theirs = made.loc[at].to_dict(), own.loc[at].to_dict()
    return ", ".join(
        f"{name} {ours[name]:g} and not {theirs[name]:g}" for name in COLUMNS if ours[name] != theirs[name]
    )


def _ceil(timeframe: Timeframe, moment: datetime) -> datetime:
    floor = timeframe.floor(moment)
    return floor if floor == moment else floor + timeframe.delta


# --- Prefect tasks -------------------------------------------------------------------------------


@task(name="derive-candles", task_run_name="derive-{target}", **prefect_options(STORE))
def derive_task(
    windows: Sequence[tuple[Window, Instrument]], target: Timeframe, sources: Sequence[str], now: datetime
) -> tuple[list[Derived], list[Failure]]:
    """``derive`` for each window on the configured store and sources."""
    settings = load_settings()
    done: list[Derived] = []
    failures: list[Failure] = []
    with configured_store(settings) as store, opened_sources(settings, store, sources, metered=True) as openers:
        for window, instrument in windows:
            made, failed = derive(
                store, openers, instrument, window, target,
                now=now, max_bad_share=settings.max_bad_share, flow_run_id=log.flow_run_id(),
                price_tolerance=settings.price_tolerance,
            )  # fmt: skip
            done += made
            failures += failed
    for failure in failures:
        with log.about(failure.window):
            log.logger().error("window failed", error=str(failure.error))
    return done, failures
