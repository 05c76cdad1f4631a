"""Which symbols of a wide backtest have pictures of their own in the Prefect pages."""

from __future__ import annotations

from typing import Any

from flows.backtest import best_symbols


def row(symbol: str, strategy: str, sharpe: float | None) -> dict[str, Any]:
    return {"symbol": symbol, "strategy": strategy, "sharpe": sharpe}


def test_the_best_strategy_of_a_symbol_counts_and_buy_and_hold_after_all_others() -> None:
    rows = [
        row("A", "rsi", 0.1), row("A", "macd", 0.4), row("A", "buy_and_hold", 9.0),
        row("B", "rsi", 0.3), row("B", "macd", None),
        row("C", "rsi", None), row("C", "buy_and_hold", 5.0),
        row("D", "buy_and_hold", 7.0),
    ]  # fmt: skip
    assert best_symbols(rows) == ["A", "B", "C", "D"]
    assert best_symbols(rows, 2) == ["A", "B"]
    assert best_symbols([]) == []
