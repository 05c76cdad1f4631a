"""What candles must look like before they may enter the trusted store.

The row masks of ``trading.masks`` have already put bad rows aside. Two suites judge what is left of
many windows at once: ``candle_suite`` asserts the candle contract on the surviving rows, so that a
mask which forgets a case is caught by an independent formulation; ``batch_suite`` judges each window
as a whole (its layout, how much of it was lost). A window's verdict depends on that window alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from expectations.suites import Finding, Verdict, library, per_owner, run, verdict
from trading.candles import COLUMNS, INDEX_DTYPE, INDEX_NAME, open_times_ms
from trading.errors import ExpectationFailed
from trading.masks import IMPOSSIBLE, Screening
from trading.window import Window

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite

__all__ = ["VERSION", "Finding", "Verdict", "batch_suite", "candle_suite", "judge", "require"]

VERSION: Final = "candles-2"
GAP_SHARE: Final = 0.02  # missing bars above this share of the expected ones are worth a warning
QUARANTINE_SHARE: Final = 0.02  # likewise rows put aside

# what is derived from the rows for the suite
NULLS: Final = "nulls in the row"
STEP: Final = "ms since the bar before"
ABOVE: Final = "high - max(open, close)"
BELOW: Final = "min(open, close) - low"
LAYOUT: Final = f"{INDEX_NAME} {INDEX_DTYPE}; {', '.join(f'{name} float64' for name in COLUMNS)}"


def judge(screenings: Sequence[Screening], *, max_bad_share: float) -> list[Verdict]:
    """Run both suites over screened windows together; one verdict per window, in their order.

    Args:
        screenings: what ``trading.masks.screen`` made of each window.
        max_bad_share: share of impossible rows among those received that is tolerated, 0 to 1.
    """
    if not screenings:
        return []
    layouts = [_layout(screening.good) for screening in screenings]
    # rows of another layout are no candles; the batch suite says so
    frames = {at: each.good for at, each in enumerate(screenings) if layouts[at] == LAYOUT}
    rows = _rows(list(frames.values()))
    owner = np.repeat(np.array(list(frames), dtype=np.int64), [len(frame) for frame in frames.values()])
    # where the worst rows pass, all pass; else all are judged, to name those that do not
    broken = run(candle_suite(), rows) if run(candle_suite(), worst(rows)) else []
    found = per_owner(broken, owner, len(screenings), lambda row: _at(rows, row, owner))
    # the facts come last: the small frame then takes the place of the large one in memory
    facts = pd.DataFrame([_facts(*each) for each in zip(screenings, layouts, strict=True)])
    lost = per_owner(run(batch_suite(max_bad_share), facts), np.arange(len(screenings)), len(screenings), lambda _: "")
    checked = len(candle_suite().expectations) + len(batch_suite(max_bad_share).expectations)
    return [verdict(VERSION, checked, [*of_rows, *of_batch]) for of_rows, of_batch in zip(found, lost, strict=True)]


def require(verdict: Verdict, screening: Screening, window: Window) -> None:
    """Pass if no critical expectation was broken.

    Raises:
        ExpectationFailed: one was; the message names the first bad row, the reasons, and the remedy.
    """
    if not verdict.critical:
        return
    if [finding.subject for finding in verdict.critical] == ["impossible_share"]:
        share = screening.impossible / screening.received
        raise ExpectationFailed(
            f"{window}: {screening.impossible} of {screening.received} candles are impossible, first "
            f"{_first_impossible(screening)}; nothing was stored; the rows are in quarantine: ask the exchange, or "
            f"raise TRADEFLOWS_MAX_BAD_SHARE above {share:.4f} to store the rest without them"
        )
    raise ExpectationFailed(
        f"{window}: {'; '.join(map(str, verdict.critical))}; nothing was stored; the screening in trading/masks.py "
        "let through what it must put aside: report it with these values"
    )


@lru_cache(maxsize=1)
def candle_suite() -> ExpectationSuite:
    """The candle contract, row by row.

    Few expectations say all of it, for each costs milliseconds whatever the number of rows: with ``ABOVE`` and
    ``BELOW`` at least 0, every price lies between low and high, so that a positive low makes all prices positive
    and a finite high all finite. Great Expectations lets a null pass where it asks for a range, so nulls are
    counted, all columns together.
    """
    gx, gxe = library()
    critical: dict[str, Any] = {"severity": "critical"}
    expectations = [
        gxe.ExpectColumnValuesToBeBetween(column=NULLS, max_value=0, **critical),
        gxe.ExpectColumnValuesToBeBetween(column=STEP, min_value=0, strict_min=True, **critical),
        gxe.ExpectColumnValuesToBeBetween(column="low", min_value=0, strict_min=True, **critical),
        # infinity is above every minimum
        gxe.ExpectColumnValuesToBeBetween(column="high", max_value=1e15, **critical),
        gxe.ExpectColumnValuesToBeBetween(column="volume", min_value=0, max_value=1e18, **critical),
        gxe.ExpectColumnValuesToBeBetween(column=ABOVE, min_value=0, **critical),
        gxe.ExpectColumnValuesToBeBetween(column=BELOW, min_value=0, **critical),
    ]
    return gx.ExpectationSuite(name=VERSION, expectations=expectations)


@lru_cache(maxsize=8)
def batch_suite(max_bad_share: float) -> ExpectationSuite:
    """What a window must be as a whole: one row per window; shares are between 0 and 1."""
    gx, gxe = library()
    limits = [
        ("impossible_share", max_bad_share, "critical"),
        ("gap_share", GAP_SHARE, "warning"),
        ("quarantined_share", QUARANTINE_SHARE, "warning"),
        ("jumps", 0.0, "info"),
        ("stale", 0.0, "info"),
    ]
    return gx.ExpectationSuite(
        name=f"{VERSION}-batch",
        expectations=[
            gxe.ExpectColumnValuesToBeInSet(column="layout", value_set=[LAYOUT], severity="critical"),
            *(
                gxe.ExpectColumnValuesToBeBetween(column=name, max_value=limit, severity=severity)
                for name, limit, severity in limits
            ),
        ],
    )


def _rows(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The candles of all windows one after the other, with what is derived from them."""
    stamps = [open_times_ms(frame).view("datetime64[ms]") for frame in frames]
    open_, high, low, close, volume = (
        np.concatenate([np.empty(0), *(frame[name].to_numpy() for frame in frames)]) for name in COLUMNS
    )
    # the first bar of a window has none before it; NaT gives NaN on both sides
    steps = [np.diff(each, prepend=np.datetime64("NaT")) / np.timedelta64(1, "ms") for each in stamps]
    opens = np.concatenate([np.empty(0, "datetime64[ms]"), *stamps])
    nulls = np.isnat(opens) + np.isnan([open_, high, low, close, volume]).sum(axis=0)
    with np.errstate(invalid="ignore"):
        above, below = high - np.maximum(open_, close), np.minimum(open_, close) - low
    return pd.DataFrame(
        {
            INDEX_NAME: opens,
            NULLS: nulls,
            "low": low,
            "high": high,
            "volume": volume,
            STEP: np.concatenate([np.empty(0), *steps]),
            ABOVE: above,
            BELOW: below,
        }
    )


def worst(rows: pd.DataFrame) -> pd.DataFrame:
    """The few of the rows that break each expectation of ``candle_suite`` if any of them does."""
    if rows.empty:
        return rows
    at = [int(rows[name].to_numpy().argmax()) for name in (NULLS, "high", "volume")]
    for name in (STEP, "low", "volume", ABOVE, BELOW):
        # a null is no candidate, but by its count
        at.append(int(np.nan_to_num(rows[name].to_numpy(), nan=np.inf, posinf=np.inf, neginf=-np.inf).argmin()))
    return rows.iloc[at].reset_index(drop=True)


def _layout(good: pd.DataFrame) -> str:
    return f"{good.index.name} {good.index.dtype}; {', '.join(f'{name} {kind}' for name, kind in good.dtypes.items())}"


def _facts(screening: Screening, layout: str) -> dict[str, float | str]:
    received, expected = max(screening.received, 1), max(screening.expected, 1)
    return {
        "layout": layout,
        "impossible_share": screening.impossible / received,
        "gap_share": len(screening.missing) / expected,
        "quarantined_share": len(screening.bad) / received,
        "jumps": float(screening.flags.get("jump", 0)),
        "stale": float(screening.flags.get("stale", 0)),
    }


def _at(rows: pd.DataFrame, row: int, owner: np.ndarray) -> str:
    opened = rows[INDEX_NAME].iloc[row]
    if opened is pd.NaT:
        return f" in row {row - int(np.searchsorted(owner, owner[row]))} of the window"
    return f" at {opened:%Y-%m-%dT%H:%MZ}"


def _first_impossible(screening: Screening) -> str:
    for row in screening.bad.to_dict("records"):
        if IMPOSSIBLE.intersection(row["reasons"]):
            at = pd.Timestamp(row["open_time"], unit="ms").strftime("%Y-%m-%dT%H:%MZ")
            prices = ", ".join(f"{name} {row[name]:g}" for name in ("open", "high", "low", "close", "volume"))
            return f"{at} ({'; '.join(row['reasons'])}: {prices})"
    return "unknown"
