"""The rules of a backtest by examples: small markets, each with one rule, its figures worked out on paper.

Every example runs through the kernel and through the reference; both must give the figures of the comments.
Bars are (open, high, low, close), hourly from Monday, 1 January 2024, 00:00 UTC; trading is free and the cash is
1,000 unless the example is about that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.trading.backtest.reference import assert_same, simulate
from trading.backtest.engine import BacktestResult, run_portfolio
from trading.backtest.rules import Costs, Decisions, Execution, FeeTier, Limits, Protection, Rules, Sizing
from trading.candles import frame_of

HOUR = 3_600_000
START = 1_704_067_200_000
FREE = Costs(0.0, 0.0)
NAN = math.nan
FLAT = (100, 100, 100, 100)

Bar = tuple[float, float, float, float]


def bars(*rows: Bar, volume: float = 1000.0, at: Sequence[int] | None = None) -> pd.DataFrame:
    hours = range(len(rows)) if at is None else at
    return frame_of([START + hour * HOUR for hour in hours], [(*row, volume) for row in rows])


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


def rules(
    units: float = 1.0, costs: Costs = FREE, sizing: Sizing | None = None, cash: float = 1000.0, **others: Any
) -> Rules:
    return Rules(costs=costs, sizing=sizing or Sizing(units=units), cash=cash, **others)


def play(
    candles: pd.DataFrame | Mapping[str, pd.DataFrame],
    decisions: np.ndarray | Decisions | Mapping[str, np.ndarray | Decisions],
    ruled: Rules,
    funding: np.ndarray | None = None,
) -> BacktestResult:
    """The kernel's result, after the reference gave the same."""
    markets = candles if isinstance(candles, Mapping) else {"one": candles}
    wanted = decisions if isinstance(decisions, Mapping) else {"one": decisions}
    rates = None if funding is None else {"one": funding}
    result = run_portfolio(markets, wanted, ruled, funding=rates)
    assert_same(result, simulate(markets, wanted, ruled, rates))
    return result


def filled(result: BacktestResult) -> list[tuple[int, float, float, str]]:
    """(bar, signed units, price, reason) of every fill."""
    rows = result.fills[["bar", "units", "price", "reason"]].itertuples(index=False)
    return [(bar, pytest.approx(units), pytest.approx(price), reason) for bar, units, price, reason in rows]


def equity(result: BacktestResult) -> list[float]:
    return pytest.approx(result.equity.tolist())


def test_an_open_beyond_the_stop_fills_at_the_open() -> None:
    market = bars(FLAT, (100, 102, 98, 101), (90, 96, 85, 92))
    result = play(market, array(1, 1, 1), rules(protection=Protection(stop_loss=0.05)))
    # bought at 100, the stop is at 95, the open of bar 2 is 90: nobody bought at 95
    assert filled(result) == [(1, 1, 100, "target"), (2, -1, 90, "stop loss")]
    assert equity(result) == [1000, 1001, 990]


def test_where_stop_and_profit_are_touched_the_stop_came_first() -> None:
    market = bars(FLAT, (100, 112, 94, 110))
    result = play(market, array(1, 1), rules(protection=Protection(stop_loss=0.05, take_profit=0.1)))
    assert filled(result) == [(1, 1, 100, "target"), (1, -1, 95, "stop loss")]
    assert equity(result) == [1000, 995]


def test_a_short_mirrors_a_long() -> None:
    market = bars(FLAT, (100, 106, 88, 90))
    result = play(market, array(-1, -1), rules(protection=Protection(stop_loss=0.05, take_profit=0.1)))
    assert filled(result) == [(1, -1, 100, "target"), (1, 1, 105, "stop loss")]
    assert equity(result) == [1000, 995]


def test_a_taken_profit_is_a_limit_order() -> None:
    market = bars(FLAT, (100, 108, 98, 105), (112, 115, 111, 114))
    costs = Costs(fee_rate=0.01, slippage_rate=0.02, maker_rate=0.005)
    result = play(market, array(1, 1, 1), rules(costs=costs, protection=Protection(take_profit=0.1)))
    # bought at 102 for a fee of 1.02; profit is at 112.2, the open of 112 is below and the high of 115 above it:
    # sold at exactly that, for the maker's fee of 0.561
    assert filled(result) == [(1, 1, 102, "target"), (2, -1, 112.2, "take profit")]
    assert result.costs == pytest.approx({"fees": 1.581, "slippage": 2, "funding": 0, "borrow": 0})
    assert result.equity.iloc[-1] == pytest.approx(1000 + 10.2 - 1.581)


def test_an_open_beyond_the_profit_is_better() -> None:
    market = bars(FLAT, (100, 108, 98, 105), (120, 125, 80, 90))
    result = play(market, array(1, 1, 1), rules(protection=Protection(stop_loss=0.05, take_profit=0.1)))
    # the open comes before anything else in the bar, so the low of 80 is nobody's concern
    assert filled(result)[1] == (2, -1, 120, "take profit")


@pytest.mark.parametrize("needs_cross", [False, True])
def test_a_limit_that_is_touched_and_not_crossed(needs_cross: bool) -> None:
    market = bars(FLAT, (100, 101, 95, 98), (98, 99, 94, 96), (96, 97, 95.5, 96))
    wanted = Decisions(array(1, 1, 1, 1), limit=array(95, 95, 95, 95))
    result = play(market, wanted, rules(execution=Execution(limit_needs_cross=needs_cross)))
    # each decision places the order again; bar 1 touches 95, bar 2 goes through it
    assert filled(result) == [(2 if needs_cross else 1, 1, 95, "limit")]


def test_an_open_below_the_limit_is_better_and_pays_the_makers_fee() -> None:
    market = bars(FLAT, (90, 91, 89, 90))
    costs = Costs(fee_rate=0.01, slippage_rate=0.02, maker_rate=0.005)
    result = play(market, Decisions(array(1, 1), limit=array(95, NAN)), rules(costs=costs))
    assert filled(result) == [(1, 1, 90, "limit")]
    assert result.costs["fees"] == pytest.approx(0.45)


def test_a_stop_entry_may_be_stopped_in_its_own_bar_and_takes_its_profit_in_the_next() -> None:
    wanted = Decisions(array(1, 1, 1), stop_entry=array(104, NAN, NAN))
    protection = Protection(stop_loss=0.125, take_profit=0.0625)
    # bought at 104 on the way up: stop at 91, profit at 110.5
    fell = play(bars(FLAT, (100, 112, 90, 98), FLAT), wanted, rules(protection=protection))
    assert filled(fell) == [(1, 1, 104, "stop entry"), (1, -1, 91, "stop loss")]
    rose = play(bars(FLAT, (100, 112, 95, 98), (98, 111, 96, 100)), wanted, rules(protection=protection))
    assert filled(rose) == [(1, 1, 104, "stop entry"), (2, -1, 110.5, "take profit")]


def test_a_stop_above_the_entry_is_met_at_the_entry() -> None:
    wanted = Decisions(array(1, 1), stop_entry=array(104, NAN), stop_price=array(105, NAN))
    result = play(bars(FLAT, (100, 104, 95, 98)), wanted, rules(costs=Costs(0.0, 0.0625)))
    # bought at 104 and a sixteenth; the bar never saw the 105 of the stop, so it is sold at 104 less a sixteenth
    assert filled(result) == [(1, 1, 110.5, "stop entry"), (1, -1, 97.5, "stop loss")]


def test_a_flip_closes_and_opens_at_one_price() -> None:
    market = bars(FLAT, (100, 110, 100, 110), (110, 110, 105, 105))
    result = play(market, array(1, -1, -1), rules(costs=Costs(0.01, 0.0)))
    # 1,000 - 100 - 1 = 899; + 110 - 1.1 = 1,007.9 flat; + 110 - 1.1 = 1,116.8 with a short of 105
    assert filled(result) == [(1, 1, 100, "target"), (2, -1, 110, "target reversed"), (2, -1, 110, "target")]
    assert equity(result) == [1000, 1009, 1011.8]
    assert result.cash.tolist() == pytest.approx([1000, 899, 1116.8])
    assert result.trades["pnl"].tolist() == pytest.approx([10 - 2.1, 5 - 1.1])
    assert result.trades["exit_reason"].tolist() == ["target reversed", "open"]


def test_scaling_in_and_out_is_one_trade_at_mean_prices() -> None:
    market = bars(FLAT, FLAT, (130, 130, 130, 130), (120, 120, 120, 120), (140, 140, 140, 140))
    ruled = rules(units=4.0, protection=Protection(stop_loss=0.5))
    result = play(market, array(0.25, 1, 0.5, 0, 0), ruled)
    # 1 at 100 and 3 at 130: 490 for 4; 2 at 120 and 2 at 140: 520
    assert filled(result) == [
        (1, 1, 100, "target"),
        (2, 3, 130, "increased"),
        (3, -2, 120, "reduced"),
        (4, -2, 140, "target flat"),
    ]
    assert len(result.trades) == 1
    trade = result.trades.iloc[0]
    assert (trade["size"], trade["entry_price"], trade["exit_price"], trade["pnl"]) == (4, 122.5, 130, 30)


def test_an_increase_moves_the_stop_with_the_average() -> None:
    market = bars(FLAT, FLAT, (120, 120, 104, 120), (120, 120, 98, 110))
    ruled = rules(units=2.0, protection=Protection(stop_loss=0.1))
    result = play(market, array(0.5, 1, 1, 1), ruled)
    # the average is 110, so the stop is at 99: the low of 104 of the bar of the increase is above it
    assert filled(result)[-1] == (3, -2, 99, "stop loss")


def test_a_trailing_stop_follows_the_bars_before() -> None:
    market = bars(FLAT, (100, 120, 95, 118), (118, 119, 107, 110))
    result = play(market, array(1, 1, 1), rules(protection=Protection(trailing_stop=0.1)))
    # in bar 1 the best price is the entry's: the stop is at 90; from bar 2 it is at 120 less a tenth
    assert filled(result) == [(1, 1, 100, "target"), (2, -1, 108, "trailing stop")]


def test_a_trailing_stop_at_a_distance() -> None:
    market = bars(FLAT, (100, 101, 90, 92), (92, 98, 91, 97))
    wanted = Decisions(array(-1, -1, -1), trail_distance=array(6, NAN, NAN))
    assert filled(play(market, wanted, rules())) == [(1, -1, 100, "target"), (2, 1, 96, "trailing stop")]


def test_a_trailing_stop_that_comes_later_knows_the_best_price_since_the_entry() -> None:
    market = bars(FLAT, (100, 120, 100, 110), (110, 112, 108, 110), (110, 111, 104, 105))
    wanted = Decisions(array(0.5, 0.5, 1, 1), trail_distance=array(NAN, NAN, 15, NAN))
    result = play(market, wanted, rules())
    # the increase of bar 3 brings the trailing stop: 120 less 15
    assert filled(result)[1:] == [(3, 0.5, 110, "increased"), (3, -1, 105, "trailing stop")]


def test_after_a_stop_the_side_is_entered_again_once_the_target_left_it() -> None:
    market = bars(*[FLAT] * 2, (100, 100, 94, 100), *[FLAT] * 4)
    targets = array(1, 1, 1, 1, 0, 1, 1)
    blocked = play(market, targets, rules(protection=Protection(stop_loss=0.05)))
    assert [(bar, reason) for bar, _, _, reason in filled(blocked)] == [(1, "target"), (2, "stop loss"), (6, "target")]
    again = play(market, targets, rules(protection=Protection(stop_loss=0.05, reenter=True)))
    assert [bar for bar, *_ in filled(again)] == [1, 2, 3, 5, 6]


def test_a_time_stop_at_the_open_that_many_bars_later() -> None:
    market = bars(*[FLAT] * 6)
    result = play(market, array(1, 1, 1, 1, 1, 1), rules(protection=Protection(max_bars=2)))
    assert [(bar, reason) for bar, _, _, reason in filled(result)] == [(1, "target"), (3, "time stop")]


def test_a_time_stop_and_a_flip_on_one_bar() -> None:
    market = bars(*[FLAT] * 7)
    result = play(market, array(1, 1, 1, -1, 1, 1, 1), rules(protection=Protection(max_bars=3)))
    # the target has left the long side when its time is over, so it may come back to it
    fills = [(bar, units, reason) for bar, units, _, reason in filled(result)]
    assert fills[1:3] == [(4, -1, "time stop"), (4, -1, "target")]
    assert fills[3:] == [(5, 1, "target reversed"), (5, 1, "target")]


def test_funding_is_paid_by_who_holds_at_the_open() -> None:
    market = bars(*[FLAT] * 18)
    rates = array(*[0.001 if hour in (0, 8, 16) else 0.0 for hour in range(18)])
    targets = array(*[0] * 7, *[1] * 11)
    # bought at 08:00: whoever buys at that open did not hold it; 2 x 100 x 0.001 at 16:00
    assert equity(play(market, targets, rules(units=2.0), rates)) == [1000] * 16 + [999.8] * 2
    earlier = play(market, array(*[0] * 6, *[-1] * 12), rules(units=2.0), rates)
    # a short from 07:00 on receives it twice
    assert equity(earlier) == [1000] * 8 + [1000.2] * 8 + [1000.4] * 2
    assert earlier.trades["funding"].tolist() == pytest.approx([-0.4])


def test_a_short_pays_for_what_it_borrows() -> None:
    market = bars(*[FLAT] * 4)
    costs = Costs(0.0, 0.0, borrow_rate=0.8766)
    # 87.66 % of a year of 8,766 hours is 0.0001 an hour: 2 x 100 x 0.0001 at each of three closes
    result = play(market, array(-1, -1, -1, -1), rules(units=2.0, costs=costs))
    assert equity(result) == [1000, 999.98, 999.96, 999.94]


def test_a_short_is_liquidated_where_its_margin_is_gone() -> None:
    market = bars(FLAT, FLAT, (110, 125, 108, 112), FLAT)
    sizing = Sizing(fraction=2.0, leverage=2.0)
    result = play(market, array(-1, -1, -1, -1), rules(sizing=sizing, execution=Execution(maintenance=0.25)))
    # 20 sold at 100: cash 3,000. At 120 the equity is 600, a quarter of the 2,400 that are owed
    assert filled(result) == [(1, -20, 100, "target"), (2, 20, 120, "liquidation")]
    assert equity(result) == [1000, 1000, 600, 600]


def test_a_ruined_account_stays_at_nothing_and_the_broker_bears_the_rest() -> None:
    market = bars(FLAT, FLAT, (160, 170, 155, 165), FLAT, FLAT)
    sizing = Sizing(fraction=2.0, leverage=2.0)
    result = play(market, array(-1, -1, -1, 1, 1), rules(sizing=sizing))
    # 20 sold at 100 are bought back at the open of 160, beyond the 150 where nothing is left: 3,000 - 3,200
    assert filled(result) == [(1, -20, 100, "target"), (2, 20, 160, "liquidation")]
    assert equity(result) == [1000, 1000, 0, 0, 0]
    assert result.written_off == pytest.approx(200)


def test_a_portfolio_is_ruined_at_the_close() -> None:
    markets = {"a": bars(FLAT, FLAT, (150, 210, 150, 190)), "b": bars(FLAT, FLAT, FLAT)}
    sizing = Sizing(units=10.0, leverage=3.0)
    wanted = {"a": array(-1, -1, -1), "b": array(1, 1, 1)}
    # 10 sold and 10 bought; at 210 the account was below nothing, at the close it is 1,000 - 900
    assert equity(play(markets, wanted, rules(sizing=sizing))) == [1000, 1000, 100]
    margin = play(markets, wanted, rules(sizing=sizing, execution=Execution(maintenance=0.05)))
    # 100 is less than 5 % of the 2,900 held
    assert filled(margin)[2:] == [(2, 10, 190, "liquidation"), (2, -10, 100, "liquidation")]


def test_fees_fall_with_what_was_traded_in_thirty_days() -> None:
    market = bars(*[FLAT] * 6, at=[0, 1, 2, 3, 721, 722])  # 30 days are 720 hours
    costs = Costs(0.01, 0.0, tiers=(FeeTier(300, 0.0, 0.005), FeeTier(600, 0.0, 0.001)))
    result = play(market, array(1, -1, 0, 1, 0, 0), rules(units=2.0, costs=costs))
    # bar 1: nothing before; bar 2: 200 before; bar 3: 600 before; hour 721: hours 1 to 3, 800; hour 722: 400 + 200
    assert result.fills["bar"].tolist() == [1, 2, 2, 3, 4, 5]
    assert result.fills["fee"].tolist() == pytest.approx([2, 2, 2, 0.2, 0.2, 0.2])
    later = bars(*[FLAT] * 6, at=[0, 1, 2, 3, 722, 723])
    # hour 722: hours 2 and 3, 600; hour 723: hour 3 and 722, 400
    again = play(later, array(1, -1, 0, 1, 0, 0), rules(units=2.0, costs=costs))
    assert again.fills["fee"].tolist() == pytest.approx([2, 2, 2, 0.2, 0.2, 1])


def test_cooldown() -> None:
    market = bars(*[FLAT] * 7)
    result = play(market, array(1, 0, 1, 1, 1, 1, 1), rules(limits=Limits(cooldown_bars=3)))
    assert [bar for bar, *_ in filled(result)] == [1, 2, 5]
    flip = play(market, array(1, -1, -1, -1, -1, -1, -1), rules(limits=Limits(cooldown_bars=3)))
    assert [(bar, units) for bar, units, *_ in filled(flip)] == [(1, 1), (2, -1), (5, -1)]


def test_trades_per_day_are_of_the_whole_account_and_of_utc() -> None:
    hours = [20, 21, 22, 23, 24, 25]
    markets = {name: bars(*[FLAT] * 6, at=hours) for name in "ab"}
    wanted = {"a": array(1, 0, 1, 0, 1, 1), "b": array(0, 1, 1, 1, 1, 1)}
    result = play(markets, wanted, rules(limits=Limits(max_trades_per_day=2)))
    entries = result.trades[["symbol", "entry_bar"]].itertuples(index=False, name=None)
    # a at 21:00, b at 22:00; a is refused at 23:00; the next day it is let in at 01:00, as wanted at midnight's close
    assert list(entries) == [("a", 1), ("b", 2), ("a", 5)]


def test_an_entry_must_be_worth_its_costs() -> None:
    market = bars(*[FLAT] * 4)
    # a round trip costs 2 x (0.1 % + 0.05 %) = 0.3 %; twice that is 0.6 %
    costs = Costs(0.001, 0.0005)
    wanted = Decisions(array(1, 1, -1, 1), edge=array(0.0059, -0.01, -0.0061, NAN))
    result = play(market, wanted, rules(costs=costs, limits=Limits(min_edge=2.0)))
    assert [(bar, units) for bar, units, *_ in filled(result)] == [(3, -1)]


def test_an_edge_against_the_position_is_no_edge_where_trading_is_free() -> None:
    wanted = Decisions(array(1, 1, 1, 1), edge=array(NAN, -0.1, 0.0, 0.0))
    result = play(bars(*[FLAT] * 4), wanted, rules(limits=Limits(min_edge=2.0)))
    assert [bar for bar, *_ in filled(result)] == [3]


def test_kelly_caps_the_share() -> None:
    up, down = (120, 120, 120, 120), (90, 90, 90, 90)
    market = bars(FLAT, FLAT, up, FLAT, down, FLAT, FLAT)
    sizing = Sizing(fraction=0.5, kelly=0.5, kelly_trades=2)
    result = play(market, array(1, 0, 1, 0, 1, 1, 1), rules(sizing=sizing))
    # 5 from 100 to 120: 1,100; 5.5 from 100 to 90: 1,045. W = 1/2, R = 0.2 / 0.1, W - (1 - W) / R = 1/4,
    # half of that is an eighth: 130.625 at 100
    assert [units for _, units, *_ in filled(result)] == [5, -5, 5.5, -5.5, 1.30625]


def test_lots_and_the_least_notional() -> None:
    market = bars(*[FLAT] * 5)
    result = play(market, array(0.78, 0.7, 0.45, 0.4, 0.4), rules(sizing=Sizing(lot=0.5, min_notional=120.0)))
    # 7.8 in halves: 7.5; less a half (50) is not worth an order; down to 4.5 it is (300)
    assert filled(result) == [(1, 7.5, 100, "target"), (3, -3, 100, "reduced")]


def test_an_entry_is_cut_to_its_share_of_the_volume_and_goes_on() -> None:
    market = bars(*[FLAT] * 5, volume=40.0)
    result = play(market, array(1, 1, 1, 1, 1), rules(units=9.0, sizing=Sizing(units=9.0, max_volume_share=0.1)))
    assert [(bar, units) for bar, units, *_ in filled(result)] == [(1, 4), (2, 4), (3, 1)]
    assert len(result.trades) == 1


def test_impact_grows_with_the_square_of_the_share_of_volume() -> None:
    market = bars(*[FLAT] * 2, volume=20.0)
    result = play(market, array(1, 1), rules(units=5.0, costs=Costs(0.0, 0.01, spread=0.02, impact=0.16)))
    # 1 % slippage, half of 2 % spread, 16 % x (5 / 20)^2 = 1 %
    assert filled(result) == [(1, 5, 103, "target")]
    assert result.costs["slippage"] == pytest.approx(15)


def test_risk_sizes_by_the_distance_of_the_stop() -> None:
    market = bars(*[FLAT] * 4)
    wanted = Decisions(array(1, 0, 1, 1), stop_price=array(95, NAN, NAN, NAN))
    result = play(market, wanted, rules(sizing=Sizing(risk=0.01)))
    # 1 % of 1,000 over 5 per unit; the entry of bar 3 has no stop
    assert filled(result) == [(1, 2, 100, "target"), (2, -2, 100, "target flat")]


def test_a_position_whose_size_nobody_can_say_stays_as_it_is() -> None:
    market = bars(*[FLAT] * 4)
    wanted = Decisions(array(0.5, 1, 0.25, 0), stop_price=array(95, NAN, NAN, NAN))
    result = play(market, wanted, rules(sizing=Sizing(risk=0.01)))
    # without a stop there is no size of a target of 1 or of 0.25: nothing is bought and nothing is sold
    assert filled(result) == [(1, 1, 100, "target")]


def test_volatility_sizes_by_what_moved() -> None:
    closes = [100, 125, 100, 125, 100]
    market = bars(*[(close, close, close, close) for close in closes])
    sizing = Sizing(fraction=0.8, volatility=math.log(1.25) * math.sqrt(8766), volatility_bars=2)
    # the returns of two bars are + and - ln 1.25, their deviation ln 1.25 x sqrt 2: a share of 1 / sqrt 2
    result = play(market, array(1, 1, 1, 1, 1), rules(sizing=sizing))
    assert filled(result) == [(3, 1000 / math.sqrt(2) / 125, 125, "target")]


def test_volatility_is_of_the_bars_that_the_market_has() -> None:
    closes = [100, 125, 100, 125]
    market = bars(*[(close, close, close, close) for close in closes], at=[0, 2, 4, 6])
    other = bars(*[FLAT] * 8)
    # at its third candle it has had 3 of 5 bars, and a deviation of ln 1.25 x sqrt 2 from candle to candle
    sizing = Sizing(fraction=0.8, volatility=math.log(1.25) * math.sqrt(8766 * 3 / 5), volatility_bars=2)
    wanted = {"one": array(1, 1, 1, 1), "other": np.zeros(8)}
    result = play({"one": market, "other": other}, wanted, rules(sizing=sizing))
    assert filled(result) == [(6, 1000 / math.sqrt(2) / 125, 125, "target")]


def test_rebalancing_beyond_a_tenth() -> None:
    market = bars(FLAT, FLAT, (110, 110, 110, 110), (150, 150, 150, 150), (150, 150, 150, 150))
    result = play(market, array(0.5, 0.5, 0.5, 0.5, 0.5), rules(sizing=Sizing(rebalance=0.1)))
    # 5 at 100. At 110 half of 1,050 is 4.77 units, 4.8 % off; at 150 half of 1,250 is 4.1667, a fifth off
    assert filled(result) == [(1, 5, 100, "target"), (3, -5 / 6, 150, "reduced")]


def test_a_fraction_pays_its_fee_out_of_itself() -> None:
    result = play(bars(FLAT, FLAT), array(1, 1), rules(sizing=Sizing(), costs=Costs(0.25, 0.0)))
    assert filled(result) == [(1, 8, 100, "target")]  # 800 and a fee of 200
    assert result.cash.iloc[-1] == 0


def test_decided_and_filled_at_the_same_close() -> None:
    market = bars((90, 100, 90, 100), (100, 120, 100, 110), (115, 120, 70, 80))
    ruled = rules(protection=Protection(stop_loss=0.1), execution=Execution(fill="same close", close_at_end=True))
    result = play(market, array(1, 1, 0), ruled)
    # bought at the close of bar 0; the stop of 90 is met in bar 2
    assert filled(result) == [(0, 1, 100, "target"), (2, -1, 90, "stop loss")]
    held = play(market, array(1, 1, 0), rules(execution=ruled.execution))
    assert filled(held) == [(0, 1, 100, "target"), (2, -1, 80, "end of data")]


def test_close_at_the_end() -> None:
    market = bars(FLAT, FLAT, (100, 110, 100, 108))
    result = play(market, array(1, 1, 1), rules(costs=Costs(0.01, 0.0), execution=Execution(close_at_end=True)))
    assert filled(result) == [(1, 1, 100, "target"), (2, -1, 108, "end of data")]
    assert result.equity.iloc[-1] == pytest.approx(1000 + 8 - 1 - 1.08)


def test_a_symbol_without_a_candle_is_left_alone() -> None:
    markets = {
        "a": bars(*[FLAT] * 4),
        "b": bars((50, 50, 50, 50), (50, 60, 50, 60), (40, 40, 40, 40), at=[0, 1, 3]),
    }
    wanted = {"a": array(0, 0, 0, 0), "b": array(1, 0, 0)}
    result = play(markets, wanted, rules())
    # b is sold with its next candle; until then its last close holds
    assert filled(result) == [(1, 1, 50, "target"), (3, -1, 40, "target flat")]
    assert equity(result) == [1000, 1010, 1010, 990]


@pytest.mark.parametrize("short_of_cash", ["skip", "cut"])
def test_symbols_share_one_account(short_of_cash: str) -> None:
    markets = {name: bars(FLAT, FLAT, FLAT) for name in "abc"}
    wanted = {"a": array(1, 0, 0), "b": array(1, 1, 1), "c": array(1, 1, 1)}
    sizing = Sizing(fraction=0.625, short_of_cash=short_of_cash)  # type: ignore[arg-type]
    result = play(markets, wanted, rules(sizing=sizing))
    positions = result.positions.tolist()
    if short_of_cash == "skip":
        # 625 for a, and what is left is too little for b and for c; when a is sold b comes first
        assert positions == pytest.approx(np.array([[0, 0, 0], [6.25, 0, 0], [0, 6.25, 0]]))
    else:
        # b gets the rest and c nothing; when a is sold, b was served, and c is cut in turn
        assert positions == pytest.approx(np.array([[0, 0, 0], [6.25, 3.75, 0], [0, 3.75, 6.25]]))


def test_limits_of_exposure() -> None:
    markets = {name: bars(FLAT, FLAT, FLAT) for name in "abc"}
    wanted = dict.fromkeys("abc", array(1, 1, 1))
    sizing = Sizing(fraction=2.0, leverage=4.0, short_of_cash="cut")
    limits = Limits(max_exposure=2.5, max_symbol=1.5)
    result = play(markets, wanted, rules(sizing=sizing, limits=limits))
    # 1.5 for a, 1 for b, nothing for c
    assert result.positions[-1] == pytest.approx([15, 10, 0])
    two = play(markets, wanted, rules(units=1.0, limits=Limits(max_positions=2)))
    assert two.positions[-1] == pytest.approx([1, 1, 0])
