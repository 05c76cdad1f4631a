"""Gaps: bars that the calendar expects and nobody gave, as runs; and what a second answer mends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

from trading.candles import open_times_ms
from trading.masks import RAW_COLUMNS, Screening
from trading.window import EPOCH, Window


@dataclass(frozen=True, order=True)
class Gap:
    """Missing bars in a row: open time of the first, end of the last (UTC), and how many the calendar expects."""

    start: datetime
    end: datetime
    bars: int


def gaps(expected: np.ndarray, missing: np.ndarray, step: timedelta) -> list[Gap]:
    """``missing`` as runs of neighbours among ``expected``.

    Args:
        expected: increasing open times that the calendar expects, int64 ms UTC.
        missing: those of them that are missing, increasing.
        step: length of a bar.
    """
    if not len(missing):
        return []
    at = np.searchsorted(expected, missing)
    parts = np.split(missing, np.flatnonzero(np.diff(at) > 1) + 1)
    return [Gap(moment(part[0]), moment(part[-1]) + step, len(part)) for part in parts]


def spans(missing: np.ndarray, window: Window, longest: int) -> list[Window]:
    """Windows of at most ``longest`` bars that together hold every missing bar.

    Args:
        missing: increasing open times, int64 ms UTC.
        window: the window that they are missing in.
    """
    step = window.timeframe.delta
    found: list[Window] = []
    for opened in map(moment, missing.tolist()):
        if found and opened + step - found[-1].start <= longest * step:
            found[-1] = window.within(found[-1].start, opened + step)
        else:
            found.append(window.within(opened, opened + step))
    return found


def mended(first: Screening, second: Screening) -> Screening:
    """A screening, with what a second answer says of the bars that the first one had no candle of.

    Rows that the first answer put aside stay put aside; so are the second's, unless they are the same.
    """
    new = second.good[np.isin(open_times_ms(second.good), first.missing)]
    bad = second.bad[np.isin(second.bad["open_time"].to_numpy(), first.missing)]
    if len(bad):
        every = pd.concat([first.bad, bad], ignore_index=True)
        bad = every[~every.duplicated(list(RAW_COLUMNS)) | (every.index < len(first.bad))].reset_index(drop=True)
    return replace(
        first,
        good=pd.concat([first.good, new]).sort_index() if len(new) else first.good,
        bad=bad if len(bad) else first.bad,
        missing=np.setdiff1d(first.missing, open_times_ms(new)),
    )


def until(screening: Screening, end: datetime) -> Screening:
    """A screening of the same rows, as if it had been asked for up to ``end`` only, where no candle is later."""
    ms = int(end.timestamp() * 1000)
    beyond = int((screening.missing >= ms).sum())
    return replace(screening, missing=screening.missing[screening.missing < ms], expected=screening.expected - beyond)


def moment(milliseconds: int | np.integer) -> datetime:
    """A time in milliseconds since the epoch as UTC."""
    return EPOCH + timedelta(milliseconds=int(milliseconds))
