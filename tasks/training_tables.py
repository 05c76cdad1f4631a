"""A training in tables for people: what the reports in Prefect and the pages of MLflow show of it.

Rows are mappings of texts, ready for ``tasks.reports.markdown_table``; a figure that is not defined is empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

SHOWN: Final = ("log_loss", "skill", "auc", "hit_rate", "total_return", "sharpe", "max_drawdown", "trades")
# the log loss of a rule that is always sure of itself: no figure to compare
_SURE: Final = 3.0


def side_by_side(scores: Sequence[Mapping[str, Any]], winner: str = "") -> list[dict[str, str]]:
    """One row per estimator of what is ``SHOWN``; the winner's is bold.

    Args:
        scores: as in ``tasks.training.Trained``.
    """
    return [
        _bold({"estimator": row["estimator"]} | {_title(name): _cell(name, row) for name in SHOWN}, winner)
        for row in scores
    ]


def fold_losses(folds: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """One row per fold, and in it the log loss of each estimator that gives probabilities.

    Args:
        folds: one per estimator and fold, as in ``tasks.training.Trained``.
    """
    rows: dict[int, dict[str, str]] = {}
    for one in folds:
        heads = {
            "fold": str(one["fold"]),
            "tested from": _day(one["test_start"]),
            "to": _day(one["test_end"]),
            "rows": f"{one['test_rows']:,}",
            "trained on": f"{one['train_rows']:,}",
        }
        row = rows.setdefault(one["fold"], heads)
        if one["log_loss"] < _SURE:
            row[one["estimator"]] = f"{one['log_loss']:.4f}"
    return list(rows.values())


def path_spreads(paths: Sequence[Mapping[str, Any]], winner: str) -> list[dict[str, str]]:
    """One row per estimator with its least, median and largest figure over the combinatorial paths.

    Args:
        paths: as in ``tasks.training.Trained``.
    """
    return [
        _bold(
            {
                "estimator": row["estimator"],
                "log loss": _span(row, "log_loss", ".4f") if row["log_loss_max"] < _SURE else "",
                "Sharpe": _span(row, "sharpe", ".2f") if "sharpe_min" in row else "",
                "paths with a profit": f"{row['profitable']:.0%}",
            },
            winner,
        )
        for row in paths
    ]


def _bold(row: dict[str, str], winner: str) -> dict[str, str]:
    if row["estimator"] != winner:
        return row
    return {name: f"**{value}**" if value else "" for name, value in row.items()}


def _cell(name: str, row: Mapping[str, Any]) -> str:
    value: float | None = row.get(name)
    if value is None or (name in {"log_loss", "skill"} and row.get("log_loss", 0.0) > _SURE):
        return ""
    if name == "skill":
        return f"{value:+.2%}"
    if name in {"hit_rate", "total_return", "max_drawdown"}:
        return f"{value:.1%}"
    return f"{value:.4f}" if name == "log_loss" else f"{value:,.0f}" if name == "trades" else f"{value:.2f}"


def _span(row: Mapping[str, Any], name: str, form: str) -> str:
    return " · ".join(format(row[f"{name}_{which}"], form) for which in ("min", "median", "max"))


def _title(name: str) -> str:
    return {"auc": "AUC", "sharpe": "Sharpe"}.get(name, name.replace("_", " "))


def _day(stamp_ms: int) -> str:
    return f"{datetime.fromtimestamp(stamp_ms / 1000, tz=UTC):%Y-%m-%d}"
