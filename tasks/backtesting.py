"""Backtests: the champion, the rules and buy-and-hold over approved candles, logged and drawn.

All strategies of a symbol trade the same bars: those for which the champion has an out-of-sample
signal (see ``tasks.models.unseen_targets``), or all of them where there is no champion.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from prefect import task

from tasks import log, mlflow_pages, progress, registry
from tasks.datasets import Dataset, load
from tasks.models import Champion, champion, unseen_targets
from tasks.retry import REGISTRY, prefect_options
from tasks.settings import Settings, load_settings
from tasks.store import Store, configured_store, get_result, put_result
from tasks.training import model_name
from trading.calendars import bars_per_year
from trading.errors import InsufficientHistory, ModelNotFound

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

    from trading.backtest.engine import BacktestResult

RULE_NAMES: Final = ("rsi", "macd")
MINIMUM_BARS: Final = 100


@dataclass(frozen=True)
class BacktestRequest:
    """Costs per side, and the cash each strategy starts with, in the quote currency."""

    fee_rate: float
    slippage_rate: float
    cash: float


@dataclass(frozen=True)
class Backtested:
    """What a backtest run found: one row per symbol and strategy."""

    rows: list[dict[str, Any]]
    absent: list[str]
    run_id: str
    run_link: str
    pictures: list[str]
    data_mode: str
    reused: bool


def request_key(dataset: Dataset, request: BacktestRequest, chosen: Champion | None) -> str:
    """Names a backtest: equal keys give equal results."""
    from ml.artifact import code_digest

    parts = [
        sorted(dataset.symbols),
        dataset.digest,
        asdict(request),
        RULE_NAMES,
        chosen.manifest_sha256 if chosen is not None else None,
        code_digest(),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def backtest(
    store: Store,
    settings: Settings,
    client: MlflowClient,
    dataset: Dataset,
    request: BacktestRequest,
    *,
    now: datetime,
    flow_run_id: str | None,
) -> Backtested:
    """Run every strategy on every symbol, log a run in MLflow with a child per pair, and draw the curves.

    An identical request returns the stored result.

    Raises:
        InsufficientHistory: fewer than ``MINIMUM_BARS`` bars are left to trade for a symbol.
    """
    name = model_name(dataset.symbols, dataset.timeframe)
    chosen: Champion | None = None
    absent: list[str] = []
    try:
        chosen = champion(client, settings, name, store=store, now=now)
        absent = [chosen.degraded] if chosen.degraded else []
    except ModelNotFound as error:
        # the rules are worth a backtest of their own; the result names who was missing
        absent = [str(error)]
    key = request_key(dataset, request, chosen)
    stored = get_result(store, key)
    if stored is not None and registry.run_exists(client, stored["run_id"]):
        return Backtested(**{**stored, "reused": True})

    frames = load(store, dataset)
    results: dict[str, dict[str, BacktestResult]] = {}
    for done, symbol in enumerate(dataset.symbols):
        progress.report(f"backtest {dataset.timeframe.value}", done, len(frames))
        results[symbol] = run_symbol(client, chosen, symbol, frames[symbol], request)
    progress.report(f"backtest {dataset.timeframe.value}", len(frames), len(frames))
    found = _publish(settings, client, dataset, request, results, absent, key, now, flow_run_id)
    put_result(store, key, "backtest", asdict(found), now)
    return found


def run_symbol(
    client: MlflowClient, chosen: Champion | None, symbol: str, candles: pd.DataFrame, request: BacktestRequest
) -> dict[str, BacktestResult]:
    """Every strategy on the bars of one symbol that all of them may trade."""
    from trading.backtest.engine import Costs, run
    from trading.strategies import RULES, buy_and_hold

    # rules are computed on the whole history, so that their warm-up does not eat the traded span
    targets = {name: RULES[name](candles) for name in RULE_NAMES}
    first = 0
    if chosen is not None:
        targets["champion"], first = unseen_targets(client, chosen, symbol, candles)
    traded = candles.iloc[first:]
    if len(traded) < MINIMUM_BARS:
        raise InsufficientHistory(
            f"{symbol} has {len(traded)} bars to backtest and {MINIMUM_BARS} are needed; use a longer window"
        )
    costs = Costs(request.fee_rate, request.slippage_rate)
    named = {name: target[first:] for name, target in targets.items()} | {"buy_and_hold": buy_and_hold(traded)}
    order = [name for name in ("champion", *RULE_NAMES, "buy_and_hold") if name in named]
    return {name: run(traded, named[name], costs, cash=request.cash, strategy=name) for name in order}


def _publish(
    settings: Settings,
    client: MlflowClient,
    dataset: Dataset,
    request: BacktestRequest,
    results: dict[str, dict[str, BacktestResult]],
    absent: list[str],
    key: str,
    now: datetime,
    flow_run_id: str | None,
) -> Backtested:
    from trading.backtest.metrics import summarise
    from trading.backtest.plots import equity_picture

    timeframe = dataset.timeframe
    name = model_name(dataset.symbols, timeframe)
    at_ms = int(now.timestamp() * 1000)
    folder = settings.home / "reports" / "backtest" / f"{name}-{key[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        (symbol, strategy): _defined(summarise(result, bars_per_year(timeframe, dataset.calendars[symbol])))
        for symbol, by_strategy in results.items()
        for strategy, result in by_strategy.items()
    }
    pictures = [
        equity_picture(by_strategy, f"{symbol} {timeframe.value}", folder / f"{symbol}.png", dataset.data_mode)
        for symbol, by_strategy in results.items()
    ]
    tags = {
        "data_mode": dataset.data_mode,
        "dataset_digest": dataset.digest,
        "request_key": key,
        "timeframe": timeframe.value,
        "symbols": ",".join(dataset.symbols),
        "prefect_flow_run": flow_run_id or "",
    }
    experiment = registry.experiment_id(client, settings, f"backtest {name}")
    means = {
        f"{strategy}.mean_return": sum(results[symbol][strategy].total_return for symbol in results) / len(results)
        for strategy in next(iter(results.values()))
    }
    record = registry.Record(f"backtest {now:%Y-%m-%d %H:%M}", asdict(request), means, tags, pictures)
    parent = registry.log_run(client, experiment, record, at_ms=at_ms, finish=False)
    try:
        for (symbol, strategy), row in figures.items():
            child = registry.Record(
                f"{symbol} {strategy}",
                {"strategy": strategy, "symbol": symbol},
                {metric: float(value) for metric, value in row.items() if isinstance(value, int | float)},
                tags,
            )
            registry.log_run(client, experiment, child, at_ms=at_ms, parent=parent)
    except BaseException:
        registry.finish_run(client, parent, failed=True)
        raise
    registry.finish_run(client, parent)
    return Backtested(
        rows=[{"symbol": symbol, "strategy": strategy, **row} for (symbol, strategy), row in figures.items()],
        absent=absent,
        run_id=parent,
        run_link=mlflow_pages.run_link(settings, experiment, parent),
        pictures=[str(path) for path in pictures],
        data_mode=dataset.data_mode,
        reused=False,
    )


def _defined(figures: dict[str, float | int | str]) -> dict[str, float | int | str | None]:
    """Figures with None for those that are not defined: a document and JSON hold no NaN."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in figures.items()}


# --- Prefect tasks -------------------------------------------------------------------------------


@task(name="backtest-strategies", **prefect_options(REGISTRY))
def backtest_task(dataset: Dataset, request: BacktestRequest, now: datetime) -> Backtested:
    """``backtest`` on the configured store and registry."""
    settings = load_settings()
    with log.about(symbols=",".join(dataset.symbols)), configured_store(settings) as store:
        client = registry.connect(settings)
        found = backtest(store, settings, client, dataset, request, now=now, flow_run_id=log.flow_run_id())
        log.logger().info("backtested", rows=len(found.rows), reused=found.reused)
        return found
