"""Analyse: the champion and the technical rules give each symbol a signal, stored and reported."""

from __future__ import annotations

from prefect import flow

from flows.ingest import bring_up_to_date
from flows.parameters import Days, End, Refresh, Start, Symbols
from tasks import reports
from tasks.analysing import Analysed, analyse_task
from tasks.periods import run_moment, span
from trading.errors import DataError
from trading.window import Timeframe


@flow(name="analyse", flow_run_name="analyse-{timeframe}", retries=0, persist_result=False)
def analyse(
    symbols: Symbols,
    timeframe: Timeframe = Timeframe.H1,
    days: Days = 730,
    start: Start = None,
    end: End = None,
    refresh: Refresh = None,
) -> list[Analysed]:
    """Analyse the last finished bar of each symbol.

    The model is the champion trained for exactly this set of symbols; where there is none, the rules
    speak alone and the analysis says so. One symbol's failure does not stop the others; the run then
    ends Failed.

    Args:
        symbols: Symbols as the source spells them, such as BTCUSDT.
        timeframe: Length of a bar.
        days: How many days to look back where no start is given.
        start: Open time of the first bar (UTC). Empty: so many days back.
        end: End of the last bar (UTC). Empty: the last bar that is over when the run is due.
        refresh: Source to bring the candles up to date from first. Empty: use what is stored.
    """
    moment = run_moment()
    first, last = span(timeframe, start, end, days, moment)
    if refresh is not None:
        bring_up_to_date(symbols, timeframe, refresh, first, last, moment)
    rows, errors = analyse_task(symbols, symbols, timeframe, first, last, moment)
    _publish(timeframe, rows, errors)
    if errors:
        raise DataError("; ".join(errors))
    return rows


def _publish(timeframe: Timeframe, rows: list[Analysed], errors: list[str]) -> None:
    table = [
        {
            "symbol": row.symbol,
            "signal": row.signal,
            "confidence": f"{row.confidence:.2f}",
            "price": f"{row.price:g}",
            "bar closed": row.timestamp,
            "data": row.data_mode,
            "model": row.model_version or "none",
        }
        for row in rows
    ]
    text = [f"# Analysis {timeframe.value}", reports.markdown_table(table)]
    for row in rows:
        text += [f"## {row.symbol}: {row.signal}", *(f"- {reason}" for reason in row.reasons)]
    if errors:
        text += ["## Not analysed", *(f"- {error}" for error in errors)]
    signals = ", ".join(f"{row.symbol} {row.signal}" for row in rows) or "none"
    reports.markdown(f"analyse-{timeframe.value}", "\n\n".join(text), signals[:200])
