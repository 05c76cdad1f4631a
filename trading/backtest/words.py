"""What a backtest shows, and what it assumes, in plain words made of its figures.

Figures are those of ``trading.backtest.metrics.summarise`` by name; None stands for one that is not defined, as NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from trading.backtest.rules import Costs, Limits, Protection, Rules, Sizing

SURE: Final = 0.95
FEW_TRADES: Final = 30
UNDEFINED: Final = "–"
HOLD: Final = "buy_and_hold"


@dataclass(frozen=True)
class Verdict:
    """``headline``: one sentence. ``tone``: how good the news is. ``sentences``: what it rests on."""

    headline: str
    tone: Literal["good", "mixed", "bad"]
    sentences: tuple[str, ...]


def verdict(
    figures: Mapping[str, Any], hold: Mapping[str, Any], overfitting: Mapping[str, Any] | None = None
) -> Verdict:
    """What to think of a strategy.

    Args:
        hold: figures of buy-and-hold over the same bars.
        overfitting: of everything that was tried (``ml.overfitting.Overfitting`` as a mapping): trials,
            deflated_sharpe, pbo, spa. None: nothing else was tried.
    """
    headline, tone = _headline(figures, hold, overfitting or {})
    if not figures["trades"]:
        return Verdict(headline, tone, (f"Buying and holding made {percent(hold['total_return'])}.",))
    sentences = [_against_hold(figures, hold), _risk(figures, hold), _luck(figures), _costs(figures), _few(figures)]
    return Verdict(headline, tone, (*(one for one in sentences if one), *_overfitted(overfitting or {})))


def of_hold(figures: Mapping[str, Any]) -> Verdict:
    """What to say of buy-and-hold itself."""
    said = (_luck(figures), _costs(figures))
    made = f"It made {percent(figures['total_return'])} and stood at worst {-figures['max_drawdown']:.1%} below a peak."
    return Verdict("This is what the strategies are held against.", "mixed", (made, *(one for one in said if one)))


def _headline(
    figures: Mapping[str, Any], hold: Mapping[str, Any], overfitting: Mapping[str, Any]
) -> tuple[str, Literal["good", "mixed", "bad"]]:
    made, held, trades = figures["total_return"], hold["total_return"], figures["trades"]
    if not trades:
        return "It never traded.", "mixed"
    if made <= -1:
        return "It lost everything.", "bad"
    if made <= 0:
        gross = made + (known(figures, "cost_of_start") or 0.0)
        costly = ": its trades earned less than they cost" if gross > 0 else ""
        less = ", though less than buying and holding" if made > held else ""
        return f"It lost money after costs{less}{costly}.", "bad"
    if made < held:
        own, other = known(figures, "sharpe"), known(hold, "sharpe")
        better = own is not None and other is not None and own > other
        calmer = ", at a better ratio of return to risk" if better else ""
        return f"It made money, but less than buying and holding{calmer}.", "mixed"
    deflated = known(overfitting, "deflated_sharpe")
    sure = deflated if deflated is not None else known(figures, "psr")
    if sure is None or sure < SURE or trades < FEW_TRADES:
        return "It beat buying and holding, but luck cannot be ruled out.", "mixed"
    return "It beat buying and holding, and luck alone is an unlikely reason.", "good"


def _against_hold(figures: Mapping[str, Any], hold: Mapping[str, Any]) -> str:
    made, held = figures["total_return"], hold["total_return"]
    apart = 100 * (made - held)
    more = "more" if apart >= 0 else "less"
    annual = known(figures, "annual_return")
    yearly = f" ({percent(annual)} a year)" if annual is not None else ""
    return (
        f"After costs it made {percent(made)}{yearly}; buying and holding made {percent(held)}: "
        f"{abs(apart):,.1f} points {more}."
    )


def _risk(figures: Mapping[str, Any], hold: Mapping[str, Any]) -> str:
    depth, held = figures["max_drawdown"], hold["max_drawdown"]
    return (
        f"At worst it stood {-depth:.1%} below an earlier peak, and {figures['drawdown_bars']:,} bars in a row below "
        f"one; buying and holding fell by {-held:.1%}. It held a position in {figures['exposure']:.0%} of the bars."
    )


def _luck(figures: Mapping[str, Any]) -> str:
    ratio, error, sure = (known(figures, name) for name in ("sharpe", "sharpe_error", "psr"))
    if ratio is None or error is None or sure is None:
        return ""
    if sure >= SURE:
        so = "more than luck explains in such a span"
    else:
        so = "which such a span cannot tell from luck" if sure > 1 - SURE else "worse than bad luck explains"
    return f"Its Sharpe ratio is {ratio:.2f} ± {error:.2f}, {so}: it is above 0 with a probability of {sure:.0%}."


def _costs(figures: Mapping[str, Any]) -> str:
    of_start, share = known(figures, "cost_of_start"), known(figures, "cost_share")
    if of_start is None or not figures["costs"]:
        return "It paid no costs, which no market grants."
    of_profit = f", {share:.0%} of the profit before them" if share is not None else ""
    return f"Costs took {of_start:.1%} of the starting cash{of_profit}."


def _few(figures: Mapping[str, Any]) -> str:
    trades, share = figures["trades"], known(figures, "best_five_share")
    said = []
    if trades < FEW_TRADES:
        said.append(f"It made only {trades} trade{'s' if trades > 1 else ''}: too few to judge it by.")
    if share is not None and share > 1 and trades > 5:
        said.append("Its five best trades earned all of the profit and more; the rest lost money.")
    return " ".join(said)


def _overfitted(found: Mapping[str, Any]) -> list[str]:
    tried = int(found.get("trials") or 1)
    if tried < 2:
        return []
    deflated, chance, test = (known(found, name) for name in ("deflated_sharpe", "pbo", "spa"))
    said = []
    if deflated is not None:
        said.append(f"it is better than the luck of that many with a probability of {deflated:.0%}")
    if chance is not None:
        said.append(f"choosing the best of them fails out of sample with a probability of {chance:.0%}")
    if test is not None:
        said.append(f"that none of them beats the benchmark has a p-value of {test:.2f}")
    return [f"{tried:,} were tried: {'; '.join(said)}." if said else f"{tried:,} were tried."]


def assumptions(rules: Rules, costs_paid: Mapping[str, float]) -> list[str]:
    """How orders were filled and what was paid, one sentence each.

    Args:
        costs_paid: by kind, ``BacktestResult.costs``: funding is named where there was any.
    """
    later = "at the open of the next one" if rules.execution.fill == "next open" else "at that same close"
    said = [f"Decisions are made on the close of a bar and filled {later}. It begins with {rules.cash:,.0f} in cash."]
    said += _of_costs(rules.costs)
    funding = "was paid as the exchange published it" if costs_paid.get("funding") else "is not charged"
    said.append(f"Funding of perpetual contracts {funding}.")
    said += [_of_sizing(rules.sizing), *_of_protection(rules.protection), *_of_limits(rules.limits)]
    if rules.execution.limit_needs_cross:
        said.append("A limit order fills only where the price trades through it.")
    if rules.execution.maintenance:
        said.append(f"A position is liquidated once the equity is {_rate(rules.execution.maintenance)} of its value.")
    ends = "is closed at the last close" if rules.execution.close_at_end else "stays open, valued at the last close"
    said.append(f"What is held at the end {ends}.")
    said.append("Where one bar touches both a stop and a target, the stop is taken. Taxes and outages are left out.")
    return said


def _of_costs(costs: Costs) -> list[str]:
    fee = f"Each fill pays a fee of {_rate(costs.fee_rate)} of its value"
    if costs.maker != costs.fee_rate:
        fee += f" ({_rate(costs.maker)} for limit entries and take profits)"
    if costs.tiers:
        fee += f", less with the volume of 30 days in {len(costs.tiers)} steps"
    worse = [f"{_rate(costs.slippage_rate)} of slippage"] if costs.slippage_rate else []
    worse += [f"half the spread of {_rate(costs.spread)}"] if costs.spread else []
    worse += [f"up to {_rate(costs.impact)} for its share of the bar's volume"] if costs.impact else []
    price = f"An order at the market gets a worse price by {' and '.join(worse)}." if worse else (
        "Orders at the market get the price of the bar, without slippage."
    )  # fmt: skip
    borrow = f"Shorts pay {_rate(costs.borrow_rate)} a year to borrow." if costs.borrow_rate else (
        "Shorts borrow for nothing."
    )  # fmt: skip
    return [f"{fee}.", price, borrow]


def _of_sizing(sizing: Sizing) -> str:
    if sizing.units:
        size = f"A full position is {sizing.units:g} units"
    elif sizing.risk:
        size = f"A full position loses {_rate(sizing.risk)} of the equity at its stop"
    elif sizing.volatility:
        size = f"A full position has a volatility of {_rate(sizing.volatility)} a year"
    else:
        size = f"A full position takes {_rate(sizing.fraction)} of the equity"
    more = []
    if sizing.leverage != 1:
        more.append(f"with up to {sizing.leverage:g} times the equity")
    if sizing.kelly:
        more.append(f"at most {sizing.kelly:g} of the Kelly fraction")
    if sizing.lot:
        more.append(f"in lots of {sizing.lot:g}")
    if sizing.min_notional:
        more.append(f"worth {sizing.min_notional:,.0f} or more")
    if math.isfinite(sizing.max_volume_share):
        more.append(f"at most {_rate(sizing.max_volume_share)} of a bar's volume")
    if math.isfinite(sizing.rebalance):
        more.append(f"brought back once it is off by {_rate(sizing.rebalance)}")
    return ", ".join([size, *more]) + "."


def _of_protection(protection: Protection) -> list[str]:
    levels = {
        "stop loss": protection.stop_loss,
        "take profit": protection.take_profit,
        "trailing stop": protection.trailing_stop,
    }
    said = [f"{name} at {_rate(share)}" for name, share in levels.items() if share]
    said += [f"time stop after {protection.max_bars} bars"] if protection.max_bars else []
    return [f"Every position has a {', '.join(said)}."] if said else []


def _of_limits(limits: Limits) -> list[str]:
    said = [f"{limits.cooldown_bars} bars of rest after an exit"] if limits.cooldown_bars else []
    said += [f"{limits.max_trades_per_day} entries a day"] if limits.max_trades_per_day else []
    said += [f"an edge of {limits.min_edge:g} round trips of cost"] if limits.min_edge else []
    return [f"Entries are limited: {', '.join(said)}."] if said else []


def known(figures: Mapping[str, Any], name: str) -> float | None:
    """A figure, or None where it is missing or not defined."""
    value = figures.get(name)
    return None if value is None or math.isnan(value) else float(value)


def percent(value: float | None, digits: int = 1) -> str:
    """A signed share in percent, ``+4.2%``."""
    return UNDEFINED if value is None or math.isnan(value) else f"{value:+,.{digits}%}"


def _rate(share: float) -> str:
    return f"{100 * share:.6g}%"
