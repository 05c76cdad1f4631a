"""Predictions are judged one by one, and as a run."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from expectations.predictions import DISTINCT, LARGEST, TOTAL, judge, row_suite
from ml.model import Prediction
from trading.analysis import Signal

# Great Expectations takes seconds to import and a tenth of one to judge
pytestmark = pytest.mark.integration

NAN = float("nan")


def prediction(short: float = 0.2, long_: float = 0.5, signal: Signal = Signal.LONG) -> Prediction:
    neutral = 1 - short - long_
    confidence = {Signal.SHORT: short, Signal.NEUTRAL: neutral, Signal.LONG: long_}[signal]
    return Prediction(datetime(2024, 1, 1, tzinfo=UTC), signal, confidence, short, neutral, long_, ())


GOOD = prediction()
BAD = {
    "unknown signal": (replace(GOOD, signal="Up"), "signal", "in_set"),  # type: ignore[arg-type]
    "no confidence": (replace(GOOD, confidence=NAN), "confidence", "not_be_null"),
    "confidence above one": (replace(GOOD, confidence=1.01), "confidence", "between"),
    "confidence below zero": (replace(GOOD, confidence=-0.01), "confidence", "between"),
    "no p_short": (replace(GOOD, p_short=NAN), "p_short", "not_be_null"),
    "no p_neutral": (replace(GOOD, p_neutral=NAN), "p_neutral", "not_be_null"),
    "no p_long": (replace(GOOD, p_long=NAN), "p_long", "not_be_null"),
    "negative p_short": (replace(GOOD, p_short=-0.1, p_neutral=0.6), "p_short", "between"),
    "negative p_neutral": (replace(GOOD, p_neutral=-0.1, p_short=0.6), "p_neutral", "between"),
    "negative p_long": (replace(GOOD, p_long=-0.1, p_short=0.8), "p_long", "between"),
    "not summing to one": (replace(GOOD, p_neutral=0.31), TOTAL, "between"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_probability_or_no_signal_is_critical(name: str) -> None:
    bad, subject, kind = BAD[name]
    [verdict], _ = judge([bad])
    (finding,) = verdict.critical
    assert finding.subject == subject
    assert finding.expectation.endswith(kind)


def test_every_expectation_is_broken_alone_somewhere() -> None:
    verdicts, _ = judge([bad for bad, _, _ in BAD.values()])
    broken = {(found.subject, found.expectation) for verdict in verdicts for found in verdict.findings}
    assert broken == {(each.column, each.expectation_type) for each in row_suite().expectations}
    assert all(len(verdict.findings) == 1 for verdict in verdicts)


def test_a_bad_prediction_does_not_taint_the_others() -> None:
    verdicts, _ = judge([GOOD, BAD["no p_long"][0], prediction(0.5, 0.1, Signal.SHORT), prediction(0.3, 0.3)])
    assert [bool(verdict.critical) for verdict in verdicts] == [False, True, False, False]
    assert str(verdicts[1].critical[0]) == "critical: p_long must not be null: null"


def test_rounding_is_no_finding() -> None:
    [verdict], _ = judge([replace(GOOD, p_short=-1e-12, p_neutral=0.0, p_long=1 + 1e-12, confidence=1.0)])
    assert verdict.findings == ()


def test_a_model_that_says_the_same_of_everything_is_a_warning() -> None:
    _, of_run = judge([GOOD] * 3)
    assert [str(found) for found in of_run.findings] == [f"warning: {DISTINCT} must be at least 2: 1 among 3"]
    for predictions in ([GOOD] * 2, [GOOD, GOOD, prediction(0.21)]):
        assert judge(predictions)[1].findings == ()


def test_a_model_that_nearly_always_gives_one_signal_is_a_warning() -> None:
    shorts = np.linspace(0.1, 0.3, 200)
    mostly = [prediction(short) for short in shorts]
    _, of_run = judge(mostly)
    assert [(found.severity, found.subject) for found in of_run.findings] == [("warning", LARGEST)]
    mixed = [*mostly[:-2], *[prediction(0.6, 0.1, Signal.SHORT)] * 2]
    assert judge(mixed)[1].findings == ()
    assert judge(mostly[:99])[1].findings == ()
