"""Candle files: the same rows from either format, nothing repaired, nothing from outside the folder."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks import files
from tasks.files import FileSource, read
from tasks.sources import Instrument
from trading.errors import BadWindow, ConfigurationError, MalformedResponse, UnknownSymbol
from trading.masks import RAW_COLUMNS, screen
from trading.window import Timeframe, Window

START = datetime(2020, 1, 1, tzinfo=UTC)
FIRST = int(START.timestamp() * 1000)
HOUR = timedelta(hours=1)


def rows(count: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, count)))
    open_ = np.r_[100.0, close[:-1]]
    return pd.DataFrame(
        {
            "open_time": FIRST + np.arange(count, dtype="int64") * 3_600_000,
            "open": open_,
            "high": np.maximum(open_, close) * 1.001,
            "low": np.minimum(open_, close) * 0.999,
            "close": close,
            "volume": rng.lognormal(size=count),
        }
    )


def write(table: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path, index=False)
    return path


def hours(first: int, last: int, symbol: str = "BTC") -> Window:
    return Window(symbol, Timeframe.H1, START + first * HOUR, START + last * HOUR)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("times", ["open_time", "timestamp", "iso", "offset", "datetime"])
def test_both_formats_and_every_way_to_write_a_time(tmp_path: Path, suffix: str, times: str) -> None:
    table = rows(50)
    moments = pd.to_datetime(table["open_time"], unit="ms", utc=True)
    if times == "timestamp":
        written = table.rename(columns={"open_time": "timestamp"})
    else:
        shown = {
            "open_time": table["open_time"],
            "iso": moments.dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "offset": moments.dt.tz_convert("Asia/Tokyo").map(lambda moment: moment.isoformat()),
            "datetime": moments,
        }[times]
        written = table.assign(open_time=shown)
    write(written, tmp_path / f"BTC_1h.{suffix}")
    with FileSource(tmp_path) as source:
        frame = source.fetch(hours(10, 40))
    assert list(frame.columns) == list(RAW_COLUMNS)
    pd.testing.assert_frame_equal(frame, table.iloc[10:40].reset_index(drop=True), check_exact=True)


def test_other_columns_and_another_order_do_not_matter(tmp_path: Path) -> None:
    table = rows(5)
    write(table.assign(trades=7)[["volume", "close", "trades", "low", "high", "open", "open_time"]], tmp_path / "a.csv")
    pd.testing.assert_frame_equal(read(tmp_path / "a.csv"), table, check_exact=True)


def test_whole_numbers_become_floats(tmp_path: Path) -> None:
    table = pd.DataFrame([[FIRST, 10, 12, 9, 11, 3]], columns=list(RAW_COLUMNS))
    assert read(write(table, tmp_path / "a.csv")).dtypes.astype(str).tolist() == ["int64"] + ["float64"] * 5


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_nothing_is_sorted_repaired_or_dropped(tmp_path: Path, suffix: str) -> None:
    table = rows(6).iloc[[3, 0, 0, 5, 1]].reset_index(drop=True)
    table.loc[0, "high"] = 1.0
    table.loc[4, "volume"] = np.nan
    write(table, tmp_path / f"BTC_1h.{suffix}")
    raw = FileSource(tmp_path).fetch(hours(0, 6))
    pd.testing.assert_frame_equal(raw, table, check_exact=True)
    assert screen(raw, hours(0, 6), "24/7").quarantined == {"duplicate": 1, "inconsistent": 1, "null": 1}


def test_a_window_without_rows(tmp_path: Path) -> None:
    write(rows(5), tmp_path / "BTC_1h.csv")
    assert FileSource(tmp_path).fetch(hours(100, 110)).empty


def test_a_window_is_half_open(tmp_path: Path) -> None:
    write(rows(5), tmp_path / "BTC_1h.csv")
    assert FileSource(tmp_path).fetch(hours(1, 3))["open_time"].tolist() == [FIRST + 3_600_000, FIRST + 7_200_000]


def test_parquet_goes_before_csv(tmp_path: Path) -> None:
    write(rows(5), tmp_path / "BTC_1h.csv")
    write(rows(5, seed=1), tmp_path / "BTC_1h.parquet")
    pd.testing.assert_frame_equal(FileSource(tmp_path).fetch(hours(0, 5)), rows(5, seed=1), check_exact=True)


def test_a_window_that_is_not_over(tmp_path: Path) -> None:
    write(rows(5), tmp_path / "BTC_1h.csv")
    source = FileSource(tmp_path)
    assert abs(source.server_time() - datetime.now(UTC)) < timedelta(seconds=5)
    with pytest.raises(BadWindow, match="is not over: the source's clock says 20"):
        source.fetch(Window("BTC", Timeframe.H1, START, datetime(2199, 1, 1, tzinfo=UTC)))


# --- first candles -------------------------------------------------------------------------------


def test_the_first_candle_and_the_next_ones(tmp_path: Path) -> None:
    table = rows(10).drop(index=[3, 4, 5]).sample(frac=1, random_state=1)  # in no order
    write(table, tmp_path / "BTC_1h.csv")
    source = FileSource(tmp_path)
    assert source.listed("BTC", Timeframe.H1) == START
    for after, following in ((0, 0), (2, 2), (3, 6), (5, 6), (6, 6), (9, 9)):
        assert source.next_open("BTC", Timeframe.H1, START + after * HOUR) == START + following * HOUR, after
    assert source.next_open("BTC", Timeframe.H1, START + timedelta(minutes=1)) == START + HOUR
    assert source.next_open("BTC", Timeframe.H1, START + 10 * HOUR) is None


def test_an_empty_file_has_no_first_candle(tmp_path: Path) -> None:
    write(rows(5).iloc[:0], tmp_path / "BTC_1h.parquet")
    assert FileSource(tmp_path).listed("BTC", Timeframe.H1) is None


def test_no_first_candle_of_a_series_that_is_not_there(tmp_path: Path) -> None:
    write(rows(5), tmp_path / "BTC_1h.csv")
    source = FileSource(tmp_path)
    with pytest.raises(UnknownSymbol, match=r"has no ETH_1h\.parquet or \.csv"):
        source.listed("ETH", Timeframe.H1)
    with pytest.raises(UnknownSymbol, match=r"has no BTC_1d\.parquet or \.csv"):
        source.next_open("BTC", Timeframe.D1, START)


def test_times_in_microseconds_have_no_first_candle(tmp_path: Path) -> None:
    write(rows(5).assign(open_time=lambda table: table["open_time"] * 1000), tmp_path / "BTC_1h.csv")
    with pytest.raises(MalformedResponse, match="1577836800000000 is no time in milliseconds"):
        FileSource(tmp_path).listed("BTC", Timeframe.H1)


# --- a file is read once -------------------------------------------------------------------------


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read, in turn."""
    names: list[str] = []

    def reading(path: Path) -> pd.DataFrame:
        names.append(path.name)
        return read(path)

    monkeypatch.setattr(files, "read", reading)
    return names


def test_a_file_is_read_once_for_many_windows(tmp_path: Path, readings: list[str]) -> None:
    table = rows(50)
    write(table, tmp_path / "BTC_1h.csv")
    source = FileSource(tmp_path)
    parts = [source.fetch(hours(first, first + 10)) for first in range(0, 50, 10)]
    source.listed("BTC", Timeframe.H1)
    source.next_open("BTC", Timeframe.H1, START)
    assert readings == ["BTC_1h.csv"]
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), table, check_exact=True)


def test_a_file_that_changed_is_read_again(tmp_path: Path, readings: list[str]) -> None:
    path = write(rows(5), tmp_path / "BTC_1h.csv")
    source = FileSource(tmp_path)
    source.fetch(hours(0, 5))
    write(rows(5, seed=1), path)
    stamp = path.stat().st_mtime_ns + 1  # however coarse the file system's clock is
    os.utime(path, ns=(stamp, stamp))
    pd.testing.assert_frame_equal(source.fetch(hours(0, 5)), rows(5, seed=1), check_exact=True)
    # one that goes before it is found, too
    write(rows(5, seed=2), tmp_path / "BTC_1h.parquet")
    pd.testing.assert_frame_equal(source.fetch(hours(0, 5)), rows(5, seed=2), check_exact=True)
    assert readings == ["BTC_1h.csv", "BTC_1h.csv", "BTC_1h.parquet"]
    (tmp_path / "BTC_1h.parquet").unlink()
    path.unlink()
    with pytest.raises(UnknownSymbol):
        source.fetch(hours(0, 5))


def test_what_was_fetched_can_be_changed_without_changing_what_is_fetched_next(tmp_path: Path) -> None:
    table = rows(5)
    write(table, tmp_path / "BTC_1h.parquet")
    source = FileSource(tmp_path)
    for _ in range(2):
        frame = source.fetch(hours(0, 5))
        pd.testing.assert_frame_equal(frame, table, check_exact=True)
        frame.loc[:, "close"] = 0.0


def test_a_file_that_another_thread_asks_for_meanwhile_is_not_mistaken_for_ours(tmp_path: Path) -> None:
    for seed, symbol in enumerate(("BTC", "ETH")):
        write(rows(5, seed), tmp_path / f"{symbol}_1h.csv")

    class Contended(FileSource):
        """Each time the file that was read last is looked at, a thread that wants the other one comes between."""

        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if name == "_read" and value is not None:
                _, stem = others
                path = tmp_path / f"{stem}_1h.csv"
                self._read = ((path, path.stat().st_mtime_ns), read(path))
            return value

    source = Contended(tmp_path)
    for _ in range(3):
        for seed, others in ((0, ("BTC", "ETH")), (1, ("ETH", "BTC"))):
            frame = source.fetch(hours(0, 5, others[0]))
            pd.testing.assert_frame_equal(frame, rows(5, seed), check_exact=True)


# --- symbols -------------------------------------------------------------------------------------


def test_history_from_files_is_sample_data_unless_told_otherwise(tmp_path: Path) -> None:
    write(rows(5), tmp_path / "BTC_1h.csv")
    assert FileSource(tmp_path).describe("BTC") == Instrument("BTC", "24/7", "sample", f"files {tmp_path}")
    told = FileSource(tmp_path, calendar="XNYS", data_mode="simulated").describe("BTC")
    assert (told.calendar, told.data_mode) == ("XNYS", "simulated")


def test_an_unknown_symbol_comes_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(UnknownSymbol, match="it has none"):
        FileSource(tmp_path).describe("BTC")
    for name in ("my_coin_1h.csv", "BTC_1h.csv", "BTC_5m.parquet", "ETH_1d.parquet"):
        (tmp_path / name).touch()
    with pytest.raises(UnknownSymbol, match="no candles of 'XRP'; it has BTC, ETH, my_coin"):
        FileSource(tmp_path).describe("XRP")


def test_another_timeframe_is_not_made_up(tmp_path: Path) -> None:
    write(rows(5), tmp_path / "BTC_1h.csv")
    with pytest.raises(UnknownSymbol, match=r"has no BTC_1d\.parquet or \.csv"):
        FileSource(tmp_path).fetch(Window("BTC", Timeframe.D1, START, START + timedelta(days=1)))


@pytest.mark.parametrize("symbol", ["../outside", "../folder/../outside", "/{outside}", "sub/inside", "./../outside"])
def test_a_symbol_does_not_lead_out_of_the_folder(tmp_path: Path, symbol: str) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    for path in (tmp_path / "outside_1h.csv", folder / "sub" / "inside_1h.csv"):
        write(rows(5), path)
    asked = symbol.replace("/{outside}", str(tmp_path / "outside"))
    source = FileSource(folder)
    with pytest.raises(UnknownSymbol):
        source.describe(asked)
    with pytest.raises(UnknownSymbol):
        source.fetch(hours(0, 5, asked))


def test_the_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"TRADEFLOWS_CANDLE_FOLDER .*nowhere is not a folder"):
        FileSource(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigurationError, match="is not a folder"):
        FileSource(file)


# --- files that are wrong ------------------------------------------------------------------------


@pytest.mark.parametrize("column", RAW_COLUMNS)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_missing_column_is_named(tmp_path: Path, suffix: str, column: str) -> None:
    path = write(rows(5).drop(columns=column), tmp_path / f"a.{suffix}")
    with pytest.raises(MalformedResponse, match=rf"a\.{suffix} lacks .*{column}.*; it has \["):
        read(path)


@pytest.mark.parametrize("value", ["much", "1,5", "2020-01-01"])
def test_a_price_that_is_no_number(tmp_path: Path, value: str) -> None:
    table = rows(5).astype({"close": object})
    table.loc[2, "close"] = value
    with pytest.raises(MalformedResponse, match="holds something that is no number or time"):
        read(write(table, tmp_path / "a.csv"))


@pytest.mark.parametrize("value", ["yesterday", "", None, "2020-13-01"])
def test_a_time_that_is_none(tmp_path: Path, value: str | None) -> None:
    table = rows(5)
    times = pd.to_datetime(table["open_time"], unit="ms", utc=True).dt.strftime("%Y-%m-%dT%H:%M:%SZ").astype(object)
    times[3] = value
    with pytest.raises(MalformedResponse, match="holds something that is no number or time"):
        read(write(table.assign(open_time=times), tmp_path / "a.csv"))


def test_a_missing_number_among_times_in_milliseconds(tmp_path: Path) -> None:
    table = rows(5).astype({"open_time": "float64"})
    table.loc[3, "open_time"] = np.nan
    with pytest.raises(MalformedResponse, match="holds something that is no number or time"):
        read(write(table, tmp_path / "a.parquet"))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe rubbish \xff", b'a,b\n1,2,3\n"'])
def test_a_file_that_is_none(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"BTC_1h.{suffix}"
    path.write_bytes(content)
    with pytest.raises(MalformedResponse, match=rf"BTC_1h\.{suffix} (cannot be read as {suffix}|lacks)"):
        FileSource(tmp_path).fetch(hours(0, 5))


def test_a_parquet_file_cut_in_half(tmp_path: Path) -> None:
    path = write(rows(500), tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(MalformedResponse, match="cannot be read as parquet"):
        read(path)


def test_real_candles(shared: Path) -> None:
    """Files of an exchange's real history, as others exported them."""
    source = FileSource(shared / "data")
    assert source.describe("binance_BTCUSDT").data_mode == "sample"
    table = pd.read_parquet(shared / "data" / "binance_BTCUSDT_1h.parquet")
    begin = datetime.fromtimestamp(int(table["timestamp"].iloc[100]) / 1000, tz=UTC)
    raw = source.fetch(Window("binance_BTCUSDT", Timeframe.H1, begin, begin + 500 * HOUR))
    assert len(raw) > 450
    assert raw["close"].tolist() == table["close"].iloc[100 : 100 + len(raw)].tolist()


def test_a_damaged_parquet_file_is_read_or_malformed(tmp_path: Path) -> None:
    """Never an error of pyarrow's or of pandas' own, whichever bytes are hit."""
    rng = np.random.default_rng(11)
    path = tmp_path / "BTC_1h.parquet"
    columns = {name: rng.random(200) for name in ("open", "high", "low", "close", "volume")}
    pd.DataFrame({"timestamp": np.arange(200) * 3_600_000} | columns).to_parquet(path)
    whole = path.read_bytes()
    causes = set()
    for _ in range(300):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 6):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read(path)
        except MalformedResponse as error:
            causes.add(type(error.__cause__))
    assert any(issubclass(cause, OSError) for cause in causes)
