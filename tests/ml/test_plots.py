"""Pictures: they are written, and the same evaluation gives the same picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ml.evaluation import FoldScore, Scores
from ml.plots import evaluation_picture, fold_losses


def test_the_picture_is_a_png_and_repeats(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    fold = FoldScore("baseline", 1, 1_577_836_800_000, 1_580_000_000_000, 9, 9, 1.0, 0.5, None, None, None, 0)
    folds = (fold, replace(fold, fold=2, log_loss=1.1))
    scores = [Scores("baseline", folds), Scores("x", tuple(replace(one, estimator="x") for one in folds))]
    probabilities, classes = random.dirichlet((1, 1, 1), 300), random.integers(-1, 2, 300)
    one, two = (
        evaluation_picture(scores, probabilities, classes, "t", tmp_path / f"{name}.png", "simulated").read_bytes()
        for name in "ab"
    )
    assert one.startswith(b"\x89PNG")
    assert len(one) > 10_000
    assert one == two
    changed = [scores[0], Scores("x", tuple(replace(one, log_loss=0.7) for one in scores[1].folds))]
    third = evaluation_picture(changed, probabilities, classes, "t", tmp_path / "c.png", "simulated").read_bytes()
    assert third != one
    bars = [fold_losses(scores, "t", tmp_path / f"{mode}.png", mode).read_bytes() for mode in ("live", "simulated")]
    assert all(picture.startswith(b"\x89PNG") for picture in bars)
    assert bars[0] != bars[1]  # the data mode stands in the picture
