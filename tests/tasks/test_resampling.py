"""Coarser candles are made of finer ones and held to the exchange's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deployments.sandbox.markets import Market
from tasks import ledger, quarantine
from tasks.guarding import opened_sources
from tasks.ingestion import batches, ingest_windows, plan
from tasks.resampling import Derived, derive
from tasks.settings import load_settings
from tasks.store import Store, corrections, open_store, read_candles
from trading.candles import COLUMNS, digest
from trading.errors import CandleContractError, ExpectationFailed, SourceUnavailable
from trading.window import Timeframe, Window

START = datetime(2018, 12, 1, tzinfo=UTC)
NOW = datetime(2019, 1, 1, 0, 2, tzinfo=UTC)
BARS = 3 * 288


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


@pytest.fixture
def market(sandbox: Any) -> Market:
    """Three days of five-minute bars, some without trades, served by the sandbox, which makes the coarser ones."""
    from deployments.sandbox.generator import Recipe, generate

    values = generate([Recipe("FINE", 100.0, 0.001, 10.0, 2)], BARS, 7)["FINE"].copy()
    # a quiet bar has the price before it, and no volume
    for at in (30, 31, 200):
        values[at, :4], values[at, 4] = values[at - 1, 3], 0.0
    opens = int(START.timestamp() * 1000) + 300_000 * np.arange(BARS, dtype="int64")
    made = Market("FINE", Timeframe.M5, "24/7", "simulated", "USDT", opens, values)
    sandbox.state.markets = {("FINE", Timeframe.M5): made}
    return made


@pytest.fixture
def make(
    store: Store, sandbox: Any, market: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., list[Derived]]]:
    """Ingest the first so many fine bars, then make coarser ones of all of them; raises what failed."""
    monkeypatch.setenv("TRADEFLOWS_HOME", str(tmp_path))
    monkeypatch.setenv("TRADEFLOWS_EXCHANGE_URL", sandbox.url)
    with ExitStack() as closing:
        sources = closing.enter_context(opened_sources(load_settings(), store, ["exchange"], metered=False))

        def run(
            target: Timeframe, bars: int = BARS, bad: float = 0.0, now: datetime = NOW, recheck: int = 0
        ) -> list[Derived]:
            end = START + bars * timedelta(minutes=5)
            plans = plan(store, sources[0](), ["FINE"], Timeframe.M5, START, end, recheck=recheck)
            for batch in batches(plans):
                _, failures = ingest_windows(store, sources, batch, now=now, max_bad_share=0.0, flow_run_id=None)
                assert not failures
            done, failed = derive(
                store,
                sources,
                plans[0].instrument,
                plans[0].wanted,
                target,
                now=now,
                max_bad_share=bad,
                flow_run_id=None,
            )
            if failed:
                raise failed[0].error
            return done

        yield run


def coarse(target: Timeframe, bars: int = BARS) -> Window:
    return Window("FINE", target, START, target.floor(START + bars * timedelta(minutes=5)))


@pytest.mark.parametrize("target", [Timeframe.M15, Timeframe.H1, Timeframe.D1])
def test_they_equal_those_of_the_exchange(
    make: Callable[..., list[Derived]], store: Store, market: Market, target: Timeframe
) -> None:
    [made] = make(target)
    count = coarse(target).slots
    assert (made.made, made.taken, made.disagreed, made.added) == (count, 0, 0, count)
    got = read_candles(store, coarse(target))
    # an independent way to the same bars
    frame = pd.DataFrame(market.values, columns=list(COLUMNS))
    frame = frame[frame["volume"] > 0]
    groups = frame.groupby(frame.index // (target.delta // timedelta(minutes=5)))
    assert got["high"].tolist() == groups["high"].max().tolist()
    assert got["close"].tolist() == groups["close"].last().tolist()
    assert np.allclose(got["volume"], groups["volume"].sum())


def test_only_whole_coarse_bars_are_made_and_only_once(make: Callable[..., list[Derived]], store: Store) -> None:
    [made] = make(Timeframe.H1, bars=12 * 20 + 7)
    assert made.window == coarse(Timeframe.H1, 12 * 20)
    assert make(Timeframe.H1, bars=12 * 20 + 7) == []
    [more] = make(Timeframe.H1, bars=12 * 22)
    assert (more.window.start, more.added) == (START + timedelta(hours=20), 2)


def test_a_bar_that_the_exchange_has_otherwise_is_put_aside(
    make: Callable[..., list[Derived]], store: Store, sandbox: Any, market: Market
) -> None:
    assert make(Timeframe.M5.H1, bars=12) != []
    sandbox.state.markets = {**sandbox.state.markets, ("FINE", Timeframe.H1): wrong_hours(market, 5)}
    with pytest.raises(ExpectationFailed, match=r"1 of 71 candles made of 5m ones .* first 2018-12-01T05:00Z \(close "):
        make(Timeframe.H1)
    assert len(read_candles(store, coarse(Timeframe.H1))) == 1
    assert [entry.status for entry in ledger.entries(store, "FINE", "1h")] == ["approved", "refused"]
    [made] = make(Timeframe.H1, bad=0.05)
    assert (made.made, made.disagreed) == (70, 1)
    got = read_candles(store, coarse(Timeframe.H1))
    assert len(got) == 71
    assert START + timedelta(hours=5) not in got.index
    [row] = quarantine.find(store, "FINE", "1h")
    assert row["reasons"] == ["disagrees"]


def wrong_hours(market: Market, hour: int) -> Market:
    """The hourly bars of a market, with another close in one of them."""
    from trading.candles import frame_of, open_times_ms, resample

    hours = resample(frame_of(market.opens, market.values), Timeframe.M5, Timeframe.H1)
    values = hours.to_numpy().copy()
    values[hour, 3] = values[hour, 1:3].mean()
    return Market("FINE", Timeframe.H1, "24/7", "simulated", "USDT", open_times_ms(hours), values)


def test_nothing_is_made_of_bars_that_are_not_ingested(make: Callable[..., list[Derived]], store: Store) -> None:
    make(Timeframe.H1, bars=24)
    fine = Window("FINE", Timeframe.M5, START, START + timedelta(hours=5))
    instrument: Any = None
    found = derive(store, [], instrument, fine, Timeframe.H1, now=NOW, max_bad_share=0.0, flow_run_id=None)
    assert found == ([], [])


def test_a_target_that_is_no_multiple_is_refused(make: Callable[..., list[Derived]]) -> None:
    with pytest.raises(CandleContractError, match="cannot make 3m candles out of 5m ones"):
        make(Timeframe.M3)


@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT"])
def test_real_five_minute_bars_give_the_exchange_s_own_hours(
    shared: Path, symbol: str, store: Store, sandbox: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deployments.sandbox.markets import from_folder

    folder = tmp_path / "candles"
    folder.mkdir()
    for bar in ("5m", "1h"):
        [source] = (shared / "data").glob(f"binance_{symbol}_{bar}.*")
        (folder / f"{symbol}_{bar}{source.suffix}").symlink_to(source)
    sandbox.state.markets = from_folder(folder)
    sandbox.set_clock("2024-09-10T00:00:00Z")
    monkeypatch.setenv("TRADEFLOWS_HOME", str(tmp_path))
    monkeypatch.setenv("TRADEFLOWS_EXCHANGE_URL", sandbox.url)
    start, end = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC)
    with opened_sources(load_settings(), store, ["exchange"], metered=False) as sources:
        [planned] = plan(store, sources[0](), [symbol], Timeframe.M5, start, end)
        for batch in batches([planned]):
            ingest_windows(store, sources, batch, now=NOW, max_bad_share=0.0, flow_run_id=None)
        [made], _ = derive(
            store,
            sources,
            planned.instrument,
            planned.wanted,
            Timeframe.H1,
            now=NOW,
            max_bad_share=0.0,
            flow_run_id=None,
        )
    assert (made.made, made.disagreed) == (60 * 24, 0)


# --- late corrections of the finer candles -------------------------------------------------------

LATER = NOW + timedelta(hours=1)


def corrected(sandbox: Any, at: datetime, volume: float) -> None:
    """Another volume of a fine bar; the sandbox's coarser ones follow."""
    sandbox.correct("FINE", "5m", at, volume=volume)


def test_a_late_correction_reaches_the_coarser_candles(
    make: Callable[..., list[Derived]], store: Store, sandbox: Any
) -> None:
    make(Timeframe.H1)
    at = START + timedelta(hours=70, minutes=25)
    before = read_candles(store, coarse(Timeframe.H1))
    corrected(sandbox, at, 12345.0)
    [again] = make(Timeframe.H1, now=LATER, recheck=48)
    hour = START + timedelta(hours=70)
    assert (again.window, again.late) == (Window("FINE", Timeframe.H1, hour, hour + timedelta(hours=1)), True)
    assert (again.made, again.added, again.changed, again.disagreed) == (1, 0, 1, 0)
    # it can be undone, and said of
    [correction] = corrections(store, "FINE", "1h")
    assert (correction.open_time, correction.revision.at) == (hour, LATER)
    assert correction.old is not None
    assert correction.old[4] == before.loc[hour, "volume"]
    after = read_candles(store, coarse(Timeframe.H1))
    assert after.loc[hour, "volume"] == correction.new[4] > 12345.0
    # both records name what is stored now
    first, second = ledger.entries(store, "FINE", "1h")
    assert (first.window, first.digest, first.rows) == (coarse(Timeframe.H1), digest(after), 72)
    assert (second.window, second.changed, second.recorded_at) == (again.window, 1, LATER)
    # nothing more to do the next time
    assert make(Timeframe.H1, now=LATER + timedelta(hours=1), recheck=48) == []


def test_a_correction_that_an_earlier_run_found_is_not_forgotten(
    make: Callable[..., list[Derived]], store: Store, sandbox: Any
) -> None:
    make(Timeframe.H1)
    corrected(sandbox, START + timedelta(hours=70, minutes=25), 12345.0)
    # of runs that made other timeframes, or could not make this one
    assert make(Timeframe.M15, now=LATER, recheck=48) != []
    [again] = make(Timeframe.H1, now=LATER + timedelta(hours=1))
    assert (again.late, again.changed) == (True, 1)


def test_neighbouring_bars_are_made_anew_together_and_no_others(
    make: Callable[..., list[Derived]], store: Store, sandbox: Any
) -> None:
    make(Timeframe.H1)
    for hours in (68, 69, 71):
        corrected(sandbox, START + timedelta(hours=hours, minutes=5), 500.0 + hours)
    found = make(Timeframe.H1, now=LATER, recheck=60)
    assert [(one.window.slots, one.changed) for one in found] == [(2, 2), (1, 1)]


def test_a_window_that_no_source_answers_for_does_not_stop_the_others(
    make: Callable[..., list[Derived]], store: Store, sandbox: Any, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.sources import Instrument

    make(Timeframe.M15)
    monkeypatch.setenv("TRADEFLOWS_EXCHANGE_URL", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("TRADEFLOWS_MIRROR_URL", sandbox.url)
    monkeypatch.setenv("TRADEFLOWS_SOURCE_PAUSE", "0.01")
    fine = Window("FINE", Timeframe.M5, START, START + timedelta(days=3))
    instrument = Instrument("FINE", "24/7", "simulated", "exchange")
    with opened_sources(load_settings(), store, ["exchange", "mirror"], metered=False) as (exchange, mirror):

        def run(*sources: Any) -> Any:
            return derive(store, sources, instrument, fine, Timeframe.H1, now=NOW, max_bad_share=0.0, flow_run_id=None)

        done, [failure] = run(exchange)
        assert (done, failure.window) == ([], coarse(Timeframe.H1))
        assert isinstance(failure.error, SourceUnavailable)
        [made], failures = run(exchange, mirror)
        assert (made.made, made.disagreed, failures) == (72, 0, [])
    [entry] = ledger.entries(store, "FINE", "1h")
    assert entry.source.startswith("resampled from 5m (mirror ")
    assert "did not answer" in entry.findings[0]
