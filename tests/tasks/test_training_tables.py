"""Tables of a training: what is not defined is empty, what cannot be compared is left out, the winner stands out."""

from __future__ import annotations

from tasks import reports
from tasks.training_tables import fold_losses, path_spreads, side_by_side

DAY = 86_400_000


def test_every_estimator_has_the_same_columns_whatever_the_first_one_lacks() -> None:
    rows = side_by_side(
        [
            {"estimator": "baseline", "log_loss": 1.0555, "skill": 0.0, "total_return": 0.0, "trades": 0.0},
            {"estimator": "neutral", "log_loss": 36.04, "skill": -33.0, "trades": 0.0},
            {"estimator": "hold", "log_loss": 3.99, "skill": -2.85, "trades": 1.0},
            {"estimator": "logistic", "log_loss": 1.02983, "skill": 0.02432, "hit_rate": 0.553, "sharpe": 0.284,
             "auc": 0.5612, "total_return": 0.417, "max_drawdown": -0.2791, "trades": 1390.0},
        ],
        "logistic",
    )  # fmt: skip
    assert reports.markdown_table(rows).splitlines() == [
        "| estimator | log loss | skill | AUC | hit rate | total return | Sharpe | max drawdown | trades |",
        "|---|---|---|---|---|---|---|---|---|",
        "| baseline | 1.0555 | +0.00% |  |  | 0.0% |  |  | 0 |",
        "| neutral |  |  |  |  |  |  |  | 0 |",
        "| hold |  |  |  |  |  |  |  | 1 |",
        "| **logistic** | **1.0298** | **+2.43%** | **0.56** | **55.3%** | **41.7%** | **0.28** | **-27.9%** | "
        "**1,390** |",
    ]


def test_a_fold_is_a_row_and_an_estimator_without_probabilities_is_no_column() -> None:
    spans = {"test_rows": 1200, "train_rows": 2400}
    rows = fold_losses(
        [
            {"estimator": name, "fold": fold, "test_start": fold * 10 * DAY, "test_end": (fold + 1) * 10 * DAY,
             "log_loss": loss, **spans}
            for name, loss in (("baseline", 1.05), ("neutral", 36.0), ("logistic", 1.01))
            for fold in (1, 2)
        ]
    )  # fmt: skip
    shown = {"rows": "1,200", "trained on": "2,400", "baseline": "1.0500", "logistic": "1.0100"}
    assert rows == [
        {"fold": "1", "tested from": "1970-01-11", "to": "1970-01-21", **shown},
        {"fold": "2", "tested from": "1970-01-21", "to": "1970-01-31", **shown},
    ]


def test_a_spread_is_least_median_and_largest() -> None:
    loss = {"log_loss_min": 0.91, "log_loss_median": 0.92, "log_loss_max": 0.93}
    sharpe = {"sharpe_min": -0.5, "sharpe_median": 0.25, "sharpe_max": 1.0}
    assert path_spreads(
        [
            {"estimator": "hold", "profitable": 0.4, **dict.fromkeys(loss, 30.0), **sharpe},
            {"estimator": "baseline", "profitable": 0.0, **loss},
            {"estimator": "lightgbm", "profitable": 0.8, **loss, **sharpe},
        ],
        "lightgbm",
    ) == [
        {"estimator": "hold", "log loss": "", "Sharpe": "-0.50 · 0.25 · 1.00", "paths with a profit": "40%"},
        {"estimator": "baseline", "log loss": "0.9100 · 0.9200 · 0.9300", "Sharpe": "", "paths with a profit": "0%"},
        {"estimator": "**lightgbm**", "log loss": "**0.9100 · 0.9200 · 0.9300**",
         "Sharpe": "**-0.50 · 0.25 · 1.00**", "paths with a profit": "**80%**"},
    ]  # fmt: skip
