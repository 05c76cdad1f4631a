"""What all sources share: which one is meant, what a row is, what is over."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.settings import load_settings
from tasks.sources import data_mode_of, milliseconds_of, moment_of, numbers, raw_frame, require_over, source_of
from trading.errors import BadWindow, ConfigurationError, MalformedResponse
from trading.masks import RAW_COLUMNS
from trading.window import Timeframe, Window


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRADEFLOWS_ENGINE_URL", "ENGINE_URL", "TRADEFLOWS_CANDLE_FOLDER", "TRADEFLOWS_EXCHANGE_URL"):
        monkeypatch.delenv(name, raising=False)


def test_each_kind_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRADEFLOWS_EXCHANGE_URL", "http://exchange.test")
    monkeypatch.setenv("ENGINE_URL", "http://engine.test")
    monkeypatch.setenv("TRADEFLOWS_CANDLE_FOLDER", str(tmp_path))
    settings = load_settings()
    for kind, name in (("exchange", "BinanceSource"), ("engine", "EngineSource"), ("files", "FileSource")):
        with source_of(settings, kind) as source:
            assert type(source).__name__ == name


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("engine", "needs ENGINE_URL"),
        ("files", "needs TRADEFLOWS_CANDLE_FOLDER"),
        ("ftp", "'ftp' is not a source; use exchange, engine or files"),
        ("", "'' is not a source"),
    ],
)
def test_what_is_not_configured_says_what_is_missing(kind: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        source_of(load_settings(), kind)


def test_an_empty_raw_frame_has_the_layout() -> None:
    frame = raw_frame([])
    assert list(frame.columns) == list(RAW_COLUMNS)
    assert frame.dtypes.astype(str).tolist() == ["int64"] + ["float64"] * 5


@given(st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)))
def test_milliseconds_there_and_back(moment: datetime) -> None:
    whole = moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=UTC)
    assert moment_of(milliseconds_of(whole)) == whole


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=6, max_size=6))
def test_numbers_come_as_numbers_or_as_their_text(values: list[float]) -> None:
    assert numbers(values, 0, "a test") == values
    assert numbers([repr(value) for value in values], 0, "a test") == values


def test_a_row_that_is_none_is_named_by_its_position() -> None:
    with pytest.raises(MalformedResponse, match=r"row 17 of klines of X is not a candle of time, open.*: 123456"):
        numbers("123456", 17, "klines of X")


def test_the_end_of_a_window_is_the_first_moment_it_is_over() -> None:
    window = Window("X", Timeframe.H1, datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, 2, tzinfo=UTC))
    require_over(window, datetime(2020, 1, 1, 2, tzinfo=UTC))
    with pytest.raises(BadWindow, match=r"clock says 2020-01-01T01:59:59Z; end it at 2020-01-01T01:00Z or before"):
        require_over(window, datetime(2020, 1, 1, 1, 59, 59, 999_000, tzinfo=UTC))


def test_what_does_not_tell_is_live() -> None:
    assert data_mode_of({}, "X") == "live"
    assert [data_mode_of({"dataMode": mode}, "X") for mode in ("live", "sample", "simulated")] == [
        "live",
        "sample",
        "simulated",
    ]
