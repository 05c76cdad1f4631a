"""What a batch of candles must look like before it may enter the trusted store.

The row masks of ``trading.masks`` have already put bad rows aside. Two suites judge what is left:
``CANDLES`` asserts the candle contract on the surviving rows, so that a mask which forgets a case is
caught by an independent implementation; ``BATCH`` judges the batch as a whole (how much was lost).
A critical failure stops the write; a warning is reported.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import pandas as pd

from trading.errors import ExpectationFailed
from trading.masks import Screening
from trading.window import Window

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite

VERSION: Final = "candles-1"
GAP_SHARE: Final = 0.02  # missing bars above this share of the expected ones are worth a warning
QUARANTINE_SHARE: Final = 0.02  # likewise rows put aside


@dataclass(frozen=True)
class Finding:
    """One expectation that a batch did not meet."""

    severity: Literal["critical", "warning", "info"]
    expectation: str
    subject: str
    observed: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.subject} {self.expectation.removeprefix('expect_')} ({self.observed})"


@dataclass(frozen=True)
class Verdict:
    """What the suites said about one batch."""

    suite: str
    checked: int
    findings: tuple[Finding, ...]

    @property
    def critical(self) -> tuple[Finding, ...]:
        """The findings that stop the write."""
        return tuple(finding for finding in self.findings if finding.severity == "critical")


def judge(screening: Screening, *, max_bad_share: float) -> Verdict:
    """Run both suites over one screened batch.

    Args:
        screening: what ``trading.masks.screen`` made of it.
        max_bad_share: share of impossible rows among those received that is tolerated, 0 to 1.
    """
    candles = screening.good.reset_index()
    facts = pd.DataFrame([_facts(screening)])
    outcomes = [*_run(candle_suite(), candles), *_run(batch_suite(max_bad_share), facts)]
    return Verdict(VERSION, len(outcomes), tuple(finding for finding in map(_finding, outcomes) if finding))


def require(verdict: Verdict, screening: Screening, window: Window) -> None:
    """Pass if no critical expectation was broken.

    Raises:
        ExpectationFailed: one was; the message names the first bad row, the reasons, and the remedy.
    """
    if not verdict.critical:
        return
    if screening.expected and not screening.received:
        raise ExpectationFailed(
            f"{window}: the source gave none of the {screening.expected} candles that the market should have; "
            "nothing was stored; if the symbol was listed later, start later"
        )
    if screening.impossible:
        share = screening.impossible / screening.received
        raise ExpectationFailed(
            f"{window}: {screening.impossible} of {screening.received} candles are impossible, first "
            f"{_first_impossible(screening)}; nothing was stored; the rows are in quarantine: ask the exchange, or "
            f"raise TRADEFLOWS_MAX_BAD_SHARE above {share:.4f} to store the rest without them"
        )
    raise ExpectationFailed(f"{window}: {'; '.join(map(str, verdict.critical))}; nothing was stored")


def candle_suite() -> ExpectationSuite:
    """The candle contract, per row and over the batch."""
    gx, gxe = _library()
    prices = ("open", "high", "low", "close")
    critical: dict[str, Any] = {"severity": "critical"}
    pairs = [("high", name) for name in ("open", "close", "low")] + [(name, "low") for name in ("open", "close")]
    expectations = [
        gxe.ExpectTableColumnsToMatchOrderedList(column_list=["open_time", *prices, "volume"], **critical),
        gxe.ExpectColumnValuesToNotBeNull(column="open_time", **critical),
        gxe.ExpectColumnValuesToBeIncreasing(column="open_time", strictly=True, **critical),
        *(gxe.ExpectColumnValuesToNotBeNull(column=name, **critical) for name in (*prices, "volume")),
        # a maximum too, because infinity is above every minimum
        *(
            gxe.ExpectColumnValuesToBeBetween(column=name, min_value=0, strict_min=True, max_value=1e15, **critical)
            for name in prices
        ),
        gxe.ExpectColumnValuesToBeBetween(column="volume", min_value=0, max_value=1e18, **critical),
        *(
            gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A=above, column_B=below, or_equal=True, **critical)
            for above, below in pairs
        ),
    ]
    return gx.ExpectationSuite(name=VERSION, expectations=expectations)


def batch_suite(max_bad_share: float) -> ExpectationSuite:
    """What may be lost of a batch: columns are shares between 0 and 1, one row a batch."""
    gx, gxe = _library()
    limits = [
        ("empty", 0.0, "critical"),
        ("impossible_share", max_bad_share, "critical"),
        ("gap_share", GAP_SHARE, "warning"),
        ("quarantined_share", QUARANTINE_SHARE, "warning"),
        ("jumps", 0.0, "info"),
        ("stale", 0.0, "info"),
    ]
    return gx.ExpectationSuite(
        name=f"{VERSION}-batch",
        expectations=[
            gxe.ExpectColumnValuesToBeBetween(column=name, min_value=0, max_value=limit, severity=severity)
            for name, limit, severity in limits
        ],
    )


def _facts(screening: Screening) -> dict[str, float]:
    received, expected = max(screening.received, 1), max(screening.expected, 1)
    return {
        "empty": float(screening.expected > 0 and screening.received == 0),
        "impossible_share": screening.impossible / received,
        "gap_share": len(screening.missing) / expected,
        "quarantined_share": len(screening.bad) / received,
        "jumps": float(screening.flags.get("jump", 0)),
        "stale": float(screening.flags.get("stale", 0)),
    }


def _run(suite: ExpectationSuite, frame: pd.DataFrame) -> list[Any]:
    gx, _ = _library()
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("memory").add_dataframe_asset("batch")
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": frame})
    return list(batch.validate(suite).results)


def _finding(outcome: Any) -> Finding | None:
    """None where the expectation was met.

    Raises:
        ExpectationFailed: the expectation itself broke, which says nothing about the data.
    """
    config = outcome.expectation_config
    if outcome.exception_info.get("raised_exception"):
        raise ExpectationFailed(f"{config.type} could not be checked: {outcome.exception_info['exception_message']}")
    if outcome.success:
        return None
    subject = config.kwargs.get("column") or config.kwargs.get("column_A") or "batch"
    shown = outcome.result.get("partial_unexpected_list") or outcome.result.get("observed_value")
    first = shown[0] if isinstance(shown, list) else shown
    return Finding(config.severity.value, config.type, str(subject), f"first: {first}")


def _first_impossible(screening: Screening) -> str:
    from trading.masks import IMPOSSIBLE

    for row in screening.bad.to_dict("records"):
        if IMPOSSIBLE.intersection(row["reasons"]):
            at = pd.Timestamp(row["open_time"], unit="ms").strftime("%Y-%m-%dT%H:%MZ")
            prices = ", ".join(f"{name} {row[name]:g}" for name in ("open", "high", "low", "close", "volume"))
            return f"{at} ({'; '.join(row['reasons'])}: {prices})"
    return "unknown"


def _library() -> tuple[Any, Any]:
    # several seconds to import, so only where a batch is judged; its usage statistics stay off
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations
    import great_expectations.expectations

    return great_expectations, great_expectations.expectations
