"""Screening: which raw rows are candles, which are not and why, and what is missing.

Masks are computed in numpy over a whole batch; nothing is repaired. Three kinds of finding:

- *impossible* rows (``IMPOSSIBLE``): no market can print them, so the source is broken; they are
  put aside and a batch with more of them than is tolerated is refused;
- *unusable* rows (the other ``Reason``): copies, rows off the grid or the session, prices that moved
  without trade; they are put aside, the rest of the batch stands;
- *flags* (``Flag``): the rows stay, and the report says how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import pandas as pd

from trading.calendars import expected_opens
from trading.candles import COLUMNS, frame_of
from trading.window import Window

RAW_COLUMNS: Final = ("open_time", *COLUMNS)
_USUAL_BARS: Final = 50  # what a jump is measured against


# the raw columns without rows: pandas takes longer to make it than a thousand rows take to be checked
_NONE_BAD: Final = pd.DataFrame(
    {"open_time": np.empty(0, "int64"), **dict.fromkeys(COLUMNS, np.empty(0)), "reasons": np.empty(0, object)}
)


class Reason(StrEnum):
    """Why a row was put aside."""

    NULL = "null"  # a price or the volume is missing
    INFINITE = "infinite"
    NON_POSITIVE = "non_positive"  # a price <= 0
    NEGATIVE_VOLUME = "negative_volume"
    INCONSISTENT = "inconsistent"  # high below low, or open or close outside them
    DUPLICATE = "duplicate"  # an equal row came before it
    CONFLICTING = "conflicting"  # rows of the same open time that differ: none of them can be trusted
    MISALIGNED = "misaligned"  # not on the timeframe's grid
    OFF_SESSION = "off_session"  # the market was closed
    OUTSIDE_WINDOW = "outside_window"
    UNTRADED_MOVE = "untraded_move"  # the price moved on no volume: the volume is wrong


IMPOSSIBLE: Final = frozenset(
    {Reason.NULL, Reason.INFINITE, Reason.NON_POSITIVE, Reason.NEGATIVE_VOLUME, Reason.INCONSISTENT}
)


class Flag(StrEnum):
    """What is worth a look and no reason to put a row aside."""

    OUT_OF_ORDER = "out_of_order"  # came after a later bar; sorted
    STALE = "stale"  # part of a long run of equal flat bars without volume
    JUMP = "jump"  # close moved by many times the recent range


@dataclass(frozen=True)
class Screening:
    """The outcome of screening one batch.

    Attributes:
        good: candle frame (the contract of ``trading.candles``), inside the window.
        bad: the raw rows put aside, with a column ``reasons`` (list of ``Reason`` values).
        missing: int64 open times (ms, UTC) that the calendar expects and no good row has.
        expected: how many bars the calendar expects in the window.
        flags: count per ``Flag`` that occurs.
    """

    good: pd.DataFrame
    bad: pd.DataFrame
    missing: np.ndarray
    expected: int
    flags: dict[str, int]

    @property
    def received(self) -> int:
        """Rows that came, good and bad."""
        return len(self.good) + len(self.bad)

    @property
    def impossible(self) -> int:
        """Rows put aside for a reason in ``IMPOSSIBLE``."""
        return sum(bool(IMPOSSIBLE.intersection(reasons)) for reasons in self.bad["reasons"])

    @property
    def quarantined(self) -> dict[str, int]:
        """Count of rows put aside per reason; a row with two reasons counts for both."""
        counts: dict[str, int] = {}
        for reasons in self.bad["reasons"]:
            for reason in reasons:
                counts[reason] = counts.get(reason, 0) + 1
        return dict(sorted(counts.items()))


def screen(
    raw: pd.DataFrame, window: Window, calendar: str, *, jump_factor: float = 15.0, stale_run: int = 24
) -> Screening:
    """Split the rows of one fetched batch into candles and rows put aside.

    Args:
        raw: columns ``open_time`` (int64 ms UTC), ``open high low close volume`` (float64), as the source
            gave them, in any order.
        window: what was asked for.
        calendar: ``"24/7"`` or the name of an exchange calendar.
        jump_factor: a close-to-close log move above this many times the median bar range
            (log high/low) of the 50 bars before is flagged.
        stale_run: that many equal flat bars without volume in a row are flagged.
    """
    stamps = raw["open_time"].to_numpy(dtype="int64")
    # shape (5, n): each column's numbers stand together
    values = np.stack([raw[name].to_numpy(dtype="float64") for name in COLUMNS])
    expected = expected_opens(window, calendar)
    at = np.searchsorted(expected, stamps)
    listed = at < len(expected)
    listed[listed] = expected[at[listed]] == stamps[listed]
    masks = _row_masks(values) | _time_masks(stamps, window, listed)
    unusable = np.logical_or.reduce(list(masks.values()))
    masks |= _copy_masks(stamps, values, unusable)
    bad = unusable | masks[Reason.DUPLICATE] | masks[Reason.CONFLICTING]

    late = np.zeros(len(stamps), dtype=bool)
    late[1:] = stamps[1:] < np.maximum.accumulate(stamps)[:-1]
    kept = np.flatnonzero(~bad)
    if late.any():
        kept = kept[np.argsort(stamps[kept], kind="stable")]
    candles = values[:, kept]
    # a good row is on the grid, in the session and inside the window, so its bar is among the expected ones
    absent = np.ones(len(expected), dtype=bool)
    absent[at[kept]] = False

    flags = {
        Flag.OUT_OF_ORDER.value: int((late & ~bad).sum()),
        Flag.STALE.value: int(_stale(candles, stale_run).sum()),
        Flag.JUMP.value: int(_jumps(candles, jump_factor).sum()),
    }
    return Screening(
        good=frame_of(stamps[kept], candles.T),
        bad=_rejected(raw, masks, bad),
        missing=expected[absent],
        expected=len(expected),
        flags={name: count for name, count in flags.items() if count},
    )


def _rejected(raw: pd.DataFrame, masks: dict[Reason, np.ndarray], bad: np.ndarray) -> pd.DataFrame:
    if not bad.any():
        return _NONE_BAD.copy()
    rejected = raw.loc[bad, list(RAW_COLUMNS)].reset_index(drop=True)
    table = {reason: mask[bad] for reason, mask in masks.items()}
    rejected["reasons"] = pd.Series(
        [[reason.value for reason, mask in table.items() if mask[row]] for row in range(len(rejected))], dtype=object
    )
    return rejected


def _row_masks(values: np.ndarray) -> dict[Reason, np.ndarray]:
    open_, high, low, close, volume = values
    with np.errstate(invalid="ignore"):
        null, infinite = np.isnan(values).any(axis=0), np.isinf(values).any(axis=0)
        beyond = (high < np.maximum(open_, close)) | (low > np.minimum(open_, close))
        return {
            Reason.NULL: null,
            Reason.INFINITE: infinite,
            Reason.NON_POSITIVE: (values[:4] <= 0).any(axis=0),
            Reason.NEGATIVE_VOLUME: volume < 0,
            Reason.INCONSISTENT: beyond & ~(null | infinite),
            Reason.UNTRADED_MOVE: (volume == 0) & (high > low),
        }


def _time_masks(stamps: np.ndarray, window: Window, listed: np.ndarray) -> dict[Reason, np.ndarray]:
    step = int(window.timeframe.delta.total_seconds() * 1000)
    start, end = (int(moment.timestamp() * 1000) for moment in (window.start, window.end))
    aligned = stamps % step == 0
    outside = (stamps < start) | (stamps >= end)
    return {
        Reason.MISALIGNED: ~aligned,
        Reason.OUTSIDE_WINDOW: outside,
        Reason.OFF_SESSION: aligned & ~outside & ~listed,
    }


def _copy_masks(stamps: np.ndarray, values: np.ndarray, unusable: np.ndarray) -> dict[Reason, np.ndarray]:
    """Copies among the usable rows: the first of equal rows stays, of differing ones none does."""
    duplicate = np.zeros(len(stamps), dtype=bool)
    conflicting = np.zeros(len(stamps), dtype=bool)
    rows = np.flatnonzero(~unusable)
    rows = rows[np.argsort(stamps[rows], kind="stable")]
    same_time = stamps[rows][1:] == stamps[rows][:-1]
    if same_time.any():
        groups = np.cumsum(np.r_[True, ~same_time]) - 1
        firsts = rows[np.r_[True, ~same_time]]
        differs = (values[:, rows] != values[:, firsts][:, groups]).any(axis=0)
        in_conflict = np.isin(groups, groups[differs])
        conflicting[rows] = in_conflict
        duplicate[rows] = np.r_[False, same_time] & ~in_conflict
    return {Reason.DUPLICATE: duplicate, Reason.CONFLICTING: conflicting}


def _stale(candles: np.ndarray, run: int) -> np.ndarray:
    _, high, low, close, volume = candles
    quiet = (volume == 0) & (high == low)
    if np.count_nonzero(quiet) < run:
        return np.zeros(len(close), dtype=bool)
    starts = np.r_[True, (close[1:] != close[:-1]) | ~quiet[1:] | ~quiet[:-1]]
    group = np.cumsum(starts) - 1
    return np.asarray(quiet & (np.bincount(group)[group] >= run))


def _jumps(candles: np.ndarray, factor: float) -> np.ndarray:
    """Moves above ``factor`` times the median range of the ``_USUAL_BARS`` bars before, of which there must be 20."""
    _, high, low, close, _ = candles
    jumped = np.zeros(len(close), dtype=bool)
    move = np.abs(np.diff(np.log(close), prepend=np.nan))
    ranges = np.log(high / low)
    rows = np.flatnonzero(move > factor * max(1e-4, ranges.min(initial=np.inf)))
    rows = rows[rows >= 20]
    if not len(rows):
        return jumped
    before = np.lib.stride_tricks.sliding_window_view(np.r_[np.full(_USUAL_BARS, np.nan), ranges], _USUAL_BARS)[rows]
    # medians are dear: they are taken only where enough of the ranges before are small against the move
    small = np.count_nonzero(factor * before < move[rows, None], axis=1)
    likely = small >= np.minimum(rows, _USUAL_BARS) // 2
    rows = rows[likely]
    jumped[rows] = move[rows] > factor * np.nanmedian(before[likely], axis=1)
    return jumped
