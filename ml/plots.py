"""Pictures of an evaluation, drawn without a display and without pyplot's global state."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from ml.evaluation import Scores, reliability

_INK: Final = "#1f2937"
_GRID: Final = "#e5e7eb"
_COLOURS: Final = ("#94a3b8", "#2563eb", "#059669", "#d97706", "#7c3aed")
_SIDES: Final = (("Short", 0, -1, "#dc2626"), ("Neutral", 1, 0, "#94a3b8"), ("Long", 2, 1, "#059669"))


def fold_losses(scores: Sequence[Scores], title: str, path: Path, data_mode: str) -> Path:
    """Write a PNG of the log loss by fold and estimator; every entry of ``scores`` is over the same folds."""
    figure = _figure(title, data_mode, width=8)
    _fold_bars(figure.subplots(), scores)
    return _write(figure, path)


def evaluation_picture(
    scores: Sequence[Scores], probabilities: np.ndarray, classes: np.ndarray, title: str, path: Path, data_mode: str
) -> Path:
    """The same with the reliability of one estimator's probabilities at its right.

    Args:
        probabilities: out of sample, of -1, 0, +1: (n, 3); ``classes``: the true ones (n,).
    """
    figure = _figure(title, data_mode, width=12)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _fold_bars(left, scores)
    _reliability_curves(right, probabilities, classes)
    return _write(figure, path)


def _figure(title: str, data_mode: str, width: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.8), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title} ({data_mode} data)", color=_INK, fontsize=13, fontweight="bold")
    return figure


def _write(figure: Any, path: Path) -> Path:
    # without the software's name in it, equal evaluations give equal files
    figure.savefig(path, format="png", metadata={"Software": None})
    return path


def _fold_bars(axes: Any, scores: Sequence[Scores]) -> None:
    folds = scores[0].folds
    width = 0.8 / len(scores)
    for at, score in enumerate(scores):
        places = np.arange(len(folds)) + (at - (len(scores) - 1) / 2) * width
        losses = [fold.log_loss for fold in score.folds]
        axes.bar(places, losses, 0.92 * width, color=_COLOURS[at % len(_COLOURS)],
                 label=f"{score.estimator} (mean {score.log_loss:.4f})")  # fmt: skip
    every = [fold.log_loss for score in scores for fold in score.folds]
    room = max(max(every) - min(every), 0.01)
    axes.set_ylim(max(min(every) - room, 0), max(every) + 0.8 * room)
    axes.set_xticks(range(len(folds)), [f"{_day(fold.test_start)}\nto {_day(fold.test_end)}" for fold in folds])
    _style(axes, "Out-of-sample log loss by fold (lower is better, axis cut)", "", "log loss")


def _reliability_curves(axes: Any, probabilities: np.ndarray, classes: np.ndarray) -> None:
    top = 0.1
    for name, column, side, colour in _SIDES:
        points = reliability(probabilities[:, column], classes == side)
        axes.plot(points[:, 0], points[:, 1], "o-", color=colour, linewidth=1.6, markersize=4, label=name)
        top = max(top, float(points[:, :2].max()))
    top = min(1.0, 1.1 * top)
    axes.plot([0, top], [0, top], "--", color=_INK, linewidth=0.8, label="as often as said")
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    _style(axes, "Reliability", "probability said", "frequency seen")


def _style(axes: Any, title: str, across: str, up: str) -> None:
    axes.set_title(title, color=_INK, fontsize=10, loc="left")
    axes.set_xlabel(across, color=_INK, fontsize=9)
    axes.set_ylabel(up, color=_INK, fontsize=9)
    axes.tick_params(colors=_INK, labelsize=8, length=0)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _day(stamp_ms: int) -> str:
    return datetime.fromtimestamp(stamp_ms / 1000, tz=UTC).strftime("%Y-%m-%d")
