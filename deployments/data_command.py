"""``tradeflows data`` and ``tradeflows quarantine``: what is stored, what is missing, what was put aside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from deployments import show
from deployments.running import HomeFolder, Traceback, prepared, told, utc
from tasks.settings import Settings
from trading.candles import empty
from trading.errors import InvalidRequest
from trading.window import Timeframe, Window

if TYPE_CHECKING:
    from tasks.store import Store

data = typer.Typer(help="What is stored, what is missing, and how good it is.", no_args_is_help=True)
quarantine = typer.Typer(help="Rows that were put aside: look at them, release one.", no_args_is_help=True)

Symbol = Annotated[str, typer.Argument(help="Symbol, such as BTCUSDT")]
Symbols = Annotated[list[str] | None, typer.Argument(help="Symbols; none for all")]
Bar = Annotated[str, typer.Option("--timeframe", "-t", help="Length of a bar, 1m to 1d")]
RowId = Annotated[str, typer.Argument(help="Id of the row, or as much of its start as only it has")]
Moment = Annotated[datetime | None, typer.Option(formats=show.FORMATS, metavar="DATE", help="UTC")]


@data.command("status")
def data_status(symbols: Symbols = None, home: HomeFolder = None, traceback: Traceback = False) -> None:
    """Per series: first, last, rows, gaps, freshness, quarantined; and the sources that fail."""
    from tasks import circuit, ledger

    with told(traceback), _opened(home) as (settings, store):
        rows = [one for one in ledger.summary(store) if not symbols or one.symbol in symbols]
        show.series(Console(), rows, settings, datetime.now(UTC))
        show.circuits(Console(), circuit.every(store.documents))


@data.command("gaps")
def data_gaps(symbols: Symbols = None, home: HomeFolder = None, traceback: Traceback = False) -> None:
    """Confirmed gaps: bars that the source, asked again, does not have."""
    from tasks import gaps, ledger

    with told(traceback), _opened(home) as (_, store):
        rows = [
            [
                one.symbol,
                one.timeframe,
                f"{known.gap.start:%Y-%m-%d %H:%M}",
                f"{known.gap.end:%Y-%m-%d %H:%M}",
                f"{known.gap.bars:,}",
                str(known.asked),
                known.source,
            ]
            for one in ledger.summary(store)
            if not symbols or one.symbol in symbols
            for known in gaps.find(store, one.symbol, one.timeframe)
        ]
        columns = ("symbol", "bar", "from (UTC)", "to", "bars", "asked", "source")
        Console().print(show.table("Confirmed gaps", columns, rows, right=("bars", "asked")))
        if not rows:
            Console().print("None.")


@data.command("corrections")
def data_corrections(
    symbol: Symbol, timeframe: Bar = "1h", home: HomeFolder = None, traceback: Traceback = False
) -> None:
    """Candles that the source changed, or gave, after their window had been approved."""
    from tasks.store import corrections

    with told(traceback), _opened(home) as (_, store):
        bar = Timeframe.parse(timeframe)
        rows = [
            [
                f"{one.open_time:%Y-%m-%d %H:%M}",
                " ".join(f"{value:g}" for value in one.old) if one.old else "missing",
                " ".join(f"{value:g}" for value in one.new),
                f"{one.revision.at:%Y-%m-%d %H:%M}",
                one.revision.source,
            ]
            for one in corrections(store, symbol, bar.value)
        ]
        columns = ("open (UTC)", "was", "is", "seen", "from")
        Console().print(show.table(f"Late corrections of {symbol} {bar.value} (o h l c v)", columns, rows))
        if not rows:
            Console().print("None.")


@data.command("export")
def data_export(
    symbol: Symbol,
    to: Annotated[Path, typer.Option(help="Parquet file to write")],
    timeframe: Bar = "1h",
    start: Moment = None,
    end: Moment = None,
    dataset: Annotated[str | None, typer.Option(help="Digest of a frozen dataset: its candles, as they were")] = None,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Write stored candles as Parquet for other tools: open_time (UTC), open, high, low, close, volume."""
    from tasks import datasets
    from tasks.store import read_candles, series

    with told(traceback), _opened(home) as (_, store):
        bar = Timeframe.parse(timeframe)
        if dataset is not None:
            frozen = datasets.find(store, dataset)
            if symbol not in frozen.symbols:
                raise InvalidRequest(f"dataset {dataset[:12]} holds {', '.join(frozen.symbols)} and not {symbol}")
            candles, mode = datasets.load(store, frozen)[symbol], frozen.data_mode
        else:
            known = next((one for one in series(store) if (one.symbol, one.timeframe) == (symbol, bar.value)), None)
            if known is None:
                raise InvalidRequest(f"the store holds no candles of {symbol} {bar.value}; see: tradeflows data status")
            first, last = bar.floor(utc(start) or known.first), bar.floor(utc(end) or known.last + bar.delta)
            candles, mode = read_candles(store, Window(symbol, bar, first, last)), known.data_mode
        to.parent.mkdir(parents=True, exist_ok=True)
        candles.attrs["data_mode"] = mode
        written = to.with_name(to.name + ".tmp")
        candles.reset_index().to_parquet(written)
        written.replace(to)
        Console().print(f"{len(candles):,} {show.mode(mode)} candles in {to}", soft_wrap=True)


@quarantine.command("list")
def quarantine_list(
    symbols: Symbols = None,
    status: Annotated[str | None, typer.Option(help="held, healed or released; none for all")] = "held",
    limit: Annotated[int, typer.Option(min=1, help="Newest rows to show per series")] = 20,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """How many rows per series and reason, and the newest of them."""
    from tasks import quarantine as rows_aside

    with told(traceback), _opened(home) as (_, store):
        wanted = None if status in {None, "all"} else status
        if wanted not in {None, *rows_aside.STATUSES}:
            raise InvalidRequest(f"{status!r} is not a status; use {', '.join(rows_aside.STATUSES)} or all")
        counts = rows_aside.counts(store, status=wanted)
        chosen = {key: reasons for key, reasons in counts.items() if not symbols or key.split("|")[0] in symbols}
        console = Console()
        if not chosen:
            console.print(f"No {wanted or ''} rows in quarantine.".replace("  ", " "))
        for key, reasons in sorted(chosen.items()):
            symbol, bar = key.rsplit("|", 1)
            listed = rows_aside.find(store, symbol, bar, wanted)
            told_reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
            title = f"{symbol} {bar}: {len(listed)} {wanted or ''} rows ({told_reasons})".replace("  ", " ")
            show.aside(console, title, listed[-limit:])


@quarantine.command("show")
def quarantine_show(name: RowId, home: HomeFolder = None, traceback: Traceback = False) -> None:
    """One row with everything that is known of it, and the stored candles around it."""
    from tasks import quarantine as rows_aside
    from tasks.store import read_candles

    with told(traceback), _opened(home) as (_, store):
        row = rows_aside.show(store, name)
        symbol, bar = row["series"].rsplit("|", 1)
        timeframe = Timeframe(bar)
        try:
            near = timeframe.floor(row["open_time"])
            around = Window(symbol, timeframe, near - 3 * timeframe.delta, near + 4 * timeframe.delta)
            stored = read_candles(store, around)
        except OverflowError:  # the row's time is nonsense, at an end of what a date can be
            stored = empty()
        show.aside_row(Console(), row, stored)


@quarantine.command("release")
def quarantine_release(
    name: RowId,
    note: Annotated[str, typer.Option(help="Why the row is right; kept with it")],
    replace: Annotated[bool, typer.Option("--replace", help="Even where the store holds another candle")] = False,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Put a held row into the store, because you looked and it is right; what it replaces can be undone."""
    from tasks import quarantine as rows_aside

    with told(traceback), _opened(home) as (_, store):
        row = rows_aside.release(store, name, note=note, now=datetime.now(UTC), replace=replace)
        Console().print(f"Released: the candle of {row['open_time']:%Y-%m-%d %H:%M} UTC is in {row['series']} now.")


@contextmanager
def _opened(home: Path | None) -> Iterator[tuple[Settings, Store]]:
    from tasks.store import configured_store

    settings = prepared(home)
    with configured_store(settings) as store:
        yield settings, store
