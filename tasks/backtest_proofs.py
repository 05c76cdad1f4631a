"""The look-ahead check of each strategy before its first backtest, and the record that it was passed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Final

from tasks.backtest_plans import Batch, digest_of
from tasks.datasets import load
from tasks.store import Store, put_result, touch_result

if TYPE_CHECKING:
    import pandas as pd

    from trading.strategies import Strategy

PROOF: Final = "look-ahead proof"
# candles of the check: it costs several runs over all of them
MOST_BARS: Final = 50_000


def prove_rule(store: Store, batch: Batch, now: datetime) -> int:
    """Check the rule of a batch on its candles, with its first parameters, unless its code was checked before.

    Returns:
        How many cuts were compared; 0 where there was nothing left to do.

    Raises:
        LookAhead: the rule's decisions change with what comes after them.
        StrategyFailed: it raised, or gave decisions that make no sense.
    """
    from ml.artifact import code_digest
    from trading.strategies import rule
    from trading.strategy_grids import parse

    chosen = rule(batch.strategy)
    _, parameters = parse(batch.sets[0])
    needed = chosen.bars_needed(**parameters)
    candles = load(store, batch.subject.dataset)[batch.symbol].tail(max(MOST_BARS, needed + 1))
    return prove(
        store, batch.sets[0], partial(chosen.decide, **parameters), candles,
        [code_digest(), _source(chosen.decide), chosen.name, sorted(chosen.parameters)],
        # a rule that wants nothing of so few candles shows nothing of itself
        bars_needed=needed if needed < len(candles) else 1, now=now,
    )  # fmt: skip


def prove(
    store: Store,
    name: str,
    decide: Strategy,
    candles: pd.DataFrame,
    identity: Sequence[object],
    *,
    bars_needed: int,
    now: datetime,
    cuts: int | None = None,
) -> int:
    """``check_lookahead``, once for an ``identity`` of code and parameters; returns and raises as ``prove_rule``."""
    from trading.backtest.lookahead import CUTS, check_lookahead

    key = digest_of(PROOF, *identity)
    if touch_result(store, key, now):
        return 0
    compared = check_lookahead(name, decide, candles, bars_needed=bars_needed, cuts=cuts or CUTS)
    put_result(store, key, PROOF, {"strategy": name, "cuts": compared, "candles": len(candles)}, now)
    return compared


def _source(decide: Callable[..., object]) -> str:
    """The text of a rule, which need not be of this package, whose digest speaks of no other code."""
    try:
        return inspect.getsource(decide)
    except (OSError, TypeError):
        # made at run time: what it does is all that names it
        code = getattr(decide, "__code__", None)
        return f"{code.co_code.hex()} {code.co_consts}" if code is not None else repr(decide)
