"""The backtest: a compiled kernel over arrays, a thin engine over it, metrics and pictures."""
