"""A picture of how good analysts were: what they earned, and whether they were as sure as they could be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ml.plots import _COLOURS, _INK, _figure, _style
from trading.pictures import write_png

if TYPE_CHECKING:
    from trading.scoring import Score

_WIDE = 1.96


def analyst_chart(scores: Mapping[str, Score], title: str, path: Path, data_mode: str) -> Path:
    """Write a PNG of the profit of each analyst with its 95 % interval, and of its hit rate by confidence.

    Args:
        scores: by analyst; those without a signal are left out.
    """
    drawn = {name: one for name, one in scores.items() if one.profit is not None}
    figure = _figure(title, data_mode, width=11)
    earned, sure = figure.subplots(1, 2)
    for at, (name, one) in enumerate(drawn.items()):
        colour = _COLOURS[at % len(_COLOURS)]
        error = _WIDE * one.profit_error * 100 if one.profit_error is not None else 0.0
        earned.errorbar([100 * (one.profit or 0.0)], [at], xerr=[[error], [error]], fmt="o", color=colour, capsize=3)
        places = [bucket.confidence for bucket in one.buckets]
        sure.plot(places, [bucket.hit_rate for bucket in one.buckets], "o-", color=colour, label=name, markersize=4)
    earned.axvline(0, color=_INK, linewidth=0.8)
    earned.set_yticks(range(len(drawn)), [f"{name} ({one.signals})" for name, one in drawn.items()])
    earned.invert_yaxis()
    sure.plot([0, 1], [0, 1], "--", color=_INK, linewidth=0.8)
    sure.set_xlim(0, 1)
    sure.set_ylim(0, 1)
    _style(earned, "Profit of a signal after costs, 95 % interval", "%", "", legend=False, along="x")
    _style(
        sure, "Hit rate by confidence; on the line is as sure as right", "confidence", "hit rate", legend=bool(drawn)
    )
    return write_png(figure, path)
