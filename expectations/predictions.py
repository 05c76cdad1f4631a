"""What the predictions of a model must look like before anyone acts on them.

All predictions of a run are judged in one pass. A critical finding concerns one prediction, which is
then refused; a warning concerns the run: a model that says the same of everything says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from expectations.suites import Verdict, library, per_owner, run, verdict
from ml.model import Prediction
from trading.analysis import Signal

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite

VERSION: Final = "predictions-1"
ROUNDING: Final = 1e-9  # a probability may leave [0, 1] by this much
SUM_TOLERANCE: Final = 1e-6
PROBABILITIES: Final = ("p_short", "p_neutral", "p_long")
TOTAL: Final = "sum of probabilities"
DISTINCT: Final = "distinct predictions"
LARGEST: Final = "largest share of one signal"
# from this many predictions on, that all are equal, or nearly all of one signal, is no chance
DISTINCT_FROM: Final = 3
SHARE_FROM: Final = 100
LARGEST_SHARE: Final = 0.99


def judge(predictions: Sequence[Prediction]) -> tuple[list[Verdict], Verdict]:
    """A verdict on each prediction, in their order, and one on all of them together."""
    rows = pd.DataFrame(
        {
            "signal": pd.Series([str(each.signal) for each in predictions], dtype=object),
            **{
                name: np.array([getattr(each, name) for each in predictions], dtype=np.float64)
                for name in ("confidence", *PROBABILITIES)
            },
        }
    )
    rows[TOTAL] = rows[list(PROBABILITIES)].sum(axis=1, skipna=False)
    found = per_owner(run(row_suite(), rows), np.arange(len(rows)), len(rows), lambda _: "")
    facts = pd.DataFrame([_facts(rows)])
    [of_run] = per_owner(run(run_suite(), facts), np.zeros(1, dtype=np.int64), 1, lambda _: f" among {len(rows)}")
    checked = len(row_suite().expectations)
    each = [verdict(VERSION, checked, findings) for findings in found]
    return each, verdict(VERSION, len(run_suite().expectations), of_run)


@lru_cache(maxsize=1)
def row_suite() -> ExpectationSuite:
    """One prediction a row: a known signal, and numbers that are probabilities."""
    gx, gxe = library()
    critical: dict[str, Any] = {"severity": "critical"}
    expectations = [
        gxe.ExpectColumnValuesToBeInSet(column="signal", value_set=[signal.value for signal in Signal], **critical),
        *(gxe.ExpectColumnValuesToNotBeNull(column=name, **critical) for name in ("confidence", *PROBABILITIES)),
        gxe.ExpectColumnValuesToBeBetween(column="confidence", min_value=0, max_value=1, **critical),
        *(
            gxe.ExpectColumnValuesToBeBetween(column=name, min_value=-ROUNDING, max_value=1 + ROUNDING, **critical)
            for name in PROBABILITIES
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column=TOTAL, min_value=1 - SUM_TOLERANCE, max_value=1 + SUM_TOLERANCE, **critical
        ),
    ]
    return gx.ExpectationSuite(name=VERSION, expectations=expectations)


@lru_cache(maxsize=1)
def run_suite() -> ExpectationSuite:
    """All predictions of a run as one row of facts; a fact is null where there are too few to tell."""
    gx, gxe = library()
    warning: dict[str, Any] = {"severity": "warning"}
    expectations = [
        gxe.ExpectColumnValuesToBeBetween(column=DISTINCT, min_value=2, **warning),
        gxe.ExpectColumnValuesToBeBetween(column=LARGEST, max_value=LARGEST_SHARE, **warning),
    ]
    return gx.ExpectationSuite(name=f"{VERSION}-run", expectations=expectations)


def _facts(rows: pd.DataFrame) -> dict[str, float]:
    distinct = float(len(rows[list(PROBABILITIES)].drop_duplicates()))
    largest = float(rows["signal"].value_counts(normalize=True).max())
    return {
        DISTINCT: distinct if len(rows) >= DISTINCT_FROM else np.nan,
        LARGEST: largest if len(rows) >= SHARE_FROM else np.nan,
    }
