"""The technical analyst: only the selected speak, on finished bars, and many who agree are surer than one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from tasks.technical_analyst import Selected, opinion, selection
from trading.analysis import Abstention, Opinion, Signal
from trading.candles import frame_of, resample
from trading.errors import InvalidRequest
from trading.strategies import explain
from trading.window import Timeframe

START = datetime(2024, 1, 1, tzinfo=UTC)


def market(bars: int, drift: float = 0.0, seed: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(drift, 0.004, bars)))
    stamps = int(START.timestamp() * 1000) + 3_600_000 * np.arange(bars)
    return frame_of(stamps, np.column_stack([close, close * 1.001, close * 0.999, close, rng.uniform(1, 10, bars)]))


def said(
    candles: pd.DataFrame, selected: tuple[Selected, ...], weights: dict[tuple[str, str], float] | None = None
) -> Opinion:
    until = candles.index[-1].to_pydatetime() + timedelta(hours=1)
    found = opinion(candles, Timeframe.H1, selected, weights or {}, until=until)
    assert isinstance(found, Opinion)
    return found


@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_laplace_share_of_the_votes_of_1h_and_4h(seed: int) -> None:
    candles = market(400, seed=seed)
    found = said(candles, selection())
    four = resample(candles, Timeframe.H1, Timeframe.H4, candles.index[-1].to_pydatetime() + timedelta(hours=1))
    votes = [explain(one.rule, frame, one.parameters)[0] for one in selection() for frame in (candles, four)]
    score = sum(votes) / (len(votes) + 2)
    assert found.signal is (Signal.of(score) if abs(score) >= 0.2 else Signal.NEUTRAL)
    assert found.confidence == pytest.approx(abs(score) if abs(score) >= 0.2 else 0.5 * (1 - abs(score) / 0.2))
    assert found.reasons[0].endswith(f"score {score:+.2f}")
    assert [part.analyst for part in found.parts] == ["rsi", "macd", "volume", "bollinger"]
    # every part says what it looked at, with numbers, on both timeframes
    for part in found.parts:
        assert [reason.split(" ")[0] for reason in part.reasons] == ["1h", "4h"]
        assert all(any(letter.isdigit() for letter in reason.split(": ", 1)[1]) for reason in part.reasons)


def test_only_the_selected_speak_and_with_their_parameters() -> None:
    candles = market(400)
    alone = said(candles, selection(["macd"], {"macd": {"fast": 5, "slow": 13}}))
    assert [part.analyst for part in alone.parts] == ["macd"]
    assert "MACD(5, 13)" in alone.parts[0].reasons[0]
    assert alone.parts[0].provenance["version"] == "fast=5,slow=13,signal=9"
    # two votes are half sure at most
    assert alone.confidence <= 0.5
    versions = {said(candles, chosen).provenance["version"] for chosen in (selection(), selection(["macd"]))}
    assert len(versions) == 2
    assert selection(["rsi", "rsi"]) == selection(["rsi"])
    for names, parameters, why in (
        (["magic"], {}, "'magic' is not a rule"),
        (["rsi"], {"rsi": {"period": 1}}, "period=1"),
        (["rsi"], {"macd": {"fast": 5}}, "parameters of macd, which is not selected"),
    ):
        with pytest.raises(InvalidRequest, match=why):
            selection(names, parameters)


def test_a_bar_of_4h_that_is_not_over_is_not_looked_at() -> None:
    candles = market(401)  # one hour into the next bar of four
    found = said(candles, selection(["macd"]))
    whole = resample(candles.iloc[:400], Timeframe.H1, Timeframe.H4)
    target, reason = explain("macd", whole)
    assert found.parts[0].reasons[1] == f"4h {Signal.of(target)}: {reason}"


def test_who_has_too_little_history_abstains_and_the_others_speak() -> None:
    short = market(60)  # fifteen bars of 4h: enough for RSI(14) and for nobody else
    found = said(short, selection())
    by_name = {part.analyst: part for part in found.parts}
    assert by_name["macd"].reasons[1] == "needs 34 bars of 4h and there are 15"
    assert list(by_name["macd"].provenance) == ["version", "1h"]
    nobody = opinion(market(5), Timeframe.H1, selection(), {}, until=START + timedelta(hours=5))
    assert isinstance(nobody, Abstention)
    assert nobody.analyst == "technical"
    assert "rsi: needs 15 bars of 1h and there are 5" in nobody.reason
    assert opinion(short, Timeframe.H1, (), {}, until=START + timedelta(hours=60)) == Abstention(
        "technical", "no strategy is selected"
    )


def test_a_strategy_that_lost_money_has_less_of_a_vote() -> None:
    rising = market(400, drift=0.003)
    usual = said(rising, selection())
    by_name = {part.analyst: part for part in usual.parts}
    loudest = next(part for part in by_name.values() if part.signal is not Signal.NEUTRAL)
    silenced = said(rising, selection(), {(loudest.analyst, loudest.provenance["version"]): 0.0})
    score, before = (float(one.reasons[0].split("score ")[1].split(" ")[0]) for one in (silenced, usual))
    # its votes are gone, and nobody else's became louder
    assert (before - score) * loudest.signal.direction > 0
    assert f"weights: {loudest.analyst} 0.00" in silenced.reasons[0]
    # a record under other parameters is another strategy's
    assert said(rising, selection(), {(loudest.analyst, "other"): 0.0}) == usual


@pytest.mark.parametrize(
    ("allowed", "left"), [((), ["1h", "4h"]), ((Timeframe.H1,), ["1h"]), ((Timeframe.H4,), ["4h"])]
)
def test_a_strategy_that_is_limited_to_timeframes_votes_on_those_alone(
    allowed: tuple[Timeframe, ...], left: list[str]
) -> None:
    candles = market(400)
    [macd] = selection(["macd"])
    limited = replace(macd, timeframes=allowed)
    [part] = said(candles, (limited,)).parts
    assert [reason.split(" ")[0] for reason in part.reasons] == left
    assert [name for name in part.provenance if name != "version"] == left
    assert part.provenance["version"] == limited.version
    assert (limited.version == macd.version) == (not allowed)


def test_a_strategy_that_is_limited_to_bars_that_are_not_looked_at_abstains() -> None:
    [macd] = selection(["macd"])
    found = opinion(
        market(400), Timeframe.H1, [replace(macd, timeframes=(Timeframe.D1,))], {}, until=START + timedelta(hours=400)
    )
    assert found == Abstention("technical", "macd: is limited to 1d, and 1h, 4h are looked at")


def test_on_other_timeframes_it_looks_at_those_bars_alone() -> None:
    candles = market(400)
    daily = resample(candles, Timeframe.H1, Timeframe.H4)
    found = opinion(daily, Timeframe.H4, selection(), {}, until=START + timedelta(hours=400))
    assert isinstance(found, Opinion)
    assert {len(part.reasons) for part in found.parts} == {1}
