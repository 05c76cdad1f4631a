"""Pictures of an evaluation, drawn without a display and without pyplot's global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from ml.evaluation import Scores, reliability
from trading.pictures import write_png

_INK: Final = "#1f2937"
_GRID: Final = "#e5e7eb"
_COLOURS: Final = ("#94a3b8", "#2563eb", "#059669", "#d97706", "#7c3aed", "#db2777", "#0891b2", "#84cc16", "#92400e")
_RED: Final = "#dc2626"
_SIDES: Final = (("Short", 0, -1, _RED), ("Neutral", 1, 0, "#94a3b8"), ("Long", 2, 1, "#059669"))


def fold_losses(scores: Sequence[Scores], title: str, path: Path, data_mode: str) -> Path:
    """Write a PNG of the log loss by fold and estimator; every entry of ``scores`` is over the same folds."""
    figure = _figure(title, data_mode, width=10)
    _fold_bars(figure.subplots(), scores)
    return write_png(figure, path)


def reliability_curve(probabilities: np.ndarray, classes: np.ndarray, title: str, path: Path, data_mode: str) -> Path:
    """Write a PNG of how often each class came where it was said with a probability, and how often that was said.

    Args:
        probabilities: out of sample, of -1, 0, +1: (n, 3); ``classes``: the true ones (n,).
    """
    figure = _figure(title, data_mode, width=7, height=6.2)
    curves, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    top = 0.1
    for name, column, side, colour in _SIDES:
        points = reliability(probabilities[:, column], classes == side)
        error = np.sqrt(points[:, 1] * (1 - points[:, 1]) / points[:, 2])
        curves.errorbar(points[:, 0], points[:, 1], error, fmt="o-", color=colour, linewidth=1.6, markersize=4,
                        elinewidth=0.9, label=name)  # fmt: skip
        top = max(top, float(points[:, :2].max() + error.max()))
    top = min(1.0, 1.05 * max(top, float(np.quantile(probabilities, 0.999))))
    edges = np.linspace(0, top, 51)
    for _, column, _, colour in _SIDES:
        counts.hist(probabilities[:, column], edges, histtype="step", color=colour, linewidth=1.2)
    curves.plot([0, top], [0, top], "--", color=_INK, linewidth=0.8, label="as often as said")
    curves.set_xlim(0, top)
    curves.set_ylim(0, top)
    note = f"{len(classes):,} rows out of sample in ten bins of equal count, bars: one standard error"
    _style(curves, note, "", "frequency seen")
    _style(counts, "", "probability said", "rows", legend=False)
    return write_png(figure, path)


def importance_chart(
    permutation: pd.DataFrame, gain: Mapping[str, float] | None, title: str, path: Path, data_mode: str, most: int = 20
) -> Path:
    """Write a PNG of the features that matter most: by permutation out of sample, beside their gain in training.

    Args:
        permutation: of ``ml.importance.permutation_importance``.
        gain: by feature, in any unit; None for an estimator without splits.
        most: features to draw; the title says how many are left out.
    """
    shown = permutation.head(most).iloc[::-1]
    figure = _figure(title, data_mode, width=11 if gain is not None else 8, height=1.9 + 0.24 * len(shown))
    axes = figure.subplots(1, 2 if gain is not None else 1, sharey=True, squeeze=False)[0]
    places = np.arange(len(shown))
    axes[0].barh(places, 1000 * shown["importance"], 0.7, xerr=1000 * shown["deviation"], color=_COLOURS[1],
                 error_kw={"elinewidth": 0.9, "ecolor": _INK})  # fmt: skip
    axes[0].axvline(0, color=_INK, linewidth=0.8)
    axes[0].set_yticks(places, shown.index)
    kept = f"{len(shown)} of {len(permutation)} features"
    _style(axes[0], f"Shuffled out of sample ({kept}, bars: one deviation)",
           "rise of the log loss, thousandths", "", legend=False, along="x")  # fmt: skip
    if gain is not None:
        whole = sum(gain.values()) or 1.0
        axes[1].barh(places, [100 * gain.get(name, 0.0) / whole for name in shown.index], 0.7, color=_COLOURS[3])
        _style(axes[1], "Gain of the splits in training", "share of all gain, %", "", legend=False, along="x")
    return write_png(figure, path)


def fold_equity(
    returns: Mapping[str, pd.Series],
    pooled: pd.Series,
    title: str,
    path: Path,
    data_mode: str,
    *,
    fold_starts: Sequence[int] = (),
    pooled_name: str = "pooled",
) -> Path:
    """Write a PNG of equity: a thin line per entry of ``returns``, a thick one and its drawdown for ``pooled``.

    Args:
        returns: simple net returns per bar by name (estimator, symbol or fold), index UTC; each line
            starts at 100 where its returns start.
        pooled: the same of the whole (``ml.economics.Economics.returns``).
        fold_starts: ms UTC, drawn as vertical lines.
        pooled_name: what the thick line is called.
    """
    figure = _figure(title, data_mode, width=11, height=6.4)
    curves, falls = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for at, (name, each) in enumerate(returns.items()):
        times, growth = _growth(each)
        curves.plot(times, 100 * growth, color=_COLOURS[1:][at % (len(_COLOURS) - 1)], linewidth=1.0,
                    alpha=0.85, linestyle=("-", "--", ":")[at // (len(_COLOURS) - 1) % 3],
                    label=f"{name}  {growth[-1] - 1:+.1%}")  # fmt: skip
    times, growth = _growth(pooled)
    curves.plot(times, 100 * growth, color=_INK, linewidth=2.2, label=f"{pooled_name}  {growth[-1] - 1:+.1%}")
    depth = 100 * (growth / np.maximum.accumulate(growth) - 1)
    falls.fill_between(times, depth, 0, color=_RED, alpha=0.35, linewidth=0)
    curves.axhline(100, color=_INK, linewidth=0.7, linestyle=":")
    for axis in (curves, falls):
        for start in fold_starts:
            axis.axvline(np.datetime64(start, "ms"), color=_COLOURS[0], linewidth=0.8, linestyle="--")
        axis.margins(x=0.01)
    _dates(falls)
    note = " (dashed: a fold begins)" if len(fold_starts) else ""
    _style(curves, f"Equity out of sample, after costs{note}", "", "% of the start")
    _beside(curves)
    _style(falls, f"Drawdown of the thick line, at worst {depth.min():.1f} %", "", "%", legend=False)
    falls.set_ylim(min(1.1 * float(depth.min()), -1.0), 0)
    return write_png(figure, path)


def drift_chart(
    shifts: Mapping[str, float], limits: Mapping[str, float], title: str, path: Path, data_mode: str, *,
    act: float = 0.25, most: int = 25,
) -> Path:  # fmt: skip
    """Write a PNG of the features that are nearest to drift: their shift, and a mark at what is usual.

    Args:
        shifts: population stability index by feature, 0 or more.
        limits: what is usual of each, above 0; a feature has drifted above both its limit and ``act``.
        act: where a shift is large; conventionally 0.25.
        most: features to draw; the title says how many there are.
    """
    order = sorted(shifts, key=lambda name: (-shifts[name] / limits[name], name))
    shown = order[:most][::-1]
    drifted = {name for name in order if shifts[name] > max(limits[name], act)}
    figure = _figure(title, data_mode, width=8, height=1.9 + 0.24 * len(shown))
    axes = figure.subplots()
    colours = [_RED if name in drifted else _COLOURS[0] for name in shown]
    axes.barh(range(len(shown)), [shifts[name] for name in shown], 0.7, color=colours)
    axes.plot([limits[name] for name in shown], range(len(shown)), "|", color=_INK, markersize=11,
              markeredgewidth=1.8, label="usual up to")  # fmt: skip
    axes.set_yticks(range(len(shown)), shown)
    axes.axvline(act, color=_INK, linewidth=0.9, linestyle="--", label=f"large from {act:g}")
    axes.set_xlim(0, 1.08 * max([act, *(max(shifts[name], limits[name]) for name in shown)]))
    _style(axes, f"{len(drifted)} of {len(shifts)} features drifted ({len(shown)} nearest to their limits shown)",
           "population stability index against training", "", along="x")  # fmt: skip
    _beside(axes)
    return write_png(figure, path)


def _figure(title: str, data_mode: str, width: float, height: float = 4.8) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title} ({data_mode} data)", color=_INK, fontsize=13, fontweight="bold")
    return figure


def _fold_bars(axes: Any, scores: Sequence[Scores]) -> None:
    folds = scores[0].folds
    # a constant that is sure of itself costs several times as much, and would press all others flat
    drawn = [score for score in scores if score.log_loss <= 1.5 * min(each.log_loss for each in scores)]
    width = 0.8 / len(drawn)
    for at, score in enumerate(drawn):
        places = np.arange(len(folds)) + (at - (len(drawn) - 1) / 2) * width
        losses = [fold.log_loss for fold in score.folds]
        axes.bar(places, losses, 0.92 * width, color=_COLOURS[at % len(_COLOURS)],
                 label=f"{score.estimator} (mean {score.log_loss:.4f})")  # fmt: skip
    for score in scores:
        if score not in drawn:
            axes.plot([], [], " ", label=f"{score.estimator} (mean {score.log_loss:.1f}, off the axis)")
    every = [fold.log_loss for score in drawn for fold in score.folds]
    room = max(max(every) - min(every), 0.01)
    axes.set_ylim(max(min(every) - room, 0), max(every) + 0.2 * room)
    axes.set_xticks(range(len(folds)), [f"{_day(fold.test_start)}\nto {_day(fold.test_end)}" for fold in folds])
    _style(axes, "Out-of-sample log loss by fold (lower is better, axis cut)", "", "log loss", legend=False)
    _beside(axes)


def _style(axes: Any, title: str, across: str, up: str, *, legend: bool = True, along: str = "y") -> None:
    axes.set_title(title, color=_INK, fontsize=10, loc="left")
    axes.set_xlabel(across, color=_INK, fontsize=9)
    axes.set_ylabel(up, color=_INK, fontsize=9)
    axes.tick_params(colors=_INK, labelsize=8, length=0)
    axes.grid(axis=along, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    if legend:
        axes.legend(frameon=False, fontsize=8, loc="upper left")


def _beside(axes: Any) -> None:
    """The legend at the right of the axes, where no line runs through it."""
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _growth(returns: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    times = pd.DatetimeIndex(returns.index).tz_localize(None).to_numpy()
    return times, np.cumprod(1 + returns.to_numpy(dtype=np.float64))


def _dates(axes: Any) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _day(stamp_ms: int) -> str:
    return datetime.fromtimestamp(stamp_ms / 1000, tz=UTC).strftime("%Y-%m-%d")
