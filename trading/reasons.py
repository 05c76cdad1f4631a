"""Why a rule wants what it wants after the last bar: one sentence each, with the numbers it looked at.

Every function takes candles (as many as the rule needs, or more), the rule's last target and its parameters.
"""

from __future__ import annotations

import pandas as pd

from trading import indicators
from trading.technical import column, voters, votes


def of_sma_cross(candles: pd.DataFrame, target: int, fast: int, slow: int, *, long_only: bool) -> str:
    """Both averages."""
    close = column(candles, "close")
    quick, slower = indicators.sma(close, fast)[-1], indicators.sma(close, slow)[-1]
    where = "above" if quick > slower else "not above"
    return f"SMA({fast}) {quick:.6g} is {where} SMA({slow}) {slower:.6g}"


def of_rsi(candles: pd.DataFrame, target: int, period: int, low: float, high: float) -> str:
    """The index, and since when the position is held."""
    value = indicators.rsi(column(candles, "close"), period)[-1]
    below, above = f"below {low:g}", f"above {high:g}"
    where = below if value < low else above if value > high else f"between {low:g} and {high:g}"
    held = {1: f"; long since it was {below}", -1: f"; short since it was {above}", 0: ""}[target]
    return f"RSI({period}) is {value:.1f}, {where}{held if low <= value <= high else ''}"


def of_macd(candles: pd.DataFrame, target: int, fast: int, slow: int, signal: int) -> str:
    """The line and its signal."""
    line, smooth, _ = (values[-1] for values in indicators.macd(column(candles, "close"), fast, slow, signal))
    where = "above" if line > smooth else "not above"
    return f"MACD({fast}, {slow}) {line:.4g} is {where} its signal {smooth:.4g}"


def of_bollinger(candles: pd.DataFrame, target: int, period: int, width: float) -> str:
    """The close, the band it is beyond or the middle it is held for."""
    close = column(candles, "close")
    upper, middle, lower = (values[-1] for values in indicators.bollinger(close, period, width))
    price, bands = close[-1], f"Bollinger({period}, {width:g})"
    if price < lower:
        return f"close {price:.6g} is below the lower band {lower:.6g} of {bands}"
    if price > upper:
        return f"close {price:.6g} is above the upper band {upper:.6g} of {bands}"
    inside = f"close {price:.6g} is within {lower:.6g} and {upper:.6g} of {bands}"
    side = {1: "long since it was below", -1: "short since it was above", 0: ""}[target]
    return f"{inside}; {side}, until the middle {middle:.6g}" if side else inside


def of_volume(candles: pd.DataFrame, target: int, period: int, ratio: float) -> str:
    """On-balance volume and the last bar's volume, each against its average."""
    traded = column(candles, "volume")
    flow = indicators.obv(column(candles, "close"), traded)
    average, usual = indicators.sma(flow, period)[-1], indicators.sma(traded, period)[-1]
    where = "above" if flow[-1] > average else "not above"
    loud = "above" if traded[-1] > ratio * usual else "not above"
    return (
        f"on-balance volume {flow[-1]:.6g} is {where} its average of {period} bars {average:.6g}; "
        f"volume {traded[-1]:.4g} is {loud} {ratio:g} times its average {usual:.4g}"
    )


def of_breakout(candles: pd.DataFrame, target: int, entry: int, exit: int, atr: int, stop: float) -> str:
    """The close, the channel it broke, and the level that ends the position."""
    close = column(candles, "close")[-1]
    high, low = column(candles, "high")[:-1], column(candles, "low")[:-1]
    top, bottom = high[-entry:].max(), low[-entry:].min()
    if close > top:
        return f"close {close:.6g} is above the high {top:.6g} of the {entry} bars before"
    if close < bottom:
        return f"close {close:.6g} is below the low {bottom:.6g} of the {entry} bars before"
    inside = f"close {close:.6g} is within {bottom:.6g} and {top:.6g} of the {entry} bars before"
    if target > 0:
        return f"{inside}; long since it was above, until below {low[-exit:].min():.6g}"
    if target < 0:
        return f"{inside}; short since it was below, until above {high[-exit:].max():.6g}"
    return inside


def of_combination(candles: pd.DataFrame, target: int, trend: float, reversion: float, threshold: float) -> str:
    """Every vote, and the score."""
    weights = voters(trend, reversion)
    last = {name: int(values[-1]) for name, values in votes(candles, trend, reversion).items()}
    score = sum(weights[name] * vote for name, vote in last.items()) / sum(weights.values())
    said = ", ".join(f"{name} {vote:+d}" for name, vote in last.items())
    return f"the vote is {score:+.2f} and {threshold:g} is needed: {said}"
