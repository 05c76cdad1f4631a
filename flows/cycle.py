"""Cycle: ingest, train, analyse and backtest in order, for one or several groups of symbols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from flows.analyse import analyse
from flows.backtest import backtest
from flows.ingest import IngestResult, ingest
from flows.parameters import Bar, Days, End, Folds, Horizon, Seed, Source, Symbols, form
from flows.train import train
from tasks.analysis_documents import Analysed
from tasks.backtesting import Backtested
from tasks.periods import run_moment
from tasks.training import Trained
from trading.window import Timeframe


class Group(BaseModel):
    """Symbols that share a timeframe and are learned together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    symbols: Symbols
    timeframe: Bar = Timeframe.H1
    days: Days = 730
    horizon: Horizon = 12


Groups = Annotated[
    list[Group],
    Field(min_length=1, max_length=100),
    form("Groups", "Symbols that share a timeframe and are learned together. Each is ingested, trained and tested."),
]


@dataclass(frozen=True)
class Cycled:
    """What one group's turn produced."""

    timeframe: str
    ingested: IngestResult
    trained: Trained
    analysed: list[Analysed]
    backtested: Backtested


@flow(name="cycle", flow_run_name="cycle", retries=0, persist_result=False)
def cycle(
    groups: Groups,
    source: Source = "exchange",
    end: End = None,
    folds: Folds = 4,
    seed: Seed = 7,
) -> list[Cycled]:
    """Run the main job for each group; the first failure ends the cycle Failed."""
    moment = end or run_moment()
    done = []
    for group in groups:
        symbols, timeframe = list(group.symbols), group.timeframe
        last = timeframe.floor(moment)
        ingested = ingest(symbols, timeframe, source=source, days=group.days, end=last)
        trained = train(symbols, timeframe, days=group.days, end=last, horizon=group.horizon, folds=folds, seed=seed)
        analysed = analyse(symbols, timeframe, days=group.days, end=last)
        backtested = backtest(symbols, timeframe, days=group.days, end=last)
        done.append(Cycled(timeframe.value, ingested, trained, analysed, backtested))
    return done
