"""The backtest's loop: one pass over the bars, compiled, without the interpreter's lock.

What happens in a bar, and in which order, stands in ``trading.backtest.rules``. Everything is float64 in arrays,
rows by column constants; counts and flags are exact in them. NaN is "none".

All of it is in one file because Numba renews its cache on disk when the file of a function changes, not when
the file of a function that this one calls does.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")
# The same for functions that allocate nothing: without counting references to the arrays they pass around,
# which would take four fifths of the time.
# And inlined: a call passes some two hundred words on the stack, all arrays and terms with their shapes.
_flat = numba.njit(cache=True, nogil=True, error_model="numpy", _nrt=False, forceinline=True)


class Market(NamedTuple):
    """Candles (n, m), NaN where a symbol has none; the rest has shape (0, 0) or (0,) where it is not used.

    ``funding``: rate at the open; ``shares``: cap of each decision's share of the equity; ``days``: UTC day of
    each bar's open; ``tier_from``: first bar of the 30 days before each bar.
    """

    opens: np.ndarray
    highs: np.ndarray
    lows: np.ndarray
    closes: np.ndarray
    volumes: np.ndarray
    funding: np.ndarray
    shares: np.ndarray
    days: np.ndarray
    tier_from: np.ndarray


class Orders(NamedTuple):
    """``Decisions`` as arrays (n, m); all but the targets may have shape (0, 0)."""

    targets: np.ndarray
    limits: np.ndarray
    stop_entries: np.ndarray
    stop_prices: np.ndarray
    target_prices: np.ndarray
    trails: np.ndarray
    edges: np.ndarray


class Terms(NamedTuple):
    """``Rules`` as numbers. ``slip``: slippage and half the spread; ``borrow``: per bar; ``gear``: most gross
    exposure as a share of the equity; ``least_edge``: as a return, -inf
    without one; ``tiers``: rows (traded, maker, taker).
    """

    cash: float
    taker: float
    maker: float
    slip: float
    impact: float
    borrow: float
    units: float
    fraction: float
    risk: float
    lot: float
    min_notional: float
    kelly: float
    kelly_trades: int
    kelly_floor: float
    volume_share: float
    gear: float
    max_symbol: float
    rebalance: float
    cut: bool
    stop_loss: float
    take_profit: float
    trailing: float
    max_bars: int
    reenter: bool
    cooldown: int
    day_limit: int
    least_edge: float
    max_positions: int
    same_close: bool
    cross: bool
    maintenance: float
    close_at_end: bool
    tiers: np.ndarray


class Books(NamedTuple):
    """What the kernel keeps: state (m, ``STATE_WIDTH``), account, trades and fills, with room for more of them."""

    state: np.ndarray
    account: np.ndarray
    trades: np.ndarray
    fills: np.ndarray


class Line(NamedTuple):
    """Columns of the market, the targets and the results, one row after the other, (n x m,)."""

    opens: np.ndarray
    highs: np.ndarray
    lows: np.ndarray
    closes: np.ndarray
    targets: np.ndarray
    equity: np.ndarray
    cash: np.ndarray
    positions: np.ndarray


# of each symbol
(
    POSITION, SIZED, BLOCKED, LAST_EXIT, ENTRY_BAR, AVERAGE, STOP, TARGET, TRAIL, PEAK, INSIDE, START, LEVEL,
    ROW, CLOSED, WON, GAINS, LOSSES, MARK,
) = range(19)  # fmt: skip
STATE_WIDTH = 19

# of the account
CASH, TAKER, MAKER, TRADES, FILLS, HELD_SYMBOLS, DAY, DAY_ENTRIES, WRITTEN_OFF, ENDED = range(10)
ACCOUNT_WIDTH = 10

TOGETHER = 32  # bars that the processor looks at together

# of a trade, see ``engine.BacktestResult.trades``
(
    T_SYMBOL, T_SIDE, T_ENTRY_BAR, T_EXIT_BAR, T_SIZE, T_ENTRY_PRICE, T_EXIT_PRICE, T_FEES, T_SLIPPAGE, T_FUNDING,
    T_BORROW, T_PNL, T_ENTRY_REASON, T_EXIT_REASON, T_SOLD,
) = range(15)  # fmt: skip
TRADE_WIDTH = 15

# of a fill
F_BAR, F_SYMBOL, F_UNITS, F_PRICE, F_REFERENCE, F_FEE, F_SLIPPAGE, F_REASON, F_TRADE = range(9)
FILL_WIDTH = 9

# reasons of fills; the first three enter, the next two resize, the rest end a trade
BY_TARGET, BY_LIMIT, BY_STOP_ENTRY, INCREASED, REDUCED = range(5)
FLAT, REVERSED, STOP_LOSS, TAKE_PROFIT, TRAILING_STOP, TIME_STOP, LIQUIDATION, RUIN, END = range(5, 14)
STILL_OPEN = 14


@_flat
def taken_price(reference: float, direction: float, size: float, volume: float, terms: Terms) -> float:
    """Price of a fill that takes liquidity; ``direction`` +1 buys, -1 sells."""
    worse = terms.slip
    if terms.impact > 0.0:
        share = 1.0
        if volume > 0.0:
            share = min(1.0, size / volume)
        worse += terms.impact * share * share
    return reference * (1.0 + direction * worse)


@_flat
def volume_of(bar: int, symbol: int, market: Market, terms: Terms) -> float:
    """Volume of a bar where the terms ask for it, else 0: a value from memory that is not in a cache takes as long as
    all the rest of a fill.
    """
    return market.volumes[bar, symbol] if terms.impact > 0.0 or terms.volume_share < math.inf else 0.0


@_flat
def enter(
    bar: int,
    symbol: int,
    side: float,
    size: float,
    price: float,
    reference: float,
    rate: float,
    reason: int,
    inside: bool,
    books: Books,
) -> None:
    """Write down a fill that opens a position or adds to it. Levels are the caller's."""
    state, account, trades = books.state, books.account, books.trades
    own = state[symbol]
    fee = size * price * rate
    slippage = size * abs(price - reference)
    account[CASH] -= side * size * price + fee
    held = abs(own[POSITION])
    if held == 0.0:
        row = int(account[TRADES])
        account[TRADES] += 1
        account[HELD_SYMBOLS] += 1
        trade = trades[row]
        for column in range(TRADE_WIDTH):
            trade[column] = 0.0
        trade[T_SYMBOL], trade[T_SIDE], trade[T_ENTRY_BAR], trade[T_ENTRY_REASON] = symbol, side, bar, reason
        trade[T_EXIT_BAR], trade[T_EXIT_REASON], trade[T_EXIT_PRICE] = np.nan, STILL_OPEN, np.nan
        trade[T_ENTRY_PRICE] = price
        own[ROW], own[ENTRY_BAR], own[AVERAGE], own[PEAK] = row, bar, price, price
        own[INSIDE], own[START] = bar if inside else -1, reference
        own[POSITION] = side * size
    else:
        trade = trades[int(own[ROW])]
        own[AVERAGE] = (own[AVERAGE] * held + price * size) / (held + size)
        # the average over all that was ever entered; what was sold in between counts too
        trade[T_ENTRY_PRICE] = (trade[T_ENTRY_PRICE] * trade[T_SIZE] + price * size) / (trade[T_SIZE] + size)
        own[POSITION] += side * size
        reason = INCREASED
    trade[T_SIZE] += size
    trade[T_FEES] += fee
    trade[T_SLIPPAGE] += slippage
    write_fill(bar, symbol, side * size, price, reference, fee, slippage, reason, own[ROW], books)


@_flat
def leave(
    bar: int, symbol: int, size: float, price: float, reference: float, rate: float, reason: int, books: Books
) -> None:
    """Write down a fill that reduces a position (``REDUCED``) or closes all of it (any other reason)."""
    state, account, trades = books.state, books.account, books.trades
    own = state[symbol]
    side = 1.0 if own[POSITION] > 0.0 else -1.0
    fee = size * price * rate
    slippage = size * abs(price - reference)
    account[CASH] += side * size * price - fee
    trade = trades[int(own[ROW])]
    if trade[T_SOLD] == 0.0:
        trade[T_EXIT_PRICE] = price
    else:
        trade[T_EXIT_PRICE] = (trade[T_EXIT_PRICE] * trade[T_SOLD] + price * size) / (trade[T_SOLD] + size)
    trade[T_SOLD] += size
    trade[T_FEES] += fee
    trade[T_SLIPPAGE] += slippage
    write_fill(bar, symbol, -side * size, price, reference, fee, slippage, reason, own[ROW], books)
    if reason == REDUCED:
        own[POSITION] -= side * size
        return
    trade[T_EXIT_BAR], trade[T_EXIT_REASON] = bar, reason
    costs = trade[T_FEES] + trade[T_FUNDING] + trade[T_BORROW]
    trade[T_PNL] = side * trade[T_SIZE] * (trade[T_EXIT_PRICE] - trade[T_ENTRY_PRICE]) - costs
    gain = trade[T_PNL] / (trade[T_SIZE] * trade[T_ENTRY_PRICE])
    own[CLOSED] += 1
    if gain > 0.0:
        own[WON] += 1
        own[GAINS] += gain
    else:
        own[LOSSES] -= gain
    own[POSITION], own[SIZED], own[LAST_EXIT] = 0.0, 0.0, bar
    own[STOP] = own[TARGET] = own[TRAIL] = own[LEVEL] = np.nan
    own[INSIDE] = -1
    account[HELD_SYMBOLS] -= 1


@_flat
def write_fill(
    bar: int,
    symbol: int,
    units: float,
    price: float,
    reference: float,
    fee: float,
    slippage: float,
    reason: int,
    row: float,
    books: Books,
) -> None:
    """One row of ``fills``."""
    account, fills = books.account, books.fills
    fill = fills[int(account[FILLS])]
    account[FILLS] += 1
    fill[F_BAR], fill[F_SYMBOL], fill[F_UNITS], fill[F_PRICE] = bar, symbol, units, price
    fill[F_REFERENCE], fill[F_FEE], fill[F_SLIPPAGE], fill[F_REASON] = reference, fee, slippage, reason
    fill[F_TRADE] = row


@_flat
def set_level(symbol: int, state: np.ndarray, account: np.ndarray, terms: Terms, alone: bool) -> None:
    """The nearest price at which a held position ends against its side: stop, trail or liquidation; else NaN.

    Kept in ``LEVEL``. Liquidation inside the bar is for a symbol that is ``alone`` in its account.
    """
    own = state[symbol]
    position = own[POSITION]
    side = 1.0 if position > 0.0 else -1.0
    level = own[STOP]
    trail = trail_of(own, side, terms)
    if not math.isnan(trail) and not level * side >= trail * side:
        level = trail
    if alone and (side < 0.0 or account[CASH] < 0.0):
        liquidation = -account[CASH] / (position * (1.0 - terms.maintenance * side))
        # below zero: a short that owes more than it has is past help at any price
        if liquidation > 0.0 and not level * side >= liquidation * side:
            level = liquidation
    own[LEVEL] = level


@_flat
def trail_of(own: np.ndarray, side: float, terms: Terms) -> float:
    """Level of the trailing stop, NaN without one."""
    if not math.isnan(own[TRAIL]):
        return own[PEAK] - side * own[TRAIL]
    if terms.trailing > 0.0:
        return own[PEAK] * (1.0 - side * terms.trailing)
    return np.nan


@_flat
def decide(
    bar: int, decided: int, references: np.ndarray, market: Market, orders: Orders, terms: Terms, books: Books
) -> None:
    """Fill what was decided on bar ``decided`` at the ``references`` (m,) of bar ``bar``."""
    state, account = books.state, books.account
    symbols = len(references)
    for symbol in range(symbols):
        reference = references[symbol]
        if math.isnan(reference) or state[symbol, POSITION] == 0.0:
            continue
        release(bar, decided, symbol, reference, references, market, orders, terms, books)
    # worth and gross are of all symbols: added up anew after each fill only, not for each order that is not filled
    fills, equity, gross = -1.0, 0.0, 0.0
    for symbol in range(symbols):
        want = orders.targets[decided, symbol]
        if want == 0.0 or math.isnan(references[symbol]):
            continue
        side = 1.0 if want > 0.0 else -1.0
        own = state[symbol]
        if own[BLOCKED] == side:
            continue
        if own[POSITION] == 0.0:
            if not allowed(bar, decided, symbol, side, orders, terms, own, account):
                continue
        elif want == own[SIZED] and not terms.rebalance < math.inf:
            continue
        if fills != account[FILLS]:
            fills, equity, gross = account[FILLS], worth(references, state, account), gross_worth(references, state)
        acquire(bar, decided, symbol, want, equity, gross, references, market, orders, terms, books)


@_flat
def release(
    bar: int,
    decided: int,
    symbol: int,
    reference: float,
    references: np.ndarray,
    market: Market,
    orders: Orders,
    terms: Terms,
    books: Books,
) -> None:
    """Close or reduce a held position where its time is over or its target says so."""
    state, account = books.state, books.account
    own = state[symbol]
    want = orders.targets[decided, symbol]
    side = 1.0 if own[POSITION] > 0.0 else -1.0
    held = abs(own[POSITION])
    volume = volume_of(bar, symbol, market, terms)
    timed = terms.max_bars > 0 and bar - own[ENTRY_BAR] >= terms.max_bars
    size, reason = held, TIME_STOP if timed else (FLAT if want == 0.0 else REVERSED)
    if not timed and want * side > 0.0:
        if want == own[SIZED] and not terms.rebalance < math.inf:
            return
        price, equity = reference * (1.0 - side * terms.slip), worth(references, state, account)
        wanted = wanted_units(decided, symbol, want, price, account[TAKER], equity, market, orders, terms, own)
        size, reason = held - wanted, REDUCED if wanted > 0.0 else FLAT
        if not size > 1e-12 * held or (want == own[SIZED] and not size > terms.rebalance * wanted):
            return
    price = taken_price(reference, -side, size, volume, terms)
    if not timed and want * side > 0.0 and size * price < terms.min_notional:
        return
    leave(bar, symbol, size, price, reference, account[TAKER], reason, books)
    if reason == REDUCED:
        own[SIZED] = want
        set_level(symbol, state, account, terms, len(references) == 1)
    elif timed and want * side > 0.0 and not terms.reenter:
        own[BLOCKED] = side


@_flat
def allowed(
    bar: int, decided: int, symbol: int, side: float, orders: Orders, terms: Terms, own: np.ndarray, account: np.ndarray
) -> bool:
    """Whether the limits let a flat account enter now."""
    if own[CLOSED] > 0 and bar - own[LAST_EXIT] < terms.cooldown:
        return False
    if terms.day_limit > 0 and account[DAY_ENTRIES] >= terms.day_limit:
        return False
    if terms.max_positions > 0 and account[HELD_SYMBOLS] >= terms.max_positions:
        return False
    return terms.least_edge == -np.inf or orders.edges[decided, symbol] * side >= terms.least_edge


@_flat
def acquire(
    bar: int,
    decided: int,
    symbol: int,
    want: float,
    equity: float,
    gross: float,
    references: np.ndarray,
    market: Market,
    orders: Orders,
    terms: Terms,
    books: Books,
) -> None:
    """Enter, or add to what is held, where the order is filled and the limits leave room."""
    state, account = books.state, books.account
    own = state[symbol]
    side = 1.0 if want > 0.0 else -1.0
    reference, reason, maker = filled_at(bar, decided, symbol, side, references[symbol], market, orders, terms)
    if math.isnan(reference):
        return
    inside = reference != references[symbol]
    rate = account[MAKER] if maker else account[TAKER]
    held, volume = abs(own[POSITION]), volume_of(bar, symbol, market, terms)
    price = reference if maker else reference * (1.0 + side * terms.slip)
    wanted = wanted_units(decided, symbol, want, price, rate, equity, market, orders, terms, own)
    if terms.impact > 0.0 and not maker:
        # sized for the impact of the larger size, filled with that of the size it comes to
        if not wanted > held:
            return
        price = taken_price(reference, side, wanted - held, volume, terms)
        wanted = wanted_units(decided, symbol, want, price, rate, equity, market, orders, terms, own)
    size = wanted - held
    if held > 0.0 and want == own[SIZED] and not size > terms.rebalance * wanted:
        return
    complete = True
    if size > terms.volume_share * volume or (terms.volume_share < math.inf and not volume > 0.0):
        size = whole_lots(terms.volume_share * max(volume, 0.0), terms.lot) if volume > 0.0 else 0.0
        complete = False
    room = terms.gear * equity - gross
    own_room = terms.max_symbol * equity - held * references[symbol] if terms.max_symbol < math.inf else math.inf
    tight = size * price * (1.0 + terms.gear * rate) > room * (1.0 + 1e-12)
    if own_room < math.inf:
        tight = tight or size * price * (1.0 + terms.max_symbol * rate) > own_room * (1.0 + 1e-12)
    if tight:
        if not terms.cut:
            return
        least = room / (price * (1.0 + terms.gear * rate))
        if own_room < math.inf:
            least = min(least, own_room / (price * (1.0 + terms.max_symbol * rate)))
        size = whole_lots(max(least, 0.0), terms.lot)
    if not maker:
        price = taken_price(reference, side, max(size, 0.0), volume, terms)
    # what rounding leaves over is not an order
    if not size > 1e-12 * wanted or size * price < terms.min_notional:
        return
    fresh = held == 0.0
    enter(bar, symbol, side, size, price, reference, rate, reason, inside, books)
    if fresh:
        account[DAY_ENTRIES] += 1
        own[STOP] = own[TARGET] = own[TRAIL] = np.nan
    # what is still to come is asked for again with the next decision, whatever that is
    own[SIZED] = want if complete else np.nan
    set_levels(decided, symbol, side, orders, terms, own)
    set_level(symbol, state, account, terms, len(references) == 1)


@_flat
def filled_at(
    bar: int, decided: int, symbol: int, side: float, reference: float, market: Market, orders: Orders, terms: Terms
) -> tuple[float, int, bool]:
    """Reference price of an entry's fill (NaN: none), its reason, and whether it makes liquidity."""
    if orders.limits.shape[0] > 0:
        limit = orders.limits[decided, symbol]
        if not math.isnan(limit):
            far = market.lows[bar, symbol] if side > 0.0 else market.highs[bar, symbol]
            for price in (reference, far):
                beyond = (limit - price) * side
                if beyond > 0.0 or (beyond == 0.0 and not terms.cross):
                    return (reference if price == reference else limit), BY_LIMIT, True
            return np.nan, BY_LIMIT, True
    if orders.stop_entries.shape[0] > 0:
        stop = orders.stop_entries[decided, symbol]
        if not math.isnan(stop):
            far = market.highs[bar, symbol] if side > 0.0 else market.lows[bar, symbol]
            if (reference - stop) * side >= 0.0:
                return reference, BY_STOP_ENTRY, False
            if (far - stop) * side >= 0.0:
                return stop, BY_STOP_ENTRY, False
            return np.nan, BY_STOP_ENTRY, False
    return reference, BY_TARGET, False


@_flat
def set_levels(decided: int, symbol: int, side: float, orders: Orders, terms: Terms, own: np.ndarray) -> None:
    """Stop, target and trail after an entry or an increase: the decision's prices, else shares of the average."""
    if terms.stop_loss > 0.0:
        own[STOP] = own[AVERAGE] * (1.0 - side * terms.stop_loss)
    if terms.take_profit > 0.0:
        own[TARGET] = own[AVERAGE] * (1.0 + side * terms.take_profit)
    if orders.stop_prices.shape[0] > 0 and not math.isnan(orders.stop_prices[decided, symbol]):
        own[STOP] = orders.stop_prices[decided, symbol]
    if orders.target_prices.shape[0] > 0 and not math.isnan(orders.target_prices[decided, symbol]):
        own[TARGET] = orders.target_prices[decided, symbol]
    if orders.trails.shape[0] > 0:
        trail = orders.trails[decided, symbol]
        if not math.isnan(trail):
            own[TRAIL] = trail
        elif terms.trailing > 0.0:
            own[TRAIL] = np.nan


@_flat
def wanted_units(
    decided: int,
    symbol: int,
    want: float,
    price: float,
    rate: float,
    equity: float,
    market: Market,
    orders: Orders,
    terms: Terms,
    own: np.ndarray,
) -> float:
    """Units that a target stands for at this price, whole lots; NaN where that is not known."""
    size = abs(want)
    if terms.units > 0.0:
        return whole_lots(size * terms.units, terms.lot)
    side = 1.0 if want > 0.0 else -1.0
    share = terms.fraction
    if market.shares.shape[0] > 0:
        share = market.shares[decided, symbol]
    if terms.risk > 0.0:
        stop = np.nan
        if orders.stop_prices.shape[0] > 0:
            stop = orders.stop_prices[decided, symbol]
        if math.isnan(stop) and terms.stop_loss > 0.0:
            stop = price * (1.0 - side * terms.stop_loss)
        distance = side * (price - stop)
        if not distance > 0.0:
            return np.nan
        share = min(share, terms.risk * price / distance)
    if terms.kelly > 0.0 and own[CLOSED] >= terms.kelly_trades:
        share = min(share, max(terms.kelly_floor, terms.kelly * kelly_of(own)))
    share *= size
    if not equity > 0.0 or share <= 0.0:
        return 0.0
    return whole_lots(share * equity / (price * (1.0 + max(1.0, share) * rate)), terms.lot)


@_flat
def kelly_of(own: np.ndarray) -> float:
    """Kelly fraction of the trades closed so far: share of winners less that of losers over the payoff."""
    won, lost = own[WON], own[CLOSED] - own[WON]
    if lost == 0.0:
        return 1.0
    if won == 0.0 or own[GAINS] == 0.0:
        return -1.0
    if own[LOSSES] == 0.0:
        return won / own[CLOSED]
    payoff = (own[GAINS] / won) / (own[LOSSES] / lost)
    share = won / own[CLOSED]
    return share - (1.0 - share) / payoff


@_flat
def whole_lots(size: float, lot: float) -> float:
    """``size`` rounded down to lots; a hair above, so that 3.0 that came out as 2.9999999999 is 3."""
    return np.floor(size / lot * (1.0 + 1e-12)) * lot if lot > 0.0 else size


@_flat
def worth(references: np.ndarray, state: np.ndarray, account: np.ndarray) -> float:
    """Equity at the reference prices, at the last mark where there is none."""
    total = account[CASH]
    for symbol in range(len(references)):
        if state[symbol, POSITION] != 0.0:
            total += state[symbol, POSITION] * reference_of(references, state, symbol)
    return total


@_flat
def gross_worth(references: np.ndarray, state: np.ndarray) -> float:
    """Notional of all positions at the reference prices."""
    total = 0.0
    for symbol in range(len(references)):
        total += abs(state[symbol, POSITION]) * reference_of(references, state, symbol)
    return total


@_flat
def reference_of(references: np.ndarray, state: np.ndarray, symbol: int) -> float:
    """The reference price of a symbol, or its last mark."""
    return state[symbol, MARK] if math.isnan(references[symbol]) else references[symbol]


@_compiled
def simulate(
    market: Market, orders: Orders, terms: Terms, equity: np.ndarray, cash: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Trade ``orders`` on ``market`` and account for every bar.

    Args:
        equity, cash: float64 (n,), positions: float64 (n, m); written, what each is worth after each close.

    Returns:
        trades float64 (t, ``TRADE_WIDTH``), fills float64 (f, ``FILL_WIDTH``), and what was written off.
    """
    bars, symbols = market.closes.shape
    state = np.zeros((symbols, STATE_WIDTH))
    for symbol in range(symbols):
        state[symbol, INSIDE] = -1.0
        for level in (STOP, TARGET, TRAIL, LEVEL):
            state[symbol, level] = np.nan
    account = np.zeros(ACCOUNT_WIDTH)
    account[CASH], account[TAKER], account[MAKER], account[DAY] = terms.cash, terms.taker, terms.maker, -1.0
    # room that most backtests do not outgrow; what is not written to takes no memory
    room = 256 + bars * symbols // 32
    trades, fills = np.empty((room + 2 * symbols, TRADE_WIDTH)), np.empty((2 * room + 6 * symbols, FILL_WIDTH))
    traded = np.zeros(bars + 1 if terms.tiers.shape[0] > 0 else 0)
    line = Line(
        market.opens.reshape(-1), market.highs.reshape(-1), market.lows.reshape(-1), market.closes.reshape(-1),
        orders.targets.reshape(-1), equity, cash, positions.reshape(-1),
    )  # fmt: skip
    bar = 0
    while bar < bars:
        books = Books(state, account, trades, fills)
        bar = advance(bar, market, orders, terms, books, traded, equity, cash, positions, line)
        if account[TRADES] + 2 * symbols > trades.shape[0]:
            trades = longer(trades)
        if account[FILLS] + 6 * symbols > fills.shape[0]:
            fills = longer(fills)
    for row in range(int(account[TRADES])):
        trade = trades[row]
        if math.isnan(trade[T_EXIT_BAR]):
            trade[T_EXIT_BAR] = bars
    for symbol in range(symbols):
        if state[symbol, POSITION] != 0.0:
            trade = trades[int(state[symbol, ROW])]
            value = abs(state[symbol, POSITION]) * state[symbol, MARK]
            if trade[T_SOLD] > 0.0:
                value += trade[T_SOLD] * trade[T_EXIT_PRICE]
            costs = trade[T_FEES] + trade[T_FUNDING] + trade[T_BORROW]
            trade[T_PNL] = trade[T_SIDE] * (value - trade[T_SIZE] * trade[T_ENTRY_PRICE]) - costs
    return trades[: int(account[TRADES])], fills[: int(account[FILLS])], account[WRITTEN_OFF]


@_flat
def advance(  # noqa: PLR0912, PLR0915 - one loop
    first: int,
    market: Market,
    orders: Orders,
    terms: Terms,
    books: Books,
    traded: np.ndarray,
    equity: np.ndarray,
    cash: np.ndarray,
    positions: np.ndarray,
    line: Line,
) -> int:
    """Go on from bar ``first`` to the end, or to the bar for which the books have no room; returns that bar."""
    state, account, trades, fills = books.state, books.account, books.trades, books.fills
    closes, opens, highs, lows = market.closes, market.opens, market.highs, market.lows
    targets, funding = orders.targets, market.funding
    bars, symbols = closes.shape
    alone, resized = symbols == 1, terms.rebalance < np.inf
    trailing = terms.trailing > 0.0 or orders.trails.shape[0] > 0
    hurried = alone and not resized and funding.shape[0] == 0 and terms.tiers.shape[0] == 0
    bar = first - 1
    while bar < bars - 1:
        bar += 1
        if hurried:
            bar = skip_quiet(bar, line, trailing, terms, state, account)
            if bar == bars:
                return bars
        # at most two trades begin and six fills happen per symbol and bar
        if account[TRADES] + 2 * symbols > trades.shape[0] or account[FILLS] + 6 * symbols > fills.shape[0]:
            return bar
        before = account[FILLS]
        if terms.tiers.shape[0] > 0:
            set_fees(traded[bar] - traded[market.tier_from[bar]], terms, account)
        if terms.day_limit > 0 and market.days[bar] != account[DAY]:
            account[DAY], account[DAY_ENTRIES] = market.days[bar], 0.0

        if funding.shape[0] > 0:
            for symbol in range(symbols):
                rate = funding[bar, symbol]
                if state[symbol, POSITION] != 0.0 and rate != 0.0 and not math.isnan(opens[bar, symbol]):
                    paid = state[symbol, POSITION] * opens[bar, symbol] * rate
                    account[CASH] -= paid
                    trades[int(state[symbol, ROW]), T_FUNDING] += paid
                    set_level(symbol, state, account, terms, alone)

        decided = bar if terms.same_close else bar - 1
        if not terms.same_close and bar > 0 and account[ENDED] == 0.0 and pending(
            bar, decided, targets, opens, state, terms.max_bars, resized
        ):  # fmt: skip
            decide(bar, decided, opens[bar], market, orders, terms, books)

        for symbol in range(symbols):
            position = state[symbol, POSITION]
            if position == 0.0:
                continue
            high, low = highs[bar, symbol], lows[bar, symbol]
            if math.isnan(high):
                continue
            if position > 0.0:
                touched = low <= state[symbol, LEVEL] or high >= state[symbol, TARGET]
            else:
                touched = high >= state[symbol, LEVEL] or low <= state[symbol, TARGET]
            if touched:
                protect(bar, symbol, alone, market, terms, books)
            if trailing and state[symbol, POSITION] != 0.0:
                best = closes[bar, symbol] if state[symbol, INSIDE] == bar else (high if position > 0.0 else low)
                if (best - state[symbol, PEAK]) * position > 0.0:
                    state[symbol, PEAK] = best
                    set_level(symbol, state, account, terms, alone)

        for symbol in range(symbols):
            close = closes[bar, symbol]
            if not math.isnan(close):
                state[symbol, MARK] = close
            if terms.borrow > 0.0 and state[symbol, POSITION] < 0.0:
                paid = -state[symbol, POSITION] * state[symbol, MARK] * terms.borrow
                account[CASH] -= paid
                trades[int(state[symbol, ROW]), T_BORROW] += paid
                set_level(symbol, state, account, terms, alone)

        last = terms.close_at_end and bar == bars - 1
        if terms.same_close and account[ENDED] == 0.0 and not last and pending(
            bar, decided, targets, closes, state, terms.max_bars, resized
        ):  # fmt: skip
            decide(bar, decided, closes[bar], market, orders, terms, books)

        held, gross = 0.0, 0.0
        for symbol in range(symbols):
            if state[symbol, POSITION] != 0.0:
                value = state[symbol, POSITION] * state[symbol, MARK]
                held += value
                gross += abs(value)
        value = account[CASH] + held
        if gross > 0.0 and (last or value <= terms.maintenance * gross):
            reason = RUIN if value <= 0.0 else (LIQUIDATION if value <= terms.maintenance * gross else END)
            for symbol in range(symbols):
                if state[symbol, POSITION] != 0.0:
                    side = 1.0 if state[symbol, POSITION] > 0.0 else -1.0
                    size, mark = abs(state[symbol, POSITION]), state[symbol, MARK]
                    price = taken_price(mark, -side, size, volume_of(bar, symbol, market, terms), terms)
                    leave(bar, symbol, size, price, mark, account[TAKER], reason, books)
                    if reason != END and not terms.reenter:
                        state[symbol, BLOCKED] = side
            value = account[CASH]
        if value <= 0.0 and account[ENDED] == 0.0:
            # the account is empty; the broker bears what is below zero, and trading ends
            account[WRITTEN_OFF] -= value
            account[CASH] = 0.0
            account[ENDED], value = 1.0, 0.0
        equity[bar], cash[bar] = value, account[CASH]
        for symbol in range(symbols):
            positions[bar, symbol] = state[symbol, POSITION]
        if terms.tiers.shape[0] > 0:
            traded[bar + 1] = traded[bar]
            for row in range(int(before), int(account[FILLS])):
                traded[bar + 1] += abs(fills[row, F_UNITS]) * fills[row, F_PRICE]

    return bars


@_flat
def skip_quiet(first: int, line: Line, trailing: bool, terms: Terms, state: np.ndarray, account: np.ndarray) -> int:
    """Account for the bars from ``first`` on in which nothing can happen; returns the first in which it may.

    The same books as a whole turn of ``advance`` leaves, for one symbol without funding, fee tiers or
    rebalancing, several times as fast: most bars of most backtests are such bars.
    """
    own, money = state[0], account[CASH]
    position, blocked = own[POSITION], own[BLOCKED]
    bars, shift = line.closes.shape[0], 0 if terms.same_close else 1
    # the first bar has no decision before it, the last may close what is held
    end = bars - 1 if terms.close_at_end else bars
    if account[ENDED] != 0.0:
        write_quiet(first, bars, 0.0, 0.0, line)
        return bars
    if (first == 0 and shift == 1) or first >= end:
        return first
    targets = line.targets[first - shift : end - shift]
    if position == 0.0:
        bar = quiet_flat(first, end, targets, blocked)
    else:
        if position < 0.0 and terms.borrow > 0.0:
            return first
        if terms.max_bars > 0:
            end = max(first, min(end, int(own[ENTRY_BAR]) + terms.max_bars))
        bar = quiet_held(first, end, line, targets, trailing, terms, own, money)
        if bar > first:
            own[MARK] = line.closes[bar - 1]
    write_quiet(first, bar, money, position, line)
    return bar


@_flat
def quiet_flat(first: int, end: int, targets: np.ndarray, blocked: float) -> int:
    """The first bar from ``first`` on, ``end`` at the latest, in which a flat account may enter or loses its block."""
    for bar in range(end - first):
        if (targets[bar] * blocked <= 0.0) if blocked != 0.0 else (targets[bar] != 0.0):
            return first + bar
    return end


@_flat
def quiet_held(
    first: int, end: int, line: Line, targets: np.ndarray, trailing: bool, terms: Terms, own: np.ndarray, money: float
) -> int:
    """The first bar from ``first`` on, ``end`` at the latest, in which a held position may change.

    A short is looked at upside down: prices times -1, lows for highs.
    """
    position, sized = own[POSITION], own[SIZED]
    side = 1.0 if position > 0.0 else -1.0
    level, goal, floor = own[LEVEL] * side, own[TARGET] * side, terms.maintenance * abs(position)
    peak = own[PEAK] * side if trailing else np.nan
    lowest, highest = (line.lows, line.highs) if position > 0.0 else (line.highs, line.lows)
    lows, highs, opens, closes = lowest[first:end], highest[first:end], line.opens[first:end], line.closes[first:end]
    bar, count = 0, end - first
    while bar + TOGETHER <= count:
        part = slice(bar, bar + TOGETHER)
        open_, high, low, close, want = opens[part], highs[part], lows[part], closes[part], targets[part]
        quiet = TOGETHER
        for near in range(TOGETHER):
            # the low says what the open says; but the next fill is at an open, which by then is in the cache
            loud = (low[near] * side <= level) | (open_[near] * side <= level)
            loud |= (high[near] * side >= goal) | (high[near] * side > peak)
            loud |= (want[near] != sized) | (money + position * close[near] <= floor * close[near])
            quiet = min(quiet, near if loud else TOGETHER)
        bar += quiet
        if quiet < TOGETHER:
            return first + bar
    while bar < count:
        loud = (lows[bar] * side <= level) | (highs[bar] * side >= goal) | (highs[bar] * side > peak)
        if loud or targets[bar] != sized or money + position * closes[bar] <= floor * closes[bar]:
            break
        bar += 1
    return first + bar


@_flat
def write_quiet(first: int, end: int, money: float, position: float, line: Line) -> None:
    """The books of bars in which nothing happens."""
    closes, equity = line.closes[first:end], line.equity[first:end]
    cash, positions = line.cash[first:end], line.positions[first:end]
    for bar in range(end - first):
        equity[bar] = money + position * closes[bar]
        cash[bar] = money
        positions[bar] = position


@_compiled
def longer(rows: np.ndarray) -> np.ndarray:
    """The same rows with as much room again."""
    grown = np.empty((2 * rows.shape[0], rows.shape[1]))
    # element by element: assigning a slice takes Numba four seconds longer to compile
    for row in range(rows.shape[0]):
        for column in range(rows.shape[1]):
            grown[row, column] = rows[row, column]
    return grown


@_flat
def set_fees(traded: float, terms: Terms, account: np.ndarray) -> None:
    """The fees in force after ``traded`` notional in 30 days."""
    account[TAKER], account[MAKER] = terms.taker, terms.maker
    for tier in range(terms.tiers.shape[0]):
        # a hair, because sums of the same fills in another order differ by one
        if traded >= terms.tiers[tier, 0] * (1.0 - 1e-12):
            account[MAKER], account[TAKER] = terms.tiers[tier, 1], terms.tiers[tier, 2]


@_flat
def pending(
    bar: int, decided: int, targets: np.ndarray, references: np.ndarray, state: np.ndarray, max_bars: int, resized: bool
) -> bool:
    """Whether a decision may ask for a fill; lifts the block of sides that the target has left."""
    found = False
    for symbol in range(targets.shape[1]):
        want, blocked = targets[decided, symbol], state[symbol, BLOCKED]
        if blocked != 0.0:
            if want * blocked > 0.0 or math.isnan(references[bar, symbol]):
                continue
            state[symbol, BLOCKED] = 0.0
        if want != state[symbol, SIZED]:
            found = True
        elif state[symbol, POSITION] != 0.0:
            found = found or resized or (max_bars > 0 and bar - state[symbol, ENTRY_BAR] >= max_bars)
    return found


@_flat
def protect(bar: int, symbol: int, alone: bool, market: Market, terms: Terms, books: Books) -> None:
    """End a position whose level or target the bar has touched."""
    state, account = books.state, books.account
    own = state[symbol]
    side = 1.0 if own[POSITION] > 0.0 else -1.0
    size, inside = abs(own[POSITION]), own[INSIDE] == bar
    opened = market.opens[bar, symbol]
    start = own[START] if inside else opened
    against = market.lows[bar, symbol] if side > 0.0 else market.highs[bar, symbol]
    reason, rate = TAKE_PROFIT, account[MAKER]
    if not inside and (opened - own[TARGET]) * side >= 0.0:
        reference = price = opened
    elif (own[LEVEL] - against) * side >= 0.0:
        set_level(symbol, state, account, terms, alone)
        reason, rate = LIQUIDATION, account[TAKER]
        if own[STOP] == own[LEVEL]:
            reason = STOP_LOSS
        elif trail_of(own, side, terms) == own[LEVEL]:
            reason = TRAILING_STOP
        reference = min(own[LEVEL], start) if side > 0.0 else max(own[LEVEL], start)
        price = taken_price(reference, -side, size, volume_of(bar, symbol, market, terms), terms)
    elif inside:
        # a profit is taken in the next bar at the earliest
        return
    else:
        reference = price = own[TARGET]
    leave(bar, symbol, size, price, reference, rate, reason, books)
    if not terms.reenter:
        own[BLOCKED] = side


@_compiled
def sound(
    times: np.ndarray, opens: np.ndarray, highs: np.ndarray, lows: np.ndarray, closes: np.ndarray, volumes: np.ndarray
) -> bool:
    """Whether candles keep their contract, as ``trading.candles.check`` says it, in one pass over each column.

    Args:
        times: int64 (n,); the others float64 (n,).
    """
    bars = len(times)
    for first in range(0, bars, 2048):
        part = slice(first, min(bars, first + 2048))
        wrong = unsound(opens[part], highs[part], lows[part], closes[part], volumes[part])
        if wrong + not_rising(times[max(first - 1, 0) : part.stop]) > 0:
            return False
    return True


# without branches, and over a whole array, so that the processor does several bars at once
@_compiled
def unsound(opens: np.ndarray, highs: np.ndarray, lows: np.ndarray, closes: np.ndarray, volumes: np.ndarray) -> int:
    """Bars that break the contract; NaN compares as false with everything."""
    wrong = 0
    for bar in range(len(opens)):
        open_, high, low, close, volume = opens[bar], highs[bar], lows[bar], closes[bar], volumes[bar]
        good = (low > 0.0) & (high < np.inf) & (volume >= 0.0) & (volume < np.inf)
        good = good & (high >= open_) & (high >= close) & (low <= open_) & (low <= close)
        wrong += 0 if good else 1
    return wrong


@_compiled
def not_rising(times: np.ndarray) -> int:
    """Times that are not after the one before."""
    wrong = 0
    for bar in range(1, len(times)):
        wrong += 1 if times[bar] <= times[bar - 1] else 0
    return wrong


@_flat
def within_one(targets: np.ndarray) -> bool:
    """Whether every target (n,) is from -1 to +1."""
    wrong = 0
    for bar in range(len(targets)):
        wrong += not (targets[bar] >= -1.0) & (targets[bar] <= 1.0)
    return wrong == 0
