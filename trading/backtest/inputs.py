"""What goes into the kernel: candles, decisions and rules, checked, as arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Final

import numpy as np
import pandas as pd

from trading.backtest import kernel
from trading.backtest.kernel import Market, Orders, Terms
from trading.backtest.rules import Costs, Decisions, Rules
from trading.candles import COLUMNS, INDEX_DTYPE, INDEX_NAME, check, open_times_ms
from trading.errors import CandleContractError, InvalidRequest

DAY_MS: Final = 86_400_000
YEAR_MS: Final = 365.25 * DAY_MS
TIER_MS: Final = 30 * DAY_MS
_NONE: Final = np.empty((0, 0))
_NO_COUNTS: Final = np.empty(0, dtype=np.int64)


def times_of(candles: Mapping[str, pd.DataFrame], strategy: str) -> pd.DatetimeIndex:
    """The open times of all candles together, after each frame was checked.

    Raises:
        CandleContractError: a frame breaks its contract; names strategy and symbol.
        InvalidRequest: no symbols, or one without candles.
    """
    if not candles:
        raise InvalidRequest(f"{strategy}: there are no symbols to trade")
    for symbol, frame in candles.items():
        if frame.empty:
            raise InvalidRequest(f"{strategy}: there are no candles of {symbol or 'the series'} to trade")
        try:
            _check_candles(frame)
        except CandleContractError as error:
            raise CandleContractError(f"{strategy}{f' on {symbol}' if symbol else ''}: {error}") from error
    frames = list(candles.values())
    index = pd.DatetimeIndex(frames[0].index)
    if any(not index.equals(frame.index) for frame in frames[1:]):
        stamps = np.unique(np.concatenate([open_times_ms(frame) for frame in frames]))
        index = pd.DatetimeIndex(stamps.astype("datetime64[ms]"), name=INDEX_NAME).tz_localize("UTC")
    return index


def _check_candles(candles: pd.DataFrame) -> None:
    """``trading.candles.check``, several times as fast where there is nothing to find."""
    columns = [candles[name].to_numpy() if name in candles.columns else None for name in COLUMNS]
    fast = str(candles.index.dtype) == INDEX_DTYPE and all(
        column is not None and column.dtype == np.float64 for column in columns
    )
    if not (fast and kernel.sound(open_times_ms(candles), *map(np.ascontiguousarray, columns))):
        check(candles)


def usual_bars_per_year(times: pd.DatetimeIndex) -> float:
    """Bars in 365.25 days at the median step between bars; for a market that never closes."""
    stamps = times.asi8
    step = float(np.median(np.diff(stamps[:10_000]))) if len(stamps) > 1 else DAY_MS
    return YEAR_MS / step


def market_of(
    candles: Mapping[str, pd.DataFrame],
    times: pd.DatetimeIndex,
    rules: Rules,
    funding: Mapping[str, np.ndarray],
    bars_per_year: float,
    strategy: str,
) -> Market:
    """The kernel's market: every symbol on the common ``times``, NaN where it has no candle.

    Raises:
        InvalidRequest: funding of the wrong length, or not finite.
    """
    columns = {name: _table(candles, times, name) for name in COLUMNS}
    rates = _NONE
    if funding:
        unknown = sorted(set(funding) - set(candles))
        if unknown:
            raise InvalidRequest(f"{strategy}: there is funding and no candles for {', '.join(unknown)}")
        for symbol, rate in funding.items():
            _of_length(rate, candles[symbol], f"funding rates of {symbol or 'the series'}", strategy, finite=True)
        zeros = {symbol: np.zeros(len(frame)) for symbol, frame in candles.items()}
        rates = np.nan_to_num(_laid(zeros | dict(funding), candles, times))
    shares = _NONE
    if rules.sizing.volatility > 0:
        shares = _laid(
            {
                symbol: _volatility_share(frame, rules, _own_bars_per_year(frame, times, bars_per_year))
                for symbol, frame in candles.items()
            },
            candles,
            times,
            standing=True,
        )
    stamps = open_times_ms(pd.DataFrame(index=times)) if rules.costs.tiers or rules.limits.max_trades_per_day else None
    return Market(
        opens=columns["open"],
        highs=columns["high"],
        lows=columns["low"],
        closes=columns["close"],
        volumes=columns["volume"],
        funding=rates,
        shares=shares,
        days=stamps // DAY_MS if stamps is not None and rules.limits.max_trades_per_day else _NO_COUNTS,
        tier_from=np.searchsorted(stamps, stamps - TIER_MS) if stamps is not None and rules.costs.tiers else _NO_COUNTS,
    )


def orders_of(
    decisions: Mapping[str, np.ndarray | Decisions],
    candles: Mapping[str, pd.DataFrame],
    times: pd.DatetimeIndex,
    rules: Rules,
    strategy: str,
) -> Orders:
    """The kernel's orders. Where a symbol has no candle its last decision stands.

    Raises:
        InvalidRequest: decisions of the wrong length, targets outside [-1, 1], prices that are not above zero,
            a limit and a stop entry on one bar, orders at a price where fills are at the close, or an edge that
            the rules need and the decisions lack; names strategy and bar.
    """
    missing = sorted(set(candles) ^ set(decisions))
    if missing:
        raise InvalidRequest(f"{strategy}: candles and decisions must be of the same symbols; {missing} lack one")
    whole = {
        symbol: one if isinstance(one, Decisions) else Decisions(np.asarray(one)) for symbol, one in decisions.items()
    }
    for symbol, one in whole.items():
        _check_decisions(one, candles[symbol], rules, strategy)
    targets = _laid({symbol: one.targets for symbol, one in whole.items()}, candles, times, standing=True)
    if len(candles) > 1:
        targets = np.nan_to_num(targets, copy=False)
    others = {}
    for name in (entry.name for entry in fields(Decisions) if entry.name != "targets"):
        given = {symbol: getattr(one, name) for symbol, one in whole.items()}
        if any(len(values) for values in given.values()):
            filled = {
                symbol: values if len(values) else np.full(len(candles[symbol]), np.nan)
                for symbol, values in given.items()
            }
            others[name] = _laid(filled, candles, times, standing=True)
        else:
            others[name] = _NONE
    return Orders(
        targets=np.ascontiguousarray(targets),
        limits=others["limit"],
        stop_entries=others["stop_entry"],
        stop_prices=others["stop_price"],
        target_prices=others["target_price"],
        trails=others["trail_distance"],
        edges=others["edge"],
    )


def terms_of(rules: Rules, bars_per_year: float) -> Terms:
    """``rules`` as the kernel reads them."""
    costs, sizing, protection, limits, execution = (
        rules.costs, rules.sizing, rules.protection, rules.limits, rules.execution,
    )  # fmt: skip
    return Terms(
        cash=float(rules.cash),
        taker=float(costs.fee_rate),
        maker=float(costs.maker),
        slip=float(costs.slippage_rate + costs.spread / 2),
        impact=float(costs.impact),
        borrow=float(costs.borrow_rate / bars_per_year),
        units=float(sizing.units),
        fraction=float(sizing.fraction),
        risk=float(sizing.risk),
        lot=float(sizing.lot),
        min_notional=float(sizing.min_notional),
        kelly=float(sizing.kelly),
        kelly_trades=int(sizing.kelly_trades),
        kelly_floor=float(sizing.kelly_floor),
        volume_share=float(sizing.max_volume_share),
        gear=float(min(sizing.leverage, limits.max_exposure)),
        max_symbol=float(limits.max_symbol),
        rebalance=float(sizing.rebalance),
        cut=sizing.short_of_cash == "cut",
        stop_loss=float(protection.stop_loss),
        take_profit=float(protection.take_profit),
        trailing=float(protection.trailing_stop),
        max_bars=int(protection.max_bars),
        reenter=bool(protection.reenter),
        cooldown=int(limits.cooldown_bars),
        day_limit=int(limits.max_trades_per_day),
        least_edge=float(limits.min_edge * costs.round_trip) if limits.min_edge > 0 else -math.inf,
        max_positions=int(limits.max_positions),
        same_close=execution.fill == "same close",
        cross=bool(execution.limit_needs_cross),
        maintenance=float(execution.maintenance),
        close_at_end=bool(execution.close_at_end),
        tiers=_tiers(costs),
    )


def _tiers(costs: Costs) -> np.ndarray:
    return np.array([(tier.traded, tier.maker, tier.taker) for tier in costs.tiers], dtype=np.float64).reshape(-1, 3)


def _check_decisions(one: Decisions, candles: pd.DataFrame, rules: Rules, strategy: str) -> None:
    targets = _of_length(one.targets, candles, "targets", strategy)
    if not kernel.within_one(targets):
        at = int(np.argmin(np.abs(targets) <= 1))
        raise InvalidRequest(f"{strategy} wants {targets[at]} at {candles.index[at]}; a target is from -1 to +1")
    for name in ("limit", "stop_entry", "stop_price", "target_price", "trail_distance", "edge"):
        values = getattr(one, name)
        if not len(values):
            continue
        values = _of_length(values, candles, name.replace("_", " "), strategy)
        wrong = np.isinf(values) if name == "edge" else ~(np.isnan(values) | ((values > 0) & np.isfinite(values)))
        if wrong.any():
            at = int(np.argmax(wrong))
            raise InvalidRequest(
                f"{strategy} gives the {name.replace('_', ' ')} {values[at]} at {candles.index[at]}; it is above zero, "
                "or NaN for none"
            )
    if len(one.limit) and len(one.stop_entry):
        both = ~np.isnan(one.limit) & ~np.isnan(one.stop_entry)
        if both.any():
            at = candles.index[int(np.argmax(both))]
            raise InvalidRequest(f"{strategy} gives a limit and a stop entry at {at}; an order has one of them")
    if rules.execution.fill == "same close" and (len(one.limit) or len(one.stop_entry)):
        raise InvalidRequest(
            f"{strategy} enters at limits or stops, which a fill at the same close cannot; use 'next open'"
        )
    if rules.limits.min_edge > 0 and not len(one.edge):
        raise InvalidRequest(f"{strategy} gives no edge, and min_edge={rules.limits.min_edge} needs one; set it to 0")


def _of_length(
    values: np.ndarray, candles: pd.DataFrame, what: str, strategy: str, *, finite: bool = False
) -> np.ndarray:
    given = np.asarray(values, dtype=np.float64)
    if given.shape != (len(candles),):
        raise InvalidRequest(f"{strategy} gave {what} of shape {given.shape} for {len(candles)} candles")
    if finite and not np.isfinite(given).all():
        at = int(np.argmin(np.isfinite(given)))
        raise InvalidRequest(f"{strategy}: {what} are {given[at]} at {candles.index[at]}; give 0 where none is due")
    return given


def _table(candles: Mapping[str, pd.DataFrame], times: pd.DatetimeIndex, name: str) -> np.ndarray:
    return _laid({symbol: frame[name].to_numpy() for symbol, frame in candles.items()}, candles, times)


def _laid(
    values: Mapping[str, np.ndarray],
    candles: Mapping[str, pd.DataFrame],
    times: pd.DatetimeIndex,
    *,
    standing: bool = False,
) -> np.ndarray:
    """One column per symbol on the common times; one whole series is not copied.

    Where a symbol has no candle: NaN, or what was said at its last one (NaN before the first), where that is
    ``standing``.
    """
    if len(candles) == 1:
        (one,) = values.values()
        return np.ascontiguousarray(one, dtype=np.float64).reshape(-1, 1)
    table = np.full((len(times), len(candles)), np.nan)
    for column, (symbol, frame) in enumerate(candles.items()):
        if len(frame) == len(times):
            table[:, column] = values[symbol]
        elif standing:
            last = np.searchsorted(open_times_ms(frame), times.asi8, side="right") - 1
            table[last >= 0, column] = np.asarray(values[symbol])[last[last >= 0]]
        else:
            table[times.get_indexer(pd.DatetimeIndex(frame.index)), column] = values[symbol]
    return table


def _own_bars_per_year(candles: pd.DataFrame, times: pd.DatetimeIndex, bars_per_year: float) -> np.ndarray:
    """Bars that a symbol has in a year as far as each of its bars can tell, where the common ones are more.

    float64 (n,): ``bars_per_year`` times the share of the common bars, from the symbol's first on, that it has.
    """
    at = np.searchsorted(times.asi8, open_times_ms(candles))
    shares: np.ndarray = np.arange(1, len(at) + 1) / (at - at[0] + 1)
    return bars_per_year * shares


def _volatility_share(candles: pd.DataFrame, rules: Rules, bars_per_year: np.ndarray) -> np.ndarray:
    """Share of the equity that brings the position to the wanted volatility, NaN where that is not known."""
    sizing = rules.sizing
    returns = pd.Series(np.log(candles["close"].to_numpy())).diff()
    realised = returns.rolling(sizing.volatility_bars).std().to_numpy() * np.sqrt(bars_per_year)
    # a rolling deviation of equal values leaves a rest of rounding; what moves less than this does not move
    known = realised > 1e-9
    share = np.divide(sizing.volatility, realised, out=np.full(len(realised), np.nan), where=known)
    capped: np.ndarray = np.minimum(share, sizing.fraction)
    return capped
