"""What a feature matrix must look like before a model is fitted on it.

The bounds are those that each feature declares (``ml.features.Feature``), so a new feature brings its
own. A critical finding means that what would be learned is not what the features say they are; a
warning that there may be nothing to learn.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from expectations.suites import Verdict, library, run, verdict
from ml.features import FeatureSet, declared
from ml.training import TrainingTable
from trading.errors import ExpectationFailed

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite

VERSION: Final = "features-1"
ROUNDING: Final = 1e-9  # what a value may lie outside its bounds; features are of order one
OUTLIER_DEVIATIONS: Final = 5.0  # a return further from the mean than this many deviations is an outlier
OUTLIER_SHARE: Final = 0.01  # fat tails give a tenth of that; more is two kinds of market, or broken prices

STEP: Final = "ms since the row before of its symbol"


def judge(table: TrainingTable) -> Verdict:
    """Judge the assembled rows of all symbols as one matrix."""
    names = [str(name) for name in table.names]
    rows = pd.DataFrame(table.x, columns=names)
    decided = pd.Series(table.decided_at.astype(np.float64))
    rows[STEP] = decided.groupby(table.symbol).diff()
    columns, values = columns_suite(table.feature_set), values_suite(table.feature_set)
    broken = run(columns, rows)
    if not broken:
        # of other columns nothing more can be said
        broken = run(values, rows, lambda row: _of(table, row))
    checked = len(columns.expectations) + len(values.expectations)
    return verdict(VERSION, checked, [each.finding for each in broken])


def require(verdict: Verdict) -> None:
    """Pass if no critical expectation was broken.

    Raises:
        ExpectationFailed: one was; names every one, the first value and its row.
    """
    if verdict.critical:
        raise ExpectationFailed(
            f"the feature matrix breaks {len(verdict.critical)} critical expectations: "
            f"{'; '.join(map(str, verdict.critical))}; nothing was trained; "
            "correct the feature, or the bounds it declares, in ml/feature_*.py"
        )


def _of(table: TrainingTable, row: int) -> str:
    decided = pd.Timestamp(int(table.decided_at[row]), unit="ms")
    return f" of {table.symbol[row]} at {decided:%Y-%m-%dT%H:%MZ}"


@lru_cache(maxsize=8)
def columns_suite(feature_set: FeatureSet) -> ExpectationSuite:
    """The columns: exactly those of the set, in its order."""
    gx, gxe = library()
    columns = gxe.ExpectTableColumnsToMatchOrderedList(column_list=[*feature_set.names, STEP], severity="critical")
    return gx.ExpectationSuite(name=f"{VERSION}-columns", expectations=[columns])


@lru_cache(maxsize=8)
def values_suite(feature_set: FeatureSet) -> ExpectationSuite:
    """The values: finite, within the bounds, in order of time, and not all the same."""
    gx, gxe = library()
    listed = declared(feature_set)
    critical: dict[str, Any] = {"severity": "critical"}
    warning: dict[str, Any] = {"severity": "warning"}
    expectations = [
        gxe.ExpectColumnValuesToBeBetween(column=STEP, min_value=0, strict_min=True, **critical),
        *(gxe.ExpectColumnValuesToNotBeNull(column=feature.name, **critical) for feature in listed),
        *(
            gxe.ExpectColumnValuesToBeBetween(
                column=feature.name,
                min_value=feature.lowest - ROUNDING,
                max_value=feature.highest + ROUNDING,
                **critical,
            )
            for feature in listed
        ),
        *(
            gxe.ExpectColumnUniqueValueCountToBeBetween(column=feature.name, min_value=2, **warning)
            for feature in listed
        ),
        *(
            gxe.ExpectColumnValueZScoresToBeLessThan(
                column=f"return_{bars}",
                threshold=OUTLIER_DEVIATIONS,
                double_sided=True,
                mostly=1 - OUTLIER_SHARE,
                **warning,
            )
            for bars in feature_set.returns
        ),
    ]
    return gx.ExpectationSuite(name=VERSION, expectations=expectations)
