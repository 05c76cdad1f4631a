"""The rules of ``trading.backtest.rules`` a second time: slow, obvious, in plain floats; the kernel is held to it.

Written from the text of the rules, not from the kernel. One ``Book`` per symbol: its candles (NaN where it has none),
its decisions, its position. One ``Account`` over them. ``simulate`` walks over the bars.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest

from trading.backtest.engine import BacktestResult
from trading.backtest.rules import Decisions, Rules

NONE = math.nan
DUST = 1e-12  # what rounding leaves of a size or of a limit is no order
PROTECTIVE = ("stop loss", "take profit", "trailing stop", "time stop", "liquidation", "ruin")


@dataclass
class Trade:
    """From flat to flat. ``entered`` and ``left`` in units, ``paid`` and ``received`` in money (for both sides)."""

    row: int
    symbol: str
    side: int
    entry_bar: int
    entry_reason: str
    entered: float = 0.0
    paid: float = 0.0
    left: float = 0.0
    received: float = 0.0
    fees: float = 0.0
    slippage: float = 0.0
    funding: float = 0.0
    borrow: float = 0.0
    exit_bar: int | None = None
    exit_reason: str = "open"

    def pnl(self, mark: float) -> float:
        rest = 0.0 if self.exit_bar is not None else (self.entered - self.left) * mark
        return self.side * (self.received + rest - self.paid) - self.fees - self.funding - self.borrow


@dataclass
class Book:
    """One symbol: what the market did, what was decided, what is held."""

    symbol: str
    open: list[float]
    high: list[float]
    low: list[float]
    close: list[float]
    volume: list[float]
    funding: list[float]
    realised: list[float]
    decisions: Decisions
    position: float = 0.0
    sized_for: float = 0.0  # the target that the position is right for; NaN: for none yet, it was filled in part
    blocked: int = 0
    last_exit_bar: int | None = None
    entry_bar: int = -1
    inside_bar: int = -1  # the bar it was entered inside of
    entry_reference: float = NONE  # the price it was entered at, before slippage
    average: float = NONE
    stop: float = NONE
    target: float = NONE
    trail_distance: float = NONE
    trail_share: float = NONE
    peak: float = NONE
    trade: Trade | None = None

    @property
    def side(self) -> int:
        return sign(self.position)

    def trades_at(self, bar: int) -> bool:
        return not math.isnan(self.close[bar])

    def mark(self, bar: int) -> float:
        """The close, or the last known one; 0 before the first (nothing can be held then)."""
        known = (close for close in reversed(self.close[: bar + 1]) if not math.isnan(close))
        return next(known, 0.0)

    def said(self, what: str, bar: int) -> float:
        values = getattr(self.decisions, what)
        return float(values[bar]) if len(values) else NONE


@dataclass
class Account:
    rules: Rules
    times: list[datetime]
    years_per_bar: float
    books: list[Book]
    cash: float
    maker: float = 0.0
    taker: float = 0.0
    ruined: bool = False
    written_off: float = 0.0
    trades: list[Trade] = field(default_factory=list)
    fills: list[dict[str, Any]] = field(default_factory=list)
    equity: list[float] = field(default_factory=list)
    cash_after: list[float] = field(default_factory=list)
    positions: list[list[float]] = field(default_factory=list)

    def trade_rows(self) -> list[dict[str, Any]]:
        last = len(self.times) - 1
        marks = {book.symbol: book.mark(last) for book in self.books}
        return [trade_row(trade, marks[trade.symbol], last + 1) for trade in self.trades]

    def costs(self) -> dict[str, float]:
        names = ("fees", "slippage", "funding", "borrow")
        return {name: sum(getattr(trade, name) for trade in self.trades) for name in names}


def trade_row(trade: Trade, mark: float, bars: int) -> dict[str, Any]:
    return {
        "symbol": trade.symbol,
        "side": trade.side,
        "entry_bar": trade.entry_bar,
        "exit_bar": bars if trade.exit_bar is None else trade.exit_bar,
        "size": trade.entered,
        "entry_price": trade.paid / trade.entered,
        "exit_price": trade.received / trade.left if trade.left else NONE,
        "fees": trade.fees,
        "slippage": trade.slippage,
        "funding": trade.funding,
        "borrow": trade.borrow,
        "pnl": trade.pnl(mark),
        "entry_reason": trade.entry_reason,
        "exit_reason": trade.exit_reason,
    }


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def given(value: float) -> bool:
    return math.isfinite(value)


def simulate(
    candles: Mapping[str, pd.DataFrame],
    decisions: Mapping[str, np.ndarray | Decisions],
    rules: Rules,
    funding: Mapping[str, np.ndarray] | None = None,
) -> Account:
    """All bars. Decisions and funding have one value for each candle of their symbol."""
    account = opened(candles, decisions, rules, funding)
    for bar in range(len(account.times)):
        play(account, bar)
    return account


def opened(
    candles: Mapping[str, pd.DataFrame],
    decisions: Mapping[str, np.ndarray | Decisions],
    rules: Rules,
    funding: Mapping[str, np.ndarray] | None,
) -> Account:
    index = pd.DatetimeIndex(sorted(set().union(*(frame.index for frame in candles.values()))))
    times = [time.to_pydatetime() for time in index]
    steps = [(after - before) / timedelta(days=365.25) for before, after in pairwise(times)]
    years = statistics.median(steps) if steps else 1 / 365.25
    books = []
    for symbol, frame in candles.items():
        on_index = frame.reindex(index)
        columns = [on_index[name].tolist() for name in ("open", "high", "low", "close", "volume")]
        rates = pd.Series((funding or {}).get(symbol, 0.0), index=frame.index).reindex(index, fill_value=0.0).tolist()
        realised = realised_volatility(columns[3], rules.sizing.volatility_bars, years)
        books.append(Book(symbol, *columns, rates, realised, laid_out(decisions[symbol], frame.index, index)))
    return Account(rules, times, years, books, rules.cash)


def laid_out(decisions: np.ndarray | Decisions, own: pd.Index, united: pd.DatetimeIndex) -> Decisions:
    """On the united index: where there is no candle, what was decided at the last one stands."""
    whole = decisions if isinstance(decisions, Decisions) else Decisions(decisions)
    known = list(own)
    earlier = [sum(time <= at for time in known) - 1 for at in united]
    laid = {
        name: np.array([values[place] if place >= 0 else (0.0 if name == "targets" else NONE) for place in earlier])
        for name, values in vars(whole).items()
        if len(values)
    }
    return Decisions(**laid)


def realised_volatility(closes: list[float], bars: int, years_per_bar: float) -> list[float]:
    """Annual, of the last ``bars`` returns from candle to candle up to each bar; NaN before there are as many.

    A return is of as many bars as there have been, in the mean, from candle to candle since the first one.
    """
    returns: list[float] = []
    found, before, last = [], NONE, NONE
    first = 0
    for bar, close in enumerate(closes):
        if not math.isnan(close):
            if math.isnan(before):
                first = bar
            else:
                returns.append(math.log(close / before))
            before = close
            if len(returns) >= bars:
                own = years_per_bar * (bar - first + 1) / (len(returns) + 1)
                last = statistics.stdev(returns[-bars:]) / math.sqrt(own)
        found.append(last)
    return found


def play(account: Account, bar: int) -> None:
    execution = account.rules.execution
    fees_in_force(account, bar)
    for book in account.books:
        pay_funding(account, book, bar)
    if execution.fill == "next open" and bar > 0:
        decide(account, bar, bar - 1)
    for book in account.books:
        if book.trades_at(bar):
            protect(account, book, bar)
            follow(book, bar)
    for book in account.books:
        pay_borrow(account, book, bar)
    last = bar == len(account.times) - 1
    if execution.fill == "same close" and not (last and execution.close_at_end):
        decide(account, bar, bar)
    settle(account, bar, last)


def fees_in_force(account: Account, bar: int) -> None:
    costs, since = account.rules.costs, account.times[bar] - timedelta(days=30)
    earlier = [fill for fill in account.fills if fill["bar"] < bar and account.times[fill["bar"]] >= since]
    traded = sum(abs(fill["units"]) * fill["price"] for fill in earlier)
    account.maker, account.taker = costs.maker, costs.fee_rate
    for tier in costs.tiers:
        if tier.traded <= traded:
            account.maker, account.taker = tier.maker, tier.taker


def pay_funding(account: Account, book: Book, bar: int) -> None:
    if book.trade is not None and book.trades_at(bar):
        paid = book.position * book.open[bar] * book.funding[bar]
        account.cash -= paid
        book.trade.funding += paid


def pay_borrow(account: Account, book: Book, bar: int) -> None:
    if book.trade is not None and book.position < 0:
        paid = -book.position * book.mark(bar) * account.rules.costs.borrow_rate * account.years_per_bar
        account.cash -= paid
        book.trade.borrow += paid


# ---- decisions


def decide(account: Account, bar: int, decided: int) -> None:
    """Fill what was decided at the close of ``decided``: first what frees cash, then what takes it."""
    if account.ruined:
        return
    present = [book for book in account.books if book.trades_at(bar)]
    for book in present:
        if sign(book.said("targets", decided)) != book.blocked:
            book.blocked = 0
    for book in present:
        if book.position:
            leave_or_reduce(account, book, bar, decided)
    for book in present:
        if book.said("targets", decided) != 0:
            enter_or_increase(account, book, bar, decided)


def at_market(account: Account, book: Book, bar: int) -> float:
    """Open or close of this bar, by the way of filling; the last known close where there is no candle."""
    if not book.trades_at(bar):
        return book.mark(bar)
    return book.open[bar] if account.rules.execution.fill == "next open" else book.close[bar]


def worth_now(account: Account, bar: int) -> tuple[float, float]:
    """Equity and gross exposure at the references of this round of decisions."""
    values = [book.position * at_market(account, book, bar) for book in account.books]
    return account.cash + sum(values), sum(abs(value) for value in values)


def leave_or_reduce(account: Account, book: Book, bar: int, decided: int) -> None:
    want, side, reference = book.said("targets", decided), book.side, at_market(account, book, bar)
    max_bars = account.rules.protection.max_bars
    if max_bars > 0 and bar - book.entry_bar >= max_bars:
        fill(account, book, bar, -book.position, reference, True, "time stop")
        if sign(want) != side:
            book.blocked = 0  # the target has left the side already
    elif sign(want) != side:
        fill(account, book, bar, -book.position, reference, True, "target reversed" if want else "target flat")
    else:
        costs, held = account.rules.costs, abs(book.position)
        price = reference * (1 - side * (costs.slippage_rate + costs.spread / 2))
        wanted = wanted_units(account, book, bar, decided, price, account.taker)
        surplus = held - wanted
        if not given(wanted) or surplus <= DUST * held or not due(account, book, want, wanted):
            return
        if surplus * taker_price(account, book, bar, -side, reference, surplus) < account.rules.sizing.min_notional:
            return
        fill(account, book, bar, -side * surplus, reference, True, "reduced" if wanted else "target flat")
        if book.position:
            book.sized_for = want


def due(account: Account, book: Book, want: float, wanted: float) -> bool:
    """Whether the position may be brought to ``wanted``: its target changed, or it is too far off."""
    rebalance = account.rules.sizing.rebalance
    off = abs(wanted - abs(book.position))
    return want != book.sized_for or (math.isfinite(rebalance) and off > rebalance * wanted)


def enter_or_increase(account: Account, book: Book, bar: int, decided: int) -> None:
    want = book.said("targets", decided)
    side, sizing = sign(want), account.rules.sizing
    if book.blocked == side or (not book.position and not may_enter(account, book, bar, decided, side)):
        return
    order = reached(account, book, bar, decided, side)
    if order is None:
        return
    reference, taker, reason = order
    fee = account.taker if taker else account.maker
    held = abs(book.position)

    def price_of(units: float) -> float:
        return taker_price(account, book, bar, side, reference, units) if taker else reference

    # sized without impact, then at the price with the impact of that size; what is filled in the end is never more
    price = price_of(0.0)
    wanted = wanted_units(account, book, bar, decided, price, fee)
    if taker and account.rules.costs.impact > 0 and wanted > held:
        price = price_of(wanted - held)
        wanted = wanted_units(account, book, bar, decided, price, fee)
    if not given(wanted) or (held and not due(account, book, want, wanted)):
        return
    units, complete = wanted - held, True
    most = sizing.max_volume_share * book.volume[bar] if math.isfinite(sizing.max_volume_share) else math.inf
    if units > most:
        units, complete = in_lots(account, most), False
    units = within_limits(account, book, bar, units, price, fee)
    if units <= DUST * wanted or units * price_of(units) < sizing.min_notional:
        return
    price = price_of(units)
    fill(account, book, bar, side * units, reference, taker, "increased" if held else reason)
    if held:
        book.average = (book.average * held + price * units) / (held + units)
    else:
        book.average = book.peak = price
        book.entry_reference = reference
        book.entry_bar = bar
        book.inside_bar = bar if reference != at_market(account, book, bar) else -1
    set_levels(account, book, decided, side)
    book.sized_for = want if complete else NONE


def may_enter(account: Account, book: Book, bar: int, decided: int, side: int) -> bool:
    limits = account.rules.limits
    if book.last_exit_bar is not None and bar - book.last_exit_bar < limits.cooldown_bars:
        return False
    today = [trade for trade in account.trades if account.times[trade.entry_bar].date() == account.times[bar].date()]
    if limits.max_trades_per_day and len(today) >= limits.max_trades_per_day:
        return False
    held = [other for other in account.books if other.position]
    if limits.max_positions and len(held) >= limits.max_positions:
        return False
    enough = limits.min_edge * account.rules.costs.round_trip
    return limits.min_edge == 0 or book.said("edge", decided) * side >= enough


def reached(account: Account, book: Book, bar: int, decided: int, side: int) -> tuple[float, bool, str] | None:
    """Reference price, whether as taker, and the reason of an entry in this bar; None: the order is not filled."""
    market = at_market(account, book, bar)
    if account.rules.execution.fill == "same close":
        return market, True, "target"
    limit, stop = book.said("limit", decided), book.said("stop_entry", decided)
    low, high = book.low[bar], book.high[bar]
    best, worst = (low, high) if side > 0 else (high, low)  # for somebody who enters on this side
    if given(limit):
        cross = account.rules.execution.limit_needs_cross
        for price, reference in ((market, market), (best, limit)):
            if price * side < limit * side or (price == limit and not cross):
                return reference, False, "limit"
        return None
    if given(stop):
        for price, reference in ((market, market), (worst, stop)):
            if price * side >= stop * side:
                return reference, True, "stop entry"
        return None
    return market, True, "target"


# ---- sizes


def wanted_units(account: Account, book: Book, bar: int, decided: int, price: float, fee: float) -> float:
    """Units of the position as the decision wants it; NaN where nobody can say (no stop, no volatility)."""
    sizing, want = account.rules.sizing, book.said("targets", decided)
    if sizing.units > 0:
        return in_lots(account, abs(want) * sizing.units)
    share = share_of_mode(account, book, decided, price)
    if not given(share):
        return NONE
    share = min(share, kelly_cap(account, book)) * abs(want)
    worth, _ = worth_now(account, bar)
    return in_lots(account, max(0.0, share * worth / (price * (1 + max(1.0, share) * fee))))


def share_of_mode(account: Account, book: Book, decided: int, price: float) -> float:
    sizing, side = account.rules.sizing, sign(book.said("targets", decided))
    if sizing.volatility > 0:
        realised = book.realised[decided]
        return min(sizing.volatility / realised, sizing.fraction) if realised > 0 else NONE
    if sizing.risk > 0:
        stop = first_stop(account, book, decided, price, side)
        distance = side * (price - stop)
        return min(sizing.fraction, sizing.risk * price / distance) if distance > 0 else NONE
    return sizing.fraction


def first_stop(account: Account, book: Book, decided: int, price: float, side: int) -> float:
    share = account.rules.protection.stop_loss
    said = book.said("stop_price", decided)
    if given(said):
        return said
    return price * (1 - side * share) if share > 0 else NONE


def kelly_cap(account: Account, book: Book) -> float:
    sizing = account.rules.sizing
    closed = [trade for trade in account.trades if trade.symbol == book.symbol and trade.exit_bar is not None]
    if sizing.kelly == 0 or len(closed) < sizing.kelly_trades:
        return math.inf
    gains = [trade.pnl(0.0) / trade.paid for trade in closed]
    winners = [gain for gain in gains if gain > 0]
    losers = [-gain for gain in gains if gain <= 0]
    if not losers:
        best = 1.0
    elif not winners:
        best = -1.0
    else:
        won = len(winners) / len(gains)
        best = won - (1 - won) * statistics.fmean(losers) / statistics.fmean(winners)
    return max(sizing.kelly_floor, sizing.kelly * best)


def in_lots(account: Account, units: float) -> float:
    lot = account.rules.sizing.lot
    return math.floor(units / lot * (1 + 1e-12)) * lot if lot > 0 else units


def within_limits(account: Account, book: Book, bar: int, units: float, price: float, fee: float) -> float:
    """As many of ``units`` as the limits of leverage and exposure allow: all, what fits, or none."""
    sizing, limits = account.rules.sizing, account.rules.limits
    worth, gross = worth_now(account, bar)
    held_value = abs(book.position) * at_market(account, book, bar)
    most = min(sizing.leverage, limits.max_exposure)
    rooms = [(most, most * worth - gross)]
    if math.isfinite(limits.max_symbol):
        rooms.append((limits.max_symbol, limits.max_symbol * worth - held_value))
    fitting = [room / (price * (1 + most * fee)) for most, room in rooms]
    if all(units * price * (1 + most * fee) <= room * (1 + DUST) for most, room in rooms):
        return units
    return in_lots(account, min(units, *fitting)) if sizing.short_of_cash == "cut" else 0.0


# ---- fills


def taker_price(account: Account, book: Book, bar: int, direction: int, reference: float, units: float) -> float:
    costs, volume = account.rules.costs, book.volume[bar]
    share = min(1.0, units / volume) if volume > 0 else 1.0
    if units == 0:
        share = 0.0
    return reference * (1 + direction * (costs.slippage_rate + costs.spread / 2 + costs.impact * share**2))


def fill(account: Account, book: Book, bar: int, units: float, reference: float, taker: bool, reason: str) -> None:
    """Buy (``units`` above 0) or sell; a position that comes to nothing ends its trade."""
    size, direction = abs(units), sign(units)
    price = taker_price(account, book, bar, direction, reference, size) if taker else reference
    fee = size * price * (account.taker if taker else account.maker)
    slippage = size * abs(price - reference)
    account.cash -= units * price + fee
    if book.trade is None:
        book.trade = Trade(len(account.trades), book.symbol, direction, bar, reason)
        account.trades.append(book.trade)
    trade = book.trade
    if direction == trade.side:
        trade.entered += size
        trade.paid += size * price
    else:
        trade.left += size
        trade.received += size * price
    trade.fees += fee
    trade.slippage += slippage
    book.position += units
    account.fills.append(
        {
            "bar": bar,
            "symbol": book.symbol,
            "units": units,
            "price": price,
            "reference": reference,
            "fee": fee,
            "slippage": slippage,
            "reason": reason,
            "trade": trade.row,
        }
    )
    if book.position == 0:
        trade.exit_bar, trade.exit_reason = bar, reason
        if reason in PROTECTIVE and not account.rules.protection.reenter:
            book.blocked = trade.side
        book.trade, book.last_exit_bar, book.sized_for = None, bar, 0.0
        book.stop = book.target = book.trail_distance = book.trail_share = NONE


# ---- protections


def set_levels(account: Account, book: Book, decided: int, side: int) -> None:
    """What the decision says, else the shares of the average price, else what was there (nothing, of a new one)."""
    protection = account.rules.protection
    stop, target, distance = (book.said(what, decided) for what in ("stop_price", "target_price", "trail_distance"))
    if given(stop):
        book.stop = stop
    elif protection.stop_loss > 0:
        book.stop = book.average * (1 - side * protection.stop_loss)
    if given(target):
        book.target = target
    elif protection.take_profit > 0:
        book.target = book.average * (1 + side * protection.take_profit)
    if given(distance):
        book.trail_distance, book.trail_share = distance, NONE
    elif protection.trailing_stop > 0:
        book.trail_distance, book.trail_share = NONE, protection.trailing_stop


def protect(account: Account, book: Book, bar: int) -> None:
    """Liquidation, stop loss, trailing stop and take profit of one bar."""
    side = book.side
    if side == 0:
        return
    inside = book.inside_bar == bar
    start = book.entry_reference if inside else book.open[bar]
    best, worst = (book.high[bar], book.low[bar]) if side > 0 else (book.low[bar], book.high[bar])
    adverse, reason = adverse_level(account, book)
    if not inside and given(book.target) and book.open[bar] * side >= book.target * side:
        fill(account, book, bar, -book.position, book.open[bar], False, "take profit")
    elif given(adverse) and worst * side <= adverse * side:
        reference = min(adverse, start) if side > 0 else max(adverse, start)
        fill(account, book, bar, -book.position, reference, True, reason)
    elif not inside and given(book.target) and best * side >= book.target * side:
        fill(account, book, bar, -book.position, book.target, False, "take profit")


def adverse_level(account: Account, book: Book) -> tuple[float, str]:
    """The level that a falling price (of a long) meets first, and what happens there; NaN: none."""
    side = book.side
    levels = [(book.stop, "stop loss")]
    levels.append((book.peak - side * book.trail_distance, "trailing stop"))
    levels.append((book.peak * (1 - side * book.trail_share), "trailing stop"))
    if len(account.books) == 1:
        level = -account.cash / (book.position * (1 - account.rules.execution.maintenance * side))
        levels.append((level if level > 0 else NONE, "liquidation"))
    found, why = NONE, ""
    for level, reason in levels:  # the first of equal ones
        if given(level) and (not given(found) or level * side > found * side):
            found, why = level, reason
    return found, why


def follow(book: Book, bar: int) -> None:
    """The best price of the position so far, for the trailing stop of the next bars."""
    if book.side > 0:
        book.peak = max(book.peak, book.close[bar] if book.inside_bar == bar else book.high[bar])
    elif book.side < 0:
        book.peak = min(book.peak, book.close[bar] if book.inside_bar == bar else book.low[bar])


# ---- the close


def settle(account: Account, bar: int, last: bool) -> None:
    values = [book.position * book.mark(bar) for book in account.books]
    worth, gross = account.cash + sum(values), sum(abs(value) for value in values)
    if gross and worth <= account.rules.execution.maintenance * gross:
        close_all(account, bar, "ruin" if worth <= 0 else "liquidation")
    if last and account.rules.execution.close_at_end:
        close_all(account, bar, "end of data")
    worth = account.cash + sum(book.position * book.mark(bar) for book in account.books)
    if worth <= 0:
        account.written_off -= worth
        account.cash = worth = 0.0
        account.ruined = True
    account.equity.append(worth)
    account.cash_after.append(account.cash)
    account.positions.append([book.position for book in account.books])


def close_all(account: Account, bar: int, reason: str) -> None:
    for book in account.books:
        if book.position:
            fill(account, book, bar, -book.position, book.mark(bar), True, reason)


# ---- comparing


def assert_same(result: BacktestResult, account: Account) -> None:
    """The kernel's ``result`` is the reference's: floats up to 1e-9, everything else exactly."""
    scale = account.rules.cash
    np.testing.assert_array_equal(result.equity.index, pd.DatetimeIndex(account.times))
    same_rows(result.fills.drop(columns="time").to_dict("records"), account.fills, scale)
    same_rows(result.trades.drop(columns=["entry_time", "exit_time"]).to_dict("records"), account.trade_rows(), scale)
    np.testing.assert_allclose(result.positions, np.array(account.positions), rtol=1e-9, atol=0)
    np.testing.assert_allclose(result.cash, account.cash_after, rtol=1e-9, atol=scale * 1e-9)
    np.testing.assert_allclose(result.equity, account.equity, rtol=1e-9, atol=scale * 1e-9)
    assert result.costs == pytest.approx(account.costs(), rel=1e-9, abs=scale * 1e-9)
    assert result.written_off == pytest.approx(account.written_off, rel=1e-9, abs=scale * 1e-9)


MONEY = ("fee", "fees", "slippage", "funding", "borrow", "pnl")


def same_rows(found: list[dict[str, Any]], expected: list[dict[str, Any]], scale: float) -> None:
    for one, other in zip(found, expected, strict=False):
        for name, value in other.items():
            if isinstance(value, float):
                least = scale * 1e-9 if name in MONEY else 0.0
                assert one[name] == pytest.approx(value, rel=1e-9, abs=least, nan_ok=True), (name, one, other)
            else:
                assert one[name] == value, (name, one, other)
    assert len(found) == len(expected), (found[len(expected) :], expected[len(found) :])
