"""What all sources share: which one is meant, what a row is, what is over."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import http
from tasks.retry import REQUEST
from tasks.settings import load_settings
from tasks.sources import (
    KINDS,
    ROWS,
    Row,
    address_of,
    checked_mode,
    milliseconds_of,
    moment_of,
    numbers,
    raw_frame,
    require_over,
    source_of,
)
from trading.errors import BadWindow, ConfigurationError, MalformedResponse, SourceError, SourceUnavailable
from trading.masks import RAW_COLUMNS
from trading.window import Timeframe, Window

SETTINGS = ("ENGINE_URL", "EXCHANGE_URL", "MIRROR_URL", "CANDLE_FOLDER", "ALLOWED_HOSTS", "ENVIRONMENT")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENGINE_URL", *(f"TRADEFLOWS_{name}" for name in SETTINGS)):
        monkeypatch.delenv(name, raising=False)


def test_each_kind_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRADEFLOWS_EXCHANGE_URL", "http://exchange.test")
    monkeypatch.setenv("TRADEFLOWS_MIRROR_URL", "http://mirror.test")
    monkeypatch.setenv("ENGINE_URL", "http://engine.test")
    monkeypatch.setenv("TRADEFLOWS_CANDLE_FOLDER", str(tmp_path))
    settings = load_settings()
    found = {}
    for kind in KINDS:
        with source_of(settings, kind) as source:
            found[kind] = type(source).__name__
    assert found == {
        "exchange": "BinanceSource",
        "mirror": "BinanceSource",
        "engine": "EngineSource",
        "files": "FileSource",
    }


def test_the_setting_that_an_address_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRADEFLOWS_EXCHANGE_URL", "http://exchange.test")
    monkeypatch.setenv("TRADEFLOWS_MIRROR_URL", "http://mirror.test")
    monkeypatch.setenv("ENGINE_URL", "http://engine.test")
    settings = load_settings()
    assert address_of(settings, "exchange") == ("TRADEFLOWS_EXCHANGE_URL", "http://exchange.test")
    assert address_of(settings, "mirror") == ("TRADEFLOWS_MIRROR_URL", "http://mirror.test")
    assert address_of(settings, "engine") == ("ENGINE_URL", "http://engine.test")


@pytest.mark.parametrize(
    ("kind", "variable"),
    [("exchange", "TRADEFLOWS_EXCHANGE_URL"), ("mirror", "TRADEFLOWS_MIRROR_URL"), ("engine", "ENGINE_URL")],
)
def test_the_address_is_checked_at_once(monkeypatch: pytest.MonkeyPatch, kind: str, variable: str) -> None:
    monkeypatch.setenv(variable, "host:8000")
    with pytest.raises(ConfigurationError, match=f"{variable} must be an http or https address"):
        source_of(load_settings(), kind)
    monkeypatch.setenv(variable, "https://me:hunter2@host.test")
    with pytest.raises(ConfigurationError, match=variable) as caught:
        source_of(load_settings(), kind)
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv(variable, "http://127.0.0.1:8000")
    monkeypatch.setenv("TRADEFLOWS_ALLOWED_HOSTS", "other.test, 10.0.0.0/8")
    with pytest.raises(ConfigurationError, match=rf"{variable} names 127\.0\.0\.1.* TRADEFLOWS_ALLOWED_HOSTS"):
        source_of(load_settings(), kind)


@pytest.mark.parametrize(("kind", "variable"), [("mirror", "TRADEFLOWS_MIRROR_URL"), ("engine", "ENGINE_URL")])
def test_the_settings_reach_the_requests(
    kind: str, variable: str, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    """Timeout, guard, pause between tries, and the name of the variable in what is said."""
    heard: list[type[SourceError] | None] = []
    told: list[Any] = []

    class Ear:
        def admit(self, weight: int) -> None: ...

        def heard(self, error: SourceError | None) -> None:
            heard.append(None if error is None else type(error))

    asking = http.get_json

    def get_json(connection: Any, *args: Any, **options: Any) -> Any:
        told.append((connection.timeout.read, options["policy"].delays))
        return asking(connection, *args, **options, sleep=lambda seconds: None)

    monkeypatch.setattr(http, "get_json", get_json)
    monkeypatch.setenv(variable, f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("TRADEFLOWS_SOURCE_TIMEOUT", "3.5")
    monkeypatch.setenv("TRADEFLOWS_SOURCE_PAUSE", "0.25")
    with source_of(load_settings(), kind, Ear()) as source, pytest.raises(SourceUnavailable, match=variable):
        source.describe("BTCUSDT")
    assert told == [(3.5, [0.25, 0.5, 1.0, 2.0])]
    assert heard == [SourceUnavailable] * (REQUEST.attempts + 1)


def test_requests_pause_as_the_policy_says_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRADEFLOWS_SOURCE_PAUSE", raising=False)
    with source_of(load_settings(), "exchange") as source:
        assert vars(source)["_policy"] == REQUEST


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("engine", "source engine needs ENGINE_URL, the address of the execution engine"),
        ("mirror", "source mirror needs TRADEFLOWS_MIRROR_URL, the address of a second Binance-style"),
        ("files", "needs TRADEFLOWS_CANDLE_FOLDER"),
        ("ftp", "'ftp' is not a source; use exchange, mirror, engine or files"),
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


def test_a_time_beyond_all_calendars_is_none() -> None:
    last = milliseconds_of(datetime.max.replace(tzinfo=UTC))
    assert moment_of(last).year == 9999
    for beyond in (last + 1, 1_577_836_800_000_000, -(10**15), 1e300):
        with pytest.raises(MalformedResponse, match="is no time in milliseconds"):
            moment_of(beyond)


FINITE = st.floats(allow_nan=False, allow_infinity=False)
CELLS = st.tuples(st.integers(-(10**12), 10**13), *[FINITE] * 5)


@given(st.lists(CELLS, max_size=8), st.booleans(), st.lists(st.integers() | st.text() | st.none(), max_size=3))
def test_numbers_come_as_numbers_or_as_their_text(rows: list[Any], as_text: bool, more: list[Any]) -> None:
    """Whatever follows the sixth cell."""
    sent = [[time, *(repr(value) if as_text else value for value in values), *more] for time, *values in rows]
    found = numbers(ROWS.decode(json.dumps(sent)))
    assert found.shape == (len(rows), 6)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, np.array(rows, "float64").reshape(-1, 6))


def test_no_rows_are_no_numbers() -> None:
    assert numbers([]).shape == (0, 6)
    assert numbers(ROWS.decode("[]")).dtype == np.float64


def test_whole_numbers_and_their_text_are_times() -> None:
    rows = ROWS.decode('[[1600000000000, 1, 2, 3, 4, 5], ["1600000000001", "1", "2e0", "3.0", "4", 5]]')
    assert rows == [Row(1600000000000, 1, 2, 3, 4, 5), Row(1600000000001, 1, 2, 3, 4, 5)]


@given(st.integers(0, 5), st.sampled_from(["null", "true", '""', '"five"', '"1_0"', '" 1"', "[1]", "{}", '"0x1"']))
def test_a_cell_that_is_no_number_is_named_by_its_place(cell: int, what: str) -> None:
    cells = ["1600000000000", '"1"', "2", "3", '"4"', "5"]
    cells[cell] = what
    good = "[1600000000000, 1, 2, 3, 4, 5]"
    with pytest.raises(msgspec.ValidationError, match=rf"at `\$\[2\]\[{cell}\]`"):
        ROWS.decode(f"[{good}, {good}, [{', '.join(cells)}]]")


@pytest.mark.parametrize("row", ["{}", "7", "null", '"1,2,3,4,5,6"', "[]", "[1, 2, 3, 4, 5]"])
def test_a_row_that_is_none_is_named_by_its_place(row: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"at `\$\[0\]`"):
        ROWS.decode(f"[{row}]")


def test_the_end_of_a_window_is_the_first_moment_it_is_over() -> None:
    window = Window("X", Timeframe.H1, datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, 2, tzinfo=UTC))
    require_over(window, datetime(2020, 1, 1, 2, tzinfo=UTC))
    with pytest.raises(BadWindow, match=r"clock says 2020-01-01T01:59:59Z; end it at 2020-01-01T01:00Z or before"):
        require_over(window, datetime(2020, 1, 1, 1, 59, 59, 999_000, tzinfo=UTC))


def test_the_kinds_of_data() -> None:
    assert [checked_mode(mode, "X") for mode in ("live", "sample", "simulated")] == ["live", "sample", "simulated"]


@pytest.mark.parametrize("mode", ["real", "", "LIVE", None, 1, ["live"], {"live": 1}])
def test_a_kind_of_data_that_there_is_not(mode: object) -> None:
    with pytest.raises(MalformedResponse, match=r"X has data mode .*'live', 'sample', 'simulated'"):
        checked_mode(mode, "X")
