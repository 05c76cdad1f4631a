"""Coarser candles from stored finer ones, held to the exchange's own coarser candles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd
from prefect import task

from tasks import gaps, ledger, log, quarantine
from tasks.chunks import Revision
from tasks.collecting import Wanted, collect
from tasks.guarding import opened_sources
from tasks.retry import STORE, prefect_options
from tasks.settings import load_settings
from tasks.sources import Instrument, Source
from tasks.store import Store, configured_store, read_candles, write_candles
from trading.calendars import expected_opens
from trading.candles import COLUMNS, open_times_ms, resample
from trading.errors import ExpectationFailed
from trading.gaps import gaps as gaps_of
from trading.masks import RAW_COLUMNS
from trading.window import Timeframe, Window

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
    """

    window: Window
    made: int
    taken: int
    disagreed: int
    added: int
    changed: int


def derive(
    store: Store,
    source: Source,
    instrument: Instrument,
    fine: Window,
    target: Timeframe,
    *,
    now: datetime,
    max_bad_share: float,
    flow_run_id: str | None,
) -> list[Derived]:
    """Make the coarser candles of ``fine`` that the ledger has not approved.

    Args:
        fine: a window of finer candles, approved as far as it is ingested.

    Raises:
        ExpectationFailed: more than ``max_bad_share`` of the candles are not what the exchange says;
            nothing of that window was stored.
        CandleContractError: ``target`` is not a coarser multiple of the window's timeframe.
    """
    start, end = _ceil(target, fine.start), target.floor(fine.end)
    if start >= end:
        return []
    done = []
    for part in ledger.missing(store, Window(fine.symbol, target, start, end)):
        finer = Window(fine.symbol, fine.timeframe, part.start, part.end)
        if ledger.missing(store, finer):
            continue  # not ingested yet: the next run comes back to it
        done.append(_derive(store, source, instrument, part, finer, now, max_bad_share, flow_run_id))
    return done


def _derive(
    store: Store,
    source: Source,
    instrument: Instrument,
    part: Window,
    finer: Window,
    now: datetime,
    max_bad_share: float,
    flow_run_id: str | None,
) -> Derived:
    made = resample(read_candles(store, finer), finer.timeframe, part.timeframe, finer.end)
    own = collect(source, Wanted(part, instrument)).screening.good
    both = made.index.intersection(own.index)
    wrong = both[~_equal(made.loc[both], own.loc[both])]
    # no trade in any finer bar: the exchange's own candle says so, or says nothing
    only_theirs = own[~own.index.isin(made.index)]
    origin = f"resampled from {finer.timeframe} ({instrument.source})"
    aside = _aside(made.loc[wrong])
    if len(wrong):
        quarantine.put(store, part, aside, source=origin, now=now, data_mode=instrument.data_mode)
    share = len(wrong) / max(len(made), 1)
    good = pd.concat([made.drop(wrong), only_theirs]).sort_index()
    expected = expected_opens(part, instrument.calendar)
    missing = np.setdiff1d(expected, open_times_ms(good))
    refused = share > max_bad_share
    late = Revision(now, origin, flow_run_id) if ledger.approved(store, part) else None
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
    return Derived(part, len(made) - len(wrong), len(only_theirs), len(wrong), written.added, written.changed)


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
    windows: Sequence[tuple[Window, Instrument]], target: Timeframe, source: str, now: datetime
) -> tuple[list[Derived], list[ExpectationFailed]]:
    """``derive`` for each window on the configured store and source; returns what was made, and what was refused."""
    settings = load_settings()
    done: list[Derived] = []
    refused: list[ExpectationFailed] = []
    with configured_store(settings) as store, opened_sources(settings, store, [source], metered=True) as (opener,):
        for window, instrument in windows:
            with log.about(window):
                try:
                    done += derive(
                        store, opener(), instrument, window, target,
                        now=now, max_bad_share=settings.max_bad_share, flow_run_id=log.flow_run_id(),
                    )  # fmt: skip
                except ExpectationFailed as error:
                    log.logger().error("refused", error=str(error))
                    refused.append(error)
    return done, refused
