"""One window from a source: fetched, screened, asked for again where bars are missing, compared with others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

import numpy as np

from tasks.sources import Instrument, Source
from tasks.store import Store, read_candles
from trading.errors import SourceError, SourcesDisagree
from trading.gaps import mended, moment, spans, until
from trading.masks import Screening, screen
from trading.window import Window

if TYPE_CHECKING:
    import pandas as pd

# bars asked for again in one request
PAGE: Final = 1_000
# bars over which the prices of two sources are compared
COMPARED: Final = 200
# bars of neighbouring windows that are asked for in one go
RUN_BARS: Final = 25_000
OpenSource = Callable[[], Source]


@dataclass(frozen=True)
class Wanted:
    """A window to ingest; ``again`` where the ledger has approved it before."""

    window: Window
    instrument: Instrument
    again: bool = False


@dataclass(frozen=True, eq=False)
class Collected:
    """A window as a source gave it, asked again for what was missing.

    ``end`` is before the window's end where the newest bars are not there yet; the screening is of what is before.
    """

    wanted: Wanted
    instrument: Instrument
    screening: Screening
    end: datetime
    waiting: int
    notes: tuple[str, ...] = ()


def runs(wanted: Sequence[Wanted], bars: int = RUN_BARS) -> list[list[Wanted]]:
    """Neighbouring windows of one symbol together, up to so many bars, in their order."""
    made: list[list[Wanted]] = []
    for one in wanted:
        last = made[-1][-1].window if made else None
        joined = (
            last is not None
            and (last.symbol, last.timeframe, last.end) == (one.window.symbol, one.window.timeframe, one.window.start)
            and sum(each.window.slots for each in made[-1]) + one.window.slots <= bars
        )
        if joined:
            made[-1].append(one)
        else:
            made.append([one])
    return made


def rows_of(opened: OpenSource, run: Sequence[Wanted]) -> pd.DataFrame | None:
    """The rows of a run's windows, asked for in one go, which takes fewer requests.

    None for a single window, and where the source fails: each window is then asked for, and answers, by itself.
    """
    if len(run) == 1:
        return None
    try:
        return opened().fetch(run[0].window.within(run[0].window.start, run[-1].window.end))
    except SourceError:
        return None


def collect(source: Source, wanted: Wanted, rows: pd.DataFrame | None = None) -> Collected:
    """Fetch a window, and what is missing of it again for as long as that brings anything.

    A gap at the window's end counts only if the source has moved on past it; else those bars are not there
    yet, and the window ends before them.

    Args:
        rows: what the source gave for a longer window, where it has been asked for that already.
    """
    window, calendar = wanted.window, wanted.instrument.calendar
    screening = screen(source.fetch(window) if rows is None else _inside(rows, window), window, calendar)
    left = -1
    while len(screening.missing) and len(screening.missing) != left:
        left = len(screening.missing)
        for span in spans(screening.missing, window, PAGE):
            screening = mended(screening, screen(source.fetch(span), window, calendar))
    newest = screening.good.index[-1].to_pydatetime() if len(screening.good) else None
    tail = [at for at in screening.missing.tolist() if newest is None or at > newest.timestamp() * 1000]
    # what was put aside is at the source all the same: only a bar after all of them says that it has moved on
    if tail and source.next_open(window.symbol, window.timeframe, moment(tail[-1]) + window.timeframe.delta) is None:
        end = moment(tail[0])
        return Collected(wanted, wanted.instrument, until(screening, end), end, len(tail))
    return Collected(wanted, wanted.instrument, screening, window.end, 0)


def _inside(rows: pd.DataFrame, window: Window) -> pd.DataFrame:
    opens = rows["open_time"].to_numpy()
    start, end = (int(bound.timestamp() * 1000) for bound in (window.start, window.end))
    return rows[(opens >= start) & (opens < end)]


def collect_checked(
    store: Store,
    sources: Sequence[OpenSource],
    wanted: Wanted,
    compare: OpenSource | None,
    price_tolerance: float,
    rows: pd.DataFrame | None = None,
) -> Collected:
    """``collect`` from the first source that answers; one to fall back to must be the same market.

    Args:
        sources: opened where they are needed.
        compare: a source whose prices must agree, where one is given.
        price_tolerance: median relative difference of closes above which two sources disagree.
        rows: what the first source gave for a longer window already.

    Raises:
        SourceError: none answers; the first one's error.
        SourcesDisagree: a fall-back or the compared source has other prices or another data mode.
    """
    collected = _first_that_answers(store, sources, wanted, price_tolerance, rows)
    good = collected.screening.good
    if compare is not None and len(good):
        _require_agreement(good, compare(), wanted.window, price_tolerance)
    return collected


def _first_that_answers(
    store: Store, sources: Sequence[OpenSource], wanted: Wanted, price_tolerance: float, rows: pd.DataFrame | None
) -> Collected:
    try:
        return collect(sources[0](), wanted, rows)
    except SourceError as error:
        if not error.transient or len(sources) == 1:
            raise
        first = error
    for opened in sources[1:]:
        try:
            source = opened()
            instrument = source.describe(wanted.window.symbol)
            if instrument.data_mode != wanted.instrument.data_mode:
                raise SourcesDisagree(
                    f"{instrument.source} has {instrument.data_mode} candles of {wanted.window.symbol} and "
                    f"{wanted.instrument.source} has {wanted.instrument.data_mode} ones; they are not the same market"
                )
            compared = _agree_with_stored(store, source, wanted.window, price_tolerance)
            got = collect(source, Wanted(wanted.window, instrument, wanted.again))
            note = f"{wanted.instrument.source} did not answer ({first}); taken from {instrument.source}, {compared}"
            return Collected(wanted, instrument, got.screening, got.end, got.waiting, (note,))
        except SourceError as error:
            if not error.transient:
                raise
    raise first


def _agree_with_stored(store: Store, source: Source, window: Window, tolerance: float) -> str:
    """Compare a source with the candles stored before a window; what came of it, for the report.

    Raises:
        SourcesDisagree: the prices are others.
    """
    step = window.timeframe.delta
    earlier = window.within(window.start - COMPARED * step, window.start)
    stored = read_candles(store, earlier)
    if stored.empty:
        return "which could not be compared with anything stored"
    difference = _difference(stored, screen(source.fetch(earlier), earlier, "24/7").good)
    if difference is None:
        return "which shares no bar with what is stored before"
    _require_small(difference, "the stored candles", source, window, tolerance)
    return f"whose closes differ by {difference:.3%} from those stored before"


def _require_agreement(candles: pd.DataFrame, other: Source, window: Window, tolerance: float) -> None:
    """Compare the newest candles with another source's.

    Raises:
        SourcesDisagree: the prices are others, or it has none of these bars.
    """
    newest = candles.iloc[-COMPARED:]
    first, last = (newest.index[at].to_pydatetime() for at in (0, -1))
    part = window.within(first, last + window.timeframe.delta)
    difference = _difference(newest, screen(other.fetch(part), part, "24/7").good)
    if difference is None:
        raise SourcesDisagree(f"{_name(other, window)} has no candle of {part}, so nothing can be compared")
    _require_small(difference, "the source's candles", other, window, tolerance)


def _difference(one: pd.DataFrame, other: pd.DataFrame) -> float | None:
    """Median relative difference of the closes of the bars that both have; None where they share none."""
    both = one[["close"]].join(other[["close"]], how="inner", rsuffix="_other")
    if both.empty:
        return None
    return float(np.median(np.abs(both["close_other"] / both["close"] - 1)))


def _require_small(difference: float, what: str, other: Source, window: Window, tolerance: float) -> None:
    if difference > tolerance:
        raise SourcesDisagree(
            f"{window}: the closes of {_name(other, window)} differ by {difference:.2%} (median) from {what}, more "
            f"than {tolerance:.2%}; check that both mean the same market, or raise TRADEFLOWS_PRICE_TOLERANCE"
        )


def _name(source: Source, window: Window) -> str:
    return source.describe(window.symbol).source
