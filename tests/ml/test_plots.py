"""Pictures: they are written, say what data they show, and the same evaluation gives the same picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ml.evaluation import FoldScore, Scores
from ml.plots import drift_chart, fold_equity, fold_losses, importance_chart, reliability_curve

Draw = Callable[[Path, str], Path]


def scores(loss: float = 1.1) -> list[Scores]:
    fold = FoldScore("baseline", 1, 1_577_836_800_000, 1_580_000_000_000, 9, 9, 1.0, 0.5, None, None, None, 0)
    folds = (fold, replace(fold, fold=2, log_loss=loss))
    return [Scores(name, tuple(replace(one, estimator=name) for one in folds)) for name in ("baseline", "x")]


def returns(seed: int) -> pd.Series:
    index = pd.date_range("2020-01-01", periods=300, freq="h", tz="UTC", unit="ms")
    return pd.Series(np.random.default_rng(seed).normal(0, 0.01, 300), index=index)


def reliabilities(path: Path, mode: str) -> Path:
    random = np.random.default_rng(0)
    return reliability_curve(random.dirichlet((1, 1, 1), 300), random.integers(-1, 2, 300), "t", path, mode)


def importances(path: Path, mode: str) -> Path:
    table = pd.DataFrame({"importance": [0.02, -0.001], "deviation": [0.001, 0.002]}, index=["rsi", "roc"])
    return importance_chart(table, {"rsi": 3.0, "other": 1.0}, "t", path, mode)


def equities(path: Path, mode: str) -> Path:
    lines = {"lightgbm": returns(1), "late": returns(2).iloc[100:]}
    return fold_equity(lines, returns(3), "t", path, mode, fold_starts=[1_577_836_800_000, 1_578_200_000_000])


def drifts(path: Path, mode: str) -> Path:
    return drift_chart({"rsi": 0.4, "roc": 0.15, "atr": 0.0}, {"rsi": 0.3, "roc": 0.2, "atr": 0.2}, "t", path, mode)


@pytest.mark.parametrize("draw", [reliabilities, importances, equities, drifts])
def test_the_picture_is_a_png(tmp_path: Path, draw: Draw) -> None:
    picture = draw(tmp_path / "a.png", "sample").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 5_000


def test_a_picture_says_what_data_it_shows(tmp_path: Path) -> None:
    live, sample = (drifts(tmp_path / f"{mode}.png", mode).read_bytes() for mode in ("live", "sample"))
    assert live != sample


def test_the_same_scores_give_the_same_picture_and_others_another(tmp_path: Path) -> None:
    one, two, other = (
        fold_losses(scores(loss), "t", tmp_path / f"{name}.png", "simulated").read_bytes()
        for name, loss in (("a", 1.1), ("b", 1.1), ("c", 0.7))
    )
    assert one == two
    assert one != other


def test_extremes_are_drawn_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    sure = replace(scores()[0].folds[0], estimator="hold", log_loss=9.0)
    fold_losses([*scores(), Scores("hold", (sure, replace(sure, fold=2)))], "t", tmp_path / "a.png", "live")
    fold_equity({}, returns(1) * 0, "t", tmp_path / "b.png", "live")
    drift_chart({"rsi": 0.0}, {"rsi": 0.1}, "t", tmp_path / "c.png", "live")
    assert [str(warning.message) for warning in recwarn] == []
