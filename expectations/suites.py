"""What all suites share: Great Expectations run over a frame, and its answers in our words.

Great Expectations takes seconds to import and hundreds of megabytes, so it is imported where a suite
is first made or run, once per process, with its usage statistics and progress bars off. A frame is
judged once without details; only what it did not meet is looked at again, for the rows. Findings know
their rows, so batches can be judged together and each answers for itself.

Severities: a critical finding stops what was about to happen, a warning is reported, an info is shown.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd

from trading.errors import ExpectationFailed

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite

Severity = Literal["critical", "warning", "info"]

_ORDER: Final = ("critical", "warning", "info")
_MET_OR_NOT: Final = {"result_format": "BOOLEAN_ONLY"}
_DETAILS: Final = {"result_format": "COMPLETE", "return_unexpected_index_query": False, "partial_unexpected_count": 0}
# the context keeps the frame it judges under one name for all: two threads would judge each other's
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Finding:
    """One expectation that was not met: of what (``subject``), what it asks for, and what there was."""

    severity: Severity
    expectation: str
    subject: str
    rule: str
    observed: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.subject} {self.rule}: {self.observed}"


@dataclass(frozen=True)
class Verdict:
    """What the suites of one version said about one batch, the worst first."""

    suite: str
    checked: int
    findings: tuple[Finding, ...]

    @property
    def critical(self) -> tuple[Finding, ...]:
        """The findings that stop what was about to happen."""
        return tuple(finding for finding in self.findings if finding.severity == "critical")


@dataclass(frozen=True, eq=False)
class Broken:
    """An expectation that a frame did not meet.

    Attributes:
        finding: about the frame as a whole.
        rows: positions of the rows that do not meet it, increasing, shape (n,); empty where it is about
            no row in particular.
        values: what stands in those rows.
    """

    finding: Finding
    rows: np.ndarray
    values: Sequence[Any]


def library() -> tuple[Any, Any]:
    """The package and its expectations."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations
    import great_expectations.expectations

    return great_expectations, great_expectations.expectations


def in_row(row: int) -> str:
    """Words that name a row by its position."""
    return f" in row {row}"


def run(suite: ExpectationSuite, frame: pd.DataFrame, where: Callable[[int], str] = in_row) -> list[Broken]:
    """The expectations that ``frame`` (rows numbered from 0) does not meet.

    Args:
        suite: no two of its expectations are of one type and about one column.
        frame: what to judge.
        where: words that name a row by its position, for the findings.

    Raises:
        ExpectationFailed: an expectation could not be checked, which says nothing about the data.
    """
    results = _validate(suite, frame, _MET_OR_NOT)
    failed = [_key(result.expectation_config) for result in results if not result.success]
    if not failed:
        return []
    gx, _ = library()
    again = [each for each in suite.expectations if _key(each.configuration) in failed]
    results = _validate(gx.ExpectationSuite(suite.name, again), frame, _DETAILS)
    return [_broken(result, frame, where) for result in results]


def per_owner(
    broken: Iterable[Broken], owner: np.ndarray, owners: int, where: Callable[[int], str]
) -> list[list[Finding]]:
    """What was found in the rows of each owner, by number.

    Args:
        broken: expectations about single rows; what is about no row has no owner and is left out.
        owner: int (n,), the number of the owner of each row of the frame.
        owners: how many there are.
        where: words that name a row by its position, such as " at 2024-01-01T00:00Z".
    """
    found: list[list[Finding]] = [[] for _ in range(owners)]
    for each in broken:
        whose, first, counts = np.unique(owner[each.rows], return_index=True, return_counts=True)
        for who, at, count in zip(whose.tolist(), first.tolist(), counts.tolist(), strict=True):
            observed = _shown(each.values[at]) + where(int(each.rows[at]))
            found[who].append(_replaced(each.finding, observed + (f" and {count - 1} more" if count > 1 else "")))
    return found


def verdict(suite: str, checked: int, findings: Iterable[Finding]) -> Verdict:
    """The verdict of ``checked`` expectations, the worst finding first and equal ones by name."""
    order = {severity: place for place, severity in enumerate(_ORDER)}
    return Verdict(
        suite,
        checked,
        tuple(sorted(findings, key=lambda found: (order[found.severity], found.subject, found.expectation))),
    )


def described(suite: ExpectationSuite) -> list[dict[str, str]]:
    """What a suite asks for, as rows for people: severity, suite, expectation, subject."""
    rows = []
    for each in suite.expectations:
        config = each.configuration
        row = {"severity": config.severity.value, "suite": suite.name}
        rows.append({**row, "expectation": _rule(config), "subject": _subject(config.kwargs)})
    return rows


def _validate(suite: ExpectationSuite, frame: pd.DataFrame, result_format: dict[str, Any]) -> list[Any]:
    with _one_at_a_time:
        batch = _batches().get_batch({"dataframe": frame})
        results = list(batch.validate(suite, result_format=result_format).results)
    for result in results:
        # a dictionary of itself, or one of these for each metric
        raised = result.exception_info or {}
        for info in [raised] if "raised_exception" in raised else raised.values():
            if info.get("raised_exception"):
                kind, about = result.expectation_config.type, _subject(result.expectation_config.kwargs)
                raise ExpectationFailed(
                    f"{kind} of {about} could not be checked, which says nothing about the data: "
                    f"{info.get('exception_message')}"
                )
    return results


@lru_cache(maxsize=1)
def _batches() -> Any:
    """Takes frames to judge. Made once per process; it holds on to the last frame it was given."""
    gx, _ = library()
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("memory").add_dataframe_asset("batch")
    return asset.add_batch_definition_whole_dataframe("whole")


def _broken(result: Any, frame: pd.DataFrame, where: Callable[[int], str]) -> Broken:
    config, details = result.expectation_config, result.result
    rows = np.asarray(details.get("unexpected_index_list") or [], dtype=np.int64)
    # the list of values that the details have ends after 200
    values = frame[config.kwargs["column"]].iloc[rows].tolist() if len(rows) else []
    if len(rows) != details.get("unexpected_count", 0):
        raise ExpectationFailed(
            f"{config.type} of {_subject(config.kwargs)} is not met in {details['unexpected_count']} rows and "
            f"names {len(rows)} of them, so nobody can tell whose they are; judge fewer windows at once"
        )
    if len(rows):
        observed = f"{len(rows)} of {details['element_count']} rows, first {_shown(values[0])}{where(int(rows[0]))}"
    else:
        observed = _shown(details.get("observed_value"))
    finding = Finding(config.severity.value, config.type, _subject(config.kwargs), _rule(config), observed)
    return Broken(finding, rows, values)


def _key(config: Any) -> tuple[str, str]:
    return config.type, _subject(config.kwargs)


def _replaced(finding: Finding, observed: str) -> Finding:
    return Finding(finding.severity, finding.expectation, finding.subject, finding.rule, observed)


def _subject(kwargs: dict[str, Any]) -> str:
    return str(kwargs.get("column") or "table")


def _rule(config: Any) -> str:
    """What an expectation asks for, in words."""
    asked = config.kwargs
    limits = []
    if asked.get("min_value") is not None:
        limits.append(f"{'above' if asked.get('strict_min') else 'at least'} {asked['min_value']:g}")
    if asked.get("max_value") is not None:
        limits.append(f"{'below' if asked.get('strict_max') else 'at most'} {asked['max_value']:g}")
    if limits:
        wanted = " and ".join(limits)
        return f"must have {wanted} distinct values" if "unique_value_count" in config.type else f"must be {wanted}"
    if "value_set" in asked:
        return f"must be one of {', '.join(map(str, asked['value_set']))}"
    if "not_be_null" in config.type:
        return "must not be null"
    return str(config.type).removeprefix("expect_").replace("_", " ")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "null" if np.isnan(value) else f"{value:.6g}"
    return "null" if value is None or value is pd.NaT else str(value)
