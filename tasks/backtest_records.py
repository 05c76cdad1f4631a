"""What a backtest leaves for people: MLflow runs, pages, pictures and tables, and the result that flows return.

In MLflow a request is a parent run with the table of everything that was tried, and has a child for each symbol
and strategy with the best of its parameters; the tag ``kind`` tells them apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tasks import mlflow_pages, registry
from tasks.backtest_leaders import EVERYWHERE, Leaderboard
from tasks.backtest_requests import BacktestRequest
from tasks.backtest_runs import required
from tasks.backtest_studies import Drawing, Study, page_of
from tasks.datasets import Dataset
from tasks.settings import Settings
from tasks.store import Store
from tasks.training import model_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

VIEW: Final = "strategies"
LEADERS: Final = 50  # rows of the leaderboard that a result holds; MLflow has all
# of each strategy, named alike in every backtest, so that runs can be compared
COMPARED: Final = (
    "total_return", "annual_return", "sharpe", "sharpe_error", "deflated_sharpe", "sortino", "calmar", "max_drawdown",
    "volatility", "exposure", "turnover", "trades", "win_rate", "profit_factor", "cost_of_start", "alpha", "beta",
)  # fmt: skip


@dataclass(frozen=True)
class Backtested:
    """What a backtest found.

    Attributes:
        rows: per symbol and strategy, with the best of its parameters: ``symbol``, ``strategy``, ``parameters``, the
            figures of ``trading.backtest.metrics.summarise`` at the costs asked for, and their 95 % intervals
            (``sharpe_low``); None for what is not defined. Buy-and-hold is the last of each symbol.
        absent: in words, models that were asked for and that there are not.
        pictures, pages: PNG and HTML files, in the order of symbols and of rows.
        page_links: of each row, where MLflow shows its page.
        leaderboard: the best of everything that was tried, at every multiple of the costs.
        luck: per symbol, and over all of them, ``ml.overfitting.Overfitting`` of the best as a mapping.
        robustness: per row but for buy-and-hold: returns at other costs and a bar late, and a verdict in words.
        months: per row and year, the return of each month.
        trials: how many strategies and parameter sets were tried, times symbols, times multiples of the costs.
        reused: an identical request had been answered before, and nothing was run.
        batches, computed: of the plan, and those of them that were not in the store already.
        key: names the request: equal keys, equal results.
    """

    rows: list[dict[str, Any]]
    absent: list[str]
    run_id: str
    run_link: str
    pictures: list[str]
    data_mode: str
    reused: bool
    pages: list[str] = field(default_factory=list)
    page_links: list[str] = field(default_factory=list)
    leaderboard: list[dict[str, Any]] = field(default_factory=list)
    luck: list[dict[str, Any]] = field(default_factory=list)
    robustness: list[dict[str, Any]] = field(default_factory=list)
    months: list[dict[str, Any]] = field(default_factory=list)
    trials: int = 0
    batches: int = 0
    computed: int = 0
    key: str = ""


@dataclass(frozen=True)
class Finished:
    """Everything that was run for a request, ready to be published."""

    key: str
    code: str
    dataset: Dataset
    request: BacktestRequest
    board: Leaderboard
    studies: Sequence[Study]
    drawings: Sequence[Drawing]
    absent: Sequence[str]
    batches: int
    computed: int


def publish(
    store: Store, settings: Settings, client: MlflowClient, done: Finished, *, now: datetime, flow_run_id: str | None
) -> Backtested:
    """Write the files, log the runs, and say what was found.

    Raises:
        StoreError: the store lacks a study or a drawing.
    """
    dataset = done.dataset
    name = model_name(dataset.symbols, dataset.timeframe)
    folder = settings.home / "reports" / "backtest" / f"{name}-{done.key[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    at_ms = int(now.timestamp() * 1000)
    pictures = []
    for drawing in done.drawings:
        path = folder / f"{plain(drawing.symbol)}.png"
        path.write_bytes(required(store, drawing.key, drawing.name)["picture"])
        pictures.append(path)
    experiment = registry.experiment_id(client, settings, f"backtest {name}")
    tags = {
        "data_mode": dataset.data_mode,
        "dataset_digest": dataset.digest,
        "code_digest": done.code,
        "request_key": done.key,
        "timeframe": dataset.timeframe.value,
        "symbols": ",".join(dataset.symbols)[:5_000],
        "prefect_flow_run": flow_run_id or "",
    }
    rows, pages, links, months, robustness = [], [], [], [], []
    found = [required(store, study.key, study.name) for study in done.studies]
    record = registry.Record(
        f"backtest {now:%Y-%m-%d %H:%M}",
        _params(done.request),
        _of_all([one["row"] for one in found], done.board.luck),
        {**tags, "kind": "request"},
        [*pictures, _trials(done.board, folder / "trials.parquet"), _table(found, folder / "strategies.csv")],
    )
    parent = registry.log_run(client, experiment, record, at_ms=at_ms, finish=False)
    try:
        for study, one in zip(done.studies, found, strict=True):
            row = one["row"]
            page = folder / f"{plain(row['symbol'])}-{plain(row['strategy'])}.html"
            page.write_text(page_of(one), encoding="utf-8")
            child = registry.Record(
                f"{row['symbol']} {row['strategy']}",
                {"strategy": row["strategy"], "symbol": row["symbol"], "parameters": row["parameters"]},
                {metric: float(row[metric]) for metric in COMPARED if row.get(metric) is not None},
                {**tags, "kind": "strategy", "result_key": study.key, "symbols": row["symbol"]},
                [page],
            )
            run_id = registry.log_run(client, experiment, child, at_ms=at_ms, parent=parent)
            rows.append(row)
            pages.append(str(page))
            links.append(mlflow_pages.run_link(settings, experiment, run_id, page.name))
            months += one["months"]
            robustness += [one["robustness"]] if one["robustness"] else []
        mlflow_pages.share_view(client, experiment, VIEW, kind="strategy", metrics=COMPARED[:8])
    except BaseException:
        registry.finish_run(client, parent, failed=True)
        raise
    registry.finish_run(client, parent)
    return Backtested(
        rows=rows,
        absent=list(done.absent),
        run_id=parent,
        run_link=mlflow_pages.run_link(settings, experiment, parent),
        pictures=[str(path) for path in pictures],
        data_mode=dataset.data_mode,
        reused=False,
        pages=pages,
        page_links=links,
        leaderboard=done.board.trials[:LEADERS],
        luck=done.board.luck,
        robustness=robustness,
        months=months,
        trials=len(done.board.trials),
        batches=done.batches,
        computed=done.computed,
        key=done.key,
    )


def plain(text: str) -> str:
    """A text as part of a file's name, or of a metric's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")


def _params(request: BacktestRequest) -> dict[str, object]:
    """What was asked for: the costs, what to try, and of the other rules those that are not the usual ones."""
    from trading.backtest.rules import Rules

    usual, asked = asdict(Rules()), asdict(request.rules)
    groups = [name for name, value in asked.items() if isinstance(value, dict)]
    return {
        "strategies": ", ".join(request.strategies)[:5_000],
        "sweep": request.sweep,
        "cost_factors": ", ".join(f"{factor:g}" for factor in request.cost_factors),
        "cash": request.rules.cash,
        "fee_rate": request.rules.costs.fee_rate,
        "slippage_rate": request.rules.costs.slippage_rate,
        **{
            name: value
            for group in groups
            for name, value in asked[group].items()
            if value != usual[group][name] and name not in {"fee_rate", "slippage_rate"}
        },
    }


def _of_all(rows: Sequence[Mapping[str, Any]], luck: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of the parent run: the mean return of each strategy, and the luck of the best over all symbols."""
    found: dict[str, float] = {}
    for label in dict.fromkeys(row["strategy"] for row in rows):
        returns = [row["total_return"] for row in rows if row["strategy"] == label]
        found[f"{plain(label)}.mean_return"] = sum(returns) / len(returns)
    over = [one for one in luck if one["symbol"] == EVERYWHERE] or list(luck)
    names = ("trials", "deflated_sharpe", "pbo", "spa")
    return found | {name: float(over[0][name]) for name in names if over and over[0][name] is not None}


def _trials(board: Leaderboard, path: Path) -> Path:
    """Everything that was tried, as one table."""
    import pandas as pd

    pd.DataFrame(board.trials).to_parquet(path, index=False)
    return path


def _table(found: Sequence[Mapping[str, Any]], path: Path) -> Path:
    import pandas as pd

    pd.DataFrame([one["row"] for one in found]).to_csv(path, index=False)
    return path
