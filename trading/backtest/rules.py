"""The rules of a backtest: what trading costs, how much is bought, when a position ends, what is not allowed.

What happens in one bar, in this order. All of it in the quote currency; ``side`` is +1 long, -1 short.

1. **Funding.** Whoever holds a position at the open pays ``position x open x funding rate`` (shorts receive it
   where the rate is positive; Binance USD-M futures, "Introduction to Funding Rates").
2. **Decisions of the previous bar's close**, filled at this open (``Execution.fill = "next open"``), first what
   frees cash, in the order of the symbols, then what takes it, in the same order:
   a position whose ``Protection.max_bars`` are over is closed; one whose target is flat or of the other side is
   closed; one whose target shrank is reduced; a new or a grown target is entered, at the market, at a limit or at
   a stop (``Decisions.limit``, ``Decisions.stop_entry``). An order stands for one bar: the next decision places
   it again. While a target stays the same the position keeps its size, unless ``Sizing.rebalance`` says otherwise.
   An entry that is not filled, or only in part, is tried again with the next decision.
3. **Inside the bar**: liquidation, stop loss, trailing stop, take profit. An open already beyond a level fills at
   the open. Where the bar touches a level against the position and one for it, the one against it came first. A
   position entered inside the bar (limit, stop entry) may be stopped in that bar, from its entry price on, and
   takes its profit in the next one at the earliest. A trailing stop follows the best price of the bars before.
4. **The close**: shorts pay for what they borrow; the account is marked; one that is worth nothing, or less than
   its maintenance margin, is closed at the close. With ``Execution.fill = "same close"`` the decisions of this
   bar are filled here. After a protective exit the same side is entered again only once the target has left it
   (``Protection.reenter``).

Market orders, stops and liquidations take liquidity: the taker's fee, and a price worse by the slippage. Limit
entries and take profits give it: the maker's fee, and exactly the limit (or the better open).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from trading.errors import InvalidRequest

EMPTY: Final = np.empty(0)


@dataclass(frozen=True)
class FeeTier:
    """The fees from ``traded`` on: notional of all fills in the 30 days up to the previous bar."""

    traded: float
    maker: float
    taker: float


@dataclass(frozen=True)
class Costs:
    """What trading costs. Rates are shares: 0.001 is 0.1 %.

    Attributes:
        fee_rate: the taker's fee, of the notional of each fill.
        slippage_rate: by which the price of each taker's fill is worse than its reference.
        maker_rate: fee of limit entries and take profits; None: ``fee_rate``.
        tiers: fees by what was traded in 30 days, rising; before the first tier the rates above hold.
        spread: bid-ask spread as a share of the price; a taker's fill is worse by half of it.
        impact: a taker's price is worse by ``impact x min(1, size / the bar's volume) ** 2`` (the volume share
            model of Zipline, ``zipline.finance.slippage.VolumeShareSlippage``).
        borrow_rate: of a short position's notional, per year.

    Raises:
        InvalidRequest: a rate outside [0, 1), or tiers that do not rise.
    """

    fee_rate: float = 0.001
    slippage_rate: float = 0.0005
    maker_rate: float | None = None
    tiers: tuple[FeeTier, ...] = ()
    spread: float = 0.0
    impact: float = 0.0
    borrow_rate: float = 0.0

    def __post_init__(self) -> None:
        rates = {"fee rate": self.fee_rate, "slippage rate": self.slippage_rate, "spread": self.spread}
        rates |= {"impact": self.impact, "borrow rate": self.borrow_rate, "maker rate": self.maker}
        for tier in self.tiers:
            rates |= {f"maker rate from {tier.traded:g}": tier.maker, f"taker rate from {tier.traded:g}": tier.taker}
        for name, rate in rates.items():
            if not (math.isfinite(rate) and 0 <= rate < 1):
                raise InvalidRequest(f"{name} is {rate}; it is a share per side from 0 to below 1, 0.001 for 0.1 %")
        if self.slippage_rate + self.spread / 2 + self.impact >= 1:
            raise InvalidRequest("slippage, half the spread and impact come to 1 or more: a sale would earn nothing")
        steps = [tier.traded for tier in self.tiers]
        if steps != sorted(set(steps)) or any(not 0 <= step < math.inf for step in steps):
            raise InvalidRequest(f"fee tiers begin at {steps}; each must begin above the one before")

    @property
    def maker(self) -> float:
        """The maker's fee rate before any tier."""
        return self.fee_rate if self.maker_rate is None else self.maker_rate

    @property
    def round_trip(self) -> float:
        """What an entry and an exit at the market cost together, as a share of the notional; without impact."""
        return 2 * (self.fee_rate + self.slippage_rate + self.spread / 2)

    def times(self, factor: float) -> Costs:
        """The same costs, each ``factor`` times as high; tiers begin where they began."""
        return Costs(
            self.fee_rate * factor,
            self.slippage_rate * factor,
            None if self.maker_rate is None else self.maker_rate * factor,
            tuple(FeeTier(tier.traded, tier.maker * factor, tier.taker * factor) for tier in self.tiers),
            self.spread * factor,
            self.impact * factor,
            self.borrow_rate * factor,
        )


@dataclass(frozen=True)
class Sizing:
    """How much a target of 1 is. The first of these that is set says so:

    ``units`` of the base asset; ``risk``: as many units as lose this share of the equity between entry price and
    stop (an entry without a stop is not made); ``volatility``: notional ``volatility / realised volatility`` times
    the equity, both annual, realised over ``volatility_bars`` closes up to the decision; else ``fraction`` of the
    equity, fee included. A target of 0.5 is half of it. ``fraction`` also caps the sizes by risk and volatility
    as a share of the equity.

    Attributes:
        kelly: caps the share of the equity at ``kelly`` times the Kelly fraction of the trades closed so far,
            ``W - (1 - W) / R`` (Kelly 1956; W share of winners, R mean gain of winners over mean loss of losers,
            both per unit of notional), once ``kelly_trades`` are closed; never below ``kelly_floor``.
        lot: sizes are whole multiples of it, rounded down (1 for whole shares; 0: any size).
        min_notional: an entry, an increase or a reduction worth less is not made.
        max_volume_share: an entry or increase is cut to this share of the bar's volume; the rest is tried again.
        leverage: all positions together are worth at most this many times the equity.
        rebalance: a position is brought back to its size once it is off by more than this share of it (0.1: by
            more than a tenth); inf: never.
        short_of_cash: an entry that breaks a limit of leverage or exposure is left out ("skip") or cut to what
            fits ("cut").

    Raises:
        InvalidRequest: values outside their ranges.
    """

    units: float = 0.0
    fraction: float = 1.0
    lot: float = 0.0
    min_notional: float = 0.0
    risk: float = 0.0
    volatility: float = 0.0
    volatility_bars: int = 100
    kelly: float = 0.0
    kelly_trades: int = 30
    kelly_floor: float = 0.0
    max_volume_share: float = math.inf
    leverage: float = 1.0
    rebalance: float = math.inf
    short_of_cash: Literal["skip", "cut"] = "skip"

    def __post_init__(self) -> None:
        sound = (
            0 <= self.units < math.inf
            and 0 < self.fraction <= self.leverage < math.inf
            and all(0 <= value < math.inf for value in (self.lot, self.min_notional, self.volatility, self.kelly))
            and 0 <= self.risk < 1
            and 0 <= self.kelly_floor < math.inf
            and self.volatility_bars >= 2
            and self.kelly_trades >= 1
            and self.max_volume_share > 0
            and self.rebalance > 0
            and self.short_of_cash in ("skip", "cut")
        )
        if not sound:
            raise InvalidRequest(
                f"{self} makes no sense: nothing is negative, the fraction is above 0 and at most the leverage, the "
                "risk below 1, volatility_bars 2 or more, short_of_cash is skip or cut"
            )
        if sum(value > 0 for value in (self.units, self.risk, self.volatility)) > 1:
            raise InvalidRequest(f"{self} sizes in several ways; set one of units, risk and volatility")


@dataclass(frozen=True)
class Protection:
    """When a position ends without a decision. Shares of the average entry price; 0: none.

    Attributes:
        stop_loss, take_profit: distance from the entry.
        trailing_stop: distance from the best price (high of a long, low of a short) since the entry.
        max_bars: a position is closed at the open of the bar that is so many bars after its entry's.
        reenter: enter the same side again while the target stays on it.

    Raises:
        InvalidRequest: a share outside [0, 1) (a profit may be larger), or negative bars.
    """

    stop_loss: float = 0.0
    take_profit: float = 0.0
    trailing_stop: float = 0.0
    max_bars: int = 0
    reenter: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.stop_loss < 1 and 0 <= self.trailing_stop < 1 and 0 <= self.take_profit < math.inf):
            raise InvalidRequest(f"{self} makes no sense: stops are shares of the price from 0 to below 1")
        if self.max_bars < 0:
            raise InvalidRequest(f"max_bars={self.max_bars}; it is 0 (no time stop) or more")


@dataclass(frozen=True)
class Limits:
    """What is not allowed, whatever the strategy wants.

    Attributes:
        cooldown_bars: no entry into a symbol before so many bars after its last exit (0: on the same bar).
        max_trades_per_day: entries from flat of the whole account per UTC day of the bar's open; 0: no limit.
        min_edge: an entry needs an expected return of at least so many round trips of cost
            (``Costs.round_trip``), in its direction; needs ``Decisions.edge``.
        max_positions: symbols held at once; 0: no limit.
        max_exposure: all positions together, as a share of the equity.
        max_symbol: one position, as a share of the equity.

    Raises:
        InvalidRequest: negative values.
    """

    cooldown_bars: int = 0
    max_trades_per_day: int = 0
    min_edge: float = 0.0
    max_positions: int = 0
    max_exposure: float = math.inf
    max_symbol: float = math.inf

    def __post_init__(self) -> None:
        counts = (self.cooldown_bars, self.max_trades_per_day, self.max_positions)
        if min(counts) < 0 or not 0 <= self.min_edge < math.inf or not (self.max_exposure > 0 and self.max_symbol > 0):
            raise InvalidRequest(f"{self} makes no sense: counts and edge are 0 or more, exposures above 0")


@dataclass(frozen=True)
class Execution:
    """How orders are filled.

    Attributes:
        fill: decisions of a close are filled at the next open, or at that same close.
        limit_needs_cross: a limit fills only where the bar trades through it, not where it touches it.
        maintenance: a position is liquidated where the equity falls to this share of its notional; 0: to nothing.
            Inside the bar for one symbol, at the close for several.
        close_at_end: close what is held at the last close, with costs; else it stays open, valued there.

    Raises:
        InvalidRequest: values outside their ranges.
    """

    fill: Literal["next open", "same close"] = "next open"
    limit_needs_cross: bool = False
    maintenance: float = 0.0
    close_at_end: bool = False

    def __post_init__(self) -> None:
        if self.fill not in ("next open", "same close") or not 0 <= self.maintenance < 1:
            raise InvalidRequest(f"{self} makes no sense: fill is 'next open' or 'same close', maintenance in [0, 1)")


@dataclass(frozen=True)
class Rules:
    """All rules of one backtest, and the starting ``cash`` in the quote currency.

    Raises:
        InvalidRequest: cash that is not above zero.
    """

    costs: Costs = field(default_factory=Costs)
    sizing: Sizing = field(default_factory=Sizing)
    protection: Protection = field(default_factory=Protection)
    limits: Limits = field(default_factory=Limits)
    execution: Execution = field(default_factory=Execution)
    cash: float = 10_000.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.cash) and self.cash > 0):
            raise InvalidRequest(f"starting cash is {self.cash}; it must be above zero")


@dataclass(frozen=True, eq=False)
class Decisions:
    """What a strategy wants after each close, float64 (n,) each; an empty array: nothing of that kind.

    Attributes:
        targets: wanted position from -1 (short) over 0 (flat) to +1 (long), in parts of ``Sizing``.
        limit: price at which an entry or increase of that bar's target is placed as a limit order; NaN: market.
        stop_entry: the same as a stop order (buy above, sell below). Not both on one bar.
        stop_price, target_price: levels of stop loss and take profit of an entry decided on that bar; NaN: those
            of ``Protection``.
        trail_distance: distance of its trailing stop, in price; NaN: that of ``Protection``.
        edge: expected return of the position over its life, signed (positive: the price will rise).
    """

    targets: np.ndarray
    limit: np.ndarray = field(default_factory=lambda: EMPTY)
    stop_entry: np.ndarray = field(default_factory=lambda: EMPTY)
    stop_price: np.ndarray = field(default_factory=lambda: EMPTY)
    target_price: np.ndarray = field(default_factory=lambda: EMPTY)
    trail_distance: np.ndarray = field(default_factory=lambda: EMPTY)
    edge: np.ndarray = field(default_factory=lambda: EMPTY)
