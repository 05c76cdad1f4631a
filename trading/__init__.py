"""What is traded: candles, indicators, strategies, the backtest kernel and its metrics."""
