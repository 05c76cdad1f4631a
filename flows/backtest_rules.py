"""The rules of a backtest as a form: groups of parameters, each as in ``trading.backtest.rules``.

Shares, not percent: 0.001 is 0.1 %. Empty stands for no limit. What no strategy can meet yet (a least edge) is left
out, and so is funding, of which the store holds no rates.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from flows.parameters import (
    LARGEST_CASH,
    BuyThreshold,
    EstimatorName,
    Folds,
    Horizon,
    RollingDays,
    Seed,
    SellThreshold,
    form,
)
from tasks.backtest_requests import WalkForwardModel
from trading.backtest import rules

Share = Annotated[float, Field(ge=0, lt=1)]
# shares that may well be above 1: no more than a slip of the decimal point is kept out
Positive = Annotated[float, Field(gt=0, le=1_000)]
NotNegative = Annotated[float, Field(ge=0, le=1_000)]
Amount = Annotated[float, Field(ge=0, le=LARGEST_CASH)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]


def _title(name: str, _: Any) -> str:
    return name.replace("_", " ").capitalize()


class Group(BaseModel):
    """A group of parameters; an unknown one is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, field_title_generator=_title)


class Tier(Group):
    """The fees once so much was traded in 30 days."""

    traded: Amount = Field(description="In 30 days, in the quote currency, from which these fees hold.")
    maker: Share = Field(description="Fee of limit entries and take profits, as a share.")
    taker: Share = Field(description="Fee of all other fills, as a share.")


class FurtherCosts(Group):
    """What trading costs, beside the fee and the slippage."""

    maker_rate: Share | None = Field(
        default=None, description="Fee of limit entries and take profits; empty: the fee rate."
    )
    tiers: tuple[Tier, ...] = Field(
        default=(), max_length=50, description="Fees by what was traded in 30 days, rising."
    )
    spread: Share = Field(default=0.0, description="Bid-ask spread; an order at the market pays half of it.")
    impact: Share = Field(
        default=0.0, description="By which a fill of the bar's whole volume is worse (volume share model)."
    )
    borrow_rate: Share = Field(default=0.0, description="Of a short position's notional, per year.")

    def costs(self, fee_rate: float, slippage_rate: float) -> rules.Costs:
        """All costs."""
        tiers = tuple(rules.FeeTier(one.traded, one.maker, one.taker) for one in self.tiers)
        return rules.Costs(
            fee_rate, slippage_rate, self.maker_rate, tiers, self.spread, self.impact, self.borrow_rate
        )  # fmt: skip


class SizingRules(Group):
    """How much a position is: by units, risk or volatility where one is set, else by the fraction of the equity."""

    fraction: Positive = Field(
        default=1.0, description="Of the equity, fee included; caps the sizes by risk and volatility."
    )
    units: Amount = Field(default=0.0, description="Of the base asset.")
    risk: Share = Field(default=0.0, description="Of the equity that is lost between entry and stop; needs a stop.")
    volatility: NotNegative = Field(default=0.0, description="Annual, that a position should have.")
    volatility_bars: Annotated[int, Field(ge=2, le=1_000_000)] = Field(
        default=100, description="Over which volatility is measured."
    )
    kelly: NotNegative = Field(default=0.0, description="Times the Kelly fraction of the trades so far, at most.")
    kelly_trades: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=30, description="Closed trades before that cap holds."
    )
    kelly_floor: NotNegative = Field(default=0.0, description="Share of the equity that the cap never goes below.")
    lot: Amount = Field(default=0.0, description="Sizes are whole multiples of it; 0: any size.")
    min_notional: Amount = Field(default=0.0, description="Nothing worth less is traded.")
    max_volume_share: Positive | None = Field(default=None, description="Of the bar's volume that an entry may take.")
    leverage: Positive = Field(default=1.0, description="Times the equity that positions may be worth.")
    rebalance: Positive | None = Field(
        default=None, description="Bring a position back once it is off by this share of it."
    )
    short_of_cash: Literal["skip", "cut"] = Field(default="skip", description="Leave out what does not fit, or cut it.")

    def sizing(self) -> rules.Sizing:
        """The same for the engine."""
        limits = {name: _unlimited(getattr(self, name)) for name in ("max_volume_share", "rebalance")}
        return rules.Sizing(**{**self.model_dump(), **limits})


class ProtectionRules(Group):
    """When a position ends without a decision: shares of the entry price, 0 for none."""

    stop_loss: Share = Field(default=0.0, description="Distance from the entry price.")
    take_profit: NotNegative = Field(default=0.0, description="Distance from the entry price.")
    trailing_stop: Share = Field(default=0.0, description="Distance from the best price since the entry.")
    max_bars: Count = Field(default=0, description="Bars after which a position is closed; 0: none.")
    reenter: bool = Field(default=False, description="Enter the same side again while the strategy stays on it.")

    def protection(self) -> rules.Protection:
        """The same for the engine."""
        return rules.Protection(**self.model_dump())


class LimitRules(Group):
    """What is not allowed, whatever the strategy wants; 0 or empty for no limit."""

    cooldown_bars: Count = Field(default=0, description="Bars of rest after an exit.")
    max_trades_per_day: Count = Field(default=0, description="Entries per UTC day.")
    max_positions: Count = Field(default=0, description="Symbols held at once.")
    max_exposure: Positive | None = Field(default=None, description="All positions, as a share of the equity.")
    max_symbol: Positive | None = Field(default=None, description="One position, as a share of the equity.")

    def limits(self) -> rules.Limits:
        """The same for the engine."""
        shares = {name: _unlimited(getattr(self, name)) for name in ("max_exposure", "max_symbol")}
        return rules.Limits(**{**self.model_dump(), **shares})


class ExecutionRules(Group):
    """How orders are filled."""

    fill: Literal["next open", "same close"] = Field(
        default="next open", description="When an order is filled that was decided on the close."
    )
    limit_needs_cross: bool = Field(default=False, description="A limit fills only where the price trades through it.")
    maintenance: Share = Field(default=0.0, description="Equity over notional at which a position is liquidated.")
    close_at_end: bool = Field(default=False, description="Close what is held at the last close, with costs.")

    def execution(self) -> rules.Execution:
        """The same for the engine."""
        return rules.Execution(**self.model_dump())


class Model(Group):
    """The model of the strategy walk_forward: trained anew for each fold, on bars before it only."""

    estimator: Annotated[EstimatorName, form("Estimator", "What is trained.", "lightgbm")] = "lightgbm"
    horizon: Annotated[Horizon, form("Horizon", "Bars that a signal is held for.", 12)] = 12
    folds: Folds = 4
    buy_threshold: BuyThreshold = 0.005
    sell_threshold: SellThreshold = -0.005
    rolling_days: RollingDays = None
    seed: Seed = 7

    def model(self) -> WalkForwardModel:
        """The same for the tasks."""
        return WalkForwardModel(**self.model_dump())


NO_FURTHER_COSTS: Final = FurtherCosts()
USUAL_SIZING: Final = SizingRules()
NO_PROTECTION: Final = ProtectionRules()
NO_LIMITS: Final = LimitRules()
USUAL_EXECUTION: Final = ExecutionRules()
USUAL_MODEL: Final = Model()


def _unlimited(value: float | None) -> float:
    return math.inf if value is None else value
