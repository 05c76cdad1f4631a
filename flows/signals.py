"""Signals: what a program asks for now: the analysis of some symbols, without a schedule in its way."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.analyse import AT_ONCE, analyse
from flows.parameters import Bar, Days, End, Refresh, Symbols, form
from tasks.analysis_documents import Analysed
from trading.window import Timeframe

Back = Annotated[Days, form("Days back", "How many days of candles to bring up to date and look at.", 60)]


@flow(
    name="signals",
    flow_run_name="signals-{timeframe}",
    retries=0,
    persist_result=False,
    task_runner=ThreadPoolTaskRunner(max_workers=AT_ONCE),  # type: ignore[arg-type]
)
def signals(
    symbols: Symbols,
    timeframe: Bar = Timeframe.H1,
    refresh: Refresh = "exchange",
    days: Back = 60,
    end: End = None,
) -> list[Analysed]:
    """Bring the candles of some symbols up to date and give each its signal.

    It is the analyse flow with a short form, stores and tells the same, and ends in the same states; asked for
    while another is at work, it waits. The table ``signals-`` with the timeframe has a row for each symbol.
    """
    return analyse.fn(symbols, timeframe, days=days, end=end, refresh=refresh)
