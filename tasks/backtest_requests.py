"""What a backtest is asked for, and whether that makes sense: said before anything runs.

Strategies are texts: a rule (``rsi``), a rule with parameters (``sma_cross(fast=10, slow=30)``), ``champion`` (the
registry's model on bars that it was not trained on) or ``walk_forward`` (a model that is trained anew for each
fold). Buy-and-hold always stands beside them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from trading.errors import InvalidRequest

if TYPE_CHECKING:
    from tasks.learning import TrainingRequest
    from trading.backtest.rules import Rules
    from trading.strategies import Value

CHAMPION: Final = "champion"
WALK_FORWARD: Final = "walk_forward"
HOLD: Final = "buy_and_hold"
# signals of models come from the store, see tasks.backtest_models
MODELS: Final = (CHAMPION, WALK_FORWARD)
USUAL: Final = (CHAMPION, "rsi", "macd")
BASE: Final = 1.0  # the cost factor of all figures that are compared
MOST_SETS: Final = 2_000


@dataclass(frozen=True)
class WalkForwardModel:
    """A model that is trained anew for each fold, on bars before it only; horizon and folds as for ``train``."""

    estimator: str = "lightgbm"
    horizon: int = 12
    folds: int = 4
    buy_threshold: float = 0.005
    sell_threshold: float = -0.005
    rolling_days: int | None = None
    seed: int = 7

    def training(self, fee_rate: float, slippage_rate: float) -> TrainingRequest:
        """The same as a request to ``tasks.learning``."""
        from tasks.learning import TrainingRequest

        return TrainingRequest(
            horizon=self.horizon,
            folds=self.folds,
            seed=self.seed,
            fee_rate=fee_rate,
            slippage_rate=slippage_rate,
            buy_threshold=self.buy_threshold,
            sell_threshold=self.sell_threshold,
            estimators=(self.estimator,),
            rolling_days=self.rolling_days,
        )


@dataclass(frozen=True)
class BacktestRequest:
    """Everything, beside the candles, the champion and the code, that decides what comes out of a backtest.

    Attributes:
        rules: costs, sizing, protection, limits, execution and cash (``trading.backtest.rules``).
        strategies: texts, see above.
        factors: multiples of the costs that every strategy is traded at, beside the costs themselves.
        sweep: try the grid of every rule that is given without parameters.
        grids: values to try by rule and parameter, instead of the rule's own grid.
        most_sets: parameter sets that one rule may have.
        seed: of the bootstraps.
        model: what ``walk_forward`` is.
    """

    rules: Rules
    strategies: tuple[str, ...] = USUAL
    factors: tuple[float, ...] = ()
    sweep: bool = False
    grids: Mapping[str, Mapping[str, Sequence[Value]]] = field(default_factory=dict)
    most_sets: int = MOST_SETS
    seed: int = 0
    model: WalkForwardModel = WalkForwardModel()

    @property
    def cost_factors(self) -> tuple[float, ...]:
        """All factors, ``BASE`` first."""
        return (BASE, *sorted({float(factor) for factor in self.factors} - {BASE}))


@dataclass(frozen=True)
class Candidate:
    """A strategy to try: ``label`` is what its results are called, ``sets`` its parameter sets as texts."""

    label: str
    strategy: str
    sets: tuple[str, ...]


def candidates(request: BacktestRequest) -> tuple[Candidate, ...]:
    """The strategies of a request in their order, buy-and-hold last.

    Raises:
        InvalidRequest: a strategy, parameter, grid, cost factor or rule that makes no sense; names it.
    """
    _check_costs(request)
    found: dict[str, Candidate] = {}
    for text in request.strategies:
        one = _candidate(text.strip(), request)
        found.setdefault(one.label, one)
    found.pop(HOLD, None)
    swept = {one.strategy for one in found.values() if one.label == one.strategy}
    for name in request.grids:
        if name not in swept:
            raise InvalidRequest(f"there is a grid for {name!r}, which is not tried; add {name!r} to the strategies")
    if not found:
        raise InvalidRequest(f"there is no strategy to try beside {HOLD}; name one, such as rsi")
    if request.rules.limits.min_edge > 0:
        raise InvalidRequest(
            f"{next(iter(found))} gives no edge, and min_edge={request.rules.limits.min_edge:g} needs one; set it to 0"
        )
    return (*found.values(), Candidate(HOLD, HOLD, (HOLD,)))


def rules_of(strategy: str, rules: Rules, factor: float) -> Rules:
    """The rules that a strategy is traded by, its costs ``factor`` times as high.

    Buy-and-hold pays the same costs and is filled alike; sizing, stops and limits are not for it.
    """
    from trading.backtest.rules import Rules

    costs = rules.costs.times(factor)
    if strategy == HOLD:
        return Rules(costs, execution=rules.execution, cash=rules.cash)
    return replace(rules, costs=costs)


def _candidate(text: str, request: BacktestRequest) -> Candidate:
    from trading.strategies import rule
    from trading.strategy_grids import parameter_sets, parse, written

    if text in (*MODELS, HOLD):
        return Candidate(text, text, (text,))
    if "(" not in text and text not in _rule_names():
        raise InvalidRequest(f"{text!r} is not a strategy; use one of {', '.join((*MODELS, *_rule_names()))}")
    name, parameters = parse(text)
    chosen, own = rule(name), written(name, parameters)
    swept = request.sweep or name in request.grids
    if "(" in text:
        return Candidate(name if parameters == chosen.defaults and not swept else own, name, (own,))
    if not swept:
        return Candidate(name, name, (own,))
    sets = parameter_sets(chosen, request.grids.get(name))
    if len(sets) > request.most_sets:
        raise InvalidRequest(
            f"the grid of {name} has {len(sets):,} parameter sets and {request.most_sets:,} are allowed; "
            "try fewer values, or allow more sets"
        )
    return Candidate(name, name, tuple(written(name, each) for each in sets))


def _check_costs(request: BacktestRequest) -> None:
    for factor in request.cost_factors:
        if not (math.isfinite(factor) and factor >= 0):
            raise InvalidRequest(f"cost factor {factor} makes no sense; it is 0 (no costs) or more")
        try:
            request.rules.costs.times(factor)
        except InvalidRequest as error:
            raise InvalidRequest(f"costs times {factor:g}: {error}") from error


def _rule_names() -> list[str]:
    from trading.strategies import RULES

    return list(RULES)
