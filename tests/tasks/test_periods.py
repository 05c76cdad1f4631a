"""The span of a run follows from its parameters and its scheduled time, never from the wall clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.periods import run_moment, span
from trading.errors import BadWindow
from trading.window import Timeframe

MOMENT = datetime(2024, 5, 17, 10, 2, 30, tzinfo=UTC)


def test_the_last_bar_that_is_over_ends_a_span() -> None:
    assert span(Timeframe.H1, None, None, 2, MOMENT) == (
        datetime(2024, 5, 15, 10, tzinfo=UTC),
        datetime(2024, 5, 17, 10, tzinfo=UTC),
    )
    assert span(Timeframe.D1, None, None, 1, MOMENT)[1] == datetime(2024, 5, 17, tzinfo=UTC)


@given(st.sampled_from(list(Timeframe)), st.datetimes(datetime(2001, 1, 1), datetime(2030, 1, 1)), st.integers(1, 900))
def test_spans_are_aligned_and_over(timeframe: Timeframe, naive: datetime, days: int) -> None:
    moment = naive.replace(tzinfo=UTC)
    first, last = span(timeframe, None, None, days, moment)
    assert timeframe.floor(first) == first < last == timeframe.floor(last)
    assert moment - timeframe.delta < last <= moment


def test_a_run_late_by_minutes_is_about_the_same_bars() -> None:
    late = MOMENT + timedelta(minutes=40)
    assert span(Timeframe.H1, None, None, 2, late) == span(Timeframe.H1, None, None, 2, MOMENT)


def test_a_span_in_the_future_and_an_empty_one_are_refused() -> None:
    with pytest.raises(BadWindow, match="in the future of this run"):
        span(Timeframe.H1, None, MOMENT + timedelta(hours=1), 2, MOMENT)
    with pytest.raises(BadWindow, match="the window is empty"):
        span(Timeframe.H1, MOMENT, MOMENT, 2, MOMENT)
    with pytest.raises(BadWindow, match="no time zone"):
        span(Timeframe.H1, datetime(2024, 1, 1), MOMENT, 2, MOMENT)


def test_the_scheduled_time_is_the_moment_as_a_plain_datetime(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.runtime import flow_run
    from prefect.types._datetime import parse_datetime

    # Prefect's own class of times loses its zone when a timedelta is added
    monkeypatch.setitem(flow_run.FIELDS, "scheduled_start_time", lambda: parse_datetime("2024-05-17T10:02:00+00:00"))
    moment = run_moment()
    assert type(moment) is datetime
    assert moment + timedelta(days=1) == datetime(2024, 5, 18, 10, 2, tzinfo=UTC)
