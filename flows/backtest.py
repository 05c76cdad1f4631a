"""Backtest: the champion and the rules against buy-and-hold, over approved candles, with costs."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows.ingest import bring_up_to_date
from flows.parameters import Cash, Days, End, FeeRate, Refresh, SlippageRate, Start, Symbols
from tasks import reports
from tasks.backtesting import Backtested, BacktestRequest, backtest_task
from tasks.periods import run_moment, span
from tasks.training import select_task
from trading.window import Timeframe


@flow(name="backtest", flow_run_name="backtest-{timeframe}", retries=0, persist_result=False)
def backtest(
    symbols: Symbols,
    timeframe: Timeframe = Timeframe.H1,
    days: Days = 730,
    start: Start = None,
    end: End = None,
    refresh: Refresh = None,
    fee_rate: FeeRate = 0.001,
    slippage_rate: SlippageRate = 0.0005,
    cash: Cash = 10_000.0,
) -> Backtested:
    """Decide on the close, fill on the next open, pay fees and slippage, compare with buy-and-hold.

    The champion trades only bars that it was not trained on. An identical request returns its stored
    result.

    Args:
        symbols: Symbols as the source spells them, such as BTCUSDT.
        timeframe: Length of a bar.
        days: How many days to look back where no start is given.
        start: Open time of the first bar (UTC). Empty: so many days back.
        end: End of the last bar (UTC). Empty: the last bar that is over when the run is due.
        refresh: Source to bring the candles up to date from first. Empty: use what is stored.
        fee_rate: Fee per side as a share of the notional, 0.001 for 0.1 %.
        slippage_rate: Slippage per side as a share of the price.
        cash: Starting cash of each strategy in the quote currency.
    """
    moment = run_moment()
    first, last = span(timeframe, start, end, days, moment)
    if refresh is not None:
        bring_up_to_date(symbols, timeframe, refresh, first, last, moment)
    dataset = select_task(symbols, timeframe, first, last, moment)
    found = backtest_task(dataset, BacktestRequest(fee_rate, slippage_rate, cash), moment)
    _publish(timeframe, found)
    return found


def _publish(timeframe: Timeframe, found: Backtested) -> None:
    table = [
        {
            "symbol": row["symbol"],
            "strategy": row["strategy"],
            "return": f"{row['total_return']:+.1%}",
            "Sharpe": "-" if row["sharpe"] is None else f"{row['sharpe']:.2f}",
            "max drawdown": f"{row['max_drawdown']:.1%}",
            "trades": row["trades"],
            "exposure": f"{row['exposure']:.0%}",
        }
        for row in found.rows
    ]
    text = [
        f"# Backtest {timeframe.value}",
        f"Data: **{found.data_mode}**. {'Reused: an identical request was answered before.' if found.reused else ''}",
        f"[MLflow run]({found.run_link})",
        reports.markdown_table(table),
        *(f"- {reason}" for reason in found.absent),
    ]
    reports.markdown(f"backtest-{timeframe.value}", "\n\n".join(text), f"{len(table)} strategy runs")
    reports.table(f"strategies-{timeframe.value}", found.rows, "every figure of every strategy run")
    for path in found.pictures:
        symbol = Path(path).stem.lower().replace("_", "-").replace(".", "-")
        reports.picture(f"equity-{symbol}-{timeframe.value}", Path(path), f"Equity of {Path(path).stem}")
